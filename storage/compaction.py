"""Compaction: writes what still counts in mostly stale segments again, so that they can be freed.

The log of a table may be ``TARGET`` times as long as its live rows need (beside emptied segments
that a cut still needs); what is above that is worked off, the emptiest segment first, since it
costs the fewest copies. With uniform overwriting the emptiest of a log of 1.3 times its live rows
is about half empty, so each row is written about 2.3 times in all; at 2 times (half of it live) 1.3
times. A segment that is among the last of a long gone past is emptied, too, however full it is, so
that numbers do not spread out and tombstones come to their end.

Threads: one at a time; it takes the owner's turn for what it changes, and reads the disk without.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np

from storage.block import SEGMENT_BITS, SEGMENT_BLOCKS
from storage.rows import Positions
from storage.ssd import SsdTier

TARGET = 1.3
URGENT = 1.35
OVERDUE = 1.4
_SPREAD = 8
_FULL = 0.9
_CHOSEN = 32
# Below this many blocks beyond what is needed a log is left alone.
_LEAST_BLOCKS = 2 * SEGMENT_BLOCKS

Turn = Callable[[], AbstractContextManager[None]]


class Compaction:
    """Of one table. turn: makes the caller the owner of the tier for a moment."""

    def __init__(self, ssd: SsdTier, turn: Turn) -> None:
        self._ssd = ssd
        self._turn = turn
        self._blocks = np.zeros(min(ssd.buffer_blocks, SEGMENT_BLOCKS), ssd.shape.dtype)
        self._chosen: list[int] = []

    @property
    def excess(self) -> int:
        """Blocks to work off."""
        segments = self._ssd.segments
        needed = -(-len(self._ssd) // self._ssd.shape.rows)
        excess = segments.blocks - segments.emptied_blocks - int(TARGET * needed)
        return excess if excess > _LEAST_BLOCKS else 0

    @property
    def is_urgent(self) -> bool:
        """The log is a third longer than its rows need, or more."""
        return self._is_beyond(URGENT)

    @property
    def is_overdue(self) -> bool:
        """Rows are written faster than they are worked off: their writer should help."""
        return self._is_beyond(OVERDUE)

    def step(self, room: Callable[[], int], *, everything: bool = False, begin: int = 0) -> int:
        """Empty one segment, if there is one to empty: how many bytes were read and written.

        room: says how many bytes its copies may fill; too few, and nothing is done. everything:
        even when there is no excess, as long as a segment is not nearly full. begin: the lowest
        block to look at. Raises: DiskFullError; a segment may be partly emptied, which is no harm.
        """
        with self._turn():
            segment = self._choose(everything, begin)
            if segment is None:
                return 0
            if self._ssd.shape.disk_bytes(self._ssd.segments.live(segment)) > room():
                self._chosen.clear()
                return 0
            first = segment << SEGMENT_BITS
            numbers = self._ssd.committed(first, first + SEGMENT_BLOCKS)
        moved, damaged = 0, False
        for start in range(0, len(numbers), len(self._blocks)):
            piece = numbers[start : start + len(self._blocks)]
            bad = self._ssd.read_blocks(piece, self._blocks[: len(piece)])
            damaged |= bool(bad)
            with self._turn():
                if not self._has_memory:
                    break
                moved += self._ssd.move(piece, self._blocks[: len(piece)], bad)
        with self._turn():
            self._finish(segment, damaged)
        return len(numbers) * self._ssd.shape.pages * 4096 + moved * self._ssd.shape.stored_bytes

    @property
    def _has_memory(self) -> bool:
        """For what a segment's rows take at the end; if not, the next write of rows asks for it."""
        return self._ssd.end + 2 * SEGMENT_BLOCKS <= self._ssd.segments.reserved

    def _is_beyond(self, length: float) -> bool:
        return self.excess > (length - TARGET) * len(self._ssd) / self._ssd.shape.rows

    def _choose(self, everything: bool, begin: int) -> int | None:
        ssd, segments = self._ssd, self._ssd.segments
        if not self._has_memory:
            return None
        present = segments.present
        if not everything and segments.span > _SPREAD * len(present) + _CHOSEN:
            lowest = int(present[0])
            if segments.holds(lowest) and lowest + 1 << SEGMENT_BITS <= ssd.committed_end:
                return lowest
        if not everything and not self.excess:
            return None
        while True:
            if not self._chosen:
                count = 1 + min(_CHOSEN, len(present) // _CHOSEN)
                found = segments.emptiest(count, ssd.committed_end, begin=begin)
                self._chosen = self._worthwhile(found).tolist()[::-1]
                if not self._chosen:
                    return None
            segment = self._chosen.pop()
            if segments.holds(segment) and segment << SEGMENT_BITS >= begin:
                return segment

    def _worthwhile(self, found: Positions) -> Positions:
        """Of these segments those that are not nearly full: copying must come to an end."""
        segments, rows = self._ssd.segments, self._ssd.shape.rows
        stale = [segments.live(s) < _FULL * rows * segments.count(s) for s in found.tolist()]
        return found[np.array(stale, np.bool_)]

    def _finish(self, segment: int, damaged: bool) -> None:
        segments = self._ssd.segments
        if segments.live(segment) == 0:
            segments.mark_emptied(segment, self._ssd.end)
        elif damaged:
            segments.mark_stuck(segment)
