"""Distances: the kernels of `storage.reuse`, over one set of arrays.

A bit by point in time, set where a key was used last, with the counts of the bits of each word in a
Fenwick tree; an access's distance is the number of bits after its key's own. The key finds its
point by a hash table with as many slots as there are points; half of them are used at most, so that
moving the points together, at the end of time, is paid for by as many accesses. Source of the idea:
Bennett and Kruskal 1975, Olken 1981.

Threads: one owner; the kernels release the GIL.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numba as nb
import numpy as np
from numpy.typing import NDArray

from storage.keys import Keys, mix

WORD = 64
FINE = 8
BUCKETS = (48 - FINE + 1) << FINE
"""Buckets of a histogram of scaled distances below 2**48: exact up to 2**9, then 2**8 an octave."""

EVERY = np.uint64(2**64 - 1)
"""The threshold below which all keys are."""

NOW, LIVE = 0, 1
WEIGHT, COLD = 0, 1
_SAMPLE_SHIFT = np.uint64(12)  # the top bits are the bucket: all keys of one shard share some
_M1, _M2, _M4 = (np.uint64(0x1111111111111111 * part) for part in (5, 3, 1))
_M8, _EACH = np.uint64(0x0F0F0F0F0F0F0F0F), np.uint64(0x0101010101010101)
_1, _2, _4, _56 = np.uint64(1), np.uint64(2), np.uint64(4), np.uint64(56)
_63 = np.uint64(63)


class Tracked(NamedTuple):
    """The keys tracked; a tuple because kernels take no class.

    keys: (S,) uint64 and last: (S,) int64, a hash table of each key's last use, -1 for an empty
    slot; S is a power of two, 64 or more. bits: (S/64,) uint64, by point in time. tree: (S/64+1,)
    int64. heap: (M+1,) uint64, the keys with the greatest on top, or (0,) where none is given up.
    threshold: (1,) uint64. state: (2,) int64, the next point and the number of keys. sums: (2,)
    float64, the weight of a sampled access and the sum of those of keys not seen before.
    """

    keys: Keys
    last: NDArray[np.int64]
    bits: NDArray[np.uint64]
    tree: NDArray[np.int64]
    heap: Keys
    threshold: NDArray[np.uint64]
    state: NDArray[np.int64]
    sums: NDArray[np.float64]


def track(slots: int, heap: int, threshold: int) -> Tracked:
    """Nothing tracked yet. slots: a power of two, 64 or more. heap: its entries."""
    words = slots // WORD
    return Tracked(
        np.zeros(slots, np.uint64), np.full(slots, -1, np.int64), np.zeros(words, np.uint64),
        np.zeros(words + 1, np.int64), np.zeros(heap, np.uint64),
        np.array([threshold], np.uint64), np.zeros(2, np.int64),
        np.array([2.0**64 / threshold, 0.0]),
    )  # fmt: skip


def _edges() -> NDArray[np.float64]:
    numbers = np.arange(BUCKETS + 1)
    octaves = np.maximum((numbers >> FINE) - 1, 0)
    begins: NDArray[np.float64] = (numbers - (octaves << FINE)) * 2.0**octaves
    return begins


EDGES: Final = _edges()
"""The distances at which the buckets begin, and where the last ends: (BUCKETS+1,) float64."""


@nb.njit(nogil=True, cache=True)
def use(tracked: Tracked, keys: Keys, start: int, counts: Any, counting: bool) -> Any:
    """Use keys from ``start`` on; stops, for want of slots, at the one whose number it returns.

    counts: (H,) float64: with a heap by bucket of the scaled distance, else by the distance in the
    sample, and H is half of the slots. counting: false for accesses that `look` has counted.
    """
    for i in range(start, keys.shape[0]):
        key = keys[i]
        mixed = mix(key)
        if not _sampled(mixed, tracked.threshold[0]):
            continue
        slot = _slot(tracked, key, mixed)
        if counting:
            _count(tracked, slot, counts)
        if tracked.last[slot] >= 0:
            _clear(tracked, tracked.last[slot])
            _set_last(tracked, slot)
            continue
        if 2 * (tracked.state[LIVE] + 1) > tracked.keys.shape[0]:
            if counting:  # comes again
                tracked.sums[COLD] -= tracked.sums[WEIGHT]
            return i
        tracked.keys[slot] = key
        tracked.state[LIVE] += 1
        _set_last(tracked, slot)
        if tracked.heap.shape[0]:
            _push(tracked.heap, tracked.state[LIVE] - 1, key)
            if tracked.state[LIVE] == tracked.heap.shape[0]:
                _lower(tracked)
    return keys.shape[0]


@nb.njit(nogil=True, cache=True)
def look(tracked: Tracked, keys: Keys, counts: Any) -> None:
    """Count accesses of which none comes before the others; `use` them afterwards."""
    for i in range(keys.shape[0]):
        mixed = mix(keys[i])
        if _sampled(mixed, tracked.threshold[0]):
            _count(tracked, _slot(tracked, keys[i], mixed), counts)


@nb.njit(nogil=True, cache=True)
def sample(keys: Keys, threshold: Any) -> Keys:
    """The keys whose sample value is below the threshold, a copy. keys: (n,) uint64."""
    found, sampled = np.empty_like(keys), 0
    for i in range(keys.shape[0]):
        found[sampled] = keys[i]
        # Without a branch: whether a key is in is random, and few are.
        sampled += _sampled(mix(keys[i]), threshold)
    return found[:sampled]


@nb.njit(nogil=True, cache=True)
def copy(tracked: Tracked, larger: Tracked) -> None:
    """Take what is tracked over into empty arrays of more slots, at the same order in time."""
    _compact(tracked)
    larger.state[NOW] = tracked.state[NOW]
    larger.state[LIVE] = tracked.state[LIVE]
    larger.sums[:] = tracked.sums
    for i in range(tracked.keys.shape[0]):
        if tracked.last[i] >= 0:
            slot = _slot(larger, tracked.keys[i], mix(tracked.keys[i]))
            larger.keys[slot] = tracked.keys[i]
            larger.last[slot] = tracked.last[i]
    _fill(larger)


@nb.njit(nogil=True, cache=True)
def _sampled(mixed: Any, threshold: Any) -> Any:
    return (threshold == EVERY) | ((mixed << _SAMPLE_SHIFT) < threshold)


@nb.njit(nogil=True, cache=True)
def _slot(tracked: Tracked, key: Any, mixed: Any) -> Any:
    """The slot that has the key, or the empty one where it belongs."""
    mask = tracked.keys.shape[0] - 1
    slot = np.int64(mixed & np.uint64(mask))
    while tracked.last[slot] >= 0 and tracked.keys[slot] != key:
        slot = (slot + 1) & mask
    return slot


@nb.njit(nogil=True, cache=True)
def _count(tracked: Tracked, slot: int, counts: Any) -> None:
    """Add one access to the histogram, with the weight of today's rate."""
    point, weight = tracked.last[slot], tracked.sums[WEIGHT]
    if point < 0:
        tracked.sums[COLD] += weight
        return
    distance = tracked.state[LIVE] - _rank(tracked, point) - 1
    if tracked.heap.shape[0]:
        distance = _bucket(np.int64(distance * weight))
    counts[distance] += weight


@nb.njit(nogil=True, cache=True)
def _bucket(distance: int) -> Any:
    octave = 0
    while distance >> octave >= 2 << FINE:
        octave += 1
    return min((octave << FINE) + (distance >> octave), BUCKETS - 1)


@nb.njit(nogil=True, cache=True)
def _popcount(word: Any) -> Any:
    """How many bits are set in 64 (uint64)."""
    word -= (word >> _1) & _M1
    word = (word & _M2) + ((word >> _2) & _M2)
    word = (word + (word >> _4)) & _M8
    return np.int64((word * _EACH) >> _56)


@nb.njit(nogil=True, cache=True)
def _rank(tracked: Tracked, point: int) -> Any:
    """How many bits are set before ``point``."""
    word = point // WORD
    below = (_1 << (np.uint64(point) & _63)) - _1
    total = _popcount(tracked.bits[word] & below)
    while word > 0:
        total += tracked.tree[word]
        word &= word - 1
    return total


@nb.njit(nogil=True, cache=True)
def _clear(tracked: Tracked, point: int) -> None:
    tracked.bits[point // WORD] &= ~(_1 << (np.uint64(point) & _63))
    _add(tracked.tree, point // WORD, -1)


@nb.njit(nogil=True, cache=True)
def _set_last(tracked: Tracked, slot: int) -> None:
    """The key at ``slot``, whose bit is clear, is used now."""
    if tracked.state[NOW] == tracked.keys.shape[0]:
        tracked.last[slot] = -1
        _compact(tracked)
    point = tracked.state[NOW]
    tracked.state[NOW] += 1
    tracked.last[slot] = point
    tracked.bits[point // WORD] |= _1 << (np.uint64(point) & _63)
    _add(tracked.tree, point // WORD, 1)


@nb.njit(nogil=True, cache=True)
def _add(tree: Any, word: int, change: int) -> None:
    place = word + 1
    while place < tree.shape[0]:
        tree[place] += change
        place += place & -place


@nb.njit(nogil=True, cache=True)
def _compact(tracked: Tracked) -> None:
    """Move the points in use together at the beginning of time."""
    before = np.empty(tracked.bits.shape[0], np.int64)
    total = 0
    for word in range(tracked.bits.shape[0]):
        before[word] = total
        total += _popcount(tracked.bits[word])
    for slot in range(tracked.last.shape[0]):
        point = tracked.last[slot]
        if point >= 0:
            below = (_1 << (np.uint64(point) & _63)) - _1
            word = point // WORD
            tracked.last[slot] = before[word] + _popcount(tracked.bits[word] & below)
    tracked.state[NOW] = total
    _fill(tracked)


@nb.njit(nogil=True, cache=True)
def _fill(tracked: Tracked) -> None:
    """Set the bits of the points before now, all of them, and the tree."""
    tracked.tree[:] = 0
    for word in range(tracked.bits.shape[0]):
        used = min(max(tracked.state[NOW] - word * WORD, 0), WORD)
        tracked.bits[word] = EVERY if used == WORD else (_1 << np.uint64(used)) - _1
        place = word + 1
        tracked.tree[place] += used
        parent = place + (place & -place)
        if parent < tracked.tree.shape[0]:
            tracked.tree[parent] += tracked.tree[place]


@nb.njit(nogil=True, cache=True)
def _lower(tracked: Tracked) -> None:
    """Give up the keys with the greatest sample value, and lower the threshold to it."""
    tracked.threshold[0] = mix(tracked.heap[0]) << _SAMPLE_SHIFT
    while tracked.state[LIVE] and not _sampled(mix(tracked.heap[0]), tracked.threshold[0]):
        key = tracked.heap[0]
        tracked.state[LIVE] -= 1
        _pop(tracked.heap, tracked.state[LIVE])
        slot = _slot(tracked, key, mix(key))
        _clear(tracked, tracked.last[slot])
        _close_gap(tracked, slot)
    tracked.sums[WEIGHT] = 2.0**64 / max(1.0, np.float64(tracked.threshold[0]))


@nb.njit(nogil=True, cache=True)
def _close_gap(tracked: Tracked, gap: int) -> None:
    """Empty a slot, moving back what was displaced over it."""
    mask = tracked.keys.shape[0] - 1
    slot = gap
    while True:
        slot = (slot + 1) & mask
        if tracked.last[slot] < 0:
            break
        home = np.int64(mix(tracked.keys[slot]) & np.uint64(mask))
        if (slot - home) & mask >= (slot - gap) & mask:
            tracked.keys[gap] = tracked.keys[slot]
            tracked.last[gap] = tracked.last[slot]
            gap = slot
    tracked.last[gap] = -1


@nb.njit(nogil=True, cache=True)
def _push(heap: Keys, size: int, key: Any) -> None:
    """Add a key to a heap of ``size``; the greatest sample value is on top."""
    value = mix(key) << _SAMPLE_SHIFT
    place = size
    while place > 0 and mix(heap[(place - 1) // 2]) << _SAMPLE_SHIFT < value:
        heap[place] = heap[(place - 1) // 2]
        place = (place - 1) // 2
    heap[place] = key


@nb.njit(nogil=True, cache=True)
def _pop(heap: Keys, size: int) -> None:
    """Take the top off a heap that has ``size`` keys afterwards."""
    key = heap[size]
    value = mix(key) << _SAMPLE_SHIFT
    place, child = 0, 1
    while child < size:
        if (
            child + 1 < size
            and mix(heap[child]) << _SAMPLE_SHIFT < mix(heap[child + 1]) << _SAMPLE_SHIFT
        ):
            child += 1
        if mix(heap[child]) << _SAMPLE_SHIFT <= value:
            break
        heap[place] = heap[child]
        place, child = child, 2 * child + 1
    heap[place] = key
