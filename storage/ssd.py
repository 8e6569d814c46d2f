"""SsdTier: all rows of one table that memory does not own, in an append-only log of blocks.

Rows that are evicted together lie together: they are packed into blocks in a write buffer, which
goes to the log when it is full. A row that is written again gets a new place; the old one becomes
stale. Nothing is ever changed in place. An index in RAM says where each key's newest version is;
`Segments` says what is stale, and `storage.compaction` writes the rest of a mostly stale segment
again, so that it can be freed.

A row's address is final when it enters the write buffer, so a row is found at every moment: in the
open buffer, in a buffer on its way to the disk, or on the disk. A write that fails (a full disk)
may have taken some of its rows; the caller still has them all and may try again.

Threads: one owner; the log brings its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from storage.address import LEAST_BYTES, AddressIndex
from storage.block import SEGMENT_BITS, Blocks, BlockShape
from storage.buffer import COPIES, WriteBuffer
from storage.errors import CorruptError
from storage.keys import BUCKETS
from storage.log import BlockLog
from storage.recovery import NOWHERE, recover
from storage.rows import Counts, Keys, Positions, Rows
from storage.stats import SsdStats

_PIECE_BYTES = 1 << 20
_Swept = tuple[Positions, Blocks, list[int], Positions, Positions]


class SsdTier:
    """See the module's docstring.

    log: shared by the tables of a store; its ``committed`` blocks of this table are what is here.
    buffer_bytes: bounds a write buffer and the blocks of a read, but for a single block.
    """

    def __init__(self, table: str, shape: BlockShape, log: BlockLog, *, buffer_bytes: int) -> None:
        self.name = "ssd"
        self.table = table
        self.shape = shape
        self.width = shape.dim + shape.state_width
        self.stats = SsdStats()
        self._log = log
        self._per_buffer = max(1, buffer_bytes // shape.bytes)
        self._staging = np.zeros(self._per_buffer, shape.dtype)
        self._index, self.segments = recover(log, table, shape.place_bits)
        self._buffer = WriteBuffer(table, shape, log, self.segments.places, blocks=self._per_buffer)

    def __len__(self) -> int:
        return len(self._index)

    @property
    def memory_bytes(self) -> int:
        """RAM held: index, write buffers with an open transaction, a read buffer, compaction's."""
        copies = (COPIES + 2) * self._per_buffer * self.shape.bytes
        return max(self._index.bytes, LEAST_BYTES) + self.segments.bytes + copies

    @property
    def buffer_blocks(self) -> int:
        """Blocks of a write or read buffer."""
        return self._per_buffer

    @property
    def end(self) -> int:
        """One more than the highest block number in use."""
        return self._buffer.end

    def report(self) -> dict[str, float]:
        """Figures of the log as JSON values.

        stale: share of the room for rows in its blocks that no live row takes. space_amplification:
        bytes of blocks over those of the live rows. write_amplification: rows written, copies of
        compaction included, over rows written by the tier above. index_bytes_per_row: RAM.
        """
        rows, blocks, stats = len(self), self.segments.blocks, self.stats
        room = blocks * self.shape.rows
        held = blocks * self.shape.pages * 4096
        return {
            "blocks": blocks,
            "emptied_blocks": self.segments.emptied_blocks,
            "stale": 1 - rows / room if room else 0.0,
            "space_amplification": held / (rows * self.shape.stored_bytes) if rows else 0.0,
            "write_amplification": (
                1 + stats.rows_moved / stats.rows_written if stats.rows_written else 0.0
            ),
            "index_bytes_per_row": (self._index.bytes + self.segments.bytes) / rows
            if rows
            else 0.0,
        }

    def growth_bound(self, rows: int) -> int:
        """Bytes that writing ``rows`` rows can add to `memory_bytes` at most."""
        spare = max(0, LEAST_BYTES - self._index.bytes)
        growth = max(0, self._index.growth_bound(rows) - spare)
        return growth + self.segments.growth_bound(self._end_after(rows))

    # -- the contract of a tier -----------------------------------------------------------------

    def lookup(self, keys: Keys, counts: Counts) -> tuple[Rows, NDArray[np.bool_]]:
        """Copy rows out for the tier above; they stay here, stale once changed there."""
        rows, missing, blocks = self._get(keys)
        self.stats.count(~missing, counts)
        self.stats.rows_read += len(keys) - int(np.count_nonzero(missing))
        self.stats.bytes_read += blocks * self.shape.pages * 4096
        return rows, missing

    def peek(self, keys: Keys) -> tuple[Rows, NDArray[np.bool_]]:
        """Copy rows out; counts nothing.

        Raises: CorruptError when a block that is needed is damaged.
        """
        rows, missing, _ = self._get(keys)
        return rows, missing

    def write(self, rows: Rows) -> None:
        """Append rows, dirty or not; each becomes its key's newest version.

        Raises: DiskFullError; see the module's docstring.
        """
        records = self.shape.codec.encode(rows.values, self.shape.dim)
        self.segments.reserve(self._end_after(len(rows)))
        self._append(rows.keys, rows.steps, records)
        self.stats.rows_written += len(rows)

    def delete(self, keys: Keys) -> None:
        """Forget keys for good: durable on return, and no older cut or checkpoint has them back.

        Raises: DiskFullError; all keys are still here then.
        """
        known = keys[self._index.find(keys) >= 0]
        if len(known) == 0:
            return
        self._end_block()  # so that all their versions are in blocks below the end
        self._log.tombstones[self.table].bury(self.end, known)
        # Only now: had the log refused, the rows would come back when it is opened again.
        self.segments.move(self._index.erase(known), NOWHERE)
        self.stats.rows_deleted += len(known)

    def flush(self) -> None:
        """Return when every row written so far is on the disk (it counts from the next cut on).

        Raises: DiskFullError; what is not on the disk is still here.
        """
        self._end_block()
        self._send()
        self._log.wait()
        self._buffer.collect()
        # Before a cut is made here, which then does not need them.
        self.segments.mark_dead(self.end)

    def scan(self) -> Iterator[Rows]:
        """Copies of all rows here, in the order in which they were written, a bounded piece a time.

        Reads every block once, from front to back: the way to see all rows of a large table.
        Raises: CorruptError, at the first damaged block that holds rows that count.
        """
        for numbers, blocks, damaged, block, place in self._sweep():
            if damaged:
                lost = self._count_rows(set(numbers[damaged].tolist()))
                if lost:
                    raise CorruptError(self._damage(lost))
            rows = Rows.empty(len(block), self.width)
            rows.keys[:] = blocks["keys"][block, place]
            rows.steps[:] = blocks["steps"][block, place]
            records = blocks["records"][block, place]
            rows.values[:] = self.shape.codec.decode(
                records, self.shape.dim, self.shape.state_width
            )
            yield rows

    def by_key(self) -> Iterator[Rows]:
        """Copies of all rows here by rising mixed key, in pieces of about a megabyte.

        Reads all over the file: the order, and pieces that depend on the rows alone, are for
        comparing two stores; `scan` is for speed.
        """
        most = max(1, _PIECE_BYTES // (4 * self.width))
        waiting: list[Keys] = []
        for bucket in range(BUCKETS):
            waiting.append(self._index.segment(bucket)[0])
            if sum(map(len, waiting)) >= most or bucket == BUCKETS - 1:
                keys = np.concatenate(waiting)
                for start in range(0, len(keys), most):
                    yield self.peek(keys[start : start + most])[0]
                waiting = []

    def check(self) -> list[str]:
        """Read every block: damaged ones with rows that count, and rows that are not found."""
        found, damaged = 0, set[int]()
        for numbers, _, bad, block, _ in self._sweep():
            damaged.update(numbers[bad].tolist())
            found += len(block)
        lost = self._count_rows(damaged) if damaged else {}
        wrong = [self._damage(lost)] if lost else []
        if found + sum(lost.values()) != len(self):
            wrong.append(
                f"table {self.table!r}: expected {len(self) - sum(lost.values())} rows where the "
                f"index says, found {found}; open the store again"
            )
        return wrong

    def close(self) -> None:
        """Nothing of its own to close: the log belongs to the store."""

    def rewind(self, end: int) -> None:
        """Go back to the blocks below ``end``: newer ones are removed, the index is made anew.

        ``end`` is what `end` said after some `flush`.
        """
        self._log.wait()
        self._buffer.collect()
        self._log.truncate(self.table, end)
        self._index = AddressIndex()  # the old one goes before the new one comes
        self._index, self.segments = recover(self._log, self.table, self.shape.place_bits)
        self._buffer.restart(self.segments.places)

    # -- compaction (see `storage.compaction`) ---------------------------------------------------

    @property
    def committed_end(self) -> int:
        """The blocks below it are on the disk."""
        return self._log.committed[self.table]

    def committed(self, begin: int, end: int) -> Positions:
        """(n,) int64 numbers of the blocks on the disk from ``begin`` to below ``end``."""
        return self._log.numbers(self.table, begin, end)

    def read_blocks(self, numbers: Positions, out: Blocks) -> list[int]:
        """Copy committed blocks, ascending: the indices of damaged ones. Needs no owner's turn."""
        return self._log.read(self.table, numbers, out)

    def move(self, numbers: Positions, blocks: Blocks, damaged: list[int]) -> int:
        """Write the rows of these blocks that count again, as they are: how many.

        Raises: DiskFullError; see the module's docstring.
        """
        block, place = self._live(numbers, blocks, damaged)
        keys, steps = blocks["keys"][block, place], blocks["steps"][block, place]
        self._append(keys, steps, blocks["records"][block, place])
        self.stats.rows_moved += len(keys)
        return len(keys)

    def free(self, ends: Iterable[int], *, most: int | None = None) -> int:
        """Remove emptied segments that no cut with one of these ends needs: how many.

        most: of them, the lowest first; None for all.
        """
        segments = self.segments.freeable(ends)[:most]
        if len(segments):
            self._log.free(self.table, segments.tolist(), self._staging)
            self.segments.drop(segments)
            self._log.tombstones[self.table].exhume(self.lowest)
            self.stats.segments_freed += len(segments)
        return len(segments)

    @property
    def lowest(self) -> int:
        """The lowest block number in use, or the end."""
        present = self.segments.present
        return int(present[0]) << SEGMENT_BITS if len(present) else self._buffer.first

    # -- writing --------------------------------------------------------------------------------

    def _end_after(self, rows: int) -> int:
        """The end of the log once this many rows more are written."""
        return self.end + -(-rows // self.shape.rows) + 1

    def _append(self, keys: Keys, steps: NDArray[np.uint32], records: NDArray[np.uint8]) -> None:
        """Put rows into the write buffer, and buffers that are full on their way."""
        done = 0
        while done < len(keys):
            if not self._buffer.room:
                self._send()  # it was full, and the log refused it
            part = slice(done, done + min(len(keys) - done, self._buffer.room))
            addresses = self._buffer.fill(keys[part], steps[part], records[part])
            self.segments.move(self._index.set(keys[part], addresses), addresses)
            done += len(addresses)
            if not self._buffer.room:
                self._send()

    def _end_block(self) -> None:
        """Leave the rest of a partly filled block empty."""
        self._buffer.end_block()
        if not self._buffer.room:
            self._send()

    def _send(self) -> None:
        """Hand what the open buffer has to the log."""
        self.segments.add(self._buffer.send())
        self.stats.bytes_written = self._buffer.bytes_sent

    # -- reading --------------------------------------------------------------------------------

    def _get(self, keys: Keys) -> tuple[Rows, NDArray[np.bool_], int]:
        """Copies of rows, which are missing, and how many blocks were read."""
        addresses = self._index.find(keys)
        missing = addresses < 0
        rows = Rows.empty(len(keys), self.width)
        rows.keys[:] = keys
        order = np.argsort(addresses, kind="stable")[int(np.count_nonzero(missing)) :]
        read = 0
        for chosen in self._runs(order, addresses):
            read += self._load(chosen, addresses[chosen], rows)
        return rows, missing, read

    def _runs(self, order: Positions, addresses: Positions) -> Iterator[Positions]:
        """``order`` cut so that no piece needs more blocks than the read buffer holds."""
        blocks = addresses[order] >> self.shape.place_bits
        new = np.diff(blocks, prepend=-1) != 0
        number = np.cumsum(new) - 1
        if len(order):
            edges = np.arange(self._per_buffer, number[-1] + 1, self._per_buffer)
            yield from np.split(order, np.searchsorted(number, edges))

    def _load(self, chosen: Positions, addresses: Positions, rows: Rows) -> int:
        """Set the rows ``chosen`` from their blocks: how many blocks that took.

        Raises: CorruptError naming the damaged ones and how many of these rows they held.
        """
        bits = self.shape.place_bits
        numbers, which = np.unique(addresses >> bits, return_inverse=True)
        place = addresses & ((1 << bits) - 1)
        blocks = self._staging[: len(numbers)]
        bad = set(self._buffer.read(numbers, blocks))
        bad.update(which[blocks["keys"][which, place] != rows.keys[chosen]].tolist())
        if bad:
            lost = {int(numbers[b]): int(np.count_nonzero(which == b)) for b in bad}
            raise CorruptError(self._damage(lost))
        shape = self.shape
        records = blocks["records"][which, place]
        rows.values[chosen] = shape.codec.decode(records, shape.dim, shape.state_width)
        rows.steps[chosen] = blocks["steps"][which, place]
        return len(numbers)

    def _sweep(self) -> Iterator[_Swept]:
        """All blocks, front to back, as many at once as the read buffer holds.

        Gives their numbers, themselves, the indices of damaged ones, and block and place of each
        row that counts.
        """
        for numbers in self._numbers():
            blocks = self._staging[: len(numbers)]
            damaged = self._buffer.read(numbers, blocks)
            yield numbers, blocks, damaged, *self._live(numbers, blocks, damaged)

    def _numbers(self) -> Iterator[Positions]:
        """The numbers of all blocks, ascending, as many at once as the read buffer holds."""
        committed = self._log.committed[self.table]
        for segment in self.segments.present.tolist():
            first = segment << SEGMENT_BITS
            every = np.arange(first, min(segment + 1 << SEGMENT_BITS, self._buffer.first))
            found = self._log.numbers(self.table, first, min(committed, first + len(every)))
            found = np.concatenate((found, every[every >= committed]))
            # One that should be there and is not will be found damaged.
            if len(found) < self.segments.count(segment):
                found = every
            for start in range(0, len(found), self._per_buffer):
                yield found[start : start + self._per_buffer]
        open_blocks = np.arange(self._buffer.first, self.end)
        if len(open_blocks):
            yield open_blocks

    def _live(
        self, numbers: Positions, blocks: Blocks, damaged: list[int]
    ) -> tuple[Positions, Positions]:
        """Block and place of each row that counts: whose key the index leads to this very place."""
        count = blocks["count"].copy()
        count[damaged] = 0
        block, place = np.nonzero(np.arange(self.shape.rows) < count[:, None])
        addresses = self._index.find(blocks["keys"][block, place])
        live = addresses == (numbers[block] << self.shape.place_bits | place)
        return block[live], place[live]

    def _count_rows(self, damaged: set[int]) -> dict[int, int]:
        """How many rows count in each of these blocks, those without any left out."""
        lost: dict[int, int] = {}
        for bucket in range(BUCKETS):
            blocks = self._index.segment(bucket)[1] >> self.shape.place_bits
            for number in blocks[np.isin(blocks, list(damaged))].tolist():
                lost[number] = lost.get(number, 0) + 1
        return lost

    def _damage(self, damaged: dict[int, int]) -> str:
        numbers = ", ".join(str(number) for number in sorted(damaged)[:8])
        return (
            f"{self._log.path}: table {self.table!r}: expected sound blocks, but {len(damaged)} "
            f"({numbers}) are damaged, and {sum(damaged.values())} rows lie in them; "
            f"run terrace check --repair, or restore a backup"
        )
