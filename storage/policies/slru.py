"""Slru: four LRU lists; a use moves a position one list up.

Source: Karedla et al., "Caching strategies to improve disk system performance", 1994, with as many
segments of equal size as libCacheSim takes. A list that is full gives its oldest to the one below;
the lowest has no limit of its own, so a use never makes anybody leave (libCacheSim's does where the
capacity is no multiple of four; else hits are the same).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from storage.kernel import inlined
from storage.policies import lists
from storage.policies.fifo import Fifo
from storage.policies.layout import Layout
from storage.policies.lists import LEAVING, clear, drop, oldest, push, shift, spill, start

_SEGMENTS = 4
_TOP = _SEGMENTS


@inlined
def _cool(state: Any, segment: Any) -> None:
    """Make room in a segment, and in those below it that get what it gives."""
    while segment > 1 and state.sizes[segment] > state.limits[segment]:
        spill(state, segment, segment - 1)
        segment -= 1


class SlruArrays(NamedTuple):
    """Of Slru, see there."""

    links: NDArray[np.int32]
    home: NDArray[np.uint8]
    sizes: NDArray[np.int64]
    cursors: NDArray[np.int64]
    limits: NDArray[np.int64]


class Slru(SlruArrays):
    """See the module's docstring. Lists 1 to 4 are the segments, the lowest first."""

    expect = Fifo.expect
    demote = staticmethod(lists.demote)
    remove = staticmethod(lists.remove)
    move = staticmethod(lists.move)

    @staticmethod
    def layout(capacity: int) -> Layout:
        """The arrays."""
        return lists.layout(1 + _SEGMENTS)

    @staticmethod
    @inlined
    def begin(state: Any, capacity: Any) -> None:
        """Empty lists."""
        clear(state)
        state.limits[:] = capacity // _SEGMENTS

    @staticmethod
    @inlined
    def insert(state: Any, positions: Any) -> None:
        """Into the lowest segment that has room, the last of ``positions`` newest."""
        for i in range(positions.shape[0]):
            segment = 1
            while segment < _TOP and state.sizes[segment] >= state.limits[segment]:
                segment += 1
            full = state.sizes[segment] >= state.limits[segment]
            push(state, 1 if full else segment, positions[i])

    @staticmethod
    @inlined
    def touch(state: Any, positions: Any) -> None:
        """One segment up, the newest there."""
        for i in range(positions.shape[0]):
            segment = min(np.int64(state.home[positions[i]]) + 1, _TOP)
            shift(state, segment, positions[i])
            _cool(state, segment)

    @staticmethod
    @inlined
    def resize(state: Any, capacity: Any) -> None:
        """Smaller segments: what they lose goes down."""
        state.limits[:] = capacity // _SEGMENTS
        for segment in range(_TOP, 1, -1):
            while state.sizes[segment] > state.limits[segment]:
                spill(state, segment, segment - 1)

    @staticmethod
    @inlined
    def victims(state: Any, pins: Any, out: Any) -> Any:
        """Oldest of the lowest segment first."""
        start(state)
        found, segment = 0, LEAVING
        while found < out.shape[0] and segment <= _TOP:
            position = oldest(state, segment, pins)
            if position < 0:
                segment += 1
                continue
            drop(state, position)
            out[found] = position
            found += 1
        return found
