"""Places: on which page of the file each block of a table lies, 4 bytes a block.

With it a block is one read of the device at any size of the table; without, the leaf of LMDB's tree
that says where it lies is another, and those are a hundredth of the file. A block never moves while
it exists, and numbers are not used again. All of it is a hint: a block says its own number, and
what is not known here is looked up in the tree.

Threads: one owner.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray

from storage.rows import Positions
from storage.tree import CHUNK_BITS, chunk_at

_CHUNK = 1 << CHUNK_BITS
_BYTES = 4 * _CHUNK


@nb.njit(nogil=True, cache=True)
def _gather(bases: Any, numbers: Any, pages: Any) -> None:
    for i in range(numbers.shape[0]):
        chunk = numbers[i] >> CHUNK_BITS
        pages[i] = 0
        if chunk < bases.shape[0] and bases[chunk] != 0:
            pages[i] = chunk_at(bases[chunk])[numbers[i] & (_CHUNK - 1)]


@nb.njit(nogil=True, cache=True)
def _scatter(bases: Any, numbers: Any, pages: Any) -> None:
    for i in range(numbers.shape[0]):
        chunk = numbers[i] >> CHUNK_BITS
        if chunk < bases.shape[0] and bases[chunk] != 0:
            chunk_at(bases[chunk])[numbers[i] & (_CHUNK - 1)] = pages[i]


class Places:
    """See the module's docstring. ``bases``: by chunk of 4096 block numbers, where its pages are
    in memory, 0 for nowhere; chunks are made by `reserve` and freed by `release`."""

    def __init__(self) -> None:
        self.bases = np.zeros(0, np.uint64)
        self._chunks: dict[int, NDArray[np.uint32]] = {}
        # Chunks from the one to below the other were made.
        self._lowest = self._next = 0

    @property
    def bytes(self) -> int:
        """RAM held."""
        return self.bases.nbytes + len(self._chunks) * _BYTES

    def growth_bound(self, begin: int, end: int) -> int:
        """Bytes that `reserve` of the same blocks adds, a copy of ``bases`` included."""
        chunks = self._needed(begin, end)
        bases = 2 * self.bases.nbytes + 8 * (chunks[-1] + 1) if chunks else 0
        return len(chunks) * _BYTES + bases

    def reserve(self, begin: int, end: int) -> None:
        """Take memory for the blocks from ``begin`` to below ``end``."""
        for chunk in self._needed(begin, end):
            if chunk >= len(self.bases):
                more = np.zeros(chunk + 1 + len(self.bases) // 4, np.uint64)
                more[: len(self.bases)] = self.bases
                self.bases = more
            pages = self._chunks[chunk] = np.zeros(_CHUNK, np.uint32)
            self.bases[chunk] = pages.__array_interface__["data"][0]
            self._next = chunk + 1

    def release(self, begin: int) -> None:
        """The blocks below ``begin`` are gone."""
        lowest = max(self._lowest, begin >> CHUNK_BITS)
        for chunk in range(self._lowest, min(lowest, self._next)):
            if self._chunks.pop(chunk, None) is not None:
                self.bases[chunk] = 0
        self._lowest = lowest

    def of(self, numbers: Positions) -> NDArray[np.uint32]:
        """(n,) pages of these blocks, 0 where it is not known."""
        pages = np.empty(len(numbers), np.uint32)
        _gather(self.bases, numbers, pages)
        return pages

    def note(self, numbers: Positions, pages: NDArray[np.uint32]) -> None:
        """These blocks lie on these pages; there is no room for those that were not reserved."""
        _scatter(self.bases, numbers, pages)

    def _needed(self, begin: int, end: int) -> range:
        first = max(self._lowest, self._next, begin >> CHUNK_BITS)
        return range(first, (end - 1 >> CHUNK_BITS) + 1)
