"""Sieve: a queue, and a hand that goes over it and lets marked ones stay where they are.

Source: Zhang et al., "SIEVE is simpler than LRU", NSDI 2024. The hand goes from the oldest to the
newest and round again; who has a mark loses it and stays, who has none leaves. Unlike in Clock, who
stays keeps its place, so new ones that are not used again leave soon.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from storage.kernel import inlined
from storage.policies.clock import Clock
from storage.policies.fifo import LIST, Fifo
from storage.policies.layout import Layout
from storage.policies.links import BEFORE, link, replace, unlink


class SieveArrays(NamedTuple):
    """Of Sieve, see there."""

    links: NDArray[np.int32]
    marks: NDArray[np.uint8]
    hand: NDArray[np.int64]


class Sieve(SieveArrays):
    """See the module's docstring. hand: (1,) the node to look at next, 0 for the oldest."""

    begin = Fifo.begin
    expect = Fifo.expect
    insert = Clock.insert
    touch = Clock.touch
    resize = Fifo.resize

    @staticmethod
    def layout(capacity: int) -> Layout:
        """The arrays."""
        return Layout({**LIST, "marks": (np.uint8, 0)}, {"hand": (np.int64, 1)})

    @staticmethod
    @inlined
    def demote(state: Any, positions: Any) -> None:
        """Next to leave, without a mark, the last of ``positions`` first: before the hand."""
        for i in range(positions.shape[0]):
            node = positions[i] + 1
            if state.hand[0] == node:
                state.hand[0] = state.links[node, BEFORE]
            state.marks[positions[i]] = 0
            unlink(state.links, node)
            if state.hand[0] == 0:
                link(state.links, node, state.links[0, BEFORE])
            else:
                link(state.links, node, state.hand[0])
                state.hand[0] = node

    @staticmethod
    @inlined
    def remove(state: Any, positions: Any) -> None:
        """Take out of the queue; the hand moves on where it pointed at one of them."""
        for i in range(positions.shape[0]):
            node = positions[i] + 1
            if state.hand[0] == node:
                state.hand[0] = state.links[node, BEFORE]
            unlink(state.links, node)

    @staticmethod
    @inlined
    def move(state: Any, sources: Any, targets: Any) -> None:
        """Put ``targets`` where ``sources`` stand, with their marks, and the hand."""
        for i in range(sources.shape[0]):
            if state.hand[0] == sources[i] + 1:
                state.hand[0] = targets[i] + 1
            state.marks[targets[i]] = state.marks[sources[i]]
            replace(state.links, sources[i] + 1, targets[i] + 1)

    @staticmethod
    @inlined
    def victims(state: Any, pins: Any, out: Any) -> Any:
        """In the order in which the hand comes by those without a mark."""
        found, rounds = 0, 0
        node = np.int64(state.hand[0])
        # From anywhere, all marks are gone after one round, and all have been seen after two.
        while found < out.shape[0] and rounds < 3:
            if node == 0:
                node = np.int64(state.links[0, BEFORE])
                rounds += 1
                if node == 0:
                    break
            newer = np.int64(state.links[node, BEFORE])
            if pins[node - 1] == 0:
                if state.marks[node - 1]:
                    state.marks[node - 1] = 0
                else:
                    unlink(state.links, node)
                    out[found] = node - 1
                    found, rounds = found + 1, 0
            node = newer
        state.hand[0] = node
        return found
