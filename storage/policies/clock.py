"""Clock: a queue with a second chance (Corbato 1968, as FIFO with reinsertion).

A use sets a mark. Who would leave with a mark loses it and becomes the newest instead. A use costs
one byte written, not six links as in exact LRU.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from storage.kernel import inlined
from storage.policies.fifo import LIST, Fifo
from storage.policies.layout import Layout
from storage.policies.links import BEFORE, link, replace, unlink


class ClockArrays(NamedTuple):
    """Of Clock, see there."""

    links: NDArray[np.int32]
    marks: NDArray[np.uint8]


class Clock(ClockArrays):
    """See the module's docstring. marks: by position, whether it was used since it was looked at
    last."""

    begin = Fifo.begin
    expect = Fifo.expect
    remove = Fifo.remove
    resize = Fifo.resize

    @staticmethod
    def layout(capacity: int) -> Layout:
        """The arrays."""
        return Layout({**LIST, "marks": (np.uint8, 0)})

    @staticmethod
    @inlined
    def insert(state: Any, positions: Any) -> None:
        """Newest, the last of ``positions`` first, without a mark."""
        for i in range(positions.shape[0]):
            state.marks[positions[i]] = 0
            link(state.links, positions[i] + 1, 0)

    @staticmethod
    @inlined
    def touch(state: Any, positions: Any) -> None:
        """Mark them."""
        for i in range(positions.shape[0]):
            state.marks[positions[i]] = 1

    @staticmethod
    @inlined
    def demote(state: Any, positions: Any) -> None:
        """Next to leave, without a mark, the last of ``positions`` first."""
        for i in range(positions.shape[0]):
            state.marks[positions[i]] = 0
            unlink(state.links, positions[i] + 1)
            link(state.links, positions[i] + 1, state.links[0, BEFORE])

    @staticmethod
    @inlined
    def move(state: Any, sources: Any, targets: Any) -> None:
        """Put ``targets`` where ``sources`` stand, with their marks."""
        for i in range(sources.shape[0]):
            state.marks[targets[i]] = state.marks[sources[i]]
            replace(state.links, sources[i] + 1, targets[i] + 1)

    @staticmethod
    @inlined
    def victims(state: Any, pins: Any, out: Any) -> Any:
        """Oldest without a mark first."""
        found = 0
        for _ in range(2):  # after one round nobody has a mark
            node = np.int64(state.links[0, BEFORE])
            while found < out.shape[0] and node != 0:
                newer = np.int64(state.links[node, BEFORE])
                if pins[node - 1] == 0:
                    unlink(state.links, node)
                    if state.marks[node - 1]:
                        state.marks[node - 1] = 0
                        link(state.links, node, 0)
                    else:
                        out[found] = node - 1
                        found += 1
                node = newer
        return found
