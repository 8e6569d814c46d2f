"""ExportFolder: a folder being filled with files of rows, whole once its manifest is there.

Every file is written under another name, synced and renamed, and the manifest comes last: whenever
the process dies, the folder either has a manifest and is complete, or has none.

Threads: one owner.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ps.digest import rows_digest
from ps.manifest import (
    FORMAT,
    MANIFEST,
    Description,
    FileEntry,
    Manifest,
    TableEntry,
    file_checksum,
)
from ps.rowfile import Format, write_rows
from ps.table import Table
from storage.errors import ConfigError, DiskFullError, StoreError
from storage.rows import Rows


class ExportFolder:
    """A new folder for files of one format.

    Raises: ConfigError when something is there already; StoreError when it cannot be made.
    """

    def __init__(self, path: Path, form: Format) -> None:
        self.path = path
        self._form = form
        self._tables: list[TableEntry] = []
        self._digest = 0
        check_empty(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(path, error) from error

    def write(self, table: Table, pieces: Iterable[Rows], count: int) -> Iterator[int]:
        """Write a table's rows, ``count`` a file: yields the rows of each file once it is there.

        The table counts when this has been gone through to the end.
        Raises: ConfigError without pyarrow; StoreError; DiskFullError.
        """
        files: list[FileEntry] = []
        for rows in _parts(pieces, count, table.width):
            file = self.path / f"{table.name}-{len(files):06d}{self._form.suffix}"
            with _replacing(file) as beside:
                write_rows(beside, rows, table.dim, self._form)
            files.append(_entry_of(file, len(rows)))
            self._digest += rows_digest(table.name, rows)
            yield len(rows)
        described, total = Description(**table.describe()), sum(entry.rows for entry in files)
        self._tables.append(TableEntry(table=described, rows=total, files=tuple(files)))

    def finish(self) -> Manifest:
        """Write the manifest, which makes the folder whole. Raises: StoreError; DiskFullError."""
        manifest = Manifest(
            format=FORMAT,
            encoding=self._form.name,
            digest=f"{self._digest % 2**64:016x}",
            tables=tuple(self._tables),
        )
        with _replacing(self.path / MANIFEST) as beside:
            beside.write_text(manifest.text(), "utf-8")
        return manifest


def check_empty(folder: Path) -> None:
    """Raises: ConfigError when something is there that a new folder would stand in for."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(
            f"{folder}: expected an empty folder or none, found something; choose another path"
        )


def sync(path: Path) -> None:
    """Return when a file, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _parts(pieces: Iterable[Rows], count: int, width: int) -> Iterator[Rows]:
    """The same rows, ``count`` at a time: views that hold until the next one is asked for."""
    part, filled = Rows.empty(count, width), 0
    for rows in pieces:
        done = 0
        while done < len(rows):
            taken = min(len(rows) - done, count - filled)
            here, there = slice(filled, filled + taken), slice(done, done + taken)
            part.keys[here], part.values[here] = rows.keys[there], rows.values[there]
            part.steps[here] = rows.steps[there]
            filled, done = filled + taken, done + taken
            if filled == count:
                yield part
                filled = 0
    if filled:
        yield Rows(
            part.keys[:filled], part.values[:filled], part.steps[:filled], part.dirty[:filled]
        )


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """All or nothing: a path to write beside, then synced, renamed, and the rename synced."""
    beside = path.with_name(path.name + ".new")
    try:
        yield beside
        sync(beside)
        beside.replace(path)
        sync(path.parent)
    except OSError as error:
        raise _unwritable(path, error) from error


def _entry_of(file: Path, rows: int) -> FileEntry:
    return FileEntry(
        name=file.name, rows=rows, bytes=file.stat().st_size, crc32c=file_checksum(file)
    )


def _unwritable(path: Path, error: OSError) -> StoreError:
    kind = DiskFullError if error.errno == errno.ENOSPC else StoreError
    return kind(
        f"{path}: expected a disk that takes it, got {error.strerror or error}; free space or "
        f"choose another path, and remove the unfinished folder"
    )
