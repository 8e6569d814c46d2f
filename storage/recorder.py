"""Recorder: which keys batches asked for, with duplicates, in order, in a file as they come.

The file is NumPy's .npy format, one record an access: ``batch`` (uint32, from 0: the batches of
this recording), ``key`` (uint64), and where there are several tables, ``table`` (uint16, the
table's place among the names given). Whole batches are appended; the header, of fixed size, says
how many records count and is written after them, so that a killed process leaves a readable trace
of all batches before (of the file; a power cut may take the last seconds).

Memory: one piece of records while it is written. Threads: one owner, whoever stages batches.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from storage.errors import ConfigError
from storage.keys import Keys

_HEADER = 192
_PREFIX = b"\x93NUMPY\x01\x00"
_PIECE = 1 << 15


class Recorder:
    """Writes to the new file ``path``. tables: all names that batches will have.

    accesses: recorded so far. A file that cannot be written to (a full disk) ends the recording
    with one warning; what was recorded stays readable. Raises: ConfigError when the file exists or
    cannot be made.
    """

    def __init__(self, path: str | Path, tables: Sequence[str]) -> None:
        self.path = Path(path)
        self.accesses = 0
        self._batch = 0
        self._places = {name: place for place, name in enumerate(tables)}
        fields = [("batch", "<u4"), ("key", "<u8")] + [("table", "<u2")] * (len(tables) > 1)
        self._dtype = np.dtype(fields)
        try:
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError as error:
            raise ConfigError(
                f"{self.path}: expected a new file to record to, got one that exists; give another"
            ) from error
        except OSError as error:
            raise ConfigError(f"{self.path}: cannot be written ({error.strerror})") from error
        self._attempt(None)

    @property
    def ended(self) -> bool:
        """Whether nothing more is recorded: closed, or the file could not be written to."""
        return self._file < 0

    def staged(self, requests: Mapping[str, Sequence[Keys]], unique: Mapping[str, Keys]) -> None:
        """Append a batch. requests: by table, (N,) uint64 each, with duplicates, in order.

        unique: not looked at; the store tells it too.
        """
        if not self.ended:
            self._attempt(
                [(self._places[t], keys) for t, each in requests.items() for keys in each]
            )

    def close(self) -> None:
        """End the recording. Twice is fine."""
        if not self.ended:
            os.close(self._file)
            self._file = -1

    def _attempt(self, parts: Sequence[tuple[int, Keys]] | None) -> None:
        try:
            self._append(parts)
        except OSError as error:
            self.close()
            warnings.warn(
                f"{self.path}: recording ended before batch {self._batch} ({error.strerror}), "
                f"{self.accesses} accesses are in the file; training goes on",
                RuntimeWarning,
                stacklevel=4,
            )

    def _append(self, parts: Sequence[tuple[int, Keys]] | None) -> None:
        """Records first, then the header that makes them count; None is no batch."""
        total = self.accesses
        for place, keys in parts or ():
            for start in range(0, len(keys), _PIECE):
                records = self._records(place, keys[start : start + _PIECE])
                _write(self._file, records.tobytes(), _HEADER + total * self._dtype.itemsize)
                total += len(records)
        _write(self._file, self._header(total), 0)
        self.accesses = total
        self._batch += parts is not None

    def _records(self, place: int, keys: Keys) -> Any:
        records = np.empty(len(keys), self._dtype)
        records["batch"] = self._batch
        records["key"] = keys
        if len(self._places) > 1:
            records["table"] = place
        return records

    def _header(self, count: int) -> bytes:
        """The .npy header, version 1.0, of the same length whatever the count."""
        room = _HEADER - len(_PREFIX) - 2
        text = f"{{'descr': {self._dtype.descr!r}, 'fortran_order': False, 'shape': ({count},)}}"
        return _PREFIX + room.to_bytes(2, "little") + text.encode().ljust(room - 1) + b"\n"


def _write(file: int, data: bytes, place: int) -> None:
    """All of ``data`` at ``place``: a disk that is nearly full takes a part, then refuses."""
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, place)
        view, place = view[written:], place + written
