"""Eviction policies: which position leaves first.

A policy is arrays and kernels over *positions*; it never sees keys or rows. All calls come in batch
order from one thread, so what is evicted is a function of the accesses alone, never of timing.
One more policy is one more class with these methods and a line in `POLICIES`.

Threads: one owner.
"""

from __future__ import annotations

from typing import Any, Protocol

import numba as nb
import numpy as np
from numpy.typing import NDArray

from storage.array import Region
from storage.errors import ConfigError
from storage.rows import Positions


class Policy(Protocol):
    """Order of eviction over ``capacity`` positions; each method takes unique positions."""

    bytes_per_position: int

    def insert(self, positions: Positions) -> None:
        """These positions became occupied."""
        ...

    def touch(self, positions: Positions) -> None:
        """These occupied positions were used, in this order."""
        ...

    def demote(self, positions: Positions) -> None:
        """Make these occupied positions the first to go (another tier owns the rows now)."""
        ...

    def remove(self, positions: Positions) -> None:
        """These positions became free."""
        ...

    def move(self, sources: Positions, targets: Positions) -> None:
        """The rows at occupied ``sources`` now stand at free ``targets``, in the same order."""
        ...

    def resize(self, capacity: int) -> None:
        """Only positions below ``capacity`` are used from now on, and none above are occupied."""
        ...

    def victims(self, count: int, pins: NDArray[np.uint16]) -> Positions:
        """The ``count`` unpinned positions to evict first (fewer if there are fewer), removed."""
        ...

    def order(self) -> Positions:
        """(n,) int64 copy of all occupied positions, the first to evict first: for checks."""
        ...


@nb.njit(nogil=True, cache=True)
def _unlink(before: Any, after: Any, node: Any) -> None:
    after[before[node]] = after[node]
    before[after[node]] = before[node]


@nb.njit(nogil=True, cache=True)
def _link(before: Any, after: Any, node: Any, left: Any) -> None:
    """Put a node that is in no list behind ``left``."""
    right = after[left]
    after[left], before[node] = node, left
    after[node], before[right] = right, node


@nb.njit(nogil=True, cache=True)
def _insert_all(before: Any, after: Any, positions: Any) -> None:
    for i in range(positions.shape[0]):
        _link(before, after, positions[i] + 1, 0)


@nb.njit(nogil=True, cache=True)
def _remove_all(before: Any, after: Any, positions: Any) -> None:
    for i in range(positions.shape[0]):
        _unlink(before, after, positions[i] + 1)


@nb.njit(nogil=True, cache=True)
def _touch_all(before: Any, after: Any, positions: Any) -> None:
    for i in range(positions.shape[0]):
        _unlink(before, after, positions[i] + 1)
        _link(before, after, positions[i] + 1, 0)


@nb.njit(nogil=True, cache=True)
def _demote_all(before: Any, after: Any, positions: Any) -> None:
    for i in range(positions.shape[0]):
        _unlink(before, after, positions[i] + 1)
        _link(before, after, positions[i] + 1, before[0])


@nb.njit(nogil=True, cache=True)
def _move_all(before: Any, after: Any, sources: Any, targets: Any) -> None:
    for i in range(sources.shape[0]):
        left = before[sources[i] + 1]
        _unlink(before, after, sources[i] + 1)
        _link(before, after, targets[i] + 1, left)


@nb.njit(nogil=True, cache=True)
def _victims(before: Any, after: Any, pins: Any, out: Any) -> Any:
    node = np.int64(before[0])
    found = 0
    while found < out.shape[0] and node != 0:
        previous = np.int64(before[node])
        if pins[node - 1] == 0:
            out[found] = node - 1
            found += 1
            _unlink(before, after, node)
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


class Lru:
    """Exact least recently used: a doubly linked list in two int32 arrays.

    Index 0 is the head, position p stands at p + 1: 8 bytes a position. Pinned positions are
    stepped over; they were used lately, so they sit at the other end of the list and the walk
    stays short.
    """

    bytes_per_position = 8

    def __init__(self, capacity: int) -> None:
        self._regions = Region(capacity + 1, np.int32), Region(capacity + 1, np.int32)
        self._before, self._after = (region.array for region in self._regions)

    def insert(self, positions: Positions) -> None:
        """Most recent, the last of ``positions`` first."""
        _insert_all(self._before, self._after, positions)

    def touch(self, positions: Positions) -> None:
        """Most recent, the last of ``positions`` first."""
        _touch_all(self._before, self._after, positions)

    def demote(self, positions: Positions) -> None:
        """Least recent, the last of ``positions`` first to go."""
        _demote_all(self._before, self._after, positions)

    def remove(self, positions: Positions) -> None:
        """Take out of the list."""
        _remove_all(self._before, self._after, positions)

    def move(self, sources: Positions, targets: Positions) -> None:
        """Put ``targets`` where ``sources`` stand in the list."""
        _move_all(self._before, self._after, sources, targets)

    def resize(self, capacity: int) -> None:
        """Give back the links of the positions from ``capacity`` on."""
        for region in self._regions:
            region.release(capacity + 1)

    def victims(self, count: int, pins: NDArray[np.uint16]) -> Positions:
        """Least recent first."""
        out = np.empty(count, np.int64)
        return out[: _victims(self._before, self._after, pins, out)]

    def order(self) -> Positions:
        """Least recent first."""
        out = np.empty(len(self._before), np.int64)
        return out[: _order(self._before, out)]


POLICIES: dict[str, type[Lru]] = {"lru": Lru}
"""The policies by name."""


def make_policy(name: str, capacity: int) -> Policy:
    """A policy by name. Raises: ConfigError naming the known ones."""
    if name not in POLICIES:
        raise ConfigError(f"policy: expected one of {', '.join(POLICIES)}, got {name!r}")
    return POLICIES[name](capacity)
