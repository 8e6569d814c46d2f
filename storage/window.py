"""Window: the keys of coming batches, and for each the next batch that needs it.

Batches come in order, each with its unique keys, and leave in the same order. For every use in the
window it is known in which batch of the window the key is used next. Uses stand in a ring of fixed
size; a hash over it (the slots of `storage.index`) finds the latest use of a key. A batch that the
ring or the hash has no room for waits: the window then reaches less far, as it does beyond 127
batches.

A use may be marked as *wanted*: no tier above the SSD has the key, and no earlier batch of the
window brings it.

Memory: a use costs a byte, since what is kept is how many batches later the next one is; a key that
is used 12 more. The keys in the ring are a part of the batches read ahead, and not counted, no more
than those are.

Threads: one owner.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray

from storage.index import EMPTY, SLOT_BYTES, erase, find, slots_for
from storage.keys import mix
from storage.rows import Keys, Positions

Batches = NDArray[np.uint32]
"""Numbers of batches, from 1 on; 0 for none."""

_FARTHEST = 127
_GAP, _WANTED = np.uint8(127), np.uint8(128)
_32 = np.uint64(32)
_LOW = np.uint64(0xFFFFFFFF)


def window_bytes(uses: int, keys: int) -> int:
    """Bytes of a window with room for so many uses of so many different keys."""
    return uses + slots_for(keys) * SLOT_BYTES


@nb.njit(nogil=True, cache=True)
def _enter(
    slots: Any, ring: Any, gaps: Any, numbers: Any, starts: Any, keys: Any, start: Any, first: Any
) -> Any:
    """Put one batch's keys into the ring from ``start`` on, as the latest use of each.

    gaps: of the use before, set. numbers, starts: of the batches that are in the ring, and the new
    one's. first: (U,) bool, written: there was none before. Returns how many first ones.
    """
    size = np.uint64(slots.shape[0])
    place, found = start, 0
    for i in range(keys.shape[0]):
        key = keys[i]
        tag = mix(key) & _LOW
        slot: Any = np.int64((tag * size) >> _32)
        first[i] = True
        while slots[slot] != EMPTY:
            word = slots[slot]
            before = np.int64(word & _LOW)
            if word >> _32 == tag and ring[before] == key:
                gaps[before] |= np.uint8(numbers[-1] - _number(numbers, starts, before, ring))
                first[i] = False
                break
            slot = slot + 1 if slot + 1 < slots.shape[0] else 0
        slots[slot] = (tag << _32) | np.uint64(place)
        ring[place], gaps[place] = key, 0
        found += first[i]
        place = place + 1 if place + 1 < ring.shape[0] else 0
    return found


@nb.njit(nogil=True, cache=True)
def _number(numbers: Any, starts: Any, place: Any, ring: Any) -> Any:
    """The batch that a place of the ring belongs to: its start is the last one not after it."""
    distance = place - starts[0]
    if distance < 0:
        distance += ring.shape[0]
    low, high = 0, numbers.shape[0] - 1
    while low < high:
        middle = (low + high + 1) // 2
        offset = starts[middle] - starts[0]
        if offset < 0:
            offset += ring.shape[0]
        if offset <= distance:
            low = middle
        else:
            high = middle - 1
    return numbers[low]


@dataclass(frozen=True, slots=True)
class _Stretch:
    """A batch's part of the ring."""

    number: int
    start: int
    count: int


class Window:
    """See the module's docstring. uses, keys: there is room for so many uses and different keys."""

    def __init__(self, uses: int, keys: int) -> None:
        self.uses, self.keys = uses, keys
        self._ring = np.zeros(uses, np.uint64)
        self._gaps = np.zeros(uses, np.uint8)
        self._slots = np.full(slots_for(keys), EMPTY, np.uint64)
        self._batches: deque[_Stretch] = deque()
        self._used = self._different = 0

    @property
    def nbytes(self) -> int:
        """Bytes held, but for the keys."""
        return self._gaps.nbytes + self._slots.nbytes

    @property
    def batches(self) -> list[int]:
        """Numbers of the batches that are in it, in order."""
        return [stretch.number for stretch in self._batches]

    def enter(self, number: int, keys: Keys) -> NDArray[np.bool_] | None:
        """Add a batch behind all others: (U,) bool, which keys no other batch here uses.

        number: larger than that of any batch before. keys: (U,) uint64, unique. Returns None, and
        has changed nothing, when there is no room for it yet.
        """
        ahead = number - self._batches[0].number if self._batches else 0
        if ahead > _FARTHEST or self._used + len(keys) > self.uses or not self._fits(keys):
            return None
        last = self._batches[-1] if self._batches else _Stretch(0, 0, 0)
        start = (last.start + last.count) % self.uses
        self._batches.append(_Stretch(number, start, len(keys)))
        in_ring = [stretch for stretch in self._batches if stretch.count]
        numbers = np.array([stretch.number for stretch in in_ring], np.int64)
        starts = np.array([stretch.start for stretch in in_ring], np.int64)
        first = np.empty(len(keys), np.bool_)
        parts = (self._slots, self._ring, self._gaps, numbers, starts)
        self._different += _enter(*parts, keys, start, first)
        self._used += len(keys)
        return first

    def want(self, number: int, chosen: NDArray[np.bool_]) -> None:
        """Mark uses of the batch that came last as wanted: ``chosen`` (U,) bool by its keys."""
        last = self._batches[-1]
        assert last.number == number, "wanted in another batch than the last"
        self._gaps[self._places(last)[chosen]] |= _WANTED

    def nexts(self, number: int) -> Batches:
        """(U,) uint32 copy: for each key of the first batch the next one that uses it, 0 for none.

        Empty when that batch, ``number``, found no room here.
        """
        if not self._leads(number):
            return np.zeros(0, np.uint32)
        gaps = (self._gaps[self._places(self._batches[0])] & _GAP).astype(np.uint32)
        gaps[gaps > 0] += np.uint32(number)
        return gaps

    def wanted(self, number: int, most: int) -> tuple[Keys, Batches]:
        """Copies of up to ``most`` wanted keys of the batches after ``number``, and their batches.

        Nearest first, and none when batch ``number`` itself wants nothing: so what is wanted comes
        in few large pieces. They are no longer wanted then.
        """
        keys, numbers = [np.zeros(0, np.uint64)], [np.zeros(0, np.uint32)]
        if not self._leads(number) or not len(self._wanted(self._batches[0])):
            return keys[0], numbers[0]
        for stretch in list(self._batches)[1:]:
            places = self._wanted(stretch)[:most]
            self._gaps[places] &= _GAP
            keys.append(self._ring[places])
            numbers.append(np.full(len(places), stretch.number, np.uint32))
            most -= len(places)
        return np.concatenate(keys), np.concatenate(numbers)

    def leave(self, number: int) -> None:
        """Take the first batch out, if that is ``number``."""
        if not self._leads(number):
            return
        stretch = self._batches.popleft()
        places = self._places(stretch)
        last = places[self._gaps[places] & _GAP == 0]
        erase(self._slots, self._ring, last)
        self._different -= len(last)
        self._used -= stretch.count

    def _fits(self, keys: Keys) -> bool:
        """Whether the hash has room for those of the keys that are not in it."""
        left = self.keys - self._different
        if len(keys) <= left:
            return True
        places = np.empty(len(keys), np.int64)
        find(self._slots, self._ring, keys, places)
        return int(np.count_nonzero(places < 0)) <= left

    def _leads(self, number: int) -> bool:
        return bool(self._batches) and self._batches[0].number == number

    def _wanted(self, stretch: _Stretch) -> Positions:
        places = self._places(stretch)
        return places[self._gaps[places] >= _WANTED]

    def _places(self, stretch: _Stretch) -> Positions:
        return (stretch.start + np.arange(stretch.count)) % self.uses
