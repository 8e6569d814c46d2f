"""Arc: two LRU lists, seen once and seen again, whose sizes follow which ghosts come back.

Source: Megiddo and Modha, "ARC: a self-tuning, low overhead replacement cache", FAST 2003, figure
4. T1 and T2 are the lists, B1 and B2 their ghosts; the target of T1 grows with a hit in B1 and
shrinks with one in B2. Where many keys are expected at once, their ghosts move the target before
anybody leaves.
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

_T1, _T2 = 1, 2
_B1, _B2 = FIRST, FIRST + 1
_CAPACITY = 0
_NEW, _FROM_B2 = 0, 1


class ArcArrays(NamedTuple):
    """Of Arc, see there."""

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
    target: NDArray[np.float64]
    coming: NDArray[np.int64]
    owners: NDArray[np.uint64]


class Arc(ArcArrays):
    """See the module's docstring. owners: the key at each position. limits: the capacity. target:
    (1,) of T1's size. coming: (2,) how many that are no ghosts, and ghosts of B2, are expected."""

    demote = staticmethod(lists.demote)
    remove = staticmethod(lists.remove)
    move = staticmethod(lists.move)

    @staticmethod
    def layout(capacity: int) -> Layout:
        """The arrays."""
        base = lists.layout(3)
        more = {"target": (np.float64, 1), "coming": (np.int64, 2)}
        return Layout(base.by_position, {**base.fixed, **ghosts.fields(capacity, 2), **more})

    @staticmethod
    @inlined
    def begin(state: Any, capacity: Any) -> None:
        """Empty lists, no ghosts."""
        clear(state)
        ghosts.begin(state)
        state.limits[_CAPACITY] = capacity

    @staticmethod
    @inlined
    def expect(state: Any, keys: Any) -> None:
        """Learn from who is a ghost."""
        forget_recalled(state)
        state.coming[:] = 0
        for i in range(keys.shape[0]):
            # The ghost itself counts in the sizes, as in the paper.
            b1, b2 = state.ghost_sizes[_B1], state.ghost_sizes[_B2]
            which = recall(state, keys[i])
            if which == _B1:
                state.target[0] = min(state.target[0] + max(b2 / b1, 1.0), state.limits[_CAPACITY])
            elif which == _B2:
                state.target[0] = max(state.target[0] - max(b1 / b2, 1.0), 0.0)
                state.coming[_FROM_B2] += 1
            else:
                state.coming[_NEW] += 1

    @staticmethod
    @inlined
    def insert(state: Any, positions: Any) -> None:
        """Newest of those seen once, or again for a ghost."""
        for i in range(positions.shape[0]):
            p = positions[i]
            push(state, _T2 if recalled(state, state.owners[p]) else _T1, p)

    @staticmethod
    @inlined
    def touch(state: Any, positions: Any) -> None:
        """Newest of those seen again."""
        for i in range(positions.shape[0]):
            shift(state, _T2, positions[i])

    @staticmethod
    @inlined
    def resize(state: Any, capacity: Any) -> None:
        """A lower target, fewer ghosts."""
        state.limits[_CAPACITY] = capacity
        state.target[0] = min(state.target[0], capacity)
        while state.ghost_sizes[_B1] and state.sizes[_T1] + state.ghost_sizes[_B1] > capacity:
            forget_oldest(state, _B1)
        while state.ghost_sizes[_B2] and _known(state) > 2 * capacity:
            forget_oldest(state, _B2)

    @staticmethod
    @inlined
    def victims(state: Any, pins: Any, out: Any) -> Any:
        """The oldest of T1 while it is above its target, else of T2; REPLACE of the paper."""
        start(state)
        found = 0
        while found < out.shape[0]:
            position = oldest(state, LEAVING, pins)
            if position < 0:
                position = _replace(state, pins)
            if position < 0:
                break
            drop(state, position)
            out[found] = position
            found += 1
        return found


@inlined
def _known(state: Any) -> Any:
    return state.sizes[_T1] + state.sizes[_T2] + state.ghost_sizes[_B1] + state.ghost_sizes[_B2]


@inlined
def _replace(state: Any, pins: Any) -> Any:
    """Who makes room for the next that is expected, or -1."""
    capacity = state.limits[_CAPACITY]
    from_b2 = False
    becomes_ghost = True
    if state.coming[_FROM_B2] and not state.coming[_NEW]:
        state.coming[_FROM_B2] -= 1
        from_b2 = True
    elif state.coming[_NEW]:
        # Case IV: a key that nobody remembers; the ghosts may not grow for it.
        state.coming[_NEW] -= 1
        if state.sizes[_T1] + state.ghost_sizes[_B1] >= capacity:
            becomes_ghost = state.ghost_sizes[_B1] > 0
            forget_oldest(state, _B1)
        elif _known(state) >= 2 * capacity:
            forget_oldest(state, _B2)
    t1, target = state.sizes[_T1], state.target[0]
    first = not becomes_ghost or state.sizes[_T2] == 0
    first = first or (t1 > 0 and (t1 > target or (t1 == target and from_b2)))
    which = _T1 if first else _T2
    position = oldest(state, which, pins)
    if position < 0:
        which = _T2 if first else _T1
        position = oldest(state, which, pins)
    if position >= 0 and becomes_ghost:
        remember(state, FIRST + which - _T1, state.owners[position])
    return position
