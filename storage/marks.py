"""Marks: what a cache keeps of each position beside the row: its key, step, pins and dirty mark.

Memory is committed when it is first touched, and its end can be given back.

Threads: one owner; whoever has a position pinned may set its step and dirty mark meanwhile.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np

from storage.array import Region
from storage.rows import Positions

MARK_BYTES = 8 + 4 + 2 + 1
"""Of one position."""


class Marks:
    """For ``capacity`` positions C, zero at first.

    steps: (C,) uint32. dirty: (C,) uint8. pins: (C,) uint16, see `storage.due`. keys: (C,) uint64.
    """

    def __init__(self, capacity: int) -> None:
        kinds = (np.uint32, np.uint8, np.uint16, np.uint64)
        self._regions = [Region(capacity, kind) for kind in kinds]
        self.steps, self.dirty, self.pins, self.keys = (region.array for region in self._regions)

    def dirty_positions(self, start: int, end: int, count: int) -> Positions:
        """(n,) int64, the first ``count`` dirty positions from ``start`` to below ``end``."""
        out = np.empty(min(count, end), np.int64)
        return out[: _find_dirty(self.dirty[:end], start, out)]

    def release(self, start: int) -> None:
        """The positions from ``start`` on hold nothing any more: give their memory back."""
        for region in self._regions:
            region.release(start)


@nb.njit(nogil=True, cache=True)
def _find_dirty(dirty: Any, start: Any, out: Any) -> Any:
    found = 0
    for position in range(start, dirty.shape[0]):
        if found == out.shape[0]:
            break
        if dirty[position]:
            out[found] = position
            found += 1
    return found
