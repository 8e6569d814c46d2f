"""Words: a trace of big-endian integers of 32 or 64 bits, with nothing around them.

A key is the bit pattern, widened without a sign. Nothing in such a file says how wide its words
are; `width_of` tells it from the first of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from storage.errors import DataError
from worker.data.archive import Archive
from worker.data.traces.piece import PIECE_KEYS, Piece

WIDTHS: Final = {"int32": 4, "int64": 8}
"""Bytes of a word by the format's name."""

_FEW = 16
_APART = 0.5
_SHARED = 0.01


def width_of(head: bytes) -> str:
    """ "int32" or "int64", by the first bytes of a trace; a multiple of 8 of them is looked at.

    Read as pairs of 32-bit words, the halves of 64-bit words differ: upper halves are constant or
    small where lower ones are not, or, with hashed keys, the two have no values in common. Words of
    32 bits come from one stream, so that even and odd places look the same.
    """
    words = np.frombuffer(head[: len(head) // 8 * 8], ">u4").astype(np.int64).reshape(-1, 2)
    upper, lower = words[:, 0], words[:, 1]
    if len(words) == 0:
        return "int32"
    if len(words) < _FEW:
        return "int64" if (upper == upper[0]).all() and upper[0] in (0, 2**32 - 1) else "int32"
    if _distance(upper, lower) > _APART:
        return "int64"
    pairs = len(np.unique(upper << 32 | lower))
    return "int64" if pairs < len(words) and _in_common(upper, lower) < _SHARED else "int32"


def read_words(path: Path, format: str) -> Iterator[Piece]:
    """The pieces of a file of ``format``, one of `WIDTHS`.

    Raises: DataError for a size that is no multiple of the width, and a damaged archive.
    """
    width, done = WIDTHS[format], 0
    with Archive(path) as file:
        while data := file.read(PIECE_KEYS * width):
            done += len(data)
            if len(data) % width:
                other = "int64" if format == "int32" else "int32"
                hint = f", or is it {other}?" if done % WIDTHS[other] == 0 else ""
                raise DataError(
                    f"{path}: expected {format}, {width} bytes a key, got {done} bytes, "
                    f"{done % width} too many; is it cut off{hint}"
                )
            yield Piece(np.frombuffer(data, f">u{width}").astype(np.uint64))


def _distance(left: NDArray[Any], right: NDArray[Any]) -> float:
    """How far two samples are from being of one distribution, 0 to 1 (Kolmogorov and Smirnov)."""
    values = np.union1d(left, right)
    shares = [np.searchsorted(np.sort(s), values, side="right") / len(s) for s in (left, right)]
    return float(np.abs(shares[0] - shares[1]).max())


def _in_common(left: NDArray[Any], right: NDArray[Any]) -> float:
    """The share of the accesses in ``left`` whose value is in ``right`` too."""
    return float(np.isin(left, right).mean())
