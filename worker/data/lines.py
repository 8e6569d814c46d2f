"""Lines: a text file, plain or packed, as pieces of whole lines with the number of the first.

The pieces of a file depend on nothing but its bytes and the piece size, and what is read from
them not even on the latter. Memory: about two pieces.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from storage.errors import DataError
from worker.data.archive import Archive

PIECE_BYTES = 4 << 20
"""How much is read at a time: large against a line, small against the memory of a laptop."""

_LONGEST_LINE = 1 << 20
_HEAD_LINES = 20


@dataclass(frozen=True, slots=True)
class Piece:
    """Whole lines. text: ends with a line end. first: the number, from 1, of its first line."""

    text: bytes
    first: int

    @property
    def count(self) -> int:
        """How many lines the piece has."""
        return self.text.count(b"\n")


def read_pieces(path: Path, piece_bytes: int = PIECE_BYTES) -> Iterator[Piece]:
    """The lines of a file in order; a last line without an end is given one.

    Raises DataError for a file that is missing, empty or a damaged archive, and for a line above
    1 MiB, which is no text of ours.
    """
    line, rest = 1, b""
    with Archive(path) as file:
        while text := file.read(piece_bytes, after=f"line {line - 1}"):
            head, end, tail = text.rpartition(b"\n")
            if end:
                piece = Piece(rest + head + end, line)
                line += piece.count
                rest = tail
                yield piece
            else:
                rest += tail
            if len(rest) > _LONGEST_LINE:
                raise DataError(
                    f"{path}:{line}: expected lines of at most {_LONGEST_LINE} bytes, got a "
                    "longer one; is this a text file?"
                )
    if rest:
        yield Piece(rest + b"\n", line)
    elif line == 1:
        raise DataError(f"{path}: expected lines of examples, got an empty file")


def read_head(path: Path) -> list[bytes]:
    """The first lines of a file, without their ends; blank ones are left out.

    Raises as ``read_pieces`` does.
    """
    pieces = read_pieces(path, piece_bytes=_LONGEST_LINE)
    lines = (line for piece in pieces for line in piece.text.splitlines())
    return list(islice(filter(None, lines), _HEAD_LINES))
