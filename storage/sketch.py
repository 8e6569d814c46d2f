"""Sketch: about how often keys came, in a fixed number of bytes; never less often than they did.

A count-min sketch (Cormode and Muthukrishnan, J. Algorithms 55, 2005): a key has a cell in each of
``DEPTH`` lines, and its estimate is the smallest of them. Cells are raised no further than they
must be (conservative update: Estan and Varghese, SIGCOMM 2002), so only keys that share all their
cells with others are taken for more frequent than they are. With n keys in a sketch of w cells a
line, a key that never came has an estimate above 0 with a chance of about (1 - exp(-n / w)) ** 4.

A cell has 2, 4 or 8 bits, as many as the most that is counted needs.

Each bucket of the key space has cells of its own. So an estimate depends on keys of the same bucket
only, however buckets are spread over shards. A bucket has blocks of about a cache line, which hold
a part of every line of cells, and a key has all its cells in one block.

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
_BLOCK_WIDTH = 16
_1, _17, _32, _LOW = np.uint64(1), np.uint64(17), np.uint64(32), np.uint64(0xFFFFFFFF)


@nb.njit(nogil=True, cache=True)
def _hash(mixed: Any, blocks: Any) -> Any:
    """The block of a mixed key in its bucket, and what its cells there follow from."""
    hashed = mix(mixed ^ _SALT)
    return np.int64(((hashed >> _32) * np.uint64(blocks)) >> _32), hashed


@nb.njit(nogil=True, cache=True)
def _cell(hashed: Any, line: Any, log_bits: Any, width: Any) -> Any:
    """Byte and shift of the cell in a line; two hashes make all (Kirsch, Mitzenmacher, 2006)."""
    one = (hashed + np.uint64(line) * ((hashed >> _17) | _1)) & _LOW
    cell = np.int64((one * np.uint64(width << (3 - log_bits))) >> _32)
    return cell >> (3 - log_bits), (cell & ((8 >> log_bits) - 1)) << log_bits


@nb.njit(nogil=True, cache=True)
def _estimate(cells: Any, log_bits: int, keys: Any, out: Any) -> None:
    full = (1 << (1 << log_bits)) - 1
    for u in range(keys.shape[0]):
        mixed = mix(keys[u])
        bucket, least = np.int64(bucket_of(mixed)), full
        block, hashed = _hash(mixed, cells.shape[1])
        for line in range(DEPTH):
            byte, shift = _cell(hashed, line, log_bits, cells.shape[3])
            least = min(least, (np.int64(cells[bucket, block, line, byte]) >> shift) & full)
        out[u] = least


@nb.njit(nogil=True, cache=True)
def _raise(cells: Any, log_bits: int, keys: Any, totals: Any) -> None:
    full = (1 << (1 << log_bits)) - 1
    for u in range(keys.shape[0]):
        mixed = mix(keys[u])
        bucket = np.int64(bucket_of(mixed))
        block, hashed = _hash(mixed, cells.shape[1])
        for line in range(DEPTH):
            byte, shift = _cell(hashed, line, log_bits, cells.shape[3])
            word = np.int64(cells[bucket, block, line, byte])
            if (word >> shift) & full < totals[u]:
                word = (word & ~(full << shift)) | (totals[u] << shift)
                cells[bucket, block, line, byte] = np.uint8(word)


class Sketch:
    """See the module's docstring.

    size: bytes to use at most, 65,536 or more. most: counts stop there, 255 or less. ``bits``: of a
    cell. ``cells``: (BUCKETS, blocks, DEPTH, width) uint8, ``8 // bits`` cells in each, the first
    lowest. Raises: ConfigError.
    """

    def __init__(self, size: int, most: int) -> None:
        if size < LEAST_BYTES:
            raise ConfigError(f"sketch: expected {LEAST_BYTES} bytes or more, got {size}")
        assert 0 < most <= MOST_COUNT
        self.most = most
        self.bits = 2 if most < 4 else 4 if most < 16 else 8
        self._log_bits = self.bits.bit_length() - 1
        width = size // (BUCKETS * DEPTH)
        blocks = max(1, width // _BLOCK_WIDTH)
        self.cells: NDArray[np.uint8] = np.zeros((BUCKETS, blocks, DEPTH, width // blocks), "u1")

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.cells.nbytes

    def estimate(self, keys: Keys) -> NDArray[np.int64]:
        """(U,) int64: about how often each key came, never too few up to ``most``."""
        found = np.empty(len(keys), np.int64)
        _estimate(self.cells, self._log_bits, keys, found)
        return found

    def add(self, keys: Keys, counts: Counts) -> NDArray[np.int64]:
        """Count a batch: (U,) int64 estimates with it. keys: (U,) uint64, unique."""
        totals: NDArray[np.int64] = np.minimum(self.estimate(keys) + counts, self.most)
        _raise(self.cells, self._log_bits, keys, totals)
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
