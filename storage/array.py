"""Where a cache keeps the values of its rows: by position, on one device, in one format.

`FloatArray` is float32 on any torch device: the embeddings in one array and the optimizer state
in another, so that an embedding of 64 floats is exactly four cache lines and the forward pass
never touches state. `CodedArray` keeps records in a narrower row type in RAM.

RAM comes from private anonymous mappings (`Region`): pages are committed when first touched, large
pages are asked for, and `release` gives pages back to the system when a cache shrinks.

Threads: one owner; whoever has a position pinned may work in its row meanwhile.
"""

from __future__ import annotations

import math
import mmap
from typing import Any, Protocol

import numba as nb
import numpy as np
import torch
from numpy.typing import NDArray

from storage.codec import Codec
from storage.rows import Floats, Positions

_PAGE = mmap.PAGESIZE
_LARGE = 1 << 22
_NO_STATE = np.empty((0, 0), np.float32)


class RowArray(Protocol):
    """Values of rows by position."""

    bytes_per_position: int

    def gather(self, positions: Positions) -> Floats:
        """Copy: (U, W) float32."""
        ...

    def scatter(self, positions: Positions, values: Floats) -> None:
        """Set the rows at these unique positions from (U, W) float32."""
        ...

    def release(self, start: int) -> None:
        """The positions from ``start`` on hold nothing any more: give their memory back."""
        ...


class Region:
    """Memory whose end can be given back: ``array``, (count, *width), zero at first."""

    def __init__(self, count: int, dtype: Any, *width: int) -> None:
        self._row_bytes = math.prod(width) * np.dtype(dtype).itemsize
        self._size = count * self._row_bytes
        self._map: mmap.mmap | None = None
        if self._size == 0:
            self.array: NDArray[Any] = np.empty((count, *width), dtype)
            return
        self._map = mmap.mmap(-1, self._size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE") and self._size >= _LARGE:
            self._map.madvise(mmap.MADV_HUGEPAGE)
        self.array = np.frombuffer(self._map, dtype).reshape(count, *width)

    def release(self, start: int) -> None:
        """Give whole pages after the first ``start`` entries back; what was there reads as zero."""
        if self._map is None:
            return
        begin = -(-start * self._row_bytes // _PAGE) * _PAGE
        if begin < self._size:
            self._map.madvise(mmap.MADV_DONTNEED, begin, self._size - begin)


@nb.njit(nogil=True, cache=True)
def _gather(embeddings: Any, state: Any, positions: Any, values: Any) -> None:
    dim = embeddings.shape[1]
    for i in range(positions.shape[0]):
        position = positions[i]
        for d in range(dim):
            values[i, d] = embeddings[position, d]
        for d in range(state.shape[1]):
            values[i, dim + d] = state[position, d]


@nb.njit(nogil=True, cache=True)
def _scatter(embeddings: Any, state: Any, positions: Any, values: Any) -> None:
    dim = embeddings.shape[1]
    for i in range(positions.shape[0]):
        position = positions[i]
        for d in range(dim):
            embeddings[position, d] = values[i, d]
        for d in range(state.shape[1]):
            state[position, d] = values[i, dim + d]


class FloatArray:
    """float32 rows on ``device``, zero until they are set.

    embeddings: (C, D) and state: (C, S) tensors that kernels may work in; ``host`` holds NumPy
    views of the same memory when the device is the CPU, else None.
    """

    def __init__(self, capacity: int, dim: int, state_width: int, device: torch.device) -> None:
        self.bytes_per_position = 4 * (dim + state_width)
        self.host: tuple[Floats, Floats] | None = None
        self._regions: tuple[Region, ...] = ()
        if device.type == "cpu":
            self._regions = tuple(
                Region(capacity, np.float32, width) for width in (dim, state_width)
            )
            self.host = (self._regions[0].array, self._regions[1].array)
            self.embeddings, self.state = (torch.from_numpy(array) for array in self.host)
        else:
            self.embeddings = torch.zeros((capacity, dim), device=device)
            self.state = torch.zeros((capacity, state_width), device=device)

    def gather(self, positions: Positions) -> Floats:
        """Copy: (U, W) float32 on the host, the embedding, then the state."""
        if self.host is None:
            chosen = torch.from_numpy(positions).to(self.embeddings.device)
            both = torch.cat((self.embeddings[chosen], self.state[chosen]), dim=1)
            return both.cpu().numpy()
        embeddings, state = self.host
        values = np.empty((len(positions), embeddings.shape[1] + state.shape[1]), np.float32)
        _gather(embeddings, state, positions, values)
        return values

    def embeddings_at(self, positions: Positions, out: Floats) -> None:
        """Copy the embeddings, without state, into ``out``: (U, D) float32 on the host."""
        if self.host is None:
            chosen = torch.from_numpy(positions).to(self.embeddings.device)
            out[:] = self.embeddings[chosen].cpu().numpy()
            return
        _gather(self.host[0], _NO_STATE, positions, out)

    def scatter(self, positions: Positions, values: Floats) -> None:
        """Set the rows at these unique positions from (U, W) float32."""
        if self.host is not None:
            _scatter(*self.host, positions, values)
            return
        device, dim = self.embeddings.device, self.embeddings.shape[1]
        chosen = torch.from_numpy(positions).to(device)
        moved = torch.from_numpy(values).to(device)
        self.embeddings.index_copy_(0, chosen, moved[:, :dim])
        self.state.index_copy_(0, chosen, moved[:, dim:])

    def release(self, start: int) -> None:
        """Give back what lies from position ``start`` on (on the CPU; other memory stays)."""
        for region in self._regions:
            region.release(start)


class CodedArray:
    """Rows in RAM as records of a narrower row type."""

    def __init__(self, capacity: int, dim: int, state_width: int, codec: Codec) -> None:
        self._codec, self._dim, self._state_width = codec, dim, state_width
        self.bytes_per_position = codec.record_bytes(dim, state_width)
        self._region = Region(capacity, np.uint8, self.bytes_per_position)

    def gather(self, positions: Positions) -> Floats:
        """Copy, widened: (U, W) float32."""
        records = self._region.array[positions]
        return self._codec.decode(records, self._dim, self._state_width)

    def scatter(self, positions: Positions, values: Floats) -> None:
        """Narrow (U, W) float32 and set the rows at these unique positions."""
        self._region.array[positions] = self._codec.encode(values, self._dim)

    def release(self, start: int) -> None:
        """Give back what lies from position ``start`` on."""
        self._region.release(start)
