"""Vacancies: free positions on a stack, in memory that only occupied ones need.

A free position has no key, so there it says which comes next: the stack costs nothing. Whoever
takes a position sets its key.

Threads: one owner.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.kernel import kernel
from storage.rows import Mask, Positions


@kernel
def _push(keys: Any, first: Any, positions: Any) -> Any:
    for i in range(positions.shape[0]):
        keys[positions[i]] = first
        first = positions[i]
    return first


@kernel
def _walk(keys: Any, first: Any, out: Any) -> Any:
    position = np.int64(first)
    for i in range(out.shape[0]):
        out[i] = position
        position = np.int64(keys[position])
    return position


@kernel
def _mark(keys: Any, first: Any, count: Any, held: Any) -> None:
    position = np.int64(first)
    for _ in range(count):
        held[position] = False
        position = np.int64(keys[position])


class Vacancies:
    """See the module's docstring. keys: (C,) uint64 of the cache, shared with it."""

    def __init__(self, keys: NDArray[np.uint64]) -> None:
        self._keys = keys
        self._first = self._count = 0

    def __len__(self) -> int:
        return self._count

    def push(self, positions: Positions) -> None:
        """These unique positions became free, the last of them is the first to be taken."""
        self._first = int(_push(self._keys, self._first, positions))
        self._count += len(positions)

    def pop(self, count: int) -> Positions:
        """Up to ``count`` positions that are free no more, (n,) int64."""
        out = np.empty(min(count, self._count), np.int64)
        self._first = int(_walk(self._keys, self._first, out))
        self._count -= len(out)
        return out

    def clear(self) -> None:
        """No position is free."""
        self._first = self._count = 0

    def occupied(self, fresh: int) -> Mask:
        """(fresh,) bool: which of the positions below ``fresh`` are not free. A byte each."""
        held = np.ones(fresh, np.bool_)
        _mark(self._keys, self._first, self._count, held)
        return held
