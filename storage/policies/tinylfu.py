"""TinyLfu: a small LRU window, a segmented LRU behind it, and a sketch that says who may pass.

Source: Einziger, Friedman and Manes, "TinyLFU: a highly efficient cache admission policy", ACM TOS
2017 (W-TinyLFU), with Caffeine's first split: a hundredth of the places are the window, four fifths
of the rest protected. Who falls out of the window stays only if the sketch has counted it more
often than whom it would replace. The sketch is a count-min sketch of four rows of counters up to
15, all halved after ten counts a place, so that what was hot long ago is forgotten.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from storage.kernel import inlined
from storage.keys import mix
from storage.policies import lists
from storage.policies.fifo import Fifo
from storage.policies.layout import Layout
from storage.policies.lists import LEAVING, clear, drop, oldest, push, shift, spill, start

_WINDOW, _PROBATION, _PROTECTED = 1, 2, 3
_ROWS, _MOST, _SAMPLE = 4, 15, 10
_CAPACITY = 0


class TinyLfuArrays(NamedTuple):
    """Of TinyLfu, see there."""

    links: NDArray[np.int32]
    home: NDArray[np.uint8]
    sizes: NDArray[np.int64]
    cursors: NDArray[np.int64]
    limits: NDArray[np.int64]
    sketch: NDArray[np.uint8]
    counted: NDArray[np.int64]
    owners: NDArray[np.uint64]


class TinyLfu(TinyLfuArrays):
    """See the module's docstring.

    sketch: (4 * columns,) uint8, a row after the other. counted: (1,) uses counted since the last
    halving. owners: the key at each position. limits: the capacity, then of window and protected
    list.
    """

    expect = Fifo.expect
    demote = staticmethod(lists.demote)
    remove = staticmethod(lists.remove)
    move = staticmethod(lists.move)

    @staticmethod
    def layout(capacity: int) -> Layout:
        """The arrays."""
        columns = 1 << max(4, (capacity - 1).bit_length())
        base = lists.layout(4)
        more = {"sketch": (np.uint8, _ROWS * columns), "counted": (np.int64, 1)}
        return Layout(base.by_position, {**base.fixed, **more})

    @staticmethod
    @inlined
    def begin(state: Any, capacity: Any) -> None:
        """Empty lists, nothing counted."""
        clear(state)
        state.sketch[:] = 0
        state.counted[0] = 0
        _limit(state, capacity)

    @staticmethod
    @inlined
    def insert(state: Any, positions: Any) -> None:
        """Newest of the window; what that pushes out is newest on probation."""
        for i in range(positions.shape[0]):
            _count(state, state.owners[positions[i]])
            push(state, _WINDOW, positions[i])
            if state.sizes[_WINDOW] > state.limits[_WINDOW]:
                spill(state, _WINDOW, _PROBATION)

    @staticmethod
    @inlined
    def touch(state: Any, positions: Any) -> None:
        """Newest of the window for who is in it, else of the protected list."""
        for i in range(positions.shape[0]):
            p = positions[i]
            _count(state, state.owners[p])
            shift(state, _WINDOW if state.home[p] <= _WINDOW else _PROTECTED, p)
            if state.sizes[_PROTECTED] > state.limits[_PROTECTED]:
                spill(state, _PROTECTED, _PROBATION)
            if state.sizes[_WINDOW] > state.limits[_WINDOW]:  # who was demoted is back
                spill(state, _WINDOW, _PROBATION)

    @staticmethod
    @inlined
    def resize(state: Any, capacity: Any) -> None:
        """Shorter lists: what they lose goes on probation."""
        _limit(state, capacity)
        for which in (_WINDOW, _PROTECTED):
            while state.sizes[which] > state.limits[which]:
                spill(state, which, _PROBATION)

    @staticmethod
    @inlined
    def victims(state: Any, pins: Any, out: Any) -> Any:
        """The oldest on probation, or of a full window the oldest if that is used less often."""
        start(state)
        found = 0
        while found < out.shape[0]:
            position = oldest(state, LEAVING, pins)
            if position < 0:
                position = _lose(state, pins)
            if position < 0:
                break
            drop(state, position)
            out[found] = position
            found += 1
        return found


@inlined
def _limit(state: Any, capacity: Any) -> None:
    window = max(capacity // 100, 1)
    state.limits[_CAPACITY], state.limits[_WINDOW] = capacity, window
    state.limits[_PROTECTED] = (capacity - window) * 4 // 5


@inlined
def _lose(state: Any, pins: Any) -> Any:
    """Who leaves, or -1: a contest where the window is full, since it has to give somebody up."""
    candidate = np.int64(-1)
    if state.sizes[_WINDOW] >= state.limits[_WINDOW]:
        candidate = oldest(state, _WINDOW, pins)
    victim = oldest(state, _PROBATION, pins)
    if victim < 0:
        victim = oldest(state, _PROTECTED, pins)
    if victim < 0:
        return candidate if candidate >= 0 else oldest(state, _WINDOW, pins)
    if candidate < 0:
        return victim
    if _frequency(state, state.owners[candidate]) > _frequency(state, state.owners[victim]):
        shift(state, _PROBATION, candidate)
        return victim
    # The victim stays, where the next search finds it first.
    state.cursors[state.home[victim]] = victim + state.sizes.shape[0]
    return candidate


@inlined
def _column(state: Any, row: Any, bits: Any) -> Any:
    """Where a key's counter in a row is; rows mix the key's bits again, so they are independent."""
    columns = state.sketch.shape[0] // _ROWS
    return row * columns + np.int64(mix(bits + np.uint64(row)) & np.uint64(columns - 1))


@inlined
def _count(state: Any, key: Any) -> None:
    """One more use of a key; now and then all counts are halved."""
    bits = mix(key)
    for row in range(_ROWS):
        column = _column(state, row, bits)
        if state.sketch[column] < _MOST:
            state.sketch[column] += 1
    state.counted[0] += 1
    if state.counted[0] >= _SAMPLE * state.limits[_CAPACITY]:
        for column in range(state.sketch.shape[0]):
            state.sketch[column] >>= 1
        state.counted[0] //= 2


@inlined
def _frequency(state: Any, key: Any) -> Any:
    """How often a key was used lately, as far as the sketch knows; never less."""
    bits, least = mix(key), np.uint8(255)
    for row in range(_ROWS):
        least = min(least, state.sketch[_column(state, row, bits)])
    return least
