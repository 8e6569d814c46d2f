"""Reachable: which rows of a table's log a kept cut shows, a bit for each place of each block.

A cut whose end is E shows of each key the version in the highest block below E, unless a tombstone
that was made later hides it; that one hides it from every cut. One index, replayed from end to end,
gives the versions of all cuts.

Threads: one owner.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray

from storage.address import AddressIndex
from storage.block import SEGMENT_BITS
from storage.keys import BUCKETS
from storage.log import BlockLog
from storage.losses import Losses
from storage.recovery import Recovery, sound_tombstones
from storage.rows import Positions


@nb.njit(nogil=True, cache=True)
def _mark(bits: Any, base: Any, addresses: Any, value: Any) -> Any:
    """Set bits to 1 or 0: how many changed. Addresses below 0 are none."""
    changed = 0
    for i in range(addresses.shape[0]):
        if addresses[i] >= 0:
            place = addresses[i] - base
            bit = np.uint8(1 << (place & 7))
            if (bits[place >> 3] & bit != 0) != value:
                bits[place >> 3] ^= bit
                changed += 1
    return changed


@nb.njit(nogil=True, cache=True)
def _select(bits: Any, base: Any, shift: Any, numbers: Any, chosen: Any) -> None:
    for i in range(numbers.shape[0]):
        for row in range(chosen.shape[1]):
            place = ((numbers[i] << shift) | row) - base
            chosen[i, row] = bits[place >> 3] & np.uint8(1 << (place & 7)) != 0


class Reachable:
    """See the module's docstring. ``rows``: how many versions; ``newest``: those that the
    highest end shows; ``segments``: those of the log.

    ends: of the kept cuts. losses: takes what is damaged of directory and tombstones; without it
    that is a CorruptError.
    """

    def __init__(
        self,
        log: BlockLog,
        table: str,
        place_bits: int,
        ends: Iterable[int],
        losses: Losses | None = None,
    ) -> None:
        self._losses = losses
        self._log, self._table, self._shift = log, table, place_bits
        self.rows = self.newest = 0
        recovery = Recovery(log, table, place_bits, losses)
        self._base = log.first(table) >> SEGMENT_BITS << SEGMENT_BITS << place_bits
        self._end = log.committed[table]
        places = (self._end << place_bits) - self._base
        # Pages of it that belong to numbers that are gone are never touched.
        self._bits = np.zeros(max(0, -(-places // 8)), np.uint8)
        for end in recovery.run(sorted(set(ends))):
            self.newest = len(recovery.index) - self._mark_all(recovery.index, end)
        self.segments = recovery.segments

    def select(self, numbers: Positions, rows: int) -> NDArray[np.bool_]:
        """(n, rows) whether each row of these blocks, of so many rows, is reachable."""
        chosen = np.empty((len(numbers), rows), np.bool_)
        _select(self._bits, self._base, self._shift, numbers, chosen)
        return chosen

    def blocks(self, begin: int, end: int, rows: int) -> Positions:
        """(n,) int64 numbers of the blocks from ``begin`` to below ``end`` with reachable rows."""
        numbers = np.arange(begin, min(end, self._end))
        return numbers[self.select(numbers, rows).any(axis=1)]

    def _mark_all(self, index: AddressIndex, end: int) -> int:
        """Mark what the index has, but for what a later tombstone hides: how many those are."""
        hidden = 0
        for bucket in range(BUCKETS):
            self.rows += _mark(self._bits, self._base, index.segment(bucket)[1], True)
        for made_at, keys in sound_tombstones(self._log, self._table, self._losses):
            if made_at > end:
                hidden += _mark(self._bits, self._base, index.find(keys), False)
        self.rows -= hidden
        return hidden
