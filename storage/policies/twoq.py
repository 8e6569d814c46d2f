"""TwoQ: newcomers queue first in, first out; who comes back after that goes into an LRU list.

Source: Johnson and Shasha, "2Q: a low overhead high performance buffer management replacement
algorithm", VLDB 1994, the full version: a quarter of the places for newcomers (A1in), and half as
many ghosts of those who left it (A1out) as there are places. A use while in A1in changes nothing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from storage.kernel import inlined
from storage.policies import ghosts, lists
from storage.policies.ghosts import (
    FIRST,
    forget_oldest,
    forget_recalled,
    recall,
    recalled,
    remember,
)
from storage.policies.layout import Layout
from storage.policies.lists import LEAVING, clear, drop, oldest, push, shift, start

_NEW, _MAIN = 1, 2


class TwoQArrays(NamedTuple):
    """Of TwoQ, see there."""

    links: NDArray[np.int32]
    home: NDArray[np.uint8]
    sizes: NDArray[np.int64]
    cursors: NDArray[np.int64]
    limits: NDArray[np.int64]
    ghost_slots: NDArray[np.uint64]
    ghost_keys: NDArray[np.uint64]
    ghost_links: NDArray[np.int32]
    ghost_home: NDArray[np.uint8]
    ghost_sizes: NDArray[np.int64]
    owners: NDArray[np.uint64]


class TwoQ(TwoQArrays):
    """See the module's docstring. owners: the key at each position. limits: of newcomers, and of
    ghosts."""

    demote = staticmethod(lists.demote)
    remove = staticmethod(lists.remove)
    move = staticmethod(lists.move)

    @staticmethod
    def layout(capacity: int) -> Layout:
        """The arrays."""
        base = lists.layout(3)
        return Layout(base.by_position, {**base.fixed, **ghosts.fields(capacity // 2)})

    @staticmethod
    @inlined
    def begin(state: Any, capacity: Any) -> None:
        """Empty lists, no ghosts."""
        clear(state)
        ghosts.begin(state)
        state.limits[_NEW], state.limits[_MAIN] = capacity // 4, capacity // 2

    @staticmethod
    @inlined
    def expect(state: Any, keys: Any) -> None:
        """Who is a ghost will go into the main list."""
        forget_recalled(state)
        for i in range(keys.shape[0]):
            recall(state, keys[i])

    @staticmethod
    @inlined
    def insert(state: Any, positions: Any) -> None:
        """Newest of the newcomers, or of the main list for a ghost."""
        for i in range(positions.shape[0]):
            p = positions[i]
            push(state, _MAIN if recalled(state, state.owners[p]) else _NEW, p)

    @staticmethod
    @inlined
    def touch(state: Any, positions: Any) -> None:
        """Newest in the main list; newcomers stay where they are."""
        for i in range(positions.shape[0]):
            if state.home[positions[i]] != _NEW:
                shift(state, _MAIN, positions[i])

    @staticmethod
    @inlined
    def resize(state: Any, capacity: Any) -> None:
        """Fewer newcomers, fewer ghosts."""
        state.limits[_NEW], state.limits[_MAIN] = capacity // 4, capacity // 2
        while state.ghost_sizes[FIRST] > state.limits[_MAIN]:
            forget_oldest(state, FIRST)

    @staticmethod
    @inlined
    def victims(state: Any, pins: Any, out: Any) -> Any:
        """The oldest newcomer while there are too many, else the least recently used."""
        start(state)
        found = 0
        while found < out.shape[0]:
            position = oldest(state, LEAVING, pins)
            if position < 0 and state.sizes[_NEW] > state.limits[_NEW]:
                position = _newcomer(state, pins)
            if position < 0:
                position = oldest(state, _MAIN, pins)
            if position < 0:
                position = _newcomer(state, pins)
            if position < 0:
                break
            drop(state, position)
            out[found] = position
            found += 1
        return found


@inlined
def _newcomer(state: Any, pins: Any) -> Any:
    """The oldest newcomer, or -1; it becomes a ghost."""
    position = oldest(state, _NEW, pins)
    if position >= 0 and state.limits[_MAIN]:
        if state.ghost_sizes[FIRST] >= state.limits[_MAIN]:
            forget_oldest(state, FIRST)
        remember(state, FIRST, state.owners[position])
    return position
