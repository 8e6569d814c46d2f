"""Export and import: the rows of a store as files that anybody can read, and back again.

An exported folder holds ``manifest.json`` and, for each table, numbered files of bounded size::

    ads-000000.parquet  ads-000001.parquet ...            (or .safetensors)  manifest.json

Each file has these columns, one entry a row, rows in the same order in all of them:

===========  ==================  ==========================================================
Parquet      safetensors         what
===========  ==================  ==========================================================
key          keys (n,) U64       the key, any 64-bit number
embedding    embeddings (n, D)   float32; fixed_size_list<float>[D] in Parquet
state        state (n, S)        float32 optimizer state; left out where a row has none (S = 0)
step         steps (n,) U32      uint32 step of the row's last apply, 0 for none
===========  ==================  ==========================================================

A key stands once in a folder. The manifest has the tables' descriptions, the rows of each, every
file's rows, length and CRC-32C, and the digest that `Store.digest` gives for these tables
(hexadecimal). It is written last, each file under another name, synced and renamed: a folder
without manifest is an export that did not finish, and is refused.

Export and import give back every row bit for bit, its state and step too. Rows that nobody has
changed are no part of it: they follow from the table's seed. An import reads and checks everything
before it changes a row, then goes over the files again in pieces. Memory beside the store's: a part
and a copy of it when exporting; a few MiB and a file's keys, sorted, when importing.

Threads: as the store's other methods; call between steps, with no batch in flight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from ps.column import bare_columns, whole_columns
from ps.folder import ExportFolder, check_empty, sync
from ps.manifest import MANIFEST, FileEntry, Manifest, check_file, read_manifest
from ps.rowfile import Format, RowFile, format_named, format_of
from ps.settings import Settings
from ps.store import Store
from ps.table import Table
from storage.budget import parse_size
from storage.errors import ConfigError, CorruptError, MismatchError

PART_BYTES = 64 << 20
"""About how many bytes of rows a file of an export holds."""

_STORE_FILE = "terrace.json"

Progress = Callable[[int], None]
"""Told how many rows are done so far."""


@dataclass(frozen=True)
class ExportReport:
    """What was written. rows: of each table. digest: of them all, as `Store.digest`."""

    rows: Mapping[str, int]
    bytes: int
    files: int
    digest: int


@dataclass(frozen=True)
class ImportReport:
    """What was read. rows: of each table. digest: of them all, as `Store.digest`."""

    rows: Mapping[str, int]
    digest: int


def export_store(
    store: Store,
    destination: str | Path,
    *,
    format: str = "safetensors",
    tables: Sequence[str] | None = None,
    progress: Progress | None = None,
    part_bytes: int = PART_BYTES,
) -> ExportReport:
    """Write the store's changed rows to the folder ``destination``: see the module's docstring.

    format: "safetensors" or "parquet". tables: None is all. progress: told after each file how
    many rows are written in all. part_bytes: about the size of a file.
    Raises: ConfigError for a folder that is not empty, an unknown table or format, or without
    pyarrow; StoreError; DiskFullError. After an error remove the folder.
    """
    form, names = format_named(format), _chosen(store, tables)
    if part_bytes < 1:
        raise ConfigError(f"part_bytes: expected 1 or more, got {part_bytes}")
    folder, told = ExportFolder(Path(destination), form), _Told(progress)
    for name in names:
        table = store.tables[name]
        count = max(1, part_bytes // (4 * table.width + 12))
        # Closed at once: it holds the store's lock, and an error's traceback would keep it alive.
        with closing(store.scan(name)) as pieces:
            for rows in folder.write(table, pieces, count):
                told.add(rows)
    manifest = folder.finish()
    files = [file for entry in manifest.tables for file in entry.files]
    return ExportReport(
        {entry.table.name: entry.rows for entry in manifest.tables},
        sum(file.bytes for file in files),
        len(files),
        int(manifest.digest, 16),
    )


def import_store(
    source: str | Path,
    into: str | Path | Store,
    *,
    ram: str | int = "1GiB",
    disk: str | int | None = None,
    progress: Progress | None = None,
) -> ImportReport:
    """Put the rows of the exported folder ``source`` into a store.

    into: an open store or a directory with one, which has these tables and maybe others: keys that
    are there already get the imported rows, other rows stay. Or a directory that is empty or
    absent: a store of the folder's tables appears there when it is complete, and not before.
    ram, disk: budgets when a directory is given. progress: told after each piece how many rows are
    in the store in all.

    Everything is checked before a row changes. Should writing fail after that (a full disk), run it
    again: the same rows are set.
    Raises: CorruptError; DataError; MismatchError when tables differ; ConfigError; StoreError.
    """
    folder = Path(source)
    manifest = read_manifest(folder)
    if isinstance(into, Store):
        return _import(folder, manifest, into, progress)
    target = Path(into)
    settings = Settings(
        ram=parse_size(ram, "ram"), disk=None if disk is None else parse_size(disk, "disk")
    )

    if (target / _STORE_FILE).is_file():
        with Store(target, None, settings) as store:
            return _import(folder, manifest, store, progress)
    check_empty(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
        beside = Path(scratch) / "store"
        with Store(beside, manifest.make_tables(), settings) as store:
            report = _import(folder, manifest, store, progress)
        beside.replace(target)
        sync(target.parent)
    return report


def import_embeddings(
    source: str | Path, store: Store, table: str, *, progress: Progress | None = None
) -> int:
    """Put the embeddings of one Parquet or safetensors file into a table: how many rows.

    source: a file with the columns of keys (any integers; a negative one is its 64-bit pattern) and
    of embeddings (floats of D a row, finite), named as in the module's docstring; other columns are
    not looked at. Optimizer state is reset. progress: as in `import_store`.
    Raises, before a row changes: DataError; KeyRangeError; ConfigError.
    """
    _chosen(store, [table])
    path, spec = Path(source), store.tables[table]
    with RowFile(path, spec, format_of(path), bare_columns(spec)) as file:
        rows, _ = file.check()
        _put(store, file, _Told(progress))
    return rows


class _Told:
    """Tells the caller how many rows are done."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress, self._rows = progress, 0

    def add(self, rows: int) -> None:
        self._rows += rows
        if self._progress is not None:
            self._progress(self._rows)


def _import(
    folder: Path, manifest: Manifest, store: Store, progress: Progress | None
) -> ImportReport:
    """Check all files against the manifest and the store, then put their rows."""
    form, tables = format_named(manifest.encoding), manifest.make_tables()
    for table in tables:
        _check_same(folder, table, store)
    digest = 0
    for table, entry in zip(tables, manifest.tables, strict=True):
        for file in entry.files:
            digest += _check_part(folder / file.name, table, form, file)
    if f"{digest % 2**64:016x}" != manifest.digest:
        raise CorruptError(
            f"{folder / MANIFEST}: expected rows of digest {manifest.digest}, got "
            f"{digest % 2**64:016x}; copy or export again"
        )
    told = _Told(progress)
    for table, entry in zip(tables, manifest.tables, strict=True):
        for file in entry.files:
            with RowFile(folder / file.name, table, form, whole_columns(table)) as part:
                _put(store, part, told)
    return ImportReport({entry.table.name: entry.rows for entry in manifest.tables}, digest % 2**64)


def _check_part(path: Path, table: Table, form: Format, entry: FileEntry) -> int:
    """The digest of a file's rows. Raises: CorruptError; DataError; KeyRangeError."""
    check_file(path, entry)
    with RowFile(path, table, form, whole_columns(table)) as file:
        rows, digest = file.check()
    if rows != entry.rows:
        raise CorruptError(f"{path}: expected {entry.rows} rows, got {rows}; copy or export again")
    return digest


def _put(store: Store, file: RowFile, told: _Told) -> None:
    for rows in file.pieces():
        store.put(file.table.name, rows)
        told.add(len(rows))


def _check_same(folder: Path, table: Table, store: Store) -> None:
    """Rows mean the same in both; the learning rate may differ, and which keys earn a row."""
    if table.name not in store.tables:
        raise MismatchError(
            f"{folder}: expected tables among {sorted(store.tables)} of {store.path}, got "
            f"{table.name!r}; import into a new directory"
        )
    here, there = store.tables[table.name].describe(), table.describe()
    for description in (here, there):
        description["optimizer"].pop("lr")
        description.pop("admission", None)
    for field, value in here.items():
        if there[field] != value:
            raise MismatchError(
                f"{folder}: table {table.name!r} has {field} {there[field]!r}, expected {value!r} "
                f"as in {store.path}; import into a new directory"
            )


def _chosen(store: Store, tables: Sequence[str] | None) -> list[str]:
    names = list(store.tables if tables is None else dict.fromkeys(tables))
    unknown = [name for name in names if name not in store.tables]
    if unknown or not names:
        raise ConfigError(
            f"tables: expected one or more of {sorted(store.tables)}, got {unknown or names}"
        )
    return names
