"""PositionIndex: which position of a cache holds a key.

Open addressing over 8-byte slots: the top half of a slot is the tag, the bottom half of the mixed
key; its own bottom half is the position. The key itself stands once, in ``owners`` (key by
position), and settles every tag match, so a clash of tags costs a comparison and never an answer.
Deletion shifts back, so there are no tombstones and a probe never grows with history.

The home slot is ``tag * slots >> 32``: it can be recomputed from the slot alone, and the number of
slots need not be a power of two. The tag is not the top half of the mixed key, since a shard's keys
agree in their top bits, its buckets, and would all have their home in one stretch of slots. All
2**64 keys are ordinary: emptiness is a property of the slot (position 2**32 - 1), not a reserved
key.

Measured (1 thread, 5 M keys, random lookups): see tests/benchmarks/step.py. Threads: one owner.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray

from storage.array import Region
from storage.keys import mix
from storage.rows import Keys, Positions

EMPTY = np.uint64(0xFFFFFFFFFFFFFFFF)
SLOT_BYTES = 8
_LOAD = 0.7
_PIECE = 1 << 16
_32 = np.uint64(32)
_LOW = np.uint64(0xFFFFFFFF)


def slots_for(capacity: int) -> int:
    """Slots of an index that holds ``capacity`` keys at a load of 0.7."""
    return int(capacity / _LOAD) + 8


@nb.njit(nogil=True, cache=True)
def _close_gap(slots: Any, gap: Any) -> None:
    """Empty slot ``gap``, moving back what was displaced over it."""
    size = np.uint64(slots.shape[0])
    count = slots.shape[0]
    slot = gap
    while True:
        slot = slot + 1 if slot + 1 < count else 0
        word = slots[slot]
        if word == EMPTY:
            break
        home = np.int64(((word >> _32) * size) >> _32)
        displaced = slot - home
        if displaced < 0:
            displaced += count
        distance = slot - gap
        if distance < 0:
            distance += count
        if displaced >= distance:
            slots[gap] = word
            gap = slot
    slots[gap] = EMPTY


@nb.njit(nogil=True, cache=True)
def find_one(slots: Any, owners: Any, key: Any) -> Any:
    """The position of a key, or -1. slots: (S,) uint64. owners: (C,) uint64."""
    size = np.uint64(slots.shape[0])
    tag = mix(key) & _LOW
    slot: Any = np.int64((tag * size) >> _32)
    while True:
        word = slots[slot]
        if word == EMPTY:
            return np.int64(-1)
        if word >> _32 == tag:
            position = np.int64(word & _LOW)
            if owners[position] == key:
                return position
        slot = slot + 1 if slot + 1 < slots.shape[0] else 0


@nb.njit(nogil=True, cache=True)
def insert_one(slots: Any, key: Any, position: Any) -> None:
    """Add a key that is not there, at a free position."""
    size = np.uint64(slots.shape[0])
    tag = mix(key) & _LOW
    slot: Any = np.int64((tag * size) >> _32)
    while slots[slot] != EMPTY:
        slot = slot + 1 if slot + 1 < slots.shape[0] else 0
    slots[slot] = (tag << _32) | np.uint64(position)


@nb.njit(nogil=True, cache=True)
def erase_one(slots: Any, owners: Any, position: Any) -> None:
    """Remove the key at an occupied position; ``owners`` must still name it."""
    size = np.uint64(slots.shape[0])
    tag = mix(owners[position]) & _LOW
    word = (tag << _32) | np.uint64(position)
    slot: Any = np.int64((tag * size) >> _32)
    while slots[slot] != word:
        slot = slot + 1 if slot + 1 < slots.shape[0] else 0
    _close_gap(slots, slot)


@nb.njit(nogil=True, cache=True)
def find(slots: Any, owners: Any, keys: Any, positions: Any) -> None:
    """Write each key's position, or -1, into ``positions``.

    slots: (S,) uint64. owners: (C,) uint64. keys: (U,) uint64. positions: (U,) int64, written.
    """
    for i in range(keys.shape[0]):
        positions[i] = find_one(slots, owners, keys[i])


@nb.njit(nogil=True, cache=True)
def insert(slots: Any, keys: Any, positions: Any) -> None:
    """Add keys that are not there. keys: (U,) uint64. positions: (U,) int64, free ones."""
    for i in range(keys.shape[0]):
        insert_one(slots, keys[i], positions[i])


@nb.njit(nogil=True, cache=True)
def erase(slots: Any, owners: Any, positions: Any) -> None:
    """Remove the keys at ``positions`` (all of them present); ``owners`` must still name them."""
    for i in range(positions.shape[0]):
        erase_one(slots, owners, positions[i])


class PositionIndex:
    """A fixed number of keys, each at a position of its own. See the module's docstring.

    ``owners``: (C,) uint64, the key at each position; shared with the cache that owns both.
    """

    def __init__(self, owners: Keys) -> None:
        self.owners = owners
        self._region = Region(slots_for(len(owners)), np.uint64)
        self.slots: NDArray[np.uint64] = self._region.array
        self.slots[:] = EMPTY

    def find(self, keys: Keys) -> Positions:
        """(U,) int64 positions, -1 for keys that are not here."""
        positions = np.empty(len(keys), np.int64)
        find(self.slots, self.owners, keys, positions)
        return positions

    def insert(self, keys: Keys, positions: Positions) -> None:
        """Place keys that are not here at free positions."""
        self.owners[positions] = keys
        insert(self.slots, keys, positions)

    def erase(self, positions: Positions) -> None:
        """Forget the keys at these occupied positions."""
        erase(self.slots, self.owners, positions)

    def resize(self, capacity: int, positions: Positions) -> None:
        """Use slots for ``capacity`` keys, fewer than so far, and give back the memory after them.

        positions: (n,) int64, all that hold a key. In place: there are never two tables.
        """
        self.slots = self.slots[: slots_for(capacity)]
        self.slots[:] = EMPTY
        self._region.release(len(self.slots))
        for start in range(0, len(positions), _PIECE):
            some = positions[start : start + _PIECE]
            insert(self.slots, self.owners[some], some)

    def occupied(self) -> Positions:
        """(n,) int64 positions that hold a key, in no order of meaning."""
        words: Positions = (self.slots[self.slots != EMPTY] & _LOW).astype(np.int64)
        return words
