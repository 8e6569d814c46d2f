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
from storage.stretches import Stretches

# Freed between two reports.
_SEGMENTS = 32
_NO_END = 1 << 62


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
        theirs, ours = self._stretches(self._source, begin, end), self._stretches(self._copy, begin)
        parted = min(end, ours.first_outside(theirs))
        buffers = self._make_buffers()
        for numbers in theirs.below(parted).batches(self._per_batch):
            equal = self._equal(numbers, *buffers)
            if not equal.all():
                parted = int(numbers[np.argmin(equal)])
                break
        if parted < end:
            # Whole segments, since runs of the directory begin with them.
            parted = max(begin, parted >> SEGMENT_BITS << SEGMENT_BITS)
        self._copy.truncate(self._table, parted)
        return parted

    def count(self, begin: int, end: int) -> int:
        """How many blocks the source has from ``begin`` to below ``end``."""
        return len(self._stretches(self._source, begin, end))

    def extend(self, begin: int, end: int) -> Iterator[int]:
        """Append the source's blocks from ``begin`` to below ``end``, which the copy does not have:
        how many, batch by batch. All are on the disk when it ends.

        Raises: CorruptError naming the first damaged block; DiskFullError.
        """
        buffers = self._make_buffers()
        for numbers in self._stretches(self._source, begin, end).batches(self._per_batch):
            blocks = buffers[0][: len(numbers)]
            self._read(numbers, blocks)
            # What is on its way has the other buffer: this one was read meanwhile.
            self._copy.wait()
            edges = [0, *(np.flatnonzero(np.diff(numbers) != 1) + 1).tolist(), len(numbers)]
            for start, stop in itertools.pairwise(edges):
                self._copy.append(self._table, int(numbers[start]), blocks[start:stop])
            buffers.reverse()
            yield len(numbers)
        self._copy.wait()

    def trim(self, end: int) -> Iterator[int]:
        """Remove what the source has freed, once a cut of the copy at ``end`` is all that counts:
        how many blocks, batch by batch. First the segments, then tombstones that hid things there.
        """
        ours, theirs = (self._stretches(log, 0, end) for log in (self._copy, self._source))
        gone = np.setdiff1d(ours.segments, theirs.segments)
        scratch = self._make_buffers()[0]
        for start in range(0, len(gone), _SEGMENTS):
            some = gone[start : start + _SEGMENTS]
            self._copy.free(self._table, some.tolist(), scratch)
            yield ours.count_in(some)
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

    def _stretches(self, log: BlockLog, begin: int, end: int = _NO_END) -> Stretches:
        """What a log has from ``begin`` to below ``end``, by its directory: a cursor over blocks
        would read them, since py-lmdb touches each value that it comes by."""
        return Stretches(
            (run[0], run[0] + len(run[1])) for run in log.directory(self._table, begin=begin)
        ).below(end)

    def _read(self, numbers: Positions, blocks: Blocks) -> None:
        damaged = self._source.read(self._table, numbers, blocks)
        if damaged:
            raise CorruptError(
                f"{self._source.path}: table {self._table!r}: expected a sound block "
                f"{numbers[damaged[0]]}, but it is damaged; {self._copy.path} stays as it was; "
                f"run terrace check --repair, or restore that"
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
