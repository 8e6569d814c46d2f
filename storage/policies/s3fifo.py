"""S3Fifo: a small queue for newcomers, a main queue for who was used twice there, and ghosts.

Source: Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023, with the numbers
of libCacheSim: a tenth of the places are the small queue, ghosts are nine tenths; two uses lead to
the main queue, where a 2-bit count gives further chances. Until somebody has to leave, newcomers
that the small queue has no room for go to the main one.
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

_SMALL, _MAIN, _GHOSTS = 1, 2, 0
_USES, _MOST_USES = 2, 3


class S3FifoArrays(NamedTuple):
    """Of S3Fifo, see there."""

    links: NDArray[np.int32]
    home: NDArray[np.uint8]
    uses: NDArray[np.uint8]
    sizes: NDArray[np.int64]
    cursors: NDArray[np.int64]
    limits: NDArray[np.int64]
    ghost_slots: NDArray[np.uint64]
    ghost_keys: NDArray[np.uint64]
    ghost_links: NDArray[np.int32]
    ghost_home: NDArray[np.uint8]
    ghost_sizes: NDArray[np.int64]
    full: NDArray[np.int64]
    owners: NDArray[np.uint64]


class S3Fifo(S3FifoArrays):
    """See the module's docstring. uses: by position, up to 3. owners: the key at each position.
    limits: of ghosts, small and main queue. full: (1,) whether anybody had to leave yet."""

    remove = staticmethod(lists.remove)

    @staticmethod
    def layout(capacity: int) -> Layout:
        """The arrays."""
        base = lists.layout(3, uses=(np.uint8, 0))
        more = {**ghosts.fields(capacity * 9 // 10), "full": (np.int64, 1)}
        return Layout(base.by_position, {**base.fixed, **more})

    @staticmethod
    @inlined
    def begin(state: Any, capacity: Any) -> None:
        """Empty queues, no ghosts."""
        clear(state)
        ghosts.begin(state)
        state.full[0] = 0
        _limit(state, capacity)

    @staticmethod
    @inlined
    def expect(state: Any, keys: Any) -> None:
        """Who is a ghost will go into the main queue."""
        forget_recalled(state)
        for i in range(keys.shape[0]):
            recall(state, keys[i])

    @staticmethod
    @inlined
    def insert(state: Any, positions: Any) -> None:
        """Newest in the small queue, or in the main one for a ghost; not used yet."""
        for i in range(positions.shape[0]):
            p = positions[i]
            state.uses[p] = 0
            known = recalled(state, state.owners[p])
            early = not state.full[0] and state.sizes[_SMALL] >= state.limits[_SMALL]
            push(state, _MAIN if known or early else _SMALL, p)

    @staticmethod
    @inlined
    def touch(state: Any, positions: Any) -> None:
        """Count a use; who was demoted is a newcomer again."""
        for i in range(positions.shape[0]):
            p = positions[i]
            state.uses[p] = min(state.uses[p] + 1, _MOST_USES)
            if state.home[p] == LEAVING:
                shift(state, _SMALL, p)

    @staticmethod
    @inlined
    def demote(state: Any, positions: Any) -> None:
        """Next to leave, as if never used, the last of ``positions`` first."""
        lists.demote(state, positions)
        for i in range(positions.shape[0]):
            state.uses[positions[i]] = 0

    @staticmethod
    @inlined
    def move(state: Any, sources: Any, targets: Any) -> None:
        """Put ``targets`` where ``sources`` stand, with their uses."""
        lists.move(state, sources, targets)
        for i in range(sources.shape[0]):
            state.uses[targets[i]] = state.uses[sources[i]]

    @staticmethod
    @inlined
    def resize(state: Any, capacity: Any) -> None:
        """Smaller queues, fewer ghosts."""
        _limit(state, capacity)
        while state.ghost_sizes[FIRST] > state.limits[_GHOSTS]:
            forget_oldest(state, FIRST)

    @staticmethod
    @inlined
    def victims(state: Any, pins: Any, out: Any) -> Any:
        """From the main queue while it is too long, else from the small one."""
        start(state)
        state.full[0] = 1
        found = 0
        while found < out.shape[0]:
            position = oldest(state, LEAVING, pins)
            main_first = state.sizes[_MAIN] > state.limits[_MAIN]
            if position < 0 and main_first:
                position = _from_main(state, pins)
            if position < 0:
                position = _from_small(state, pins)
            if position < 0:
                position = _from_main(state, pins)
            if position < 0:
                break
            drop(state, position)
            out[found] = position
            found += 1
        return found


@inlined
def _limit(state: Any, capacity: Any) -> None:
    state.limits[_SMALL] = capacity // 10
    state.limits[_MAIN] = capacity - capacity // 10
    state.limits[_GHOSTS] = capacity * 9 // 10


@inlined
def _from_small(state: Any, pins: Any) -> Any:
    """The oldest of the small queue that was not used twice, now a ghost, or -1. Who was goes into
    the main queue."""
    while True:
        position = oldest(state, _SMALL, pins)
        if position < 0:
            return position
        if state.uses[position] < _USES:
            if state.limits[_GHOSTS]:
                if state.ghost_sizes[FIRST] >= state.limits[_GHOSTS]:
                    forget_oldest(state, FIRST)
                remember(state, FIRST, state.owners[position])
            return position
        state.uses[position] = 0
        shift(state, _MAIN, position)


@inlined
def _from_main(state: Any, pins: Any) -> Any:
    """The oldest of the main queue with no use left, or -1. Who has one is the newest with one
    less."""
    while True:
        position = oldest(state, _MAIN, pins)
        if position < 0 or state.uses[position] == 0:
            return position
        state.uses[position] -= 1
        shift(state, _MAIN, position)
