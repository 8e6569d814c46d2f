"""Layered (lru-lfu): an LRU list whose victims fall into an LFU part; its victims leave.

Source: Zhao et al., "Distributed hierarchical GPU parameter server for massive scale deep learning
ads systems", MLSys 2020, the cache in RAM. The paper does not say how the places are split: half
are LRU's here. Every use counts, in both parts, and makes a position the newest of the LRU list.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from storage.kernel import inlined
from storage.policies.fifo import Fifo
from storage.policies.layout import LINKS, Layout
from storage.policies.lfu import chained, clear, come, come_first, leave, take
from storage.policies.links import BEFORE, link, replace, unlink

_RECENT = np.uint16(65535)
"""The "group" of who is in the LRU list."""
_HELD, _MOST = 0, 1


class LayeredArrays(NamedTuple):
    """Of Layered, see there."""

    links: NDArray[np.int32]
    groups: NDArray[np.uint16]
    recency: NDArray[np.int32]
    uses: NDArray[np.uint32]
    lower: NDArray[np.int32]
    higher: NDArray[np.int32]
    counts: NDArray[np.int64]
    vacant: NDArray[np.int32]
    recent: NDArray[np.int64]


class Layered(LayeredArrays):
    """See the module's docstring, and `lfu.chained` for the LFU part.

    The LRU list has links of its own: index 0 is its head, position p stands at p + 1. uses: by
    position. recent: (2,) how many are in the LRU list, and may be.
    """

    expect = Fifo.expect

    @staticmethod
    def layout(capacity: int) -> Layout:
        """The arrays."""
        base = chained(capacity)
        lists = {"recency": (LINKS, 1), "uses": (np.uint32, 0)}
        return Layout({**base.by_position, **lists}, {**base.fixed, "recent": (np.int64, 2)})

    @staticmethod
    @inlined
    def begin(state: Any, capacity: Any) -> None:
        """Both parts empty."""
        clear(state)
        state.recent[_MOST] = max(capacity // 2, 1)

    @staticmethod
    @inlined
    def insert(state: Any, positions: Any) -> None:
        """Newest of the LRU list, used once."""
        for i in range(positions.shape[0]):
            state.uses[positions[i]] = 1
            _join(state, positions[i])
        _settle(state)

    @staticmethod
    @inlined
    def touch(state: Any, positions: Any) -> None:
        """Newest of the LRU list, used once more."""
        for i in range(positions.shape[0]):
            state.uses[positions[i]] += 1
            _part(state, positions[i])
            _join(state, positions[i])
        _settle(state)

    @staticmethod
    @inlined
    def demote(state: Any, positions: Any) -> None:
        """Next to leave, as if never used, the last of ``positions`` first."""
        for i in range(positions.shape[0]):
            _part(state, positions[i])
            state.uses[positions[i]] = 0
            come_first(state, positions[i])

    @staticmethod
    @inlined
    def remove(state: Any, positions: Any) -> None:
        """Take out of their part."""
        for i in range(positions.shape[0]):
            _part(state, positions[i])

    @staticmethod
    @inlined
    def move(state: Any, sources: Any, targets: Any) -> None:
        """Put ``targets`` where ``sources`` stand."""
        first = state.counts.shape[0]
        for i in range(sources.shape[0]):
            source, target = sources[i], targets[i]
            state.uses[target] = state.uses[source]
            state.groups[target] = state.groups[source]
            if state.groups[source] == _RECENT:
                replace(state.recency, source + 1, target + 1)
            else:
                replace(state.links, first + source, first + target)

    @staticmethod
    @inlined
    def resize(state: Any, capacity: Any) -> None:
        """A shorter LRU list."""
        state.recent[_MOST] = max(capacity // 2, 1)
        _settle(state)

    @staticmethod
    @inlined
    def victims(state: Any, pins: Any, out: Any) -> Any:
        """Least often used of the LFU part first, then the oldest of the LRU list."""
        found = take(state, pins, out)
        node = np.int64(state.recency[0, BEFORE])
        while found < out.shape[0] and node != 0:
            later = np.int64(state.recency[node, BEFORE])
            if pins[node - 1] == 0:
                out[found] = node - 1
                found += 1
                _part(state, node - 1)
            node = later
        return found


@inlined
def _join(state: Any, p: Any) -> None:
    """Into the LRU list, as the newest."""
    link(state.recency, p + 1, 0)
    state.groups[p] = _RECENT
    state.recent[_HELD] += 1


@inlined
def _part(state: Any, p: Any) -> None:
    """Out of the part where it is."""
    if state.groups[p] == _RECENT:
        unlink(state.recency, p + 1)
        state.recent[_HELD] -= 1
    else:
        leave(state, p)


@inlined
def _settle(state: Any) -> None:
    """Who is too many in the LRU list falls into the LFU part."""
    while state.recent[_HELD] > state.recent[_MOST]:
        p = np.int64(state.recency[0, BEFORE]) - 1
        _part(state, p)
        come(state, p, np.int64(state.uses[p]))
