"""BlockLog: the blocks of a store. Blocks are appended, cuts make them count.

For every table one LMDB environment holds its blocks by ever-growing number, a directory that names
the keys of each run of blocks (so that opening a store does not read its rows), and tombstones.
Blocks go in through bounded, synced transactions of a writer thread; until a cut names them they do
not count, and opening a store removes them. Every value carries a checksum; a run that is missing
from the directory, or damaged there, is made again from its blocks.

Threads: the owner appends, reads and cuts; another may free segments and read them. The writer
thread "terrace-write" and the readers "terrace-read" belong to the log. Blocks that were appended
are the writer's until they are committed: the owner may read them, never change them. Every wait
has a deadline; `close` joins all threads.
"""

from __future__ import annotations

import functools
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.block import (
    SEGMENT_BITS,
    SEGMENT_BLOCKS,
    Blocks,
    Run,
    pack_run,
    run_blocks,
    seal,
)
from storage.directory import Directory, block_of, number_key, seek
from storage.environment import PAGE, Environment, translated
from storage.errors import StoreError
from storage.places import Places
from storage.reader import Reader
from storage.rows import Keys, Positions
from storage.tombstones import Tombstones

DEADLINE_SECONDS = 600.0
"""The longest that any call waits for the disk."""
_QUEUE = 4
# Read transactions at once: the owner's, compaction's, and one to spare.
_TRANSACTIONS = 3
_TRUNCATE = 4096
# What one transaction reads of the directory, or frees.
_RUNS, _SEGMENTS = 32, 32


class BlockLog(Environment):
    """See the module's docstring.

    ``disk_bytes``: the most that the files may grow to; None means as far as the disk goes.
    ``committed``: by table, the number of the next block after those on the disk. ``tombstones``:
    by table, of its deleted keys.

    Raises: ClosedError after `close`, everywhere; errors of the writer thread at the next call that
    writes or waits. What is committed stays readable.
    """

    def __init__(self, path: Path, tables: Sequence[str], *, disk_bytes: int | None = None) -> None:
        names = [f"{kind}/{table}" for table in tables for kind in ("blocks", "keys", "tombstones")]
        super().__init__(path, databases=names, disk_bytes=disk_bytes, transactions=_TRANSACTIONS)
        try:
            self._blocks = {t: self.database(f"blocks/{t}") for t in tables}
            self._directories = {t: Directory(self, t, self._blocks[t]) for t in tables}
            self.tombstones = {t: Tombstones(self, t) for t in tables}
            self.committed = {table: self._end(table) for table in tables}
        except BaseException:
            super().close()
            raise
        self._queue: deque[tuple[str, int, Blocks]] = deque()
        self._changed = threading.Condition()
        self._pending_bytes = 0
        self._failure: BaseException | None = None
        self._reader = Reader(path, DEADLINE_SECONDS)
        self._writer = threading.Thread(target=self._write_all, name="terrace-write", daemon=True)
        self._writer.start()

    # -- blocks ---------------------------------------------------------------------------------

    def append(self, table: str, first: int, blocks: Blocks) -> None:
        """Queue blocks ``first``, ``first + 1``, ...; they belong to the log until committed.

        Raises: DiskFullError before anything is queued when they would not fit.
        """
        size = disk_bytes(blocks)
        self._raise_failure()
        self.ensure_room(size + self._pending_bytes)
        with self._changed:
            self._wait(lambda: len(self._queue) < _QUEUE)
            self._queue.append((table, first, blocks))
            self._pending_bytes += size
            self._changed.notify_all()

    def room(self) -> int:
        """Bytes that may still be filled beside what is queued."""
        return super().room() - self._pending_bytes

    def wait(self, table: str | None = None, block: int = 0) -> None:
        """Return when all that is queued (or, of ``table``, up to ``block``) is on the disk."""
        with self._changed:
            self._wait(lambda: self.committed[table] >= block if table else not self._pending_bytes)

    def read(
        self,
        table: str,
        numbers: Positions,
        out: Blocks,
        places: NDArray[np.uint32] | None = None,
    ) -> list[int]:
        """Read committed blocks, ascending, into ``out``: the indices of those that are damaged.

        places: (n,) of `Places.of`; what was looked up is added. Raises: StoreError when the disk
        gives nothing for `DEADLINE_SECONDS`.
        """
        if places is None:
            places = np.zeros(len(numbers), np.uint32)
        name = f"blocks/{table}"
        with self.transaction() as txn:
            return self._reader.read(txn, self._blocks[table], name, numbers, out, places)

    def locate(self, table: str, begin: int, end: int, places: Places) -> None:
        """Note on which pages the committed blocks from ``begin`` to below ``end`` lie."""
        with self.transaction() as txn:
            self._reader.locate(txn, f"blocks/{table}", begin, end, places.bases)

    def directory(
        self, table: str, lost: list[int] | None = None, *, begin: int = 0
    ) -> Iterator[Run]:
        """`Directory.runs` of all committed blocks."""
        return self._directories[table].runs(begin, self.committed[table], lost)

    def numbers(self, table: str, begin: int, end: int) -> Positions:
        """`Directory.numbers` of committed blocks."""
        return self._directories[table].numbers(begin, end)

    def keys_of(self, table: str, number: int) -> Keys:
        """`Directory.keys_of` of a committed block."""
        return self._directories[table].keys_of(number)

    def truncate(self, table: str, end: int) -> None:
        """Remove the blocks from ``end`` on, in bounded transactions. Nothing may be queued."""
        self._raise_failure()
        assert not self._pending_bytes, "truncated while blocks are on their way"
        for database, last in (
            (self._directories[table].database, _last_of_run),
            (self._blocks[table], lambda key, _: block_of(key)),
        ):
            more = True
            while more:
                with self.transaction(write=True) as txn:
                    more = _cut_back(txn.cursor(database), last, end)
        self.committed[table] = self._end(table)

    def truncate_to(self, ends: Mapping[str, int]) -> None:
        """Remove the blocks from each table's end on; of a table that is not named, all."""
        for table in self.committed:
            self.truncate(table, ends.get(table, 0))

    def first(self, table: str) -> int:
        """The lowest committed block, or the next one when there is none."""
        with self.transaction(self._blocks[table]) as txn:
            cursor = txn.cursor()
            return block_of(cursor.key()) if cursor.first() else self.committed[table]

    def free(self, table: str, segments: Sequence[int], scratch: Blocks) -> None:
        """Remove all blocks of these segments, in bounded transactions. Nothing may need them.

        scratch: room to read blocks into, since LMDB looks at each page that it frees, and one
        thread would wait for the disk each time.
        """
        self._raise_failure()
        for start in range(0, len(segments), _SEGMENTS):
            some = segments[start : start + _SEGMENTS]
            for segment in some:
                numbers = self.numbers(table, segment << SEGMENT_BITS, segment + 1 << SEGMENT_BITS)
                for place in range(0, len(numbers), len(scratch)):
                    piece = numbers[place : place + len(scratch)]
                    self.read(table, piece, scratch[: len(piece)])
            self.freely(functools.partial(self._remove, table=table, segments=some))

    # -- the rest -------------------------------------------------------------------------------

    def commit(self, facts: Mapping[str, bytes | None]) -> None:
        """See `Environment.commit`. Raises also what made the writer fail."""
        self._raise_failure()
        super().commit(facts)

    def close(self) -> None:
        """Write what is queued, join the threads, close the files. Twice is fine."""
        with self._changed:
            if self.closed:
                return
            self.closed = True
            self._changed.notify_all()
        self._writer.join(DEADLINE_SECONDS)
        self._reader.close()
        if self._writer.is_alive():
            # Closing the files under it would crash the process.
            raise self._stuck()
        super().close()

    # -- private --------------------------------------------------------------------------------

    def _raise_failure(self) -> None:
        self.ensure_open()
        if self._failure is not None:
            raise self._failure

    def _wait(self, ready: Callable[[], bool]) -> None:
        """Wait on the condition until ``ready()``, the writer failed, or the deadline passed."""
        done = self._changed.wait_for(
            lambda: ready() or self._failure is not None, DEADLINE_SECONDS
        )
        self._raise_failure()
        if not done:
            raise self._stuck()

    def _stuck(self) -> StoreError:
        return StoreError(
            f"{self.path}: the disk accepted nothing for {DEADLINE_SECONDS:.0f} s; the last "
            f"checkpoint is good; check the device"
        )

    def _remove(self, txn: Any, *, table: str, segments: Sequence[int]) -> None:
        for segment in segments:
            for database in (self._directories[table].database, self._blocks[table]):
                cursor, end = txn.cursor(database), segment + 1 << SEGMENT_BITS
                there = seek(self.path, cursor, segment << SEGMENT_BITS)
                while there and block_of(cursor.key()) < end:
                    # Leads to the next entry.
                    there = cursor.delete() and bool(cursor.key())

    def _end(self, table: str) -> int:
        """One more than the highest block number, and no less than a tombstone's."""
        with self.transaction(self._blocks[table]) as txn:
            cursor = txn.cursor()
            end = block_of(cursor.key()) + 1 if cursor.last() else 0
        return max(end, self.tombstones[table].end)

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self.closed)
                if not self._queue or self._failure is not None:
                    return
                table, first, blocks = self._queue.popleft()
            try:
                self._write(table, first, blocks)
            except Exception as error:  # a thread's edge: raised in the owner at its next call
                self._failure = error
            with self._changed:
                if self._failure is None:
                    self.committed[table] = first + len(blocks)
                    self._pending_bytes -= disk_bytes(blocks)
                self._changed.notify_all()

    def _write(self, table: str, first: int, blocks: Blocks) -> None:
        """One synced transaction: the blocks, and their keys in the directory."""
        numbers = np.arange(first, first + len(blocks), dtype=np.uint64).tobytes()
        keys = [numbers[i : i + 8] for i in range(0, len(numbers), 8)]
        pairs = list(zip(keys, seal(blocks, first), strict=True))
        starts = _run_starts(first, blocks)
        with translated(self.path), self._env.begin(write=True) as txn:
            _, added = txn.cursor(self._blocks[table]).putmulti(pairs, append=True)
            directory = txn.cursor(self._directories[table].database)
            for start, end in zip(starts, [*starts[1:], len(blocks)], strict=True):
                run = pack_run(first + start, blocks[start:end])
                added += directory.put(number_key(first + start), run, append=True)
            if added != len(blocks) + len(starts):
                raise StoreError(
                    f"{self.path}: table {table!r}: expected block {first} to be a new one, but "
                    f"the log has it or a later one; open one tier a table"
                )


def disk_bytes(blocks: Blocks) -> int:
    """Bytes that blocks take on the disk, with their directory: 8 a key, and rounding to pages."""
    keys = 8 * int(blocks["count"].sum(dtype=np.int64))
    return int(1.1 * (1.02 * blocks.nbytes + keys)) + 2 * PAGE


def _run_starts(first: int, blocks: Blocks) -> list[int]:
    """Indices of the blocks with which runs start: at segments, and so that each run is a page.

    A run of two pages would need two free ones side by side, and the file would grow for lack of
    them: by a tenth, measured under steady overwriting.
    """
    length = run_blocks(blocks["keys"].shape[1])
    segment = (first + np.arange(len(blocks))) % SEGMENT_BLOCKS
    starts = np.flatnonzero(segment % length == 0).tolist()
    return starts if starts[:1] == [0] else [0, *starts]


def _last_of_run(key: bytes, value: bytes) -> int:
    return block_of(key) + int.from_bytes(value[4:8], "little") - 1


def _cut_back(cursor: Any, last: Callable[[bytes, bytes], int], end: int) -> bool:
    """Delete, from the back, up to 4096 entries that reach ``end``; whether there may be more.

    A run that begins before ``end`` goes too: the directory makes it again from its blocks.
    """
    for _ in range(_TRUNCATE):
        if not cursor.last() or last(cursor.key(), cursor.value()) < end:
            return False
        cursor.delete()
    return True
