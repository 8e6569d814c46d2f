"""Belady: the best there can be, for it knows the future. Who is needed furthest away leaves.

Source: Belady, "A study of replacement algorithms for a virtual-storage computer", 1966 (MIN).

Only for replays: whoever drives it says when each position is needed next. In a replay access by
access ``nexts`` has the next use of each access in order (`next_uses`), and each `insert` and
`touch` of one position is one access. In a replay by batches ``nexts`` is empty and `schedule` is
called after each batch.

Times are unique, so they are bits: level 0 of ``bits`` has a bit for each time at which a resident
key is needed, each level above one for each word below that is not zero. The furthest is found in
as many steps as there are levels, four for 16 M accesses.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from storage.kernel import inlined, kernel
from storage.policies.links import BEFORE, link, replace, unlink
from storage.rows import Positions

NEVER = np.int64(1) << np.int64(62)
_WORD, _SHIFT = 64, 6


@kernel
def _next_uses(codes: Any, last: Any, nexts: Any) -> None:
    for i in range(codes.shape[0] - 1, -1, -1):
        nexts[i] = last[codes[i]]
        last[codes[i]] = i


def next_uses(codes: Positions, distinct: int) -> Positions:
    """(N,) int64: of each access the number of the next one of the same key, `NEVER` if none.

    codes: (N,) integers below ``distinct``, one for each key.
    """
    nexts = np.empty(len(codes), np.int64)
    _next_uses(codes, np.full(distinct, NEVER), nexts)
    return nexts


class BeladyArrays(NamedTuple):
    """Of Belady, see there."""

    links: NDArray[np.int32]
    due: NDArray[np.int64]
    at: NDArray[np.int32]
    bits: NDArray[np.uint64]
    levels: NDArray[np.int64]
    nexts: NDArray[np.int64]
    now: NDArray[np.int64]


class Belady(BeladyArrays):
    """See the module's docstring.

    links: of the list of positions that are never needed again; head 0, position p at p + 1.
    due: by position, when it is needed next. at: by time, which position is needed then. levels:
    where each level of ``bits`` begins, then its end. now: (1,) accesses so far.
    """

    @staticmethod
    @inlined
    def expect(state: Any, keys: Any) -> None:
        """Makes no difference."""

    @staticmethod
    @inlined
    def insert(state: Any, positions: Any) -> None:
        """Needed as ``nexts`` says, or never until `schedule` says when."""
        for i in range(positions.shape[0]):
            _come(state, positions[i], _upcoming(state, positions[i]))

    @staticmethod
    @inlined
    def touch(state: Any, positions: Any) -> None:
        """Needed as ``nexts`` says from now on."""
        for i in range(positions.shape[0]):
            due = _upcoming(state, positions[i])
            _go(state, positions[i])
            _come(state, positions[i], due)

    @staticmethod
    @inlined
    def demote(state: Any, positions: Any) -> None:
        """Makes no difference: only time counts."""

    @staticmethod
    @inlined
    def remove(state: Any, positions: Any) -> None:
        """Take out."""
        for i in range(positions.shape[0]):
            _go(state, positions[i])

    @staticmethod
    @inlined
    def move(state: Any, sources: Any, targets: Any) -> None:
        """Put ``targets`` where ``sources`` stand."""
        for i in range(sources.shape[0]):
            due = state.due[sources[i]]
            state.due[targets[i]] = due
            if due == NEVER:
                replace(state.links, sources[i] + 1, targets[i] + 1)
            else:
                state.at[due] = targets[i]

    @staticmethod
    @inlined
    def resize(state: Any, capacity: Any) -> None:
        """Makes no difference."""

    @staticmethod
    @inlined
    def victims(state: Any, pins: Any, out: Any) -> Any:
        """Never needed again first, then needed furthest away."""
        found = 0
        node = np.int64(state.links[0, BEFORE])
        while found < out.shape[0] and node != 0:
            newer = np.int64(state.links[node, BEFORE])
            if pins[node - 1] == 0:
                out[found] = node - 1
                found += 1
                unlink(state.links, node)
            node = newer
        time = np.int64(state.at.shape[0])
        while found < out.shape[0]:
            time = _latest(state, time)
            if time < 0:
                break
            position = np.int64(state.at[time])
            if pins[position] == 0:
                out[found] = position
                found += 1
                _go(state, position)
        return found


@inlined
def _upcoming(state: Any, position: Any) -> Any:
    if state.nexts.shape[0] == 0:
        return NEVER
    state.now[0] += 1
    return state.nexts[state.now[0] - 1]


@inlined
def _come(state: Any, position: Any, due: Any) -> None:
    state.due[position] = due
    if due == NEVER:
        link(state.links, position + 1, 0)
        return
    state.at[due] = position
    bit = due
    for level in range(state.levels.shape[0] - 1):
        word = state.levels[level] + (bit >> _SHIFT)
        was = state.bits[word]
        state.bits[word] = was | (np.uint64(1) << np.uint64(bit & (_WORD - 1)))
        if was:
            break
        bit >>= _SHIFT


@inlined
def _go(state: Any, position: Any) -> None:
    if state.due[position] == NEVER:
        unlink(state.links, position + 1)
        return
    bit = state.due[position]
    for level in range(state.levels.shape[0] - 1):
        word = state.levels[level] + (bit >> _SHIFT)
        state.bits[word] &= ~(np.uint64(1) << np.uint64(bit & (_WORD - 1)))
        if state.bits[word]:
            break
        bit >>= _SHIFT


@inlined
def _highest(word: Any) -> Any:
    """The number of the highest bit that is set."""
    found = np.int64(0)
    for step in (32, 16, 8, 4, 2, 1):
        if word >> np.uint64(step):
            word >>= np.uint64(step)
            found += step
    return found


@inlined
def _latest(state: Any, before: Any) -> Any:
    """The last time below ``before`` at which anybody is needed, or -1."""
    top = state.levels.shape[0] - 1
    level, bit = 0, before
    while level < top:
        # Bits below this one in its word.
        word = state.levels[level] + (bit >> _SHIFT)
        if word < state.levels[level + 1]:
            below = state.bits[word] & (
                (np.uint64(1) << np.uint64(bit & (_WORD - 1))) - np.uint64(1)
            )
            if below:
                bit = ((bit >> _SHIFT) << _SHIFT) + _highest(below)
                while level > 0:
                    level -= 1
                    bit = (bit << _SHIFT) + _highest(state.bits[state.levels[level] + bit])
                return bit
        bit >>= _SHIFT
        level += 1
    return np.int64(-1)


@kernel
def schedule(state: Any, positions: Any, dues: Any) -> None:
    """Say when occupied positions are needed next: (n,) int64 times, unique, or `NEVER`."""
    for i in range(positions.shape[0]):
        _go(state, positions[i])
        _come(state, positions[i], dues[i])


def make_belady(capacity: int, times: int, nexts: Positions | None = None) -> Belady:
    """A policy of ``capacity`` positions for times below ``times``.

    nexts: (times,) int64 for a replay access by access, see `next_uses`; none for one by batches.
    """
    sizes = [max(1, -(-times // _WORD))]
    while sizes[-1] > 1:
        sizes.append(-(-sizes[-1] // _WORD))
    return Belady(
        np.zeros((capacity + 1, 2), np.int32),
        np.full(capacity, NEVER), np.zeros(times, np.int32),
        np.zeros(sum(sizes), np.uint64), np.cumsum([0, *sizes]),
        np.empty(0, np.int64) if nexts is None else nexts, np.zeros(1, np.int64),
    )  # fmt: skip
