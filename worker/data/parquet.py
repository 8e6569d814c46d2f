"""The reader of Parquet files, a row group at a time.

What a column is follows from its name and type: ``label``, ``click`` or ``target`` is the label (0
or 1, of any type of number); a float column is a dense value, sign(x) * ln(|x| + 1), and 0 where it
is null or not finite; every other column of integers, booleans, dates, text or bytes is a feature,
keyed by ``worker.data.hash``; a list of those is a bag, empty where it is null. Columns keep the
file's order.

pyarrow is imported when a file is read, so that Terrace works without it. Threads: an iterator
belongs to one thread; the count of bad labels may be read from any.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from storage.errors import ConfigError, DataError
from worker.data.batch import Batch
from worker.data.hash import integer_keys, text_keys

LABELS = ("label", "click", "target")
"""The names by which the label is known, the first that is there."""

_MAGIC = b"PAR1"
_BLOCK_ROWS = 16_384


def is_parquet(path: Path) -> bool:
    """Whether the file begins as Parquet does."""
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


class ParquetReader:
    """Reads files with the columns of ``sample``. A row is one whose label can be read.

    Raises ConfigError when pyarrow is not installed, DataError for a file that cannot be read, has
    no label, or has a column of another type.
    """

    def __init__(self, sample: Path, *, bad_lines: Literal["stop", "skip"] = "stop") -> None:
        self._stops = bad_lines == "stop"
        self._bad: dict[Path, int] = {}
        with _open(sample) as file:
            self._schema = file.schema_arrow
        self._label = next((name for name in LABELS if name in self._schema.names), "")
        if not self._label:
            raise DataError(
                f"{sample}: expected a label column named {', '.join(LABELS)}; got columns "
                f"{', '.join(self._schema.names)}"
            )
        label = self._schema.field(self._label)
        types = _arrow().types
        if not any(
            test(label.type) for test in (types.is_integer, types.is_floating, types.is_boolean)
        ):
            raise DataError(f"{sample}: expected numbers in {label.name!r}, got {label.type}")
        kinds = {
            field.name: _is_dense(sample, field)
            for field in self._schema
            if field.name != self._label
        }
        self.dense_names = tuple(name for name, dense in kinds.items() if dense)
        self.feature_names = tuple(name for name, dense in kinds.items() if not dense)

    @property
    def bad_lines(self) -> int:
        """Different rows with an unreadable label passed over so far in all files."""
        return sum(self._bad.values())

    def count(self, path: Path) -> int:
        """The rows of a file; reads its label column alone.

        Raises DataError as ``read`` does.
        """
        with _open(path) as file:
            return sum(int(good.sum()) for _, good in self._groups(path, file))

    def read(
        self, path: Path, first: int = 0, stop: int | None = None
    ) -> Generator[Batch, None, int]:
        """Rows ``first`` to ``stop - 1`` of a file in blocks; returns the last row looked at + 1.

        Row groups before ``first`` cost their label column alone.

        Raises DataError for other columns than the sample's, and naming the row (from 1) for a
        label that is not 0 or 1 when bad lines stop.
        """
        row = 0
        with _open(path) as file:
            for group, good in self._groups(path, file):
                rows = int(good.sum())
                if row + rows > first:
                    begin = row
                    for block in self._blocks(file, group, good):
                        last = block.size if stop is None else min(block.size, stop - begin)
                        start = max(first - begin, 0)
                        if start < last:
                            yield block.slice(start, last)
                        begin += block.size
                row += rows
                if stop is not None and row >= stop:
                    break
        return row

    def _groups(self, path: Path, file: Any) -> Iterator[tuple[int, NDArray[np.bool_]]]:
        """Each row group's number and which of its rows have a label that can be read."""
        if not file.schema_arrow.equals(self._schema, check_metadata=False):
            raise DataError(
                f"{path}: expected the columns {_signature(self._schema)}, got "
                f"{_signature(file.schema_arrow)}; keep files of one kind together"
            )
        bad = row = 0
        for group in range(file.num_row_groups):
            column = file.read_row_group(group, columns=[self._label]).column(0)
            labels = _as_floats(column)
            good = (labels == 0.0) | (labels == 1.0)
            wrong = np.flatnonzero(~good)
            if wrong.shape[0] and self._stops:
                raise DataError(
                    f"{path}: row {row + int(wrong[0]) + 1}: expected label 0 or 1, got "
                    f"{column[int(wrong[0])].as_py()!r}; mend the row, or skip bad lines"
                )
            bad += wrong.shape[0]
            self._bad[path] = max(self._bad.get(path, 0), bad)
            row += good.shape[0]
            yield group, good

    def _blocks(self, file: Any, group: int, good: NDArray[np.bool_]) -> Iterator[Batch]:
        """The good rows of a row group."""
        row = 0
        for record in file.iter_batches(batch_size=_BLOCK_ROWS, row_groups=[group]):
            keep = good[row : row + record.num_rows]
            row += record.num_rows
            yield self._convert(record if keep.all() else record.filter(_arrow().array(keep)))

    def _convert(self, record: Any) -> Batch:
        rows = record.num_rows
        dense = np.zeros((rows, len(self.dense_names)), dtype=np.float32)
        for place, name in enumerate(self.dense_names):
            values = _as_floats(record.column(name))
            values[~np.isfinite(values)] = 0.0
            dense[:, place] = np.sign(values) * np.log1p(np.abs(values))
        bags = [
            _bags(record.column(name), feature) for feature, name in enumerate(self.feature_names)
        ]
        ids, offsets = _interleave(bags, rows)
        labels = _as_floats(record.column(self._label)).astype(np.float32)
        return Batch(*(torch.from_numpy(array) for array in (labels, dense, ids, offsets)))


def _interleave(
    bags: list[tuple[NDArray[np.int64], NDArray[np.int64]]], rows: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Example-major ids (N,) int64 and offsets (rows*F+1,) int64.

    bags: for each feature its keys, one example after the other, and (rows,) int64 bag sizes.
    """
    sizes = np.zeros((rows, len(bags)), dtype=np.int64)
    for feature, (_, counts) in enumerate(bags):
        sizes[:, feature] = counts
    offsets = np.zeros(sizes.size + 1, dtype=np.int64)
    np.cumsum(sizes.reshape(-1), out=offsets[1:])
    ids = np.empty(offsets[-1], dtype=np.int64)
    for feature, (keys, counts) in enumerate(bags):
        # Where each bag goes, less where it lies among its feature's keys.
        shifts = offsets[:-1].reshape(sizes.shape)[:, feature] - (np.cumsum(counts) - counts)
        ids[np.repeat(shifts, counts) + np.arange(keys.shape[0])] = keys
    return ids, offsets


def _bags(column: Any, feature: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The keys of a column, end to end, and how many each row has."""
    types = _arrow().types
    if types.is_list(column.type) or types.is_large_list(column.type):
        compute = _submodule("pyarrow.compute")
        counts = compute.fill_null(compute.list_value_length(column), 0).to_numpy()
        return _keys(column.flatten(), feature), counts.astype(np.int64)
    return _keys(column, feature), np.ones(len(column), dtype=np.int64)


def _keys(column: Any, feature: int) -> NDArray[np.int64]:
    """The key of each value of a column without lists, by the table in ``worker.data.hash``."""
    arrow = _arrow()
    if arrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    null = column.is_null().to_numpy(zero_copy_only=False)
    if _is_text(column.type):
        column = column.fill_null(b"" if arrow.types.is_binary(column.type) else "")
        column = column.cast(arrow.large_binary())
        _, places, text = column.buffers()
        offsets = np.frombuffer(places, dtype=np.int64)[column.offset :][: len(column) + 1]
        data = np.frombuffer(text or b"", dtype=np.uint8)
        keys: NDArray[np.uint64] = text_keys(data, offsets, feature)
        return keys.view(np.int64)
    if not arrow.types.is_integer(column.type):
        wide = column.type.bit_width != 32  # dates and times are 32 or 64 bits, booleans 1
        column = column.cast(arrow.int64() if wide else arrow.int32())
    values = column.fill_null(0).to_numpy(zero_copy_only=False)
    values = values.view(np.int64) if values.dtype == np.uint64 else values.astype(np.int64)
    keys = integer_keys(values, feature)
    keys[null] = text_keys(np.zeros(0, np.uint8), np.zeros(2, np.int64), feature)[0]
    return keys.view(np.int64)


def _is_dense(path: Path, field: Any) -> bool:
    """Whether a column is a dense value rather than a feature.

    Raises DataError for a type that is neither.
    """
    types = _arrow().types
    if types.is_floating(field.type):
        return True
    kind = field.type
    if types.is_list(kind) or types.is_large_list(kind):
        kind = kind.value_type
    if types.is_dictionary(kind):
        kind = kind.value_type
    known = (types.is_integer, types.is_boolean, types.is_temporal, _is_text)
    if not any(test(kind) for test in known):
        raise DataError(
            f"{path}: column {field.name!r} has type {field.type}, expected numbers, dates, text "
            "or lists of them; leave it out or convert it"
        )
    return False


def _is_text(kind: Any) -> bool:
    types = _arrow().types
    tests = (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary)
    return any(test(kind) for test in tests)


def _as_floats(column: Any) -> NDArray[np.float64]:
    """A column of numbers as float64, a copy; null is NaN."""
    values = column.cast(_arrow().float64()).to_numpy(zero_copy_only=False)
    return np.array(values, dtype=np.float64)


def _signature(schema: Any) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    """The file, closed at the end; what pyarrow says of a damaged one becomes a DataError."""
    arrow = _arrow()
    try:
        with _submodule("pyarrow.parquet").ParquetFile(path) as file:
            if file.metadata.num_rows == 0:
                raise DataError(f"{path}: expected rows of examples, got an empty Parquet file")
            yield file
    except (arrow.ArrowException, OSError) as error:
        raise DataError(
            f"{path}: expected a Parquet file, got one that cannot be read ({error})"
        ) from error


def _arrow() -> ModuleType:
    return _submodule("pyarrow")


def _submodule(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ImportError as error:
        raise ConfigError(
            "reading Parquet needs pyarrow, which is not installed; "
            "run: pip install 'terrace-ps[data]'"
        ) from error
