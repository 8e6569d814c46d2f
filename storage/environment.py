"""Environment: the LMDB file of a store: its databases, its small facts, its space.

Never writemap (a full disk would be SIGBUS), never without sync (a power cut could corrupt LMDB
itself), no transaction that stays open (a reader that stays would keep freed pages from use).

To free pages LMDB must write some. A small file beside it keeps room on the disk for that: when
others have filled the disk, it goes, and comes back when there is room.

Threads: any; LMDB lets one of them write at a time.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lmdb

from storage.block import checksum
from storage.budget import show_size
from storage.errors import ClosedError, CorruptError, DiskFullError, StoreError

PAGE = 4096
_UNCAPPED = 1 << 44
_SPARE_BYTES = 1 << 20
_SPARE_SHARE = 256
_MOST_READERS = 1024
_UNSOUND = (
    lmdb.CorruptedError,
    lmdb.InvalidError,
    lmdb.PageNotFoundError,
    lmdb.VersionMismatchError,
)
_RESERVE, _RESERVE_BYTES = "terrace.reserve", 1 << 19


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """The one place where errors of lmdb and of the system become ours."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{path}: expected a folder to write to, but {error.strerror}; check path and rights"
        ) from error
    except _UNSOUND as error:
        raise CorruptError(f"{path}: not a sound LMDB file ({error}); restore a backup") from error
    except lmdb.Error as error:
        full = path.exists() and shutil.disk_usage(path).free < _SPARE_BYTES
        if full or isinstance(error, lmdb.MapFullError | lmdb.DiskError):
            raise DiskFullError(
                f"{path}: the disk or the --disk budget is full ({error}); the last checkpoint is "
                f"good; free space or give more, then resume"
            ) from error
        raise StoreError(f"{path}: LMDB failed ({error}); check the disk and rights") from error


def _make_whole(path: Path) -> None:
    """Make the data file if there is none, all or nothing.

    LMDB writes the first pages of a new file without a sync; a power cut that tears them leaves a
    file that it does not take for one of its own.
    """
    file, beside = path / "data.mdb", path / "data.new"
    if file.exists():
        return
    path.mkdir(exist_ok=True)
    beside.unlink(missing_ok=True)
    with lmdb.open(str(beside), subdir=False, lock=False) as env:
        env.sync(force=True)
    beside.replace(file)
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class Environment:
    """See the module's docstring.

    ``disk_bytes``: the most that the file may grow to; None means as far as the disk goes.
    ``databases``: names of those that there may be.

    Raises: CorruptError when the file has another one; ClosedError after `close`, everywhere.
    """

    def __init__(
        self, path: Path, *, databases: Sequence[str], disk_bytes: int | None, transactions: int
    ) -> None:
        self.path = path
        self.disk_bytes = disk_bytes
        self.closed = False
        with translated(path):
            _make_whole(path)
            self._env = lmdb.open(
                str(path), map_size=(disk_bytes or _UNCAPPED) // PAGE * PAGE,
                max_dbs=len(databases) + 1, readahead=False, max_readers=_MOST_READERS,
                max_spare_txns=transactions,
            )  # fmt: skip
        try:
            with translated(path):
                # Slots of readers that died would keep freed pages from use.
                self._env.reader_check()
                self._ensure_known(databases)
                self._facts = self._env.open_db(b"facts")
        except BaseException:
            self._env.close()
            raise
        self._databases = [self._facts]
        self._hold_reserve()

    def database(self, name: str) -> Any:
        """The database of this name with integer keys; made when absent."""
        with translated(self.path):
            self._databases.append(self._env.open_db(name.encode(), integerkey=True))
        return self._databases[-1]

    @contextmanager
    def transaction(self, database: Any = None, *, write: bool = False) -> Iterator[Any]:
        """One transaction, committed (and synced) when the block ends without an error."""
        self.ensure_open()
        with translated(self.path), self._env.begin(db=database, write=write) as txn:
            yield txn

    def freely(self, change: Callable[[Any], None]) -> None:
        """One transaction that only removes things: it fits even when the disk is full.

        change: does it, given the transaction; it may be called twice.
        """
        try:
            with self.transaction(write=True) as txn:
                change(txn)
        except DiskFullError:
            reserve = self.path / _RESERVE
            if not reserve.exists():
                raise
            reserve.unlink()
            with self.transaction(write=True) as txn:
                change(txn)
        self._hold_reserve()

    def ensure_open(self) -> None:
        """Raises: ClosedError after `close`."""
        if self.closed:
            raise ClosedError(f"{self.path}: the store is closed; open it again")

    def close(self) -> None:
        """Close the file; no transaction may be open. Twice is fine."""
        self.closed = True
        self._env.close()

    def _ensure_known(self, databases: Sequence[str]) -> None:
        """A name that nobody gave is a damaged one, and what it named would be made anew, empty."""
        with self.transaction() as txn:
            found = {key.decode("latin-1") for key in txn.cursor().iternext(values=False)}
        if unknown := found - {"facts", *databases}:
            raise CorruptError(
                f"{self.path}: expected databases {sorted(databases)}, got {sorted(unknown)}, "
                f"which nobody made: a name is damaged; restore a backup"
            )

    def _hold_reserve(self) -> None:
        """Keep room for `freely` on the disk, where there is room."""
        reserve = self.path / _RESERVE
        if reserve.exists() or shutil.disk_usage(self.path).free < 4 * _RESERVE_BYTES:
            return
        with translated(self.path), open(reserve, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, _RESERVE_BYTES)

    # -- space ----------------------------------------------------------------------------------

    @property
    def file_bytes(self) -> int:
        """Bytes of the data file, those that are free inside it included."""
        self.ensure_open()
        with translated(self.path):
            return (int(self._env.info()["last_pgno"]) + 1) * int(self._env.stat()["psize"])

    @property
    def used_bytes(self) -> int:
        """Bytes of the data file that hold something."""
        with self.transaction() as txn:
            stats = [txn.stat(database) for database in self._databases]
        pages = sum(s["branch_pages"] + s["leaf_pages"] + s["overflow_pages"] for s in stats)
        return int(pages) * int(stats[0]["psize"])

    def room(self) -> int:
        """Bytes that may still be filled, beside what LMDB itself needs to free others."""
        file, used = self.file_bytes, self.used_bytes
        # What is free inside the file is used first.
        on_disk = shutil.disk_usage(self.path).free + file - used
        left = on_disk if self.disk_bytes is None else min(on_disk, self.disk_bytes - used)
        # LMDB's list of free pages has 8 bytes a page of 4096.
        return left - _SPARE_BYTES - file // _SPARE_SHARE

    def ensure_room(self, size: int) -> None:
        """Raises: DiskFullError when ``size`` bytes more would not fit; nothing has changed."""
        if (left := self.room()) < size:
            raise DiskFullError(
                f"disk full: expected room for {show_size(size)}, but {self.show_room(left)}; the "
                f"last checkpoint is good; free space or give more, then resume"
            )

    def show_room(self, left: int) -> str:
        """Who has how much room, for a message."""
        free = show_size(max(0, left))
        others = shutil.disk_usage(self.path).free + self.file_bytes
        if self.disk_bytes is None or others < self.disk_bytes:
            return f"{self.path} has {free} free"
        return f"--disk {show_size(self.disk_bytes)} has {free} left"

    # -- facts ----------------------------------------------------------------------------------

    def fact(self, name: str) -> bytes | None:
        """A small fact by name (a copy), or None. Raises: CorruptError when it is damaged."""
        with self.transaction(self._facts) as txn:
            value = txn.get(name.encode())
        if value is None:
            return None
        if value[:4] != checksum(name.encode() + value[4:]):
            raise CorruptError(
                f"{self.path}: expected fact {name!r} as written, got damage; run terrace check "
                f"--repair, or restore a backup"
            )
        return bytes(value[4:])

    def damaged_facts(self) -> list[str]:
        """Names, as they are now, of all facts that are damaged."""
        with self.transaction(self._facts) as txn:
            return [
                name.decode("latin-1")
                for name, value in txn.cursor()
                if value[:4] != checksum(name + value[4:])
            ]

    def size(self, name: str) -> int:
        """Bytes of a fact, 0 when there is none; its content is not looked at."""
        with self.transaction(self._facts) as txn:
            cursor = txn.cursor()
            return len(cursor.value()) if cursor.set_key(name.encode()) else 0

    def names(self, prefix: str) -> list[str]:
        """Names of the facts that start with ``prefix``, in order."""
        found: list[str] = []
        with self.transaction(self._facts) as txn:
            cursor = txn.cursor()
            there = cursor.set_range(prefix.encode())
            while there and cursor.key().startswith(prefix.encode()):
                found.append(cursor.key().decode())
                there = cursor.next()
        return found

    def forget(self, names: Iterable[str]) -> None:
        """Remove facts in one synced transaction, even when the disk is full."""

        def remove(txn: Any) -> None:
            for name in names:
                txn.delete(name.encode("latin-1"), db=self._facts)

        self.freely(remove)

    def commit(self, facts: Mapping[str, bytes | None]) -> None:
        """Set (or, with None, remove) facts in one synced transaction: all or none.

        Raises: DiskFullError before anything has changed when they would not fit.
        """
        # Facts may use most of what blocks have left, so that a cut fits when no block does.
        size = sum(len(v) + PAGE for v in facts.values() if v)
        self.ensure_room(size - _SPARE_BYTES // 8 * 7)
        with self.transaction(write=True) as txn:
            self.put_facts(txn, facts)

    def put_facts(self, txn: Any, facts: Mapping[str, bytes | None]) -> None:
        """Set (or, with None, remove) facts in a transaction that does more; there must be room."""
        for name, value in facts.items():
            if value is None:
                txn.delete(name.encode(), db=self._facts)
            else:
                content = checksum(name.encode() + value) + value
                txn.put(name.encode(), content, db=self._facts)
