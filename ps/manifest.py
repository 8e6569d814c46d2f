"""Manifest: what an exported folder says of itself, and the proof that it is whole.

It is written last, so a folder without one is an export that did not finish. It names every file
with its length and CRC-32C; nothing it says is believed before the files were compared with it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import google_crc32c
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ps.table import Table, table_from
from storage.errors import ConfigError, CorruptError, MismatchError

FORMAT = 1
"""Version of the folder's layout; a newer one is refused."""

MANIFEST = "manifest.json"
"""The manifest's file."""

_CHUNK_BYTES = 1 << 20
# A file entry takes 100 bytes: as many files as a folder can bear, and no more memory than that.
_MOST_BYTES = 256 << 20

Count = Annotated[int, Field(ge=0)]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class FileEntry(_Entry):
    """A file: its name in the folder, rows, length, and CRC-32C of all its bytes."""

    # No slash, and never just dots: it cannot name a file of another folder.
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+\.[a-z]+$")]
    rows: Count
    bytes: Count
    crc32c: Count


class Description(_Entry):
    """A table as `ps.table.Table.describe` describes it."""

    name: str
    dim: int
    optimizer: dict[str, Any]
    init: dict[str, Any]
    dtype: str
    rows: int | None
    seed: int
    admission: dict[str, Any] | None = None


class TableEntry(_Entry):
    """A table, the rows exported of it, and the files they are in, in order."""

    table: Description
    rows: Count
    files: tuple[FileEntry, ...]


class Manifest(_Entry):
    """See the module's docstring. digest: of all rows, as `Store.digest`, 16 hexadecimal digits."""

    format: int
    encoding: str
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    tables: tuple[TableEntry, ...]

    def text(self) -> str:
        """The manifest as JSON."""
        # A table without admission is described as by versions that did not know it.
        return self.model_dump_json(indent=1, exclude_defaults=True)

    def make_tables(self) -> list[Table]:
        """The tables as they were. Raises: ConfigError for a description that cannot be meant."""
        return [table_from(entry.table.model_dump()) for entry in self.tables]


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an exported folder.

    Raises: ConfigError when there is no such folder; MismatchError for a newer format; CorruptError
    when the export did not finish or the manifest was damaged.
    """
    file = folder / MANIFEST
    if not folder.is_dir():
        raise ConfigError(f"{folder}: expected a folder made by export, found none; check the path")
    if not file.is_file():
        raise CorruptError(
            f"{folder}: expected {MANIFEST}, found none: no export, or one that did not finish; "
            f"export again"
        )
    if file.stat().st_size > _MOST_BYTES:
        raise _damaged(file, f"it has more than {_MOST_BYTES} bytes")
    try:
        text = file.read_text("utf-8")
        version = json.loads(text)["format"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged(file, f"{type(error).__name__}: {error}") from error
    if version != FORMAT:
        raise MismatchError(
            f"{file}: expected format {FORMAT}, found {version}; use the version of Terrace that "
            f"made it, or a newer one"
        )
    return _parse(file, text)


def file_checksum(path: Path) -> int:
    """CRC-32C of a file, read in chunks."""
    checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            checksum = google_crc32c.extend(checksum, chunk)
    return int(checksum)


def check_file(path: Path, entry: FileEntry) -> None:
    """Compare a file with its entry, byte by byte. Raises: CorruptError."""
    try:
        found = path.stat().st_size
        checksum = file_checksum(path) if found == entry.bytes else None
    except OSError as error:
        raise CorruptError(
            f"{path}: expected a file of {entry.bytes} bytes, got none that can be read "
            f"({error.strerror}); copy or export again"
        ) from error
    if found != entry.bytes:
        raise CorruptError(
            f"{path}: expected {entry.bytes} bytes, got {found}; copy or export again"
        )
    if checksum != entry.crc32c:
        raise CorruptError(
            f"{path}: expected checksum {entry.crc32c:08x}, got {checksum:08x}: the file was "
            f"changed or damaged; copy or export again"
        )


def _parse(file: Path, text: str) -> Manifest:
    try:
        manifest = Manifest.model_validate_json(text)
        names = [table.name for table in manifest.make_tables()]
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise _damaged(file, f"{place}: {first['msg']}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise _damaged(file, str(error)) from error
    files = [entry.name for table in manifest.tables for entry in table.files]
    if not names or len(set(names)) != len(names) or len(set(files)) != len(files):
        raise _damaged(file, "no table, or the same table or file twice")
    for name, table in zip(names, manifest.tables, strict=True):
        if sum(entry.rows for entry in table.files) != table.rows:
            raise _damaged(file, f"table {name!r} has {table.rows} rows, its files have others")
    return manifest


def _damaged(file: Path, reason: str) -> CorruptError:
    return CorruptError(
        f"{file}: expected the manifest of an export, got one that is damaged ({reason}); copy or "
        f"export again"
    )
