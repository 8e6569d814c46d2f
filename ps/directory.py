"""StoreDirectory: the folder of a store, owned by one process, and what its format file says.

LMDB would let two processes write one environment; two owners of the same rows would not be
exact, so the folder has a lock of our own, which the system drops when the process ends in any way.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from ps.table import Table, table_from
from storage.errors import ConfigError, LockedError, MismatchError, StoreError

FORMAT = 2
"""Version of the layout on disk; a newer one is refused."""

BESIDE = "terrace.compact"
"""Folder in that of a store where its new file is made; whatever lies there may be removed."""

_FORMAT_FILE, _LOCK_FILE = "terrace.json", "terrace.lock"
_LOG_FILES = ("data.mdb", "lock.mdb")


class StoreDirectory:
    """A locked store folder; made when it is absent and tables are given.

    Raises: LockedError when another process has it open; MismatchError when it was made for other
    tables or by a newer version; StoreError when it is no store or cannot be written.
    """

    def __init__(self, path: str | Path, tables: Sequence[Table] | None) -> None:
        self.path = Path(path)
        if tables is None and not (self.path / _FORMAT_FILE).is_file():
            raise StoreError(
                f"{path}: expected a store (a folder with {_FORMAT_FILE}), found none; "
                f"check the path"
            )
        self._made = False
        self._new = [name for name in _LOG_FILES if not (self.path / name).exists()]
        self._lock = self._take_lock()
        # Left by a crash, perhaps with rows that were deleted.
        shutil.rmtree(self.path / BESIDE, ignore_errors=True)
        try:
            self.tables = self._agree(tables)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give the folder back. Twice is fine."""
        if not self._lock.closed:
            # Said aloud: a forked child (a DataLoader worker) has a copy of the descriptor, and
            # closing ours alone would leave the folder locked as long as that child lives.
            fcntl.flock(self._lock, fcntl.LOCK_UN)
            self._lock.close()

    def discard(self) -> None:
        """Take back that the folder is a store, if it was not before; for when opening fails.

        The new log goes too: with other tables next time its names would seem damaged.
        """
        if self._made:
            for name in (_FORMAT_FILE, *self._new):
                (self.path / name).unlink(missing_ok=True)

    def _take_lock(self) -> TextIO:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = open(self.path / _LOCK_FILE, "a+")  # noqa: SIM115 - held until close
        except OSError as error:
            raise _unwritable(self.path, error) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            owner = lock.read().strip() or "unknown"
            lock.close()
            raise LockedError(
                f"{self.path}: expected a store that nobody uses, but process {owner} has it "
                f"open; wait for it or stop it"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        return lock

    def _agree(self, tables: Sequence[Table] | None) -> tuple[Table, ...]:
        """The store's tables: as its format file says, which is written if there is none."""
        if tables is not None:
            _check_names(tables)
        file = self.path / _FORMAT_FILE
        if not file.exists():
            assert tables is not None
            _write_synced(file, {"format": FORMAT, "tables": [t.describe() for t in tables]})
            self._made = True
            return tuple(tables)
        found = _read(file)
        if tables is None:
            return found
        check_same(self.path, found, tables)
        return tuple(tables)


def check_vacant(path: Path) -> None:
    """Raises: ConfigError when a folder has something in it and is no store.

    What is left where making one was killed at once is nothing.
    """
    if path.is_dir():
        found = {file.name for file in path.iterdir()}
        if _FORMAT_FILE in found or not found - {_LOCK_FILE, _beside(path / _FORMAT_FILE).name}:
            return
    elif not path.exists():
        return
    raise ConfigError(
        f"{path}: expected an empty folder, none, or a store, found something else; choose "
        f"another path"
    )


def check_same(path: Path, found: Sequence[Table], given: Sequence[Table]) -> None:
    """Raises: MismatchError where tables are not those the store was made with."""
    for difference in _differences(path, found, given):
        raise MismatchError(difference)


def is_store(path: Path) -> bool:
    """Whether the folder is a store's."""
    return (path / _FORMAT_FILE).is_file()


def _check_names(tables: Sequence[Table]) -> None:
    names = [table.name for table in tables]
    if not names or len(set(names)) != len(names):
        raise ConfigError(f"tables: expected one or more with names of their own, got {names}")


def _read(file: Path) -> tuple[Table, ...]:
    """The tables that a format file describes."""
    try:
        found = json.loads(file.read_text())
        if found["format"] != FORMAT:
            older = isinstance(found["format"], int) and found["format"] < FORMAT
            way = "terrace export with that version, terrace import with this one"
            raise MismatchError(
                f"{file}: expected format {FORMAT}, found {found['format']}, made by "
                f"{'an older' if older else 'another'} version of Terrace; "
                f"{way if older else 'use that one, or a newer one'}"
            )
        return tuple(table_from(description) for description in found["tables"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{file}: expected a store's format file, got one that cannot be read "
            f"({type(error).__name__}: {error}); restore it from a backup"
        ) from error


def _write_synced(file: Path, content: dict[str, Any]) -> None:
    """All or nothing: written beside, synced, renamed, and the rename synced."""
    beside = _beside(file)
    try:
        with open(beside, "w") as out:
            json.dump(content, out, indent=1)
            out.flush()
            os.fsync(out.fileno())
        beside.replace(file)
        sync_folder(file.parent)
    except OSError as error:
        raise _unwritable(file, error) from error


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _beside(file: Path) -> Path:
    return file.with_suffix(".new")


def _unwritable(path: Path, error: OSError) -> StoreError:
    return StoreError(f"{path}: cannot be written ({error.strerror}); check path and permissions")


def _differences(path: Path, found: Sequence[Table], given: Sequence[Table]) -> list[str]:
    """What the store was made with that is not what is asked for now, one line each."""
    have = {table.name: table.describe() for table in found}
    want = {table.name: table.describe() for table in given}
    if have.keys() != want.keys():
        return [
            f"{path}: the store holds tables {sorted(have)}, expected {sorted(want)}; give the "
            f"same tables or another directory"
        ]
    lines = []
    for name, table in want.items():
        for field in table | have[name]:
            ours, theirs = (_without_rate(each.get(field)) for each in (table, have[name]))
            if ours != theirs:
                lines.append(
                    f"{path}: table {name!r} was made with {field} {_show(theirs)}, expected "
                    f"{_show(ours)}; give the same {field} or another directory"
                )
    return lines


def _without_rate(value: Any) -> Any:
    """An optimizer without its learning rate, which may change between runs."""
    return {k: v for k, v in value.items() if k != "lr"} if isinstance(value, dict) else value


def _show(value: Any) -> str:
    if not isinstance(value, dict):
        return repr(value)
    rest = ", ".join(f"{key}={part}" for key, part in value.items() if key not in ("name", "kind"))
    return f"{value.get('name', value.get('kind'))}({rest})"
