"""Lfu: least frequently used; of those used equally often, who came to that count first.

Positions with one count are a *group*: a list of its own, from who came first to who came last.
Groups are in a chain by rising count, so every step is a few links, whatever the counts are. A use
moves a position to the next group; a newcomer has count 1, a demoted one 0. Counts are exact as
long as no more than 4095 different ones are there at once; then a group may take the next count in.

Source: Ketan Shah et al., "An O(1) algorithm for implementing the LFU cache eviction scheme", 2010.

Threads: one owner.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray

from storage.array import Region
from storage.queue import Queue, link, unlink
from storage.rows import Positions

_MOST_GROUPS = 4096


@nb.njit(nogil=True, cache=True)
def _group(lower: Any, higher: Any, counts: Any, free: Any, count: Any, left: Any) -> Any:
    """The group of ``count``, made behind group ``left`` if it is not there."""
    right = np.int64(higher[left])
    if right != 0 and counts[right] == count:
        return right
    if free[0] == 0:
        return left if left != 0 else right  # all are in use: the nearest one
    free[0] -= 1
    group = np.int64(free[1 + free[0]])
    counts[group] = count
    higher[left], lower[group] = group, left
    higher[group], lower[right] = right, group
    return group


@nb.njit(nogil=True, cache=True)
def _leave(
    before: Any, after: Any, lower: Any, higher: Any, free: Any, groups: Any, first: Any, p: Any
) -> None:
    """Take a position out of its group, and the group out of the chain when it is empty."""
    group = np.int64(groups[p])
    unlink(before, after, first + p)
    if after[group] == group:
        higher[lower[group]] = higher[group]
        lower[higher[group]] = lower[group]
        free[1 + free[0]] = group
        free[0] += 1


@nb.njit(nogil=True, cache=True)
def _use(
    before: Any, after: Any, lower: Any, higher: Any, counts: Any, free: Any, groups: Any,
    first: Any, positions: Any,
) -> None:  # fmt: skip
    for i in range(positions.shape[0]):
        p = positions[i]
        old = np.int64(groups[p])
        group = _group(lower, higher, counts, free, counts[old] + 1, old)
        _leave(before, after, lower, higher, free, groups, first, p)
        if group == old and after[old] == old:
            # It was alone in the only group that there was room for.
            group = _group(lower, higher, counts, free, counts[old] + 1, np.int64(lower[old]))
        link(before, after, first + p, group)
        groups[p] = group


@nb.njit(nogil=True, cache=True)
def _come(
    before: Any, after: Any, lower: Any, higher: Any, counts: Any, free: Any, groups: Any,
    first: Any, positions: Any, count: Any,
) -> None:  # fmt: skip
    """Put positions that are in no group into the one of ``count``, the lowest that there may be:
    newcomers last of all, demoted ones first."""
    for i in range(positions.shape[0]):
        p, left = positions[i], np.int64(0)
        while count > 0 and higher[left] != 0 and counts[higher[left]] < count:
            left = np.int64(higher[left])
        group = _group(lower, higher, counts, free, count, left)
        link(before, after, first + p, group if count else np.int64(before[group]))
        groups[p] = group


@nb.njit(nogil=True, cache=True)
def _go(
    before: Any, after: Any, lower: Any, higher: Any, free: Any, groups: Any, first: Any,
    positions: Any,
) -> None:  # fmt: skip
    for i in range(positions.shape[0]):
        _leave(before, after, lower, higher, free, groups, first, positions[i])


@nb.njit(nogil=True, cache=True)
def _choose(before: Any, higher: Any, first: Any, pins: Any, out: Any) -> Any:
    """Who leaves first, second, ...; nothing changes."""
    found, group = 0, np.int64(higher[0])
    while group != 0 and found < out.shape[0]:
        node = np.int64(before[group])
        while node != group and found < out.shape[0]:
            if pins[node - first] == 0:
                out[found] = node - first
                found += 1
            node = np.int64(before[node])
        group = np.int64(higher[group])
    return found


@nb.njit(nogil=True, cache=True)
def _move(before: Any, after: Any, groups: Any, first: Any, sources: Any, targets: Any) -> None:
    for i in range(sources.shape[0]):
        left = before[first + sources[i]]
        unlink(before, after, first + sources[i])
        link(before, after, first + targets[i], left)
        groups[targets[i]] = groups[sources[i]]


class Lfu(Queue):
    """See the module's docstring.

    In the lists group g's head stands at g, and position p behind all heads; group 0 is the end of
    the chain.
    """

    bytes_per_position = 4 + 4 + 2

    @staticmethod
    def fixed_bytes(capacity: int) -> int:
        """Of the groups: count, chain, head, and place among the free ones."""
        return (8 + 4 + 4 + 8 + 4) * min(capacity + 2, _MOST_GROUPS)

    def __init__(self, capacity: int) -> None:
        most = self._first = min(capacity + 2, _MOST_GROUPS)
        sizes = ((capacity + most, np.int32), (capacity + most, np.int32), (capacity, np.uint16))
        self._regions = [Region(size, kind) for size, kind in sizes]
        self._before, self._after, self._groups = (region.array for region in self._regions)
        self._before[:most] = self._after[:most] = np.arange(most)
        self._lower, self._higher = np.zeros(most, np.int32), np.zeros(most, np.int32)
        self._counts = np.zeros(most, np.int64)
        # How many groups are free, and which.
        self._free = np.append(most - 1, np.arange(1, most)[::-1]).astype(np.int32)

    @property
    def _chain(self) -> tuple[NDArray[Any], ...]:
        return self._before, self._after, self._lower, self._higher

    def insert(self, positions: Positions) -> None:
        """With a count of 1, the last of ``positions`` last."""
        rest = (self._counts, self._free, self._groups, self._first)
        _come(*self._chain, *rest, positions, 1)

    def touch(self, positions: Positions) -> None:
        """Count one use of each, in this order."""
        _use(*self._chain, self._counts, self._free, self._groups, self._first, positions)

    def demote(self, positions: Positions) -> None:
        """Next to leave, with a count of 0, the last of ``positions`` first."""
        self.remove(positions)
        rest = (self._counts, self._free, self._groups, self._first)
        _come(*self._chain, *rest, positions, 0)

    def remove(self, positions: Positions) -> None:
        """Take out of their groups."""
        _go(*self._chain, self._free, self._groups, self._first, positions)

    def move(self, sources: Positions, targets: Positions) -> None:
        """Put ``targets`` where ``sources`` stand."""
        _move(self._before, self._after, self._groups, self._first, sources, targets)

    def resize(self, capacity: int) -> None:
        """Give back what belongs to the positions from ``capacity`` on."""
        for region, heads in zip(self._regions, (self._first, self._first, 0), strict=True):
            region.release(heads + capacity)

    def victims(self, count: int, pins: NDArray[np.uint16]) -> Positions:
        """Least often used first, of equals who came to that count first."""
        out = np.empty(count, np.int64)
        chosen = out[: _choose(self._before, self._higher, self._first, pins, out)]
        self.remove(chosen)
        return chosen

    def order(self) -> Positions:
        """As `victims` would go on."""
        out = np.empty(len(self._groups), np.int64)
        nobody = np.zeros(len(out), np.uint16)
        return out[: _choose(self._before, self._higher, self._first, nobody, out)]
