"""Lfu: least frequently used; of those used equally often, who came to that count first.

Positions with one count are a *group*: a list of its own, from who came first to who came last.
Groups are in a chain by rising count, so every step is a few links, whatever the counts are. A use
moves a position to the next group; a newcomer has count 1, a demoted one 0. Counts are exact as
long as no more than 4095 different ones are there at once; then a group may take the next count in.

Source: Ketan Shah et al., "An O(1) algorithm for implementing the LFU cache eviction scheme", 2010.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from storage.kernel import inlined
from storage.policies.fifo import Fifo
from storage.policies.layout import LINKS, Layout
from storage.policies.links import AFTER, BEFORE, link, replace, unlink

_MOST_GROUPS = 4096


def chained(capacity: int) -> Layout:
    """The arrays of positions in groups.

    In the lists group g's head stands at g, and position p behind all heads; group 0 is the end of
    the chain. vacant: how many groups are free, then which.
    """
    most = min(capacity + 2, _MOST_GROUPS)
    by_position = {"links": (LINKS, most), "groups": (np.uint16, 0)}
    return Layout(
        by_position,
        {
            "lower": (np.int32, most), "higher": (np.int32, most), "counts": (np.int64, most),
            "vacant": (np.int32, most),
        },
    )  # fmt: skip


@inlined
def clear(state: Any) -> None:
    """Make all groups empty and free."""
    most = state.counts.shape[0]
    for group in range(most):
        state.links[group, BEFORE] = state.links[group, AFTER] = group
    state.lower[0] = state.higher[0] = 0
    state.vacant[0] = most - 1
    for i in range(1, most):
        state.vacant[i] = most - i


@inlined
def group_of(state: Any, count: Any, left: Any) -> Any:
    """The group of ``count``, made behind group ``left`` if it is not there."""
    right = np.int64(state.higher[left])
    if right != 0 and state.counts[right] == count:
        return right
    if state.vacant[0] == 0:
        return left if left != 0 else right  # all are in use: the nearest one
    group = np.int64(state.vacant[state.vacant[0]])
    state.vacant[0] -= 1
    state.counts[group] = count
    state.higher[left], state.lower[group] = group, left
    state.higher[group], state.lower[right] = right, group
    return group


@inlined
def leave(state: Any, p: Any) -> None:
    """Take a position out of its group, and the group out of the chain when it is empty."""
    group = np.int64(state.groups[p])
    unlink(state.links, state.counts.shape[0] + p)
    if state.links[group, AFTER] == group:
        state.higher[state.lower[group]] = state.higher[group]
        state.lower[state.higher[group]] = state.lower[group]
        state.vacant[0] += 1
        state.vacant[state.vacant[0]] = group


@inlined
def come(state: Any, p: Any, count: Any) -> None:
    """Put a position that is in no group into the one of ``count``, the last to leave there."""
    left = np.int64(0)
    while state.higher[left] != 0 and state.counts[state.higher[left]] < count:
        left = np.int64(state.higher[left])
    group = group_of(state, count, left)
    link(state.links, state.counts.shape[0] + p, group)
    state.groups[p] = group


@inlined
def come_first(state: Any, p: Any) -> None:
    """Put a position that is in no group before all others, with a count of 0."""
    group = group_of(state, 0, 0)
    link(state.links, state.counts.shape[0] + p, state.links[group, BEFORE])
    state.groups[p] = group


@inlined
def take(state: Any, pins: Any, out: Any) -> Any:
    """Take out who leaves first, second, ...: how many there were."""
    first = state.counts.shape[0]
    found, group = 0, np.int64(state.higher[0])
    while group != 0 and found < out.shape[0]:
        higher = np.int64(state.higher[group])
        node = np.int64(state.links[group, BEFORE])
        while node != group and found < out.shape[0]:
            newer = np.int64(state.links[node, BEFORE])
            if pins[node - first] == 0:
                out[found] = node - first
                found += 1
                leave(state, node - first)
            node = newer
        group = higher
    return found


class LfuArrays(NamedTuple):
    """Of Lfu, see there."""

    links: NDArray[np.int32]
    groups: NDArray[np.uint16]
    lower: NDArray[np.int32]
    higher: NDArray[np.int32]
    counts: NDArray[np.int64]
    vacant: NDArray[np.int32]


class Lfu(LfuArrays):
    """See the module's docstring, and `chained`."""

    expect = Fifo.expect
    resize = Fifo.resize
    victims = staticmethod(take)

    @staticmethod
    def layout(capacity: int) -> Layout:
        """The arrays."""
        return chained(capacity)

    @staticmethod
    @inlined
    def begin(state: Any, capacity: Any) -> None:
        """No groups."""
        clear(state)

    @staticmethod
    @inlined
    def insert(state: Any, positions: Any) -> None:
        """With a count of 1, the last of ``positions`` last."""
        for i in range(positions.shape[0]):
            come(state, positions[i], 1)

    @staticmethod
    @inlined
    def touch(state: Any, positions: Any) -> None:
        """Count one use of each, in this order."""
        for i in range(positions.shape[0]):
            p = positions[i]
            old = np.int64(state.groups[p])
            count = state.counts[old] + 1
            group = group_of(state, count, old)
            left = np.int64(state.lower[old])
            leave(state, p)
            if group == old and state.links[old, AFTER] == old:
                # It was alone in the only group that there was room for.
                group = group_of(state, count, left)
            link(state.links, state.counts.shape[0] + p, group)
            state.groups[p] = group

    @staticmethod
    @inlined
    def demote(state: Any, positions: Any) -> None:
        """Next to leave, with a count of 0, the last of ``positions`` first."""
        for i in range(positions.shape[0]):
            leave(state, positions[i])
            come_first(state, positions[i])

    @staticmethod
    @inlined
    def remove(state: Any, positions: Any) -> None:
        """Take out of their groups."""
        for i in range(positions.shape[0]):
            leave(state, positions[i])

    @staticmethod
    @inlined
    def move(state: Any, sources: Any, targets: Any) -> None:
        """Put ``targets`` where ``sources`` stand."""
        first = state.counts.shape[0]
        for i in range(sources.shape[0]):
            state.groups[targets[i]] = state.groups[sources[i]]
            replace(state.links, first + sources[i], first + targets[i])
