"""SafetensorsFile: rows as named tensors in one safetensors file.

Tensors ``keys`` (n,), ``embeddings`` (n, D), ``state`` (n, S) and ``steps`` (n,), little-endian.
The library maps the file and checks that the tensors cover it exactly, so no count is taken on
trust.

Threads: a file belongs to one thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ps.column import Column
from storage.errors import DataError, StoreError

SUFFIX = ".safetensors"

_DTYPES = {
    "U8": "uint8", "U16": "uint16", "U32": "uint32", "U64": "uint64",
    "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64",
    "F16": "float16", "F32": "float32", "F64": "float64",
}  # fmt: skip


def write_safetensors(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays of one length as tensors. Raises: StoreError when the disk does not take them.

    arrays: by the names above. Tensors are written from where they lie, without a copy in memory.
    """
    # The library writes the memory behind an array and does not look at its strides.
    dense = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    try:
        save_file(dense, path)
    except SafetensorError as error:
        raise StoreError(
            f"{path}: cannot be written ({error}); free space or choose another disk"
        ) from error


class SafetensorsFile:
    """An open file, until `close`. Raises: DataError when it is no safetensors file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = _open(path)
        names: list[str] = self._file.keys()
        self._slices = {name: self._file.get_slice(name) for name in names}
        self.columns: Mapping[str, Column] = {
            name: _column(tensor) for name, tensor in self._slices.items()
        }

    def close(self) -> None:
        """Let go of the file."""
        self._slices = {}
        self._file.__exit__(None, None, None)

    def pieces(self, names: Sequence[str], rows: int) -> Iterator[dict[str, NDArray[Any]]]:
        """The tensors ``names`` in order, ``rows`` rows at a time, as copies.

        Raises: DataError when the tensors are not of one length.
        """
        lengths = {name: self._slices[name].get_shape()[0] for name in names}
        length = lengths[names[0]]
        for name, other in lengths.items():
            if other != length:
                raise DataError(
                    f"{self.path}: {name!r} has {other} rows, expected the {length} of "
                    f"{names[0]!r}; write the file again"
                )
        for start in range(0, length, rows):
            stop = min(start + rows, length)
            yield {name: self._slices[name][start:stop] for name in names}


def _open(path: Path) -> Any:
    opened: Any = safe_open  # the library's stub types its context manager by halves
    try:
        return opened(path, "numpy").__enter__()
    except (SafetensorError, OSError) as error:
        raise DataError(
            f"{path}: expected a safetensors file, got one that cannot be read ({error}); "
            f"copy or write it again"
        ) from error


def _column(tensor: Any) -> Column:
    """What a tensor declares; a single number has no rows: a shape that no column takes."""
    shape = tensor.get_shape()
    dtype = tensor.get_dtype()
    return Column((_DTYPES.get(dtype, dtype),), tuple(shape[1:]) if shape else (0, 0))
