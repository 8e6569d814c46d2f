"""SsdTier: all rows of one table that memory does not own, in an append-only log of blocks.

Rows that are evicted together lie together: they are packed into blocks in a write buffer, which
goes to the log when it is full. A row that is written again gets a new place; the old one becomes
stale. Nothing is ever changed in place. An index in RAM says where each key's newest version is.

A row's address is final when it enters the write buffer, so a row is found at every moment: in the
open buffer, in a buffer on its way to the disk, or on the disk. A write that fails (a full disk)
may have taken some of its rows; the caller still has them all and may try again.

Threads: one owner; the log brings its own.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from storage.address import ADDRESSES, LEAST_BYTES, AddressIndex
from storage.block import ROWS, TOMBSTONES, Blocks, BlockShape
from storage.errors import CorruptError, StoreError
from storage.keys import BUCKETS
from storage.log import BlockLog
from storage.rows import Counts, Keys, Positions, Rows
from storage.stats import TierStats

# Write buffers: one being filled, two on their way, and one as pages of an open transaction.
_BUFFERS = 3
_PIECE_BYTES = 1 << 20
_BUFFER_COPIES = 4
_RECOVERED = 1 << 16


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
        self.stats = TierStats()
        self._log = log
        self._index = AddressIndex()
        self._per_buffer = max(1, buffer_bytes // shape.bytes)
        self._spare = [np.zeros(self._per_buffer, shape.dtype) for _ in range(_BUFFERS)]
        self._staging = np.zeros(self._per_buffer, shape.dtype)
        self._on_the_way: list[tuple[int, Blocks, Blocks]] = []
        self._buffer = self._spare.pop()
        self._first = log.committed[table]
        self._filled = 0
        self._recover()

    def __len__(self) -> int:
        return len(self._index)

    @property
    def memory_bytes(self) -> int:
        """RAM this tier holds: index, write buffers with their open transaction, read buffer."""
        copies = (_BUFFER_COPIES + 1) * self._per_buffer * self.shape.bytes
        return max(self._index.bytes, LEAST_BYTES) + copies

    @property
    def end(self) -> int:
        """One more than the highest block number in use."""
        return self._first + -(-self._filled // self.shape.rows)

    def growth_bound(self, rows: int) -> int:
        """Bytes that writing ``rows`` rows can add to `memory_bytes` at most."""
        spare = max(0, LEAST_BYTES - self._index.bytes)
        return max(0, self._index.growth_bound(rows) - spare)

    # -- the contract of a tier -----------------------------------------------------------------

    def lookup(self, keys: Keys, counts: Counts) -> tuple[Rows, NDArray[np.bool_]]:
        """Copy rows out for the tier above; they stay here, stale once changed there."""
        rows, missing, blocks = self._get(keys)
        hits = len(keys) - int(np.count_nonzero(missing))
        self.stats.accesses += int(counts.sum())
        self.stats.access_hits += int(counts[~missing].sum())
        self.stats.keys += len(keys)
        self.stats.key_hits += hits
        self.stats.rows_read += hits
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
        done = 0
        while done < len(rows):
            self._send_if_full()
            count = min(len(rows) - done, self._per_buffer * self.shape.rows - self._filled)
            part = slice(done, done + count)
            addresses = self._fill(rows.keys[part], rows.steps[part], records[part])
            self._index.set(rows.keys[part], addresses)
            done += count
        self._send_if_full()
        self.stats.rows_written += len(rows)

    def delete(self, keys: Keys) -> None:
        """Forget keys and log it, so that they stay forgotten when the store is opened again."""
        known = keys[self._index.find(keys) >= 0]
        for start in range(0, len(known), self.shape.rows):
            some = known[start : start + self.shape.rows]
            self._end_block()
            block = self._buffer[self._filled // self.shape.rows]
            block["kind"], block["count"] = TOMBSTONES, len(some)
            block["keys"][: len(some)] = some
            self._filled += self.shape.rows
            # Only now: had the log refused, the rows would come back when it is opened again.
            self._index.erase(some)

    def flush(self) -> None:
        """Return when every row written so far is on the disk (it counts from the next cut on).

        Raises: DiskFullError; what is not on the disk is still here.
        """
        self._end_block()
        self._send()
        self._log.wait()
        self._collect()

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
            waiting.append(self.segment(bucket))
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

    def segment(self, number: int) -> Keys:
        """(n,) uint64 copy of the keys here in bucket ``number``, by rising mixed key."""
        return self._index.segment(number)[0]

    def rewind(self, end: int) -> None:
        """Go back to the blocks below ``end``: newer ones are removed, the index is made anew.

        ``end`` is what `end` said after some `flush`.
        """
        self._log.wait()
        self._collect()
        self._log.truncate(self.table, end)
        self._filled = 0
        self._buffer[:] = np.zeros(1, self.shape.dtype)
        self._first = self._log.committed[self.table]
        self._index = AddressIndex()
        self._recover()

    # -- writing --------------------------------------------------------------------------------

    def _fill(self, keys: Keys, steps: NDArray[np.uint32], records: NDArray[np.uint8]) -> Positions:
        """Copy rows to the open buffer, which has room: their addresses."""
        places = np.arange(self._filled, self._filled + len(keys))
        block, place = np.divmod(places, self.shape.rows)
        addresses = ((self._first + block) << self.shape.place_bits) | place
        if addresses[-1] >= ADDRESSES:
            raise StoreError(
                f"table {self.table!r}: expected a block number below "
                f"{ADDRESSES >> self.shape.place_bits}, but all are used up; export the table and "
                f"import it into a new store"
            )
        self._buffer["keys"][block, place] = keys
        self._buffer["steps"][block, place] = steps
        self._buffer["records"][block, place] = records
        self._buffer["count"][block] = place + 1
        self._buffer["kind"][block] = ROWS
        self._filled += len(keys)
        return addresses

    def _end_block(self) -> None:
        """Leave the rest of a partly filled block empty."""
        self._filled += -self._filled % self.shape.rows
        self._send_if_full()

    def _send_if_full(self) -> None:
        if self._filled == self._per_buffer * self.shape.rows:
            self._send()

    def _send(self) -> None:
        """Hand the filled blocks of the open buffer to the log and go on in a spare one."""
        count = self._filled // self.shape.rows
        if count == 0:
            return
        self._collect()
        if not self._spare:
            first, blocks, _ = self._on_the_way[0]
            self._log.wait(self.table, first + len(blocks))
            self._collect()
        # Nothing has changed until the log has taken the blocks: it may refuse them.
        self._log.append(self.table, self._first, self._buffer[:count])
        self._on_the_way.append((self._first, self._buffer[:count], self._buffer))
        self._buffer = self._spare.pop()
        self._first, self._filled = self._first + count, 0
        self.stats.bytes_written += count * self.shape.pages * 4096

    def _collect(self) -> None:
        """Take back the buffers that have reached the disk."""
        committed = self._log.committed[self.table]
        while self._on_the_way and self._on_the_way[0][0] < committed:
            _, blocks, buffer = self._on_the_way.pop(0)
            blocks[:] = np.zeros(1, self.shape.dtype)
            self._spare.append(buffer)

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
        bad = set(self._fetch(numbers, blocks))
        bad.update(which[blocks["keys"][which, place] != rows.keys[chosen]].tolist())
        if bad:
            lost = {int(numbers[b]): int(np.count_nonzero(which == b)) for b in bad}
            raise CorruptError(self._damage(lost))
        shape = self.shape
        records = blocks["records"][which, place]
        rows.values[chosen] = shape.codec.decode(records, shape.dim, shape.state_width)
        rows.steps[chosen] = blocks["steps"][which, place]
        return len(numbers)

    def _fetch(self, numbers: Positions, out: Blocks) -> list[int]:
        """Copy blocks, ascending, from disk or write buffers: indices of the damaged ones."""
        waiting = [(first, blocks) for first, blocks, _ in self._on_the_way]
        waiting.append((self._first, self._buffer))
        on_disk = int(np.searchsorted(numbers, waiting[0][0]))
        damaged = self._log.read(self.table, numbers[:on_disk], out[:on_disk]) if on_disk else []
        for first, blocks in waiting:
            begin, end = np.searchsorted(numbers, (first, first + len(blocks)))
            out[begin:end] = blocks[numbers[begin:end] - first]
        return damaged

    def _sweep(
        self,
    ) -> Iterator[tuple[Positions, Blocks, list[int], Positions, Positions]]:
        """All blocks, front to back, as many at once as the read buffer holds.

        Gives their numbers, themselves, the indices of damaged ones, and block and place of each
        row that counts: whose key the index leads to this very place.
        """
        bits = self.shape.place_bits
        for start in range(0, self.end, self._per_buffer):
            numbers = np.arange(start, min(start + self._per_buffer, self.end))
            blocks = self._staging[: len(numbers)]
            damaged = self._fetch(numbers, blocks)
            count = np.where(blocks["kind"] == ROWS, blocks["count"], 0)
            count[damaged] = 0
            block, place = np.nonzero(np.arange(self.shape.rows) < count[:, None])
            addresses = self._index.find(blocks["keys"][block, place])
            live = addresses == (numbers[block] << bits | place)
            yield numbers, blocks, damaged, block[live], place[live]

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
            f"restore a checkpoint or a backup"
        )

    def _recover(self) -> None:
        """Fill the index from the log's directory, newest version last."""
        keys: list[Keys] = []
        addresses: list[Positions] = []
        for first, counts, kinds, run in self._log.directory(self.table):
            block = np.repeat(np.arange(len(counts)), counts)
            starts = np.repeat(np.cumsum(counts, dtype=np.int64) - counts, counts)
            place = np.arange(len(run)) - starts
            address = ((first + block) << self.shape.place_bits) | place
            address[kinds[block] == TOMBSTONES] = -1
            keys.append(run)
            addresses.append(address)
            if sum(map(len, keys)) >= _RECOVERED:
                self._replay(np.concatenate(keys), np.concatenate(addresses))
                keys, addresses = [], []
        if keys:
            self._replay(np.concatenate(keys), np.concatenate(addresses))

    def _replay(self, keys: Keys, addresses: Positions) -> None:
        """Apply versions in order; runs of rows and of tombstones alternate."""
        dead = addresses < 0
        edges = np.flatnonzero(np.diff(dead)) + 1
        for some, address in zip(np.split(keys, edges), np.split(addresses, edges), strict=True):
            if address[0] < 0:
                self._index.erase(some)
            else:
                self._index.set(some, address)
