"""Sieve: a queue, and a hand that goes over it and lets marked ones stay where they are.

Source: Zhang et al., "SIEVE is simpler than LRU", NSDI 2024. The hand goes from the oldest to the
newest and round again; who has a mark loses it and stays, who has none leaves. Unlike in Clock, who
stays keeps its place, so new ones that are not used again leave soon.

Threads: one owner.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray

from storage.clock import Marked
from storage.queue import unlink
from storage.rows import Positions


@nb.njit(nogil=True, cache=True)
def _victims(before: Any, after: Any, marks: Any, hand: Any, pins: Any, out: Any) -> Any:
    found, rounds = 0, 0
    node = np.int64(hand[0])
    # From anywhere, all marks are gone after one round, and all have been seen again after two.
    while found < out.shape[0] and rounds < 3:
        if node == 0:
            node = np.int64(before[0])
            rounds += 1
            if node == 0:
                break
        previous = np.int64(before[node])
        if pins[node - 1] == 0:
            if marks[node - 1]:
                marks[node - 1] = 0
            else:
                unlink(before, after, node)
                out[found] = node - 1
                found, rounds = found + 1, 0
        node = previous
    hand[0] = node
    return found


@nb.njit(nogil=True, cache=True)
def _pass_over(before: Any, hand: Any, leaving: Any, positions: Any) -> None:
    """Move the hand on from those of the positions that are leaving their place."""
    leaving[positions + 1] = 1
    while hand[0] != 0 and leaving[hand[0]]:
        hand[0] = before[hand[0]]
    leaving[positions + 1] = 0


class Sieve(Marked):
    """See the module's docstring. ``_hand``: (1,) the node to look at next, 0 for the oldest."""

    bytes_per_position = Marked.bytes_per_position + 1

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._hand = np.zeros(1, np.int64)
        self._leaving = np.zeros(capacity + 1, np.uint8)

    def demote(self, positions: Positions) -> None:
        """Next to leave, without a mark, the last of ``positions`` first."""
        super().demote(positions)
        if len(positions):
            self._hand[0] = 0

    def remove(self, positions: Positions) -> None:
        """Take out of the queue; the hand moves on where it pointed at one of them."""
        _pass_over(self._before, self._hand, self._leaving, positions)
        super().remove(positions)

    def move(self, sources: Positions, targets: Positions) -> None:
        """Put ``targets`` where ``sources`` stand in the queue, with their marks, and the hand."""
        here = np.flatnonzero(sources + 1 == self._hand[0])
        super().move(sources, targets)
        if len(here):
            self._hand[0] = targets[here[0]] + 1

    def victims(self, count: int, pins: NDArray[np.uint16]) -> Positions:
        """In the order in which the hand comes by those without a mark."""
        out = np.empty(count, np.int64)
        lists = (self._before, self._after, self._marks, self._hand)
        return out[: _victims(*lists, pins, out)]

    def order(self) -> Positions:
        """As `victims` would go on, on a copy."""
        out = np.empty(len(self._marks), np.int64)
        lists = (self._before, self._after, self._marks, self._hand)
        copies = tuple(array.copy() for array in lists)
        return out[: _victims(*copies, np.zeros(len(out), np.uint16), out)]
