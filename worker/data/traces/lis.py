"""Requests: a trace as the ARC paper's authors publish theirs (.lis), one request a line.

A line has four numbers: the first block, how many blocks one after the other, one that is ignored,
and the number of the request. A key is a block. Source: Megiddo and Modha, FAST 2003.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray

from storage.errors import DataError
from worker.data.lines import read_pieces
from worker.data.traces.piece import PIECE_KEYS, Piece

_COLUMNS = 4
_MOST_BLOCKS = 1 << 32
_SHOWN = 40
_END, _BLANK, _TAB, _RETURN, _ZERO = 10, 32, 9, 13, 48
_TOP = 10**18


def is_lis(head: list[str]) -> bool:
    """Whether all these lines are four whole numbers, the second above 0, blanks between."""
    rows = [line.strip().split(" ") for line in head]
    return all(
        len(row) == _COLUMNS
        and all(value.isdecimal() and value.isascii() for value in row)
        and int(row[1]) > 0
        for row in rows
    )


def read_lis(path: Path) -> Iterator[Piece]:
    """The pieces of a file. Raises: DataError naming the line that is no request."""
    for lines in read_pieces(path):
        text = np.frombuffer(lines.text, np.uint8)
        requests = np.empty((lines.count, 2), np.int64)
        count, bad = _parse(text, requests)
        if bad >= 0:
            line = lines.text[bad : lines.text.index(b"\n", bad)][:_SHOWN]
            number = lines.first + lines.text.count(b"\n", 0, bad)
            raise DataError(
                f"{path}:{number}: expected first block, blocks (1 to 2**32), a number, request "
                f"number, got {line.decode('utf-8', 'replace').strip()!r}; mend the line"
            )
        firsts, blocks = requests[:count, 0], requests[:count, 1]
        ends = np.cumsum(blocks)
        for start in range(0, int(ends[-1]) if count else 0, PIECE_KEYS):
            yield Piece(_expand(firsts, ends, start, min(start + PIECE_KEYS, int(ends[-1]))))


@nb.njit(nogil=True, cache=True)
def _parse(text: NDArray[np.uint8], requests: NDArray[np.int64]) -> Any:
    """Write first block and blocks of each line; their count, and where a bad line begins or -1."""
    count, start = 0, 0
    while start < text.shape[0]:
        column, value, inside = 0, np.int64(0), False
        sound: Any = True
        stop = start
        while True:
            byte = text[stop]
            if byte >= _ZERO and byte < _ZERO + 10:
                value = (value if inside else 0) * 10 + np.int64(byte - _ZERO)
                sound &= value < _TOP
                inside = True
            elif byte in (_BLANK, _TAB, _RETURN, _END):
                if inside:
                    if column < 2:
                        requests[count, column] = value
                    column += 1
                inside = False
            else:
                sound = False
            if byte == _END:
                break
            stop += 1
        if column or not sound:
            blocks = requests[count, 1]
            if not sound or column != _COLUMNS or blocks < 1 or blocks > _MOST_BLOCKS:
                return count, start
            count += 1
        start = stop + 1
    return count, -1


@nb.njit(nogil=True, cache=True)
def _expand(
    firsts: NDArray[np.int64], ends: NDArray[np.int64], start: int, stop: int
) -> NDArray[np.uint64]:
    """Accesses ``start`` to ``stop - 1`` of all requests. ends: (L,) accesses up to each one."""
    keys = np.empty(stop - start, np.uint64)
    request = np.searchsorted(ends, start, side="right")
    for i in range(start, stop):
        while i >= ends[request]:
            request += 1
        before = ends[request - 1] if request else 0
        keys[i - start] = np.uint64(firsts[request] + i - before)
    return keys
