"""RowFile: one file of a table's rows, in any portable format, checked before it is believed.

What a file declares is compared with the table before memory is taken, and everything is read in
pieces of a bounded size, so neither a damaged nor a large file costs more than a piece. A format is
one line in `FORMATS`.

Threads: a file belongs to one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ps.column import Column
from ps.digest import rows_digest
from ps.parquet import MAGIC, ParquetFile, write_parquet
from ps.parquet import SUFFIX as PARQUET_SUFFIX
from ps.safetensors import SUFFIX as SAFETENSORS_SUFFIX
from ps.safetensors import SafetensorsFile, write_safetensors
from ps.table import Table
from storage.errors import ConfigError, DataError, KeyRangeError
from storage.keys import as_keys, check_range, mix_keys
from storage.rows import Keys, Rows

PIECE_BYTES = 4 << 20
"""About how much of a file is in memory at a time."""

# Keys that are sorted at a time to find duplicates: 128 MiB of them.
_KEYS_AT_ONCE = 1 << 24


class ColumnReader(Protocol):
    """What the reader of a format offers."""

    columns: Mapping[str, Column]

    def pieces(self, names: Sequence[str], rows: int) -> Iterator[dict[str, NDArray[Any]]]:
        """Columns in order, at most ``rows`` rows at a time."""
        ...

    def close(self) -> None:
        """Let go of the file."""
        ...


@dataclass(frozen=True, slots=True)
class Format:
    """A file format: its name, how its files end, and how one is read and written."""

    name: str
    suffix: str
    read: Callable[[Path], ColumnReader]
    write: Callable[[Path, Mapping[str, NDArray[Any]]], None]


FORMATS = {
    form.name: form
    for form in (
        Format("safetensors", SAFETENSORS_SUFFIX, SafetensorsFile, write_safetensors),
        Format("parquet", PARQUET_SUFFIX, ParquetFile, write_parquet),
    )
}
"""Every format by name."""


def format_named(name: str) -> Format:
    """The format called ``name``. Raises: ConfigError naming those there are."""
    if name not in FORMATS:
        raise ConfigError(f"format: expected one of {', '.join(FORMATS)}, got {name!r}")
    return FORMATS[name]


def format_of(path: Path) -> Format:
    """The format of a file by how it begins. Raises: DataError when it cannot be read."""
    try:
        with path.open("rb") as file:
            return FORMATS["parquet" if file.read(len(MAGIC)) == MAGIC else "safetensors"]
    except OSError as error:
        raise DataError(
            f"{path}: expected a Parquet or safetensors file, got none that can be read "
            f"({error.strerror}); check the path"
        ) from error


def write_rows(path: Path, rows: Rows, dim: int, form: Format) -> None:
    """Write whole rows, optimizer state and steps included.

    rows: (n, W) values with D = ``dim``. Raises: ConfigError without pyarrow; StoreError; OSError.
    """
    arrays: dict[str, NDArray[Any]] = {
        "keys": rows.keys,
        "embeddings": rows.values[:, :dim],
        "state": rows.values[:, dim:],
        "steps": rows.steps,
    }
    if rows.values.shape[1] == dim:  # Parquet has no lists of length 0
        del arrays["state"]
    form.write(path, arrays)


class RowFile:
    """A file whose columns do for ``table``; a context manager.

    wanted: of `ps.column`. What it leaves out of a row is reset: state as in a new row, step 0.
    Raises: ConfigError without pyarrow; DataError when the file is of another format or columns.
    """

    def __init__(
        self, path: Path, table: Table, form: Format, wanted: Mapping[str, Column]
    ) -> None:
        self.path, self.table = path, table
        self._wanted = wanted
        self._reader = form.read(path)
        try:
            self._check_columns()
        except BaseException:
            self._reader.close()
            raise

    def __enter__(self) -> RowFile:
        return self

    def __exit__(self, *error: object) -> None:
        self._reader.close()

    def pieces(self) -> Iterator[Rows]:
        """All rows in the file's order, copies, marked dirty.

        Raises: DataError for what is no row of the table; KeyRangeError.
        """
        at = 0
        for arrays in self._arrays(tuple(self._wanted), self.table.width):
            keys = as_keys(arrays["keys"])
            self._check_range(keys)
            rows = Rows.empty(len(keys), self.table.width)
            dim = self.table.dim
            rows.keys[:] = keys
            # A float64 beyond float32 becomes infinite here, and is refused below.
            with np.errstate(over="ignore"):
                rows.values[:, :dim] = arrays["embeddings"]
            rows.values[:, dim:] = arrays.get("state", self.table.optimizer.initial_state)
            rows.steps[:] = arrays.get("steps", 0)
            rows.dirty[:] = True
            if "steps" not in self._wanted:
                self._check_finite(rows, at)
            at += len(rows)
            yield rows

    def check(self, *, keys_at_once: int = _KEYS_AT_ONCE) -> tuple[int, int]:
        """Read everything: (rows, their `rows_digest`).

        Keys of a longer file than ``keys_at_once`` are compared in several passes, each over those
        whose mixed keys leave one remainder, so that memory is bounded.
        Raises: DataError, also for a key that is there twice; KeyRangeError.
        """
        count = digest = 0
        for rows in self.pieces():
            count += len(rows)
            digest += rows_digest(self.table.name, rows)
        passes = -(-count // keys_at_once)
        for remainder in range(passes):
            self._check_unique(passes, remainder)
        return count, digest % 2**64

    def _arrays(self, names: Sequence[str], width: int) -> Iterator[dict[str, NDArray[Any]]]:
        """Columns in pieces of about `PIECE_BYTES` for rows of ``width`` floats."""
        for arrays in self._reader.pieces(names, max(1, PIECE_BYTES // (4 * width + 12))):
            for name, array in arrays.items():
                found = Column((array.dtype.name,), array.shape[1:])
                if not self._wanted[name].takes(found):
                    raise self._mismatch(name, found)
            yield arrays

    def _check_columns(self) -> None:
        found = self._reader.columns
        for name, column in self._wanted.items():
            if name not in found:
                raise DataError(
                    f"{self.path}: expected {', '.join(map(repr, self._wanted))}, got "
                    f"{', '.join(map(repr, found)) or 'nothing of the kind'}; rename or add "
                    f"{name!r}"
                )
            if not column.takes(found[name]):
                raise self._mismatch(name, found[name])

    def _check_range(self, keys: Keys) -> None:
        try:
            check_range(keys, self.table.rows, self.table.name)
        except KeyRangeError as error:
            raise KeyRangeError(f"{self.path}: {error}") from error

    def _check_finite(self, rows: Rows, at: int) -> None:
        """Only for other people's embeddings: an export has to give back whatever a store holds."""
        wrong = np.flatnonzero(~np.isfinite(rows.values).all(axis=1))
        if len(wrong):
            raise DataError(
                f"{self.path}: row {at + int(wrong[0])} (key {int(rows.keys[wrong[0]])}): expected "
                f"finite float32 embeddings, got NaN, infinity or more; mend or drop the row"
            )

    def _check_unique(self, passes: int, remainder: int) -> None:
        chosen = []
        for arrays in self._arrays(("keys",), 1):
            keys = as_keys(arrays["keys"])
            chosen.append(keys[mix_keys(keys) % np.uint64(passes) == remainder])
        ordered = np.sort(np.concatenate(chosen))
        twice = np.flatnonzero(ordered[1:] == ordered[:-1])
        if len(twice):
            raise DataError(
                f"{self.path}: expected every key once, got key {int(ordered[twice[0]])} twice "
                f"({len(twice)} duplicates); keep one row of each"
            )

    def _mismatch(self, name: str, found: Column) -> DataError:
        return DataError(
            f"{self.path}: {name!r}: table {self.table.name!r} expected {self._wanted[name]}, got "
            f"{found}; was the file made for another table?"
        )
