"""Replica: one table's log in another log, block for block, and brought up to date later.

Nothing it writes counts before the caller commits a cut of the copy, but for `trim`, which comes
after. Blocks have the same numbers in both. Those below the end of an earlier copy are the same, as
the caller knows; blocks above it in the copy, which an interrupted run left, or others wrote, are
compared with the source byte by byte, and stay as far as they are equal.

Threads: one owner of both logs.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.block import SEGMENT_BITS, Blocks, BlockShape
from storage.errors import CorruptError
from storage.log import BlockLog
from storage.rows import Positions


class Replica:
    """See the module's docstring.

    source, copy: the logs. batch_bytes: of each of two buffers, which hold a segment at least.
    """

    def __init__(
        self, source: BlockLog, copy: BlockLog, table: str, shape: BlockShape, *, batch_bytes: int
    ) -> None:
        self._source, self._copy = source, copy
        self._table = table
        self._shape = shape
        # Whole segments, so that none is cut in two.
        self._per_batch = max(1, batch_bytes // shape.bytes >> SEGMENT_BITS) << SEGMENT_BITS

    def resume(self, begin: int, end: int) -> int:
        """Keep what the copy has from ``begin`` to ``end`` as far as it is the source's, remove the
        rest: the block to go on with."""
        parted, buffers = end, self._make_buffers()
        for first, last in self._windows(begin, end):
            numbers = self._source.numbers(self._table, first, last)
            ours = self._copy.numbers(self._table, first, last)
            same = min(len(numbers), len(ours))
            equal = numbers[:same] == ours[:same]
            equal[equal] = self._equal(numbers[:same][equal], *buffers)
            if len(numbers) == len(ours) and equal.all():
                continue
            # Whole segments, since runs of the directory begin with them.
            place = int(np.argmin(equal)) if not equal.all() else same
            rest = [int(part[place]) for part in (numbers, ours) if len(part) > place]
            parted = max(begin, min(rest) >> SEGMENT_BITS << SEGMENT_BITS)
            break
        self._copy.truncate(self._table, parted)
        return parted

    def count(self, begin: int, end: int) -> int:
        """How many blocks the source has from ``begin`` to below ``end``."""
        windows = self._windows(begin, end)
        return sum(len(self._source.numbers(self._table, *window)) for window in windows)

    def extend(self, begin: int, end: int) -> Iterator[int]:
        """Append the source's blocks from ``begin`` to below ``end``, which the copy does not have:
        how many, batch by batch. All are on the disk when it ends.

        Raises: CorruptError naming the first damaged block; DiskFullError.
        """
        buffers = self._make_buffers()
        for first, last in self._windows(begin, end):
            numbers = self._source.numbers(self._table, first, last)
            blocks = buffers[0][: len(numbers)]
            self._read(numbers, blocks)
            # What is on its way has the other buffer: this one was read meanwhile.
            self._copy.wait()
            edges = [0, *(np.flatnonzero(np.diff(numbers) != 1) + 1).tolist(), len(numbers)]
            for start, stop in itertools.pairwise(edges):
                if stop > start:
                    self._copy.append(self._table, int(numbers[start]), blocks[start:stop])
            buffers.reverse()
            yield len(numbers)
        self._copy.wait()

    def trim(self, end: int) -> Iterator[int]:
        """Remove what the source has freed, once a cut of the copy at ``end`` is all that counts:
        how many blocks, batch by batch. First the segments, then tombstones that hid things there.
        """
        scratch = self._make_buffers()[0]
        for first, last in self._windows(0, end):
            ours = self._copy.numbers(self._table, first, last)
            theirs = self._source.numbers(self._table, first, last)
            gone = np.setdiff1d(ours >> SEGMENT_BITS, theirs >> SEGMENT_BITS)
            if len(gone):
                self._copy.free(self._table, gone.tolist(), scratch)
                yield int(np.isin(ours >> SEGMENT_BITS, gone).sum())
        self._copy.tombstones[self._table].forget(self._source.tombstones[self._table].span[0])

    # -- tombstones -----------------------------------------------------------------------------

    def continues(self) -> bool:
        """Whether the copy's tombstones are the source's, as far as that still has them."""
        logs = (self._source.tombstones[self._table], self._copy.tombstones[self._table])
        begin = max(tombstones.span[0] for tombstones in logs)
        theirs, ours = (tombstones.records(begin) for tombstones in logs)
        return all(next(theirs, None) == record for record in ours)

    def tombstone_bytes(self) -> int:
        """Bytes of the tombstones that the copy does not have."""
        return sum(len(value) for _, value in self._new_tombstones())

    def bury(self, txn: Any) -> None:
        """Add them in the transaction that makes a cut of the copy."""
        for sequence, value in self._new_tombstones():
            self._copy.tombstones[self._table].put(txn, sequence, value)

    # -- private --------------------------------------------------------------------------------

    def _new_tombstones(self) -> Iterator[tuple[int, bytes]]:
        known = self._copy.tombstones[self._table].span[1]
        return self._source.tombstones[self._table].records(known)

    def _make_buffers(self) -> list[Blocks]:
        return [np.zeros(self._per_batch, self._shape.dtype) for _ in range(2)]

    def _windows(self, begin: int, end: int) -> Iterator[tuple[int, int]]:
        """``begin`` to ``end``, less what lies below the first block of both logs, in pieces of
        whole segments, as many as a buffer holds."""
        begin = max(begin, min(self._source.first(self._table), self._copy.first(self._table)))
        while begin < end:
            edge = min(end, (begin // self._per_batch + 1) * self._per_batch)
            yield begin, edge
            begin = edge

    def _read(self, numbers: Positions, blocks: Blocks) -> None:
        damaged = self._source.read(self._table, numbers, blocks)
        if damaged:
            raise CorruptError(
                f"{self._source.path}: table {self._table!r}: expected a sound block "
                f"{numbers[damaged[0]]}, but it is damaged; {self._copy.path} stays as it was; "
                f"repair the store, or restore an earlier backup"
            )

    def _equal(self, numbers: Positions, ours: Blocks, theirs: Blocks) -> NDArray[np.bool_]:
        """(n,): whether these blocks are sound and the same in both; the buffers are used."""
        ours, theirs = ours[: len(numbers)], theirs[: len(numbers)]
        damaged = self._copy.read(self._table, numbers, ours)
        damaged += self._source.read(self._table, numbers, theirs)
        raw = [part.view(np.uint8).reshape(-1, self._shape.bytes) for part in (ours, theirs)]
        equal: NDArray[np.bool_] = (raw[0] == raw[1]).all(axis=1)
        equal[damaged] = False
        return equal
