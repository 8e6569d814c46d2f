"""BlockLog: the files of a store. Blocks are appended, cuts make them count.

One LMDB environment holds, for every table, its blocks by ever-growing number and a directory that
names the keys of each run of at most 64 blocks (so that opening a store does not read its rows),
and the store's small facts: format, cut, checkpoints. Blocks go in through bounded, synced
transactions of a writer thread; until a cut names them they do not count, and opening a store
removes them. Every value carries a checksum; a run that is missing from the directory, or damaged
there, is made again from its blocks. Never writemap (a full disk would be SIGBUS), never without
sync (a power cut could corrupt LMDB itself).

Threads: the owner appends, reads and cuts; the writer thread "terrace-write" and the readers
"terrace-read" belong to the log. Blocks that were appended are the writer's until they are
committed: the owner may read them, never change them. Every wait has a deadline; `close` joins all
threads.
"""

from __future__ import annotations

import shutil
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
from numpy.typing import NDArray

from storage.block import Blocks, Run, checksum, is_sound, pack_run, run_of, seal, unpack_run
from storage.budget import show_size
from storage.errors import ClosedError, CorruptError, DiskFullError, StoreError

DEADLINE_SECONDS = 600.0
"""The longest that any call waits for the disk."""
_RUN_BLOCKS = 64
_READERS = 8
_QUEUE = 4
_UNCAPPED = 1 << 44
_TRUNCATE, _SPARE_BYTES = 4096, 1 << 20
_PAGE, _FEW = 4096, 32


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """The one place where errors of lmdb and of the system become ours."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{path}: expected a folder to write to, but {error.strerror}; check path and rights"
        ) from error
    except (lmdb.CorruptedError, lmdb.InvalidError, lmdb.VersionMismatchError) as error:
        raise CorruptError(f"{path}: not a sound LMDB file ({error}); restore a backup") from error
    except lmdb.Error as error:
        full = path.exists() and shutil.disk_usage(path).free < _SPARE_BYTES
        if full or isinstance(error, lmdb.MapFullError | lmdb.DiskError):
            raise DiskFullError(
                f"{path}: the disk or the --disk budget is full ({error}); the last checkpoint is "
                f"good; free space or give more, then resume"
            ) from error
        raise StoreError(f"{path}: LMDB failed ({error}); check the disk and rights") from error


class BlockLog:
    """See the module's docstring.

    ``disk_bytes``: the most that the files may grow to; None means as far as the disk goes.
    ``committed``: by table, one more than the highest block number on the disk.

    Raises: ClosedError after `close`, everywhere; errors of the writer thread at the next call that
    writes or waits. What is committed stays readable.
    """

    def __init__(self, path: Path, tables: Sequence[str], *, disk_bytes: int | None = None) -> None:
        self.path = path
        self.disk_bytes = disk_bytes
        with translated(path):
            self._env = lmdb.open(
                str(path), map_size=(disk_bytes or _UNCAPPED) // _PAGE * _PAGE,
                max_dbs=2 * len(tables) + 1, readahead=False, max_readers=1024,
                max_spare_txns=_READERS + 2,
            )  # fmt: skip
        try:
            with translated(path):
                self._env.reader_check()
                self._facts = self._env.open_db(b"facts")
                self._blocks = {t: self._database("blocks", t) for t in tables}
                self._directories = {t: self._database("keys", t) for t in tables}
            self._closing = False
            self.committed = {table: self._end(table) for table in tables}
        except BaseException:
            self._env.close()
            raise
        self._queue: deque[tuple[str, int, Blocks]] = deque()
        self._changed = threading.Condition()
        self._pending_bytes = 0
        self._failure: BaseException | None = None
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="terrace-read")
        self._writer = threading.Thread(target=self._write_all, name="terrace-write", daemon=True)
        self._writer.start()

    @property
    def file_bytes(self) -> int:
        """Bytes of the data file, those that are free inside it included."""
        self._check_open()
        with translated(self.path):
            return (int(self._env.info()["last_pgno"]) + 1) * int(self._env.stat()["psize"])

    @property
    def used_bytes(self) -> int:
        """Bytes of the data file that hold something."""
        databases = (self._facts, *self._blocks.values(), *self._directories.values())
        with self._transaction() as txn:
            stats = [txn.stat(database) for database in databases]
        pages = sum(s["branch_pages"] + s["leaf_pages"] + s["overflow_pages"] for s in stats)
        return int(pages) * int(stats[0]["psize"])

    # -- blocks ---------------------------------------------------------------------------------

    def append(self, table: str, first: int, blocks: Blocks) -> None:
        """Queue blocks ``first``, ``first + 1``, ...; they belong to the log until committed.

        Raises: DiskFullError before anything is queued when they would not fit.
        """
        size = _disk_bytes(blocks)
        self._raise_failure()
        self._check_space(size, _SPARE_BYTES)
        with self._changed:
            self._wait(lambda: len(self._queue) < _QUEUE)
            self._queue.append((table, first, blocks))
            self._pending_bytes += size
            self._changed.notify_all()

    def wait(self, table: str | None = None, block: int = 0) -> None:
        """Return when all that is queued (or, of ``table``, up to ``block``) is on the disk."""
        with self._changed:
            self._wait(lambda: self.committed[table] >= block if table else not self._pending_bytes)

    def read(self, table: str, numbers: NDArray[np.int64], out: Blocks) -> list[int]:
        """Read committed blocks, ascending, into ``out``: the indices of those that are damaged.

        Uses several threads, since a page fault blocks only the thread that has it.
        """
        self._check_open()
        if len(numbers) <= _FEW:
            return self._read_some(table, numbers, out, 0)
        pieces = np.array_split(np.arange(len(numbers)), _READERS)
        futures = [
            self._readers.submit(
                self._read_some, table, numbers[p], out[p[0] : p[-1] + 1], int(p[0])
            )
            for p in pieces
        ]
        # All of them, even if one fails: they write to ``out``, which the caller uses again.
        if wait_for(futures, DEADLINE_SECONDS).not_done:
            self._failure = self._stuck("gave")
            raise self._failure
        return [bad for future in futures for bad in future.result()]

    def directory(self, table: str) -> Iterator[Run]:
        """Runs of committed blocks, oldest first.

        Raises: CorruptError when a run is damaged, and a block it is made again from is, too.
        """
        expected = 0
        with self._transaction(self._directories[table]) as txn:
            for key, value in txn.cursor():
                run = unpack_run(_block_of(key), value)
                if run is None:
                    continue
                yield from self._remade(table, expected, run[0])
                yield run
                expected = run[0] + len(run[1])
        yield from self._remade(table, expected, self.committed[table])

    def truncate(self, table: str, end: int) -> None:
        """Remove the blocks from ``end`` on, in bounded transactions. Nothing may be queued."""
        self._raise_failure()
        assert not self._pending_bytes, "truncated while blocks are on their way"
        for database, last in (
            (self._directories[table], _last_of_run),
            (self._blocks[table], lambda key, _: _block_of(key)),
        ):
            more = True
            while more:
                with self._transaction(write=True) as txn:
                    more = _cut_back(txn.cursor(database), last, end)
        self.committed[table] = self._end(table)

    # -- facts ----------------------------------------------------------------------------------

    def fact(self, name: str) -> bytes | None:
        """A small fact by name (a copy), or None. Raises: CorruptError when it is damaged."""
        with self._transaction(self._facts) as txn:
            value = txn.get(name.encode())
        if value is None:
            return None
        if value[:4] != checksum(name.encode() + value[4:]):
            raise CorruptError(
                f"{self.path}: expected fact {name!r} as written, got damage; restore a backup"
            )
        return bytes(value[4:])

    def names(self, prefix: str) -> list[str]:
        """Names of the facts that start with ``prefix``, in order."""
        found: list[str] = []
        with self._transaction(self._facts) as txn:
            cursor = txn.cursor()
            there = cursor.set_range(prefix.encode())
            while there and cursor.key().startswith(prefix.encode()):
                found.append(cursor.key().decode())
                there = cursor.next()
        return found

    def commit(self, facts: Mapping[str, bytes | None]) -> None:
        """Set (or, with None, remove) facts in one synced transaction: all or none.

        Raises: DiskFullError before anything has changed when they would not fit.
        """
        self._raise_failure()
        # Facts may use most of what blocks have left, so that a cut fits when no block does.
        self._check_space(sum(len(v) + _PAGE for v in facts.values() if v), _SPARE_BYTES // 8)
        with self._transaction(self._facts, write=True) as txn:
            for name, value in facts.items():
                if value is None:
                    txn.delete(name.encode())
                else:
                    txn.put(name.encode(), checksum(name.encode() + value) + value)

    def close(self) -> None:
        """Write what is queued, join the threads, close the files. Twice is fine."""
        with self._changed:
            if self._closing:
                return
            self._closing = True
            self._changed.notify_all()
        self._writer.join(DEADLINE_SECONDS)
        self._readers.shutdown()
        if self._writer.is_alive():
            # Closing the files under it would crash the process.
            raise self._stuck("accepted")
        self._env.close()

    # -- private --------------------------------------------------------------------------------

    def _database(self, kind: str, table: str) -> Any:
        return self._env.open_db(f"{kind}/{table}".encode(), integerkey=True)

    @contextmanager
    def _transaction(self, database: Any = None, *, write: bool = False) -> Iterator[Any]:
        self._check_open()
        with translated(self.path), self._env.begin(db=database, write=write) as txn:
            yield txn

    def _check_open(self) -> None:
        if self._closing:
            raise ClosedError(f"{self.path}: the store is closed; open it again")

    def _raise_failure(self) -> None:
        self._check_open()
        if self._failure is not None:
            raise self._failure

    def _wait(self, ready: Callable[[], bool]) -> None:
        """Wait on the condition until ``ready()``, the writer failed, or the deadline passed."""
        done = self._changed.wait_for(
            lambda: ready() or self._failure is not None, DEADLINE_SECONDS
        )
        self._raise_failure()
        if not done:
            raise self._stuck("accepted")

    def _stuck(self, verb: str) -> StoreError:
        return StoreError(
            f"{self.path}: the disk {verb} nothing for {DEADLINE_SECONDS:.0f} s; the last "
            f"checkpoint is good; check the device"
        )

    def _check_space(self, size: int, spare: int) -> None:
        """Refuse while the file and its neighbours are still whole."""
        need = int(1.1 * (size + self._pending_bytes)) + spare
        file, used = self.file_bytes, self.used_bytes
        # What is free inside the file is used first.
        left = shutil.disk_usage(self.path).free + file - used
        what = f"{self.path} has {show_size(left)} free"
        if self.disk_bytes is not None and self.disk_bytes - used < left:
            left = self.disk_bytes - used
            what = f"--disk {show_size(self.disk_bytes)} has {show_size(max(0, left))} left"
        if need > left:
            raise DiskFullError(
                f"disk full: expected room for {show_size(need)}, but {what}; the last "
                f"checkpoint is good; free space or give more, then resume"
            )

    def _end(self, table: str) -> int:
        """One more than the highest block number."""
        with self._transaction(self._blocks[table]) as txn:
            cursor = txn.cursor()
            return _block_of(cursor.key()) + 1 if cursor.last() else 0

    def _remade(self, table: str, begin: int, end: int) -> Iterator[Run]:
        """Runs of one block each, from the blocks ``begin`` up to ``end`` that are there."""
        if begin >= end:
            return
        with self._transaction(self._blocks[table]) as txn:
            cursor = txn.cursor()
            there = cursor.set_range(_number(begin))
            while there and (number := _block_of(cursor.key())) < end:
                block = bytes(cursor.value())
                if not is_sound(block, number):
                    raise CorruptError(
                        f"{self.path}: table {table!r}: expected a sound block {number}, but it is "
                        f"damaged, and its keys in the directory, too; restore a backup"
                    )
                yield run_of(number, block)
                there = cursor.next()

    def _read_some(
        self, table: str, numbers: NDArray[np.int64], out: Blocks, start: int
    ) -> list[int]:
        size, damaged = out.dtype.itemsize, []
        target = out.view(np.uint8).reshape(len(out), size)
        wanted = numbers.astype(np.uint64).tobytes()
        with self._transaction(self._blocks[table]) as txn:
            # A Python loop over blocks: 2 us each against 15-100 us for the device's random read.
            for i, number in enumerate(numbers.tolist()):
                block = txn.get(wanted[8 * i : 8 * i + 8])
                if block is None or len(block) != size or not is_sound(block, number):
                    damaged.append(start + i)
                else:
                    target[i] = np.frombuffer(block, np.uint8)
        return damaged

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closing)
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
                    self._pending_bytes -= _disk_bytes(blocks)
                self._changed.notify_all()

    def _write(self, table: str, first: int, blocks: Blocks) -> None:
        """One synced transaction: the blocks, and their keys in the directory."""
        numbers = np.arange(first, first + len(blocks), dtype=np.uint64).tobytes()
        keys = [numbers[i : i + 8] for i in range(0, len(numbers), 8)]
        pairs = list(zip(keys, seal(blocks, first), strict=True))
        with translated(self.path), self._env.begin(write=True) as txn:
            _, added = txn.cursor(self._blocks[table]).putmulti(pairs, append=True)
            directory = txn.cursor(self._directories[table])
            for start in range(0, len(blocks), _RUN_BLOCKS):
                run = pack_run(first + start, blocks[start : start + _RUN_BLOCKS])
                added += directory.put(_number(first + start), run, append=True)
            if added != len(blocks) + -(-len(blocks) // _RUN_BLOCKS):
                raise StoreError(
                    f"{self.path}: table {table!r}: expected block {first} to be a new one, but "
                    f"the log has it or a later one; open one tier a table"
                )


def _number(block: int) -> bytes:
    """An integer key as LMDB compares it: native order, which is the machine's own."""
    return np.uint64(block).tobytes()


def _block_of(key: bytes) -> int:
    return int(np.frombuffer(key, np.uint64)[0])


def _disk_bytes(blocks: Blocks) -> int:
    """Bytes that blocks take on the disk, with their directory: 8 a key, and rounding to pages."""
    return int(1.02 * blocks.nbytes) + 8 * int(blocks["count"].sum(dtype=np.int64)) + 2 * _PAGE


def _last_of_run(key: bytes, value: bytes) -> int:
    return _block_of(key) + int.from_bytes(value[4:8], "little") - 1


def _cut_back(cursor: Any, last: Callable[[bytes, bytes], int], end: int) -> bool:
    """Delete, from the back, up to 4096 entries that reach ``end``; whether there may be more.

    A run that begins before ``end`` goes too: the directory makes it again from its blocks.
    """
    for _ in range(_TRUNCATE):
        if not cursor.last() or last(cursor.key(), cursor.value()) < end:
            return False
        cursor.delete()
    return True
