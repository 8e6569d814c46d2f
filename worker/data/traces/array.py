"""Arrays: a trace in NumPy's .npy format, plain or packed.

Integers of any width and shape, in C order; a narrower one is widened as int64 would be. Or what
`storage.recorder` writes: records with the fields ``batch`` and ``key``, and ``table`` where the
store had several. Keys of the first table stay as they are; those of table t are xor-ed with
``mix(t)``, so that equal ids of two tables are different keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from storage.errors import DataError
from storage.keys import as_keys, mix_keys
from worker.data.archive import Archive
from worker.data.traces.piece import PIECE_KEYS, Piece

MAGIC = b"\x93NUMPY"
"""How such a file begins."""

_RECORD = {"batch", "key"}
_WISH = "expected integers in C order, or records of batch and key"


@dataclass(frozen=True)
class Header:
    """What a file holds. count: numbers or records."""

    dtype: np.dtype[Any]
    count: int

    @property
    def recorded(self) -> bool:
        """Whether it was written by `storage.recorder`."""
        return self.dtype.names is not None

    def describe(self) -> str:
        """The format in words."""
        return "npy, recorded batches" if self.recorded else f"npy, {self.dtype.name}"


def read_header(path: Path) -> Header:
    """What the file holds. Raises: DataError when that is no trace."""
    with Archive(path) as file:
        return _header(path, file)


def read_array(path: Path) -> Iterator[Piece]:
    """The pieces of a file. Raises: DataError when it is no trace, damaged or cut off."""
    with Archive(path) as file:
        header = _header(path, file)
        left, size = header.count, header.dtype.itemsize
        while left:
            count = min(left, PIECE_KEYS)
            data = file.read(count * size)
            if len(data) < count * size:
                raise DataError(
                    f"{path}: expected {header.count} keys as its header says, got "
                    f"{header.count - left + len(data) // size}; the file is cut off"
                )
            left -= count
            yield _piece(np.frombuffer(data, header.dtype))


def _header(path: Path, file: Archive) -> Header:
    reader: Any = file
    try:
        version = npy.read_magic(reader)
        read = {(1, 0): npy.read_array_header_1_0}.get(version, npy.read_array_header_2_0)
        shape, fortran, dtype = read(reader)
    except ValueError as error:
        raise DataError(f"{path}: expected a NumPy .npy header, got {error}") from error
    fields = set(dtype.names or ())
    integers = dtype.kind in "iu" or (
        fields in (_RECORD, _RECORD | {"table"})
        and all(dtype[name].kind in "iu" for name in fields)
    )
    if not integers or (fortran and len(shape) > 1):
        order = " in Fortran order" if fortran and len(shape) > 1 else ""
        raise DataError(f"{path}: {_WISH}; got an array of {dtype}{order}")
    return Header(dtype, prod(shape))


def _piece(records: NDArray[Any]) -> Piece:
    if records.dtype.names is None:
        return Piece(as_keys(records).copy())
    keys = as_keys(records["key"]).copy()
    if "table" in records.dtype.names:
        tables = records["table"].astype(np.uint64)
        keys ^= np.where(tables == 0, np.uint64(0), mix_keys(tables))
    return Piece(keys, records["batch"].astype(np.int64))
