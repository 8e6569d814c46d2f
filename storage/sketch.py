"""Sketch: about how often keys came, in a fixed number of bytes; never less often than they did.

A count-min sketch (Cormode and Muthukrishnan, J. Algorithms 55, 2005): a key has a cell in each of
``DEPTH`` lines, and its estimate is the smallest of them. Cells are raised no further than they
must be (conservative update: Estan and Varghese, SIGCOMM 2002), so only keys that share all their
cells with others are taken for more frequent than they are. With n keys in a sketch of w cells a
line, a key that never came has an estimate above 0 with a chance of about (1 - exp(-n / w)) ** 4.

A cell has 2, 4 or 8 bits, as many as the most that is counted needs.

Each bucket of the key space has cells of its own. So an estimate depends on keys of the same bucket
only, however buckets are spread over shards, and a key's four cells lie near each other.

A batch is added as one: all estimates are read before any cell is raised, so that the order of its
keys changes nothing. A cell is then at least the new count of every key that it belongs to.

Threads: one owner.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray

from storage.errors import ConfigError
from storage.keys import BUCKETS, bucket_of, mix
from storage.rows import Counts, Keys

DEPTH = 4
MOST_COUNT = 255
"""A cell is a byte at most."""
LEAST_BYTES = 4 * DEPTH * BUCKETS
_SALT = np.uint64(0xA0761D6478BD642F)
_32, _LOW = np.uint64(32), np.uint64(0xFFFFFFFF)


@nb.njit(nogil=True, cache=True)
def _cell(mixed: Any, line: Any, width: Any) -> Any:
    """The cell of a mixed key in a line. Kirsch and Mitzenmacher (2006): two hashes make all."""
    hashed = mix(mixed ^ _SALT)
    one = (hashed + np.uint64(line) * ((hashed >> _32) | np.uint64(1))) & _LOW
    return np.int64((one * np.uint64(width)) >> _32)


@nb.njit(nogil=True, cache=True)
def _estimate(cells: Any, bits: int, keys: Any, out: Any) -> None:
    share, full = 8 // bits, (1 << bits) - 1
    for u in range(keys.shape[0]):
        mixed = mix(keys[u])
        bucket = np.int64(bucket_of(mixed))
        least = full
        for line in range(DEPTH):
            cell = _cell(mixed, line, share * cells.shape[2])
            byte = np.int64(cells[bucket, line, cell // share])
            least = min(least, byte >> cell % share * bits & full)
        out[u] = least


@nb.njit(nogil=True, cache=True)
def _raise(cells: Any, bits: int, keys: Any, totals: Any) -> None:
    share, full = 8 // bits, (1 << bits) - 1
    for u in range(keys.shape[0]):
        mixed = mix(keys[u])
        bucket = np.int64(bucket_of(mixed))
        for line in range(DEPTH):
            cell = _cell(mixed, line, share * cells.shape[2])
            byte, shift = np.int64(cells[bucket, line, cell // share]), cell % share * bits
            if byte >> shift & full < totals[u]:
                byte = byte & ~(full << shift) | totals[u] << shift
                cells[bucket, line, cell // share] = np.uint8(byte)


class Sketch:
    """See the module's docstring.

    size: bytes to use at most, 65,536 or more. most: counts stop there, 255 or less. ``bits``: of a
    cell. ``cells``: (BUCKETS, DEPTH, width) uint8, ``8 // bits`` cells in each, the first lowest.
    Raises: ConfigError.
    """

    def __init__(self, size: int, most: int) -> None:
        if size < LEAST_BYTES:
            raise ConfigError(f"sketch: expected {LEAST_BYTES} bytes or more, got {size}")
        assert 0 < most <= MOST_COUNT
        self.most = most
        self.bits = 2 if most < 4 else 4 if most < 16 else 8
        self.cells: NDArray[np.uint8] = np.zeros((BUCKETS, DEPTH, size // (BUCKETS * DEPTH)), "u1")

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.cells.nbytes

    def estimate(self, keys: Keys) -> NDArray[np.int64]:
        """(U,) int64: about how often each key came, never too few up to ``most``."""
        found = np.empty(len(keys), np.int64)
        _estimate(self.cells, self.bits, keys, found)
        return found

    def add(self, keys: Keys, counts: Counts) -> NDArray[np.int64]:
        """Count a batch: (U,) int64 estimates with it. keys: (U,) uint64, unique."""
        totals: NDArray[np.int64] = np.minimum(self.estimate(keys) + counts, self.most)
        _raise(self.cells, self.bits, keys, totals)
        return totals

    def forget(self, keys: Keys) -> None:
        """Nothing: no cell can be lowered, for it may be another key's; `halve` does it in time."""

    def halve(self) -> None:
        """Halve all counts, rounding down (ageing: Einziger, Friedman and Manes, TinyLFU, 2017)."""
        np.right_shift(self.cells, 1, out=self.cells)
        # The lowest bit of a cell must not become the highest one of the next.
        self.cells &= {2: 0x55, 4: 0x77, 8: 0x7F}[self.bits]

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """What `restore` takes: views."""
        return {"cells": self.cells}

    def restore(self, cells: NDArray[np.uint8]) -> None:
        """Take over what `arrays` gave. Raises: ValueError when it is not of this size."""
        if cells.shape != self.cells.shape or cells.dtype != self.cells.dtype:
            raise ValueError(f"cells {cells.dtype} {cells.shape}, expected {self.cells.shape}")
        self.cells[:] = cells
