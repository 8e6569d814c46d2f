"""ParquetFile: rows as columns of one Parquet file.

Columns ``key`` uint64, ``embedding`` fixed_size_list<float>[D], ``state`` fixed_size_list<float>[S]
and ``step`` uint32, none of them nullable. Lists of varying type are read too, when all have the
length that is wanted.

pyarrow is imported when a file is opened or written, so that Terrace works without it. Threads: a
file belongs to one thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ps.column import ANY, Column
from storage.errors import ConfigError, DataError

SUFFIX = ".parquet"
MAGIC = b"PAR1"
"""How every Parquet file begins."""

_COLUMNS = {"keys": "key", "embeddings": "embedding", "state": "state", "steps": "step"}
# Without it the reader holds whole column chunks, which may be a whole file.
_BUFFER_BYTES = 1 << 20


def write_parquet(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays of one length as columns. Raises: ConfigError without pyarrow; OSError.

    arrays: by the names of `ps.column.whole_columns`, (n,) or (n, width).
    """
    arrow, parquet = import_arrow()
    columns = [_to_arrow(arrow, array) for array in arrays.values()]
    fields = [
        arrow.field(_COLUMNS[name], column.type, nullable=False)
        for name, column in zip(arrays, columns, strict=True)
    ]
    table = arrow.Table.from_arrays(columns, schema=arrow.schema(fields))
    # Embeddings and keys hardly repeat: dictionaries would cost time and save nothing.
    parquet.write_table(table, path, use_dictionary=False, compression="snappy")


class ParquetFile:
    """An open file, until `close`.

    Raises: ConfigError without pyarrow; DataError when it is no Parquet file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._arrow, parquet = import_arrow()
        self._errors = (self._arrow.ArrowException, OSError)
        try:
            # Opened here: when it fails, pyarrow lets go of a file of its own at some later time.
            self._source = self._arrow.OSFile(str(path))
        except OSError as error:
            raise self._unreadable(error) from error
        try:
            self._file = parquet.ParquetFile(self._source, buffer_size=_BUFFER_BYTES)
        except self._errors as error:
            self._source.close()
            raise self._unreadable(error) from error
        schema = self._file.schema_arrow
        self.columns: Mapping[str, Column] = {
            name: self._column(schema.field(column).type)
            for name, column in _COLUMNS.items()
            if schema.names.count(column) == 1
        }

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()
        self._source.close()

    def pieces(self, names: Sequence[str], rows: int) -> Iterator[dict[str, NDArray[Any]]]:
        """The columns ``names`` in order, ``rows`` rows at a time at most.

        Raises: DataError for nulls, lists of different lengths, and what pyarrow cannot read.
        """
        columns = [_COLUMNS[name] for name in names]
        try:
            for record in self._file.iter_batches(batch_size=rows, columns=columns):
                if record.num_rows:
                    yield {
                        name: self._from_arrow(name, record.column(_COLUMNS[name]))
                        for name in names
                    }
        except self._errors as error:
            raise self._unreadable(error) from error

    def _column(self, kind: Any) -> Column:
        types = self._arrow.types
        if types.is_fixed_size_list(kind):
            return Column((_dtype(kind.value_type),), (kind.list_size,))
        if types.is_list(kind) or types.is_large_list(kind):
            return Column((_dtype(kind.value_type),), (ANY,))
        return Column((_dtype(kind),))

    def _from_arrow(self, name: str, column: Any) -> NDArray[Any]:
        """A column as (n,), or as (n, width) for lists."""
        count, listed = len(column), bool(self.columns[name].shape)
        self._refuse_nulls(name, column)
        lengths = np.unique(_lengths(column)) if listed else np.zeros(1, np.int64)
        if len(lengths) > 1:
            raise DataError(
                f"{self.path}: {name!r}: expected lists of one length, got lengths from "
                f"{lengths[0]} to {lengths[-1]}; pad or drop these rows"
            )
        if listed:
            column = column.flatten()
            self._refuse_nulls(name, column)
        values: NDArray[Any] = column.to_numpy(zero_copy_only=False)
        return values.reshape(count, int(lengths[0])) if listed else values

    def _refuse_nulls(self, name: str, column: Any) -> None:
        if column.null_count:
            raise DataError(
                f"{self.path}: {name!r}: expected a number everywhere, got {column.null_count} "
                f"nulls; drop these rows"
            )

    def _unreadable(self, error: Exception) -> DataError:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return DataError(
            f"{self.path}: expected a Parquet file, got one that cannot be read ({reason}); "
            f"copy or write it again"
        )


def import_arrow() -> tuple[ModuleType, ModuleType]:
    """pyarrow and pyarrow.parquet. Raises: ConfigError saying how to install them."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError(
            "Parquet needs pyarrow, which is not installed; run: pip install terrace-ps[data], "
            "or use the format safetensors"
        ) from error
    return pyarrow, pyarrow.parquet


def _to_arrow(arrow: ModuleType, array: NDArray[Any]) -> Any:
    flat = arrow.array(np.ascontiguousarray(array).reshape(-1))
    if array.ndim == 1:
        return flat
    item = arrow.field("element", flat.type, nullable=False)
    return arrow.FixedSizeListArray.from_arrays(flat, type=arrow.list_(item, array.shape[1]))


def _dtype(kind: Any) -> str:
    """NumPy's name of an Arrow type, or Arrow's where NumPy has none."""
    try:
        return str(np.dtype(kind.to_pandas_dtype()).name)
    except (NotImplementedError, TypeError):
        return str(kind)


def _lengths(column: Any) -> NDArray[np.int64]:
    """Lengths of the lists of a column, nulls left out."""
    import pyarrow.compute

    lengths = pyarrow.compute.list_value_length(column).drop_null()
    return np.asarray(lengths.to_numpy(zero_copy_only=False), np.int64)
