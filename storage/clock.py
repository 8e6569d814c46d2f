"""Clock: a queue with a second chance (Corbato 1968, as FIFO with reinsertion).

A use sets a mark. Who would leave with a mark loses it and becomes the newest instead. A use costs
one byte written, not six links as in exact LRU.

Threads: one owner.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray

from storage.array import Region
from storage.queue import Queue, link, unlink
from storage.rows import Positions


@nb.njit(nogil=True, cache=True)
def _victims(before: Any, after: Any, marks: Any, pins: Any, out: Any) -> Any:
    found = 0
    for _ in range(2):  # after one round nobody has a mark
        node = np.int64(before[0])
        while found < out.shape[0] and node != 0:
            previous = np.int64(before[node])
            if pins[node - 1] == 0:
                unlink(before, after, node)
                if marks[node - 1]:
                    marks[node - 1] = 0
                    link(before, after, node, 0)
                else:
                    out[found] = node - 1
                    found += 1
            node = previous
    return found


class Marked(Queue):
    """A `Queue` with a mark for each position: set when it is used, clear when it comes."""

    bytes_per_position = Queue.bytes_per_position + 1

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._regions.append(Region(capacity + 1, np.uint8))
        self._marks = self._regions[-1].array

    def insert(self, positions: Positions) -> None:
        """Newest, the last of ``positions`` first, without a mark."""
        self._marks[positions] = 0
        super().insert(positions)

    def touch(self, positions: Positions) -> None:
        """Mark them."""
        self._marks[positions] = 1

    def demote(self, positions: Positions) -> None:
        """Next to leave, without a mark, the last of ``positions`` first."""
        self._marks[positions] = 0
        super().demote(positions)

    def move(self, sources: Positions, targets: Positions) -> None:
        """Put ``targets`` where ``sources`` stand in the queue, with their marks."""
        self._marks[targets] = self._marks[sources]
        super().move(sources, targets)


class Clock(Marked):
    """See the module's docstring."""

    def victims(self, count: int, pins: NDArray[np.uint16]) -> Positions:
        """Oldest without a mark first."""
        out = np.empty(count, np.int64)
        return out[: _victims(self._before, self._after, self._marks, pins, out)]

    def order(self) -> Positions:
        """As `victims` would go on, on a copy."""
        out = np.empty(len(self._marks), np.int64)
        copies = (self._before.copy(), self._after.copy(), self._marks.copy())
        return out[: _victims(*copies, np.zeros(len(out), np.uint16), out)]
