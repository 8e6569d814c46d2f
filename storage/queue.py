"""Queue: positions in a doubly linked list, in the order in which they leave.

What policies are made of, and one itself: first in, first out.

Two int32 arrays; index 0 is the head, position p stands at p + 1: 8 bytes a position. The newest
stands behind the head, the next to leave before it. Pinned positions are stepped over.

Threads: one owner.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray

from storage.array import Region
from storage.rows import Positions


@nb.njit(nogil=True, cache=True)
def unlink(before: Any, after: Any, node: Any) -> None:
    """Take a node out of its list."""
    after[before[node]] = after[node]
    before[after[node]] = before[node]


@nb.njit(nogil=True, cache=True)
def link(before: Any, after: Any, node: Any, left: Any) -> None:
    """Put a node that is in no list behind ``left``."""
    right = after[left]
    after[left], before[node] = node, left
    after[node], before[right] = right, node


@nb.njit(nogil=True, cache=True)
def _insert_all(before: Any, after: Any, positions: Any) -> None:
    for i in range(positions.shape[0]):
        link(before, after, positions[i] + 1, 0)


@nb.njit(nogil=True, cache=True)
def _remove_all(before: Any, after: Any, positions: Any) -> None:
    for i in range(positions.shape[0]):
        unlink(before, after, positions[i] + 1)


@nb.njit(nogil=True, cache=True)
def _demote_all(before: Any, after: Any, positions: Any) -> None:
    for i in range(positions.shape[0]):
        unlink(before, after, positions[i] + 1)
        link(before, after, positions[i] + 1, before[0])


@nb.njit(nogil=True, cache=True)
def _move_all(before: Any, after: Any, sources: Any, targets: Any) -> None:
    for i in range(sources.shape[0]):
        left = before[sources[i] + 1]
        unlink(before, after, sources[i] + 1)
        link(before, after, targets[i] + 1, left)


@nb.njit(nogil=True, cache=True)
def _victims(before: Any, after: Any, pins: Any, out: Any) -> Any:
    node = np.int64(before[0])
    found = 0
    while found < out.shape[0] and node != 0:
        previous = np.int64(before[node])
        if pins[node - 1] == 0:
            out[found] = node - 1
            found += 1
            unlink(before, after, node)
        node = previous
    return found


@nb.njit(nogil=True, cache=True)
def _order(before: Any, out: Any) -> Any:
    node = np.int64(before[0])
    found = 0
    while node != 0:
        out[found] = node - 1
        found += 1
        node = np.int64(before[node])
    return found


class Queue:
    """First in, first out; see the module's docstring and `storage.policy.Policy`."""

    bytes_per_position = 8

    @staticmethod
    def fixed_bytes(capacity: int) -> int:
        """Bytes beside those of the positions."""
        return 0

    def __init__(self, capacity: int) -> None:
        self._regions = [Region(capacity + 1, np.int32), Region(capacity + 1, np.int32)]
        self._before, self._after = (region.array for region in self._regions)

    def insert(self, positions: Positions) -> None:
        """Newest, the last of ``positions`` first."""
        _insert_all(self._before, self._after, positions)

    def touch(self, positions: Positions) -> None:
        """Makes no difference."""

    def demote(self, positions: Positions) -> None:
        """Next to leave, the last of ``positions`` first."""
        _demote_all(self._before, self._after, positions)

    def remove(self, positions: Positions) -> None:
        """Take out of the queue."""
        _remove_all(self._before, self._after, positions)

    def move(self, sources: Positions, targets: Positions) -> None:
        """Put ``targets`` where ``sources`` stand in the queue."""
        _move_all(self._before, self._after, sources, targets)

    def resize(self, capacity: int) -> None:
        """Give back what belongs to the positions from ``capacity`` on."""
        for region in self._regions:
            region.release(capacity + 1)

    def victims(self, count: int, pins: NDArray[np.uint16]) -> Positions:
        """Oldest first."""
        out = np.empty(count, np.int64)
        return out[: _victims(self._before, self._after, pins, out)]

    def order(self) -> Positions:
        """Oldest first."""
        out = np.empty(len(self._before), np.int64)
        return out[: _order(self._before, out)]
