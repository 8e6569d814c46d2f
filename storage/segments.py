"""Segments: how much of each segment of a table's log still counts, and which may be freed.

A segment is 64 consecutive block numbers. Its *live* rows are those that the index leads to; the
rest are stale: written again elsewhere, deleted, or expired. A segment is *emptied* when its live
rows have been written again at the end of the log, and *freed* (removed from the disk) when nothing
can need it any more.

When that is: a cut says that the blocks below its end count, and shows of each key the version in
the highest of them. Let ``copies`` be the end of the log just after a segment was emptied. A cut
whose end is at or below the segment's first block never looks into it. A cut whose end is at least
``copies`` shows, of each key that was live in the segment, the copy or something newer; and of each
key that was stale in it, what had made it stale, which is higher. So a segment may be freed once
every cut that is kept (the last one, and those of the checkpoints) is of one kind or the other. In
particular, a row that a cut shows in block 5 and that was written again, uncut, in block 9 keeps
block 5 alive until a later cut, though nothing of it is live.

Threads: one owner.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numba as nb
import numpy as np

from storage.block import SEGMENT_BITS
from storage.places import Places
from storage.rows import Positions

_FIRST = 1024
# Kept free for what compaction writes between two writes of rows.
_AHEAD = 256
_BYTES = 4 + 1 + 8
_LIVING, _STUCK = -1, -2


@nb.njit(nogil=True, cache=True)
def _move(live: Any, base: Any, shift: Any, before: Any, after: Any) -> None:
    for i in range(before.shape[0]):
        if before[i] >= 0:
            live[(before[i] >> shift) - base] -= 1
    for i in range(after.shape[0]):
        if after[i] >= 0:
            live[(after[i] >> shift) - base] += 1


class Segments:
    """See the module's docstring. place_bits: bits of an address that tell rows of a block apart.
    begin: no block is lower.

    Arrays by segment number, from ``_base`` on: live rows, blocks (0: it is not there), and
    ``copies`` (-1: not emptied, -2: not to be emptied). They grow in `reserve` only, so that a
    budget can be asked first. ``places``: where on the disk their blocks lie.

    ``blocks``: how many there are, ``emptied_blocks`` of them in emptied segments, which wait to be
    freed. Counted as they come and go: any thread may read them, at every step, at any size.
    """

    def __init__(self, place_bits: int, begin: int = 0) -> None:
        self._shift = place_bits + SEGMENT_BITS
        self.places = Places()
        self.blocks = self.emptied_blocks = 0
        self._base = begin >> SEGMENT_BITS
        self._live = np.zeros(_FIRST, np.int32)
        self._blocks = np.zeros(_FIRST, np.uint8)
        self._copies = np.full(_FIRST, _LIVING, np.int64)

    @property
    def bytes(self) -> int:
        """RAM held."""
        return len(self._live) * _BYTES + self.places.bytes

    @property
    def span(self) -> int:
        """Segments from the lowest to the highest, those between that are gone included."""
        there = np.flatnonzero(self._blocks)
        return int(there[-1] - there[0]) + 1 if len(there) else 0

    @property
    def present(self) -> Positions:
        """(n,) int64 numbers of the segments that are there, ascending."""
        return self._base + np.flatnonzero(self._blocks)

    def growth_bound(self, end: int) -> int:
        """Bytes that `reserve` of blocks below ``end`` adds, a copy of one array included."""
        have, need = len(self._live), self._needed(end)
        more = 0 if need <= have else _BYTES * (need - have) + 8 * have
        return more + self.places.growth_bound(self._base << SEGMENT_BITS, end)

    def reserve(self, end: int) -> None:
        """Take memory for the segments of all blocks below ``end``."""
        self.places.reserve(self._base << SEGMENT_BITS, end)
        have = len(self._live)
        if (more := self._needed(end) - have) > 0:
            self._live = np.concatenate((self._live, np.zeros(more, np.int32)))
            self._blocks = np.concatenate((self._blocks, np.zeros(more, np.uint8)))
            self._copies = np.concatenate((self._copies, np.full(more, _LIVING, np.int64)))

    @property
    def reserved(self) -> int:
        """The lowest block that there is no memory for."""
        return self._base + len(self._live) << SEGMENT_BITS

    def add(self, numbers: Positions) -> None:
        """Blocks of these numbers are there now, which were not; they must be reserved."""
        np.add.at(self._blocks, (numbers >> SEGMENT_BITS) - self._base, np.uint8(1))
        self.blocks += len(numbers)

    def move(self, before: Positions, after: Positions) -> None:
        """Rows have other addresses: (U,) each, -1 for none."""
        _move(self._live, self._base, self._shift, before, after)

    def count(self, segment: int) -> int:
        """Blocks of a segment."""
        return int(self._blocks[segment - self._base])

    def holds(self, segment: int) -> bool:
        """Whether a segment is there and neither emptied nor given up."""
        place = segment - self._base
        return place >= 0 and bool(self._blocks[place]) and bool(self._copies[place] == _LIVING)

    def live(self, segment: int) -> int:
        """Live rows of a segment that is there."""
        return int(self._live[segment - self._base])

    def emptiest(self, count: int, end: int, *, begin: int = 0) -> Positions:
        """Up to ``count`` segments with the fewest live rows a block, of those not emptied that
        lie wholly between the blocks ``begin`` and ``end``, emptiest first."""
        shares = self._live / np.maximum(self._blocks, 1)
        shares[(self._blocks == 0) | (self._copies != _LIVING)] = np.inf
        shares[max(0, (end >> SEGMENT_BITS) - self._base) :] = np.inf
        shares[: max(0, -(-begin // (1 << SEGMENT_BITS)) - self._base)] = np.inf
        count = min(count, int(np.isfinite(shares).sum()))
        some = np.argpartition(shares, count - 1)[:count] if count else np.empty(0, np.int64)
        return self._base + some[np.argsort(shares[some], kind="stable")]

    def mark_emptied(self, segment: int, copies: int) -> None:
        """Its live rows stand again below block ``copies``."""
        assert self.live(segment) == 0, "a segment was called empty while it had live rows"
        self.emptied_blocks += self.count(segment)
        self._copies[segment - self._base] = copies

    def mark_dead(self, end: int) -> None:
        """Segments below block ``end`` without a live row are emptied as they are."""
        dead = (self._live == 0) & (self._blocks > 0) & (self._copies == _LIVING)
        dead[max(0, (end >> SEGMENT_BITS) - self._base) :] = False
        self._copies[dead] = end
        self.emptied_blocks += int(self._blocks[dead].sum(dtype=np.int64))

    def mark_stuck(self, segment: int) -> None:
        """A row of it cannot be read: leave it where it is."""
        self._copies[segment - self._base] = _STUCK

    def freeable(self, ends: Iterable[int]) -> Positions:
        """(n,) int64 emptied segments that no cut with one of these ends needs."""
        emptied = np.flatnonzero(self._copies >= 0)
        first = self._base + emptied << SEGMENT_BITS
        free = np.ones(len(emptied), np.bool_)
        for end in ends:
            free &= (end <= first) | (end >= self._copies[emptied])
        return self._base + emptied[free]

    def drop(self, segments: Positions) -> None:
        """These emptied segments are gone from the disk."""
        gone_blocks = int(self._blocks[segments - self._base].sum(dtype=np.int64))
        self.blocks -= gone_blocks
        self.emptied_blocks -= gone_blocks
        self._blocks[segments - self._base] = 0
        self._copies[segments - self._base] = _LIVING
        there = np.flatnonzero(self._blocks)
        # What is gone at the front costs no memory once it is half of all.
        gone = int(there[0]) if len(there) else 0
        self.places.release(self._base + gone << SEGMENT_BITS)
        if gone > max(_FIRST, len(self._blocks) // 2):
            self._base += gone
            self._live = self._live[gone:].copy()
            self._blocks = self._blocks[gone:].copy()
            self._copies = self._copies[gone:].copy()

    def _needed(self, end: int) -> int:
        """Entries for the blocks below ``end``: those there are, or a quarter more at least."""
        have, need = len(self._live), (end - 1 >> SEGMENT_BITS) - self._base + 1 + _AHEAD
        return have if need <= have else max(need, have + have // 4) + _FIRST
