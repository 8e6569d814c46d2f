"""BlockLog: the files of a store. Blocks are appended, cuts make them count.

One LMDB environment holds, for every table, its blocks by ever-growing number and a directory that
names the keys of each run of at most 64 blocks (so that opening a store does not read its rows),
and the store's small facts: format, cut, checkpoints. Blocks go in through bounded, synced
transactions of a writer thread; until a cut names them they do not count, and opening a store
removes them. Never writemap (a full disk would be SIGBUS), never without sync (a power cut could
corrupt LMDB itself).

Threads: the owner appends, reads and cuts; the writer thread "terrace-write" and the readers
"terrace-read" belong to the log. Every wait has a deadline; `close` joins all threads.
"""

from __future__ import annotations

import shutil
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import lmdb
import numpy as np
from numpy.typing import NDArray

from storage.block import TOMBSTONES, Blocks, checksum, seal
from storage.budget import show_size
from storage.errors import ClosedError, CorruptError, DiskFullError, StoreError
from storage.rows import Keys

DEADLINE_SECONDS = 600.0
SEGMENT = 64
_READERS = 8
_QUEUE = 4
_UNCAPPED = 1 << 44
_TRUNCATE = 4096
_SPARE_BYTES = 1 << 20
_FEW = 32


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """The one place where lmdb's errors become ours."""
    try:
        yield
    except (lmdb.MapFullError, lmdb.DiskError) as error:
        raise DiskFullError(
            f"{path}: the disk or the --disk budget is full ({error}); the last checkpoint is "
            f"good; free space or give more, then resume"
        ) from error
    except (lmdb.CorruptedError, lmdb.InvalidError, lmdb.VersionMismatchError) as error:
        raise CorruptError(f"{path}: not a sound LMDB file ({error}); restore a backup") from error
    except (lmdb.LockError, lmdb.ReadonlyError) as error:
        raise StoreError(f"{path}: cannot be written ({error}); check its permissions") from error
    except lmdb.Error as error:
        if shutil.disk_usage(path).free < _SPARE_BYTES:
            raise DiskFullError(
                f"{path}: the disk is full ({error}); the last checkpoint is good; free space, "
                f"then resume"
            ) from error
        raise StoreError(f"{path}: LMDB failed ({error})") from error


def _number(block: int) -> bytes:
    """An integer key as LMDB compares it: native order, which is the machine's own."""
    return np.uint64(block).tobytes()


class BlockLog:
    """See the module's docstring.

    ``disk_bytes``: the most that the files may grow to; None means as far as the disk goes.

    Raises everywhere: ClosedError after `close`; errors of the writer thread, at the next call.
    """

    def __init__(self, path: Path, tables: Sequence[str], *, disk_bytes: int | None = None) -> None:
        self.path = path
        self.disk_bytes = disk_bytes
        with translated(path):
            self._env = lmdb.open(
                str(path), map_size=disk_bytes or _UNCAPPED, max_dbs=2 * len(tables) + 1,
                readahead=False, max_readers=1024, max_spare_txns=_READERS + 2,
            )  # fmt: skip
            self._env.reader_check()
            self._facts = self._env.open_db(b"facts")
            self._blocks = {t: self._env.open_db(f"blocks/{t}".encode(), integerkey=True)
                            for t in tables}  # fmt: skip
            self._directories = {t: self._env.open_db(f"keys/{t}".encode(), integerkey=True)
                                 for t in tables}  # fmt: skip
        self.committed = {table: self._end(table) for table in tables}
        self._queue: deque[tuple[str, int, Blocks]] = deque()
        self._changed = threading.Condition()
        self._busy = False
        self._closing = False
        self._failure: BaseException | None = None
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="terrace-read")
        self._writer = threading.Thread(target=self._write_all, name="terrace-write", daemon=True)
        self._writer.start()

    @property
    def file_bytes(self) -> int:
        """Bytes of the data file that are in use or free inside it."""
        info, stat = self._env.info(), self._env.stat()
        return (int(info["last_pgno"]) + 1) * int(stat["psize"])

    # -- blocks ---------------------------------------------------------------------------------

    def append(self, table: str, first: int, blocks: Blocks) -> None:
        """Queue blocks ``first``, ``first + 1``, ...; they belong to the log until committed.

        Raises: DiskFullError before anything is queued when they would not fit.
        """
        self._check_space(blocks.nbytes)
        with self._changed:
            self._wait(lambda: len(self._queue) < _QUEUE)
            self._queue.append((table, first, blocks))
            self._changed.notify_all()

    def wait(self, table: str | None = None, block: int = 0) -> None:
        """Return when all that is queued (or, of ``table``, up to ``block``) is on the disk."""
        with self._changed:
            if table is None:
                self._wait(lambda: not self._queue and not self._busy)
            else:
                self._wait(lambda: self.committed[table] >= block)

    def read(self, table: str, numbers: NDArray[np.int64], out: Blocks) -> list[int]:
        """Read committed blocks, ascending, into ``out``: the indices of those that are damaged.

        Uses several threads, since a page fault blocks only the thread that has it.
        """
        self._raise_failure()
        if len(numbers) <= _FEW:
            return self._read_some(table, numbers, out, 0)
        pieces = np.array_split(np.arange(len(numbers)), _READERS)
        futures = [
            self._readers.submit(self._read_some, table, numbers[p], out[p[0] : p[-1] + 1], p[0])
            for p in pieces
        ]
        return [bad for future in futures for bad in future.result(DEADLINE_SECONDS)]

    def directory(self, table: str) -> Iterator[tuple[int, NDArray[np.uint16], NDArray[np.uint8], Keys]]:
        """Runs of committed blocks, oldest first: (first block, rows and kind of each, all keys)."""
        with translated(self.path), self._env.begin(db=self._directories[table]) as txn:
            for key, value in txn.cursor():
                count = int(np.frombuffer(value, "<u4", 1)[0])
                rows = np.frombuffer(value, "<u2", count, 4)
                kinds = np.frombuffer(value, "u1", count, 4 + 2 * count)
                keys = np.frombuffer(value, "<u8", int(rows.sum()), 4 + 3 * count)
                yield int(np.frombuffer(key, np.uint64)[0]), rows, kinds, keys

    def truncate(self, table: str, end: int) -> None:
        """Remove the blocks from ``end`` on, in bounded transactions. Nothing may be queued."""
        for database in (self._directories[table], self._blocks[table]):
            more = True
            while more:
                with translated(self.path), self._env.begin(write=True) as txn:
                    more = self._cut_back(txn.cursor(database), end)
        self.committed[table] = self._end(table)

    # -- facts ----------------------------------------------------------------------------------

    def fact(self, name: str) -> bytes | None:
        """A small fact by name (a copy), or None."""
        with translated(self.path), self._env.begin(db=self._facts) as txn:
            value = txn.get(name.encode())
            return None if value is None else bytes(value)

    def names(self, prefix: str) -> list[str]:
        """Names of the facts that start with ``prefix``, in order."""
        with translated(self.path), self._env.begin(db=self._facts) as txn:
            cursor, found = txn.cursor(), []
            if cursor.set_range(prefix.encode()):
                for key in cursor.iternext(values=False):
                    if not key.startswith(prefix.encode()):
                        break
                    found.append(key.decode())
            return found

    def commit(self, facts: Mapping[str, bytes | None]) -> None:
        """Set (or, with None, remove) facts in one synced transaction: all or none."""
        self._check_space(sum(len(value) for value in facts.values() if value))
        with translated(self.path), self._env.begin(write=True, db=self._facts) as txn:
            for name, value in facts.items():
                if value is None:
                    txn.delete(name.encode())
                else:
                    txn.put(name.encode(), value)

    def close(self) -> None:
        """Write what is queued, join the threads, close the files. Twice is fine."""
        with self._changed:
            if self._closing:
                return
            self._closing = True
            self._changed.notify_all()
        self._writer.join(DEADLINE_SECONDS)
        self._readers.shutdown()
        self._env.close()

    # -- private --------------------------------------------------------------------------------

    def _wait(self, ready: object) -> None:
        """Wait on the condition until ``ready()``, the writer failed, or the deadline passed."""
        assert callable(ready)
        done = self._changed.wait_for(lambda: ready() or self._failure, DEADLINE_SECONDS)
        self._raise_failure()
        if not done:
            raise StoreError(
                f"{self.path}: the disk accepted nothing for {DEADLINE_SECONDS:.0f} s; "
                f"the last checkpoint is good; check the device"
            )

    def _raise_failure(self) -> None:
        if self._closing:
            raise ClosedError(f"{self.path}: the store is closed")
        if self._failure is not None:
            raise self._failure

    def _check_space(self, size: int) -> None:
        """Refuse while the file and its neighbours are still whole."""
        queued = sum(blocks.nbytes for _, _, blocks in tuple(self._queue))
        need = int(1.1 * (size + queued)) + _SPARE_BYTES
        left = shutil.disk_usage(self.path).free
        what = f"{self.path} has {show_size(left)} free"
        if self.disk_bytes is not None and self.disk_bytes - self.file_bytes < left:
            left = self.disk_bytes - self.file_bytes
            what = f"--disk {show_size(self.disk_bytes)} has {show_size(max(0, left))} left"
        if need > left:
            raise DiskFullError(
                f"disk full: expected room for {show_size(need)}, but {what}; the last "
                f"checkpoint is good; free space or give more, then resume"
            )

    def _end(self, table: str) -> int:
        """One more than the highest block number."""
        with translated(self.path), self._env.begin(db=self._blocks[table]) as txn:
            cursor = txn.cursor()
            return int(np.frombuffer(cursor.key(), np.uint64)[0]) + 1 if cursor.last() else 0

    def _cut_back(self, cursor: lmdb.Cursor, end: int) -> bool:
        """Delete up to 4096 entries from the back; whether there may be more."""
        for _ in range(_TRUNCATE):
            if not cursor.last() or int(np.frombuffer(cursor.key(), np.uint64)[0]) < end:
                return False
            cursor.delete()
        return True

    def _read_some(
        self, table: str, numbers: NDArray[np.int64], out: Blocks, start: int
    ) -> list[int]:
        size, damaged = out.dtype.itemsize, []
        target = memoryview(out.view(np.uint8))
        wanted = numbers.astype(np.uint64).tobytes()
        with self._env.begin(db=self._blocks[table]) as txn:
            # A Python loop over blocks: 2 us each against 15-100 us for the device's random read.
            for i in range(len(numbers)):
                block = txn.get(wanted[8 * i : 8 * i + 8])
                whole = block is not None and len(block) == size
                if not whole or checksum(block) != int.from_bytes(block[:4], "little"):
                    damaged.append(start + i)
                    continue
                target[i * size : (i + 1) * size] = block
                if int(out["number"][i]) != numbers[i]:
                    damaged.append(start + i)
        return damaged

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closing)
                if not self._queue or self._failure is not None:
                    return
                table, first, blocks = self._queue.popleft()
                self._busy = True
            try:
                self._write(table, first, blocks)
            except Exception as error:  # a thread's edge: raised in the owner at its next call
                self._failure = error
            with self._changed:
                self._busy = False
                if self._failure is None:
                    self.committed[table] = first + len(blocks)
                self._changed.notify_all()

    def _write(self, table: str, first: int, blocks: Blocks) -> None:
        """One synced transaction: the blocks, and their keys in the directory."""
        numbers = np.arange(first, first + len(blocks), dtype=np.uint64).tobytes()
        keys = [numbers[i : i + 8] for i in range(0, len(numbers), 8)]
        pairs = list(zip(keys, seal(blocks, first), strict=True))
        with translated(self.path), self._env.begin(write=True) as txn:
            txn.cursor(self._blocks[table]).putmulti(pairs, append=True)
            directory = txn.cursor(self._directories[table])
            for start in range(0, len(blocks), SEGMENT):
                run = blocks[start : start + SEGMENT]
                directory.put(_number(first + start), _directory_entry(run), append=True)


def _directory_entry(run: Blocks) -> bytes:
    held = np.arange(run["keys"].shape[1]) < run["count"][:, None]
    head = np.uint32(len(run)).tobytes()
    return head + run["count"].tobytes() + run["kind"].tobytes() + run["keys"][held].tobytes()


def is_tombstones(kinds: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which blocks hold deleted keys."""
    return kinds == TOMBSTONES
