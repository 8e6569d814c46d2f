"""Dues: which rows of a cache a coming batch needs, and which batch that is.

By position the number of the batch that uses the row next, as far as is known (`storage.window`).
Such a row also has the top bit of its pins set, `NEEDED`, so that every policy steps over it. Only
when nothing else is left does it go, the one needed furthest in the future first (Belady 1966).

A row that was read ahead of its use says so until then: that use is a miss, though the row is here.

Threads: one owner.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray

from storage.array import Region
from storage.rows import Positions
from storage.window import Batches

NEEDED = np.uint16(1 << 15)
"""In an array of pins: a coming batch needs the row. The bits below count who has it pinned."""
PINNED = np.uint16((1 << 15) - 1)

DUE_BYTES = 4
"""Of a position."""

_AHEAD = np.uint32(1 << 31)
_NUMBER = np.uint32((1 << 31) - 1)


@nb.njit(nogil=True, cache=True)
def _set(due: Any, pins: Any, positions: Any, batches: Any, mark: Any) -> None:
    for i in range(positions.shape[0]):
        position = positions[i]
        if batches[i]:
            due[position] = batches[i] | mark
            pins[position] |= NEEDED
        else:
            due[position] = 0
            pins[position] &= PINNED


@nb.njit(nogil=True, cache=True)
def _choose(due: Any, pins: Any, bound: Any, at_bound: Any, out: Any) -> Any:
    """The rows needed after batch ``bound``, and the first ``at_bound`` of those needed at it."""
    found = 0
    for position in range(pins.shape[0]):
        if pins[position] == NEEDED:
            number = np.int64(due[position] & _NUMBER)
            if number == bound and at_bound > 0:
                at_bound -= 1
            elif number <= bound:
                continue
            out[found] = position
            found += 1
    return found


class Dues:
    """See the module's docstring. pins: (C,) uint16 of the cache, shared with it.

    Nothing is known, and every method is a cheap no, until `begin`. ``past``: the last batch whose
    turn it was.
    """

    def __init__(self, pins: NDArray[np.uint16]) -> None:
        self.past = 0
        self._pins = pins
        self._region: Region | None = None
        self._due: Batches = np.zeros(0, np.uint32)

    def begin(self) -> None:
        """Take the memory, `DUE_BYTES` a position."""
        self.past = 0
        self._region = Region(len(self._pins), np.uint32)
        self._due = self._region.array

    def end(self) -> None:
        """No batch needs anything any more."""
        if self._region is not None:
            self._pins &= PINNED
            self._due, self._region = np.zeros(0, np.uint32), None

    def set(self, positions: Positions, batches: Batches, *, ahead: bool = False) -> None:
        """These rows are used next in these batches; 0: in none that is known. ahead: see above."""
        if self._region is not None:
            _set(self._due, self._pins, positions, batches, _AHEAD if ahead else np.uint32(0))

    def at(self, positions: Positions) -> Batches:
        """(U,) uint32 copy: the batch that needs each row, 0 for none."""
        if self._region is None:
            return np.zeros(len(positions), np.uint32)
        batches: Batches = self._due[positions] & _NUMBER
        return batches

    def ahead(self, positions: Positions) -> NDArray[np.bool_]:
        """(U,) bool: which were read ahead and not used yet; none of those at -1."""
        if self._region is None:
            return np.zeros(len(positions), np.bool_)
        found: NDArray[np.bool_] = (self._due[positions] > _NUMBER) & (positions >= 0)
        return found

    def unused(self) -> NDArray[np.bool_]:
        """(C,) bool, or empty: all positions with a row that was read ahead and not used yet."""
        return self._due > _NUMBER

    def arrived(self, positions: Positions) -> None:
        """These rows are no longer ahead of their use."""
        if self._region is not None:
            self._due[positions] &= _NUMBER

    def furthest(self, count: int, end: int) -> Positions:
        """Up to ``count`` needed, unpinned positions below ``end``, ascending: those needed last.

        Of those needed in one batch the lowest positions.
        """
        if self._region is None:
            return np.zeros(0, np.int64)
        due, pins = self._due[:end], self._pins[:end]
        numbers = due[pins == NEEDED] & _NUMBER
        count = min(count, len(numbers))
        if count == 0:
            return np.zeros(0, np.int64)
        first = int(numbers.min())
        needed = np.bincount(numbers - np.uint32(first))
        later = np.cumsum(needed[::-1])[::-1]  # by batch: needed in it or after it
        bound = int(np.flatnonzero(later >= count)[-1])
        at_bound = count - int(later[bound] - needed[bound])
        out = np.empty(count, np.int64)
        return out[: _choose(due, pins, first + bound, at_bound, out)]

    def move(self, sources: Positions, targets: Positions) -> None:
        """The rows at ``sources`` now stand at ``targets``."""
        if self._region is not None:
            self._due[targets] = self._due[sources]
            self._pins[targets] = self._pins[sources]
            self.clear(sources)

    def clear(self, positions: Positions) -> None:
        """No batch needs these positions any more."""
        if self._region is not None:
            self._due[positions] = 0
            self._pins[positions] &= PINNED

    def release(self, start: int) -> None:
        """Give back the memory from position ``start`` on."""
        if self._region is not None:
            self._region.release(start)

    def check(self) -> list[str]:
        """What is wrong: a row is kept for no batch, or for one that is past."""
        needed = (self._pins & NEEDED) != 0
        if self._region is None:
            return ["rows are kept for batches that nobody knows"] if needed.any() else []
        number = self._due & _NUMBER
        wrong = []
        if not np.array_equal(needed, number > 0):
            wrong.append("rows are kept for no batch, or needed and not kept")
        if (number[needed] <= self.past).any():
            wrong.append(f"rows are kept for batch {self.past} or before, which is past")
        return wrong
