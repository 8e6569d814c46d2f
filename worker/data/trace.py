"""Traces: which keys were asked for, in order; from a file or from training data.

A trace is read in pieces of about a million keys, as often as one likes, so its length does not
matter. Formats are told apart by what is in the file, after unpacking (gzip, xz, zstd):

=========  ====================================================================================
format     a key is
=========  ====================================================================================
int32/64   a big-endian integer of so many bits, without a sign
lis        a block of the ARC paper's requests (`worker.data.traces.lis`)
csv        what is in one column (`worker.data.traces.column`), an integer or a hashed word
text       an integer or a hashed word a line
npy        an integer of a NumPy array, or of what ``terrace train --record`` wrote
data       a key of the examples to train on, in the order of training: all that
           `worker.data.open_dataset` takes
=========  ====================================================================================

Threads: an iterator belongs to one thread; several of one trace may be open at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from storage.errors import ConfigError, DataError
from storage.keys import as_keys
from worker.data.archive import Archive
from worker.data.catalog import open_dataset
from worker.data.dataset import Dataset
from worker.data.parquet import is_parquet
from worker.data.schema import SCHEMAS
from worker.data.traces.array import MAGIC, read_array, read_header
from worker.data.traces.column import form_of, read_column
from worker.data.traces.lis import is_lis, read_lis
from worker.data.traces.piece import PIECE_KEYS, Piece
from worker.data.traces.words import WIDTHS, read_words, width_of

__all__ = ["FORMATS", "Piece", "Trace", "open_trace", "read_all"]

FORMATS: Final = ("int32", "int64", "lis", "csv", "text", "words", "npy", "data")
"""What ``format=`` may be; "words" is text or csv whose keys are words even if they look like
integers."""

_BATCH = 1024
_HEAD = 1 << 18
_LINES = 20
# Binary files that are no traces, by how they begin.
_STRANGE: Final = {
    b"BZh": "bzip2", b"PK\x03\x04": "zip", b"\x04\x22\x4d\x18": "lz4", b"7z\xbc\xaf": "7z",
    b"%PDF": "PDF", b"\x89PNG": "PNG", b"\x89HDF": "HDF5", b"SQLite format 3\x00": "SQLite",
    b"\x7fELF": "a program",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Trace:
    """Accesses in order. name: what was asked for. format: what it turned out to be, in words.

    limit: at most so many accesses, None for all.
    """

    name: str
    format: str
    read: Callable[[], Iterator[Piece]]
    limit: int | None = None

    def pieces(self) -> Iterator[Piece]:
        """The trace from its beginning, in pieces that are not empty; each call starts anew.

        Raises, while iterating: DataError for an empty trace and for one that cannot be read, with
        file and line.
        """
        done = 0
        for piece in self.read():
            left = len(piece) if self.limit is None else self.limit - done
            if len(piece):
                done += min(len(piece), left)
                yield piece if left >= len(piece) else piece.first(left)
            if self.limit is not None and done >= self.limit:
                return
        if not done:
            raise DataError(f"{self.name}: expected at least one key, got an empty trace")


def open_trace(
    spec: str,
    *,
    batch_size: int | None = None,
    limit: int | None = None,
    column: str | None = None,
    format: str | None = None,
) -> Trace:
    """The trace that ``spec`` names, a file or what `open_dataset` takes; reads its head at most.

    batch_size: examples of a batch of training data, 1024 when None; what has no examples, or
    recorded batches of its own, takes no notice. limit: at most so many accesses. column: of a csv,
    name or number from 1, that has the keys; None: one named as keys are, else the last. format:
    one of `FORMATS`, None to find out.

    Raises: ConfigError for a specification, column, format, size or limit that cannot be meant;
    DataError for a file that is missing, empty or no trace.
    """
    for name, value in (("batch_size", batch_size), ("limit", limit)):
        if value is not None and value < 1:
            raise ConfigError(f"{name}: expected 1 or more, got {value}")
    if format is not None and format not in FORMATS:
        raise ConfigError(f"format: expected one of {', '.join(FORMATS)}, got {format!r}")
    path = Path(spec)
    if format is None and not path.is_file():
        format = "data"
    if format != "data" and not path.is_file():
        raise DataError(f"{path}: expected a file, got none; correct the path")
    known, read = _reader(spec, path, format, column, batch_size or _BATCH)
    return Trace(spec, known, read, limit)


def read_all(trace: Trace) -> Piece:
    """The whole trace as one piece, a copy: for one that fits in memory. Raises as `pieces`."""
    pieces = list(trace.pieces())
    keys = np.concatenate([piece.keys for piece in pieces])
    batches = [piece.batches for piece in pieces if piece.batches is not None]
    return Piece(keys, np.concatenate(batches) if batches else None)


Reader = tuple[str, Callable[[], Iterator[Piece]]]


def _reader(
    spec: str, path: Path, format: str | None, column: str | None, batch_size: int
) -> Reader:
    """The format in words, and what reads it."""
    head = b"" if format == "data" else _head(path)
    format = format or _detect(path, head, column)
    if column is not None and format not in ("csv", "words"):
        raise ConfigError(f"{spec}: column: only csv has columns, this is {format}; leave it out")
    if format == "data":
        dataset = open_dataset(spec)
        return f"data, batches of {batch_size}", lambda: _read_examples(dataset, batch_size)
    if format in WIDTHS:
        return f"big-endian {format}", lambda: read_words(path, format)
    if format == "npy":
        return read_header(path).describe(), lambda: read_array(path)
    if format == "lis":
        return "lis (ARC)", lambda: read_lis(path)
    lines = _lines(head)
    if not lines:
        raise DataError(f"{path}: expected at least one key, got an empty trace")
    form = form_of(path, lines, column, plain=format == "text", words=format == "words")
    return form.describe(), lambda: read_column(path, form)


def _head(path: Path) -> bytes:
    with Archive(path) as file:
        head = file.read(_HEAD)
    if not head:
        raise DataError(f"{path}: expected at least one key, got an empty trace")
    return head


def _detect(path: Path, head: bytes, column: str | None) -> str:
    """The format by the file's first bytes, unpacked."""
    if head.startswith(MAGIC):
        return "npy"
    if is_parquet(path):
        return "data"
    strange = next((name for magic, name in _STRANGE.items() if head.startswith(magic)), None)
    if strange is None and _is_text(head):
        lines = _lines(head)
        if column is not None:
            return "csv"
        if any(schema.matches(line.encode()) for line in lines for schema in SCHEMAS):
            return "data"
        return "lis" if lines and is_lis(lines) else "csv"
    if strange is not None:
        got = strange
    elif len(head) < _HEAD and len(head) % 4:
        got = f"{len(head)} bytes, an odd number for words of 4 or 8"
    else:
        return width_of(head)
    raise DataError(
        f"{path}: expected a trace (text, csv, lis, npy, big-endian int32 or int64; gzip, xz or "
        f"zstd around it) or training data, got {got}"
    )


def _is_text(head: bytes) -> bool:
    """No control bytes beside line ends and tabs, and UTF-8 but for a character cut in two."""
    if any(byte < 32 and byte not in b"\t\n\r" for byte in set(head)):
        return False
    try:
        head[: len(head) - 3 * (len(head) == _HEAD)].decode()
    except UnicodeDecodeError as error:
        return len(head) == _HEAD and error.start >= len(head) - 6
    return True


def _lines(head: bytes) -> list[str]:
    """The first lines that are whole and not blank."""
    whole = head if len(head) < _HEAD else head[: head.rfind(b"\n") + 1]
    lines = whole.decode("utf-8", "replace").split("\n")
    return [line.rstrip("\r") for line in lines if line.strip()][:_LINES]


def _read_examples(dataset: Dataset, batch_size: int) -> Iterator[Piece]:
    keys, batches, held = [], [], 0
    for number, batch in enumerate(dataset.train(batch_size)):
        keys.append(as_keys(batch.ids))
        batches.append(np.full(len(keys[-1]), number, np.int64))
        held += len(keys[-1])
        if held >= PIECE_KEYS:
            yield Piece(np.concatenate(keys), np.concatenate(batches))
            keys, batches, held = [], [], 0
    if held:
        yield Piece(np.concatenate(keys), np.concatenate(batches))
