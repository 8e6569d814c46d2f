"""The reader of text files: examples of one schema, with every bad line named or counted.

Threads: an iterator belongs to one thread; the count of bad lines may be read from any.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from storage.errors import DataError
from worker.data.batch import Batch, one_each
from worker.data.lines import PIECE_BYTES, Piece, read_pieces
from worker.data.parse import BAD_COLUMNS, BAD_LABEL, GOOD, PASSED, Lines, layout, parse, scan
from worker.data.schema import Schema

BadLines = Literal["stop", "skip"]
"""What to do with a line that cannot be read: raise, or pass over and count it."""

_SHOWN_BYTES = 40


class TextReader:
    """Reads files of one schema. A row is a line that can be read; rows of a file count from 0."""

    def __init__(
        self, schema: Schema, *, bad_lines: BadLines = "stop", piece_bytes: int = PIECE_BYTES
    ) -> None:
        self.dense_names = schema.dense_names
        self.feature_names = schema.feature_names
        self._schema = schema
        self._layout = layout(schema)
        self._stops = bad_lines == "stop"
        self._piece_bytes = piece_bytes
        self._bad: dict[Path, int] = {}

    @property
    def bad_lines(self) -> int:
        """Different bad lines passed over so far in all files."""
        return sum(self._bad.values())

    def count(self, path: Path) -> int:
        """The rows of a file; reads it once without looking at features.

        Raises DataError as ``read`` does.
        """
        return sum(rows.shape[0] for _, _, rows in self._scan(path))

    def read(
        self, path: Path, first: int = 0, stop: int | None = None
    ) -> Generator[Batch, None, int]:
        """Rows ``first`` to ``stop - 1`` of a file in blocks; returns the last row looked at + 1.

        Raises DataError naming file and line for a bad line before ``stop`` when bad lines stop,
        and for a file that is missing, empty or damaged.
        """
        row = 0
        for text, lines, rows in self._scan(path):
            wanted = rows[max(first - row, 0) : None if stop is None else max(stop - row, 0)]
            row += rows.shape[0]
            if wanted.shape[0]:
                labels, dense, keys = parse(text, lines, wanted, self._layout)
                yield one_each(labels, dense, keys)
            if stop is not None and row >= stop:
                break
        return row

    def _scan(self, path: Path) -> Iterator[tuple[NDArray[np.uint8], Lines, NDArray[np.int64]]]:
        """Each piece of a file as bytes, with its lines and the numbers of the good ones."""
        bad = 0
        for piece in read_pieces(path, self._piece_bytes):
            text = np.frombuffer(piece.text, dtype=np.uint8)
            lines = scan(text, piece.count, self._layout)
            if piece.first == 1 and self._schema.header:
                _pass_header(lines, piece, self._schema.header)
            wrong = np.flatnonzero(lines.verdicts >= BAD_COLUMNS)
            if wrong.shape[0] and self._stops:
                raise DataError(self._complain(path, piece, lines, int(wrong[0])))
            bad += wrong.shape[0]
            # Passes over a file meet the same lines; one that ended early saw the first of them.
            self._bad[path] = max(self._bad.get(path, 0), bad)
            yield text, lines, np.flatnonzero(lines.verdicts == GOOD)

    def _complain(self, path: Path, piece: Piece, lines: Lines, bad: int) -> str:
        start, verdict, detail = (int(field[bad]) for field in lines[1:])
        line = piece.text[start : piece.text.index(b"\n", start)].rstrip(b"\r")
        if verdict == BAD_COLUMNS:
            problem = f"expected {self._schema.describe()} ({self._schema.name}), got {detail}"
        else:
            value = line.split(self._schema.separator)[detail].strip()[:_SHOWN_BYTES]
            wish = "a number"
            if verdict == BAD_LABEL:
                texts = self._schema.negative[:1] + self._schema.positive[:1]
                wish = "label " + " or ".join(text.decode() for text in texts)
            problem = (
                f"expected {wish} in column {detail + 1}, got {value.decode('ascii', 'replace')!r}"
            )
        return f"{path}:{piece.first + bad}: {problem}; mend the line, or skip bad lines"


def _pass_header(lines: Lines, piece: Piece, header: bytes) -> None:
    if piece.text[: piece.text.index(b"\n")].rstrip(b"\r") == header:
        lines.verdicts[0] = PASSED
