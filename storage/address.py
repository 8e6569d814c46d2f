"""AddressIndex: where on the SSD the newest version of a key lies, in 12 bytes a slot.

The mixed key is a bijection of the key, so place can stand for bits: the top 12 bits of the mixed
key choose one of 4096 segments, and the segment stores the other 52 exactly. With a 44-bit address
that makes 96 bits, and every key is known exactly: there are no tags, hence no clashes of tags, and
a write-back needs no read to find out whose slot it has met. (The alternative, an 8-byte slot of
tag and address, cannot be split when it grows without reading keys back from the disk, since the
bits it would be split by are not in the slot.)

A segment is an ordered table with gaps: a slot's home is ``remainder * capacity >> 52``, entries
stand at or after their home in rising order, so a search ends at the first larger entry and stays
short at a load of 0.9. A full segment alone is copied into one of 1.2 times the size: the whole
index never exists twice, and it holds 12 / 0.82 = 14.6 bytes a row on average, at most 16.

An address is ``block << place_bits | place``, 44 bits: with 14 rows a block that is 2**40 blocks,
4 PiB of writes over the life of a table.

Threads: one owner.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
from numba import types
from numba.extending import intrinsic

from storage.errors import StoreError
from storage.keys import BUCKETS, bucket_of, mix, unmix
from storage.rows import Keys, Positions

ADDRESS_BITS = 44
_SLOT_BYTES = 12
_FULL, _AFTER_GROWTH = 0.9, 0.75
_FIRST_CAPACITY = 2
ENTRY_BYTES = 17
"""Bytes that one more key costs at most, beyond `LEAST_BYTES`."""
LEAST_BYTES = BUCKETS * (24 + 8 * _SLOT_BYTES)
"""Bytes of an index whose segments hold a few keys each."""
_EMPTY = np.uint64(0xFFFFFFFFFFFFFFFF)
_REMAINDER = np.uint64((1 << 52) - 1)
_12, _20, _32, _52 = np.uint64(12), np.uint64(20), np.uint64(32), np.uint64(52)
_LOW32 = np.uint64(0xFFFFFFFF)
_LOW12 = np.uint64(0xFFF)


@intrinsic
def _pointer(typingctx: Any, address: Any) -> Any:
    """A numba pointer from an integer address, for `nb.carray`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.voidptr(types.uint64), codegen


@nb.njit(nogil=True, cache=True)
def _home(remainder: Any, capacity: Any) -> Any:
    return np.int64(((remainder >> _20) * np.uint64(capacity)) >> _32)


@nb.njit(nogil=True, cache=True)
def _slots_in(capacity: int) -> int:
    """Slots of a segment: room after the last home for what is displaced there."""
    return capacity + capacity // 64 + 2


@nb.njit(nogil=True, cache=True)
def _search(high: Any, remainder: Any, capacity: int) -> Any:
    """First slot from the home on that is empty or holds ``remainder`` or more (may be the end)."""
    slot = _home(remainder, capacity)
    while slot < high.shape[0] and high[slot] != _EMPTY and (high[slot] >> _12) < remainder:
        slot += 1
    return slot


@nb.njit(nogil=True, cache=True)
def _find(bases: Any, capacities: Any, keys: Any, addresses: Any) -> None:
    for i in range(keys.shape[0]):
        mixed = mix(keys[i])
        segment = np.int64(bucket_of(mixed))
        capacity = capacities[segment]
        addresses[i] = -1
        if capacity == 0:
            continue
        slots = _slots_in(capacity)
        high = nb.carray(_pointer(bases[segment]), slots, np.uint64)
        remainder = mixed & _REMAINDER
        slot = _search(high, remainder, capacity)
        if slot < slots and high[slot] != _EMPTY and high[slot] >> _12 == remainder:
            low = nb.carray(_pointer(bases[segment] + np.uint64(8 * slots)), slots, np.uint32)
            addresses[i] = np.int64(((high[slot] & _LOW12) << _32) | np.uint64(low[slot]))


@nb.njit(nogil=True, cache=True)
def _put(high: Any, low: Any, capacity: int, remainder: Any, address: Any) -> int:
    """Set one entry: 1 when it is new, 0 when it replaced, -1 when there is no slot to its right."""
    slots = high.shape[0]
    word = (remainder << _12) | (np.uint64(address) >> _32)
    slot = _search(high, remainder, capacity)
    if slot < slots and high[slot] != _EMPTY and high[slot] >> _12 == remainder:
        high[slot] = word
        low[slot] = np.uint32(np.uint64(address) & _LOW32)
        return 0
    gap = slot
    while gap < slots and high[gap] != _EMPTY:
        gap += 1
    if gap == slots:
        return -1
    while gap > slot:
        high[gap] = high[gap - 1]
        low[gap] = low[gap - 1]
        gap -= 1
    high[slot] = word
    low[slot] = np.uint32(np.uint64(address) & _LOW32)
    return 1


@nb.njit(nogil=True, cache=True)
def _set(
    bases: Any, capacities: Any, counts: Any, keys: Any, addresses: Any, start: int, full: float
) -> int:
    """Set addresses from ``start`` on: how many are done when a segment must grow, or all."""
    for i in range(start, keys.shape[0]):
        mixed = mix(keys[i])
        segment = np.int64(bucket_of(mixed))
        capacity = capacities[segment]
        if counts[segment] >= np.int64(capacity * full):
            return i
        slots = _slots_in(capacity)
        high = nb.carray(_pointer(bases[segment]), slots, np.uint64)
        low = nb.carray(_pointer(bases[segment] + np.uint64(8 * slots)), slots, np.uint32)
        added = _put(high, low, capacity, mixed & _REMAINDER, addresses[i])
        if added < 0:
            return i
        counts[segment] += added
    return keys.shape[0]


@nb.njit(nogil=True, cache=True)
def _refill(source: Any, low_source: Any, high: Any, low: Any, capacity: int) -> bool:
    """Copy every entry into a larger empty segment; False if the last ones found no slot."""
    slot = np.int64(0)
    for i in range(source.shape[0]):
        if source[i] == _EMPTY:
            continue
        slot = max(slot, _home(source[i] >> _12, capacity))
        if slot >= high.shape[0]:
            return False
        high[slot] = source[i]
        low[slot] = low_source[i]
        slot += 1
    return True


@nb.njit(nogil=True, cache=True)
def _erase(bases: Any, capacities: Any, counts: Any, keys: Any) -> int:
    erased = 0
    for i in range(keys.shape[0]):
        mixed = mix(keys[i])
        segment = np.int64(bucket_of(mixed))
        capacity = capacities[segment]
        if capacity == 0:
            continue
        slots = _slots_in(capacity)
        high = nb.carray(_pointer(bases[segment]), slots, np.uint64)
        low = nb.carray(_pointer(bases[segment] + np.uint64(8 * slots)), slots, np.uint32)
        remainder = mixed & _REMAINDER
        slot = _search(high, remainder, capacity)
        if slot == slots or high[slot] == _EMPTY or high[slot] >> _12 != remainder:
            continue
        following = slot + 1
        while following < slots and high[following] != _EMPTY:
            if _home(high[following] >> _12, capacity) >= following:
                break
            high[following - 1] = high[following]
            low[following - 1] = low[following]
            following += 1
        high[following - 1] = _EMPTY
        counts[segment] -= 1
        erased += 1
    return erased


@nb.njit(nogil=True, cache=True)
def _entries(segment: int, high: Any, low: Any, keys: Any, addresses: Any) -> int:
    """Write the keys and addresses of one segment, in rising order of mixed key: their number."""
    count = 0
    for slot in range(high.shape[0]):
        if high[slot] != _EMPTY:
            keys[count] = unmix((np.uint64(segment) << _52) | (high[slot] >> _12))
            addresses[count] = np.int64(((high[slot] & _LOW12) << _32) | np.uint64(low[slot]))
            count += 1
    return count


class AddressIndex:
    """Key -> 44-bit address; see the module's docstring. Unbounded; ``bytes`` is what it holds."""

    def __init__(self) -> None:
        self._bases = np.zeros(BUCKETS, np.uint64)
        self._capacities = np.zeros(BUCKETS, np.int64)
        self._counts = np.zeros(BUCKETS, np.int64)
        self._memory: list[np.ndarray | None] = [None] * BUCKETS
        self._held = self._bases.nbytes + self._capacities.nbytes + self._counts.nbytes

    def __len__(self) -> int:
        return int(self._counts.sum())

    @property
    def bytes(self) -> int:
        """Bytes of all segments and of the tables that lead to them."""
        return self._held

    def growth_bound(self, added: int) -> int:
        """Bytes that setting ``added`` new keys can add at most, whatever the keys are.

        A segment grows once its free entries are used up, so the segments that can grow are, in
        the worst case, those with the fewest free entries. While one grows it exists twice.
        """
        room = np.maximum(0, (self._capacities * _FULL).astype(np.int64) - self._counts)
        order = np.argsort(room, kind="stable")
        grown = int(np.searchsorted(np.cumsum(room[order] + 1), added, side="right")) + 1
        chosen = order[:grown]
        wider = _segment_bytes(_grown(self._counts[chosen], 1)) - self._segment_sizes(chosen)
        largest = int(_segment_bytes(np.array([self._counts.max() + added])).item() * 2)
        extra = int(_segment_bytes(np.array([added])).item() * 2)
        return int(np.maximum(wider, 0).sum()) + extra + largest

    def find(self, keys: Keys) -> Positions:
        """(U,) int64 addresses, -1 for keys that are not here."""
        addresses = np.empty(len(keys), np.int64)
        _find(self._bases, self._capacities, keys, addresses)
        return addresses

    def set(self, keys: Keys, addresses: Positions) -> None:
        """Point keys, known or new, at these addresses; of a key named twice the last counts."""
        assert not len(addresses) or 0 <= addresses.min() <= addresses.max() < 1 << ADDRESS_BITS
        done, tables = 0, (self._bases, self._capacities, self._counts)
        while True:
            done = _set(*tables, keys, addresses, done, _FULL)
            if done == len(keys):
                return
            self._grow(int(bucket_of(np.uint64(mix(keys[done])))))

    def erase(self, keys: Keys) -> int:
        """Forget keys; unknown ones are fine. Returns how many were known."""
        return int(_erase(self._bases, self._capacities, self._counts, keys))

    def segment(self, number: int) -> tuple[Keys, Positions]:
        """Copies of the keys and addresses of segment ``number``, 0 to 4095."""
        count = int(self._counts[number])
        keys, addresses = np.empty(count, np.uint64), np.empty(count, np.int64)
        if count:
            found = _entries(number, *self._halves(number), keys, addresses)
            assert found == count, "a segment holds another number of entries than it counts"
        return keys, addresses

    def _halves(self, segment: int) -> tuple[np.ndarray, np.ndarray]:
        memory = self._memory[segment]
        assert memory is not None
        slots = len(memory) // _SLOT_BYTES
        return memory[: 8 * slots].view(np.uint64), memory[8 * slots :].view(np.uint32)

    def _segment_sizes(self, segments: np.ndarray) -> np.ndarray:
        capacity = self._capacities[segments]
        return np.where(capacity == 0, 0, _segment_bytes(capacity))

    def _grow(self, segment: int) -> None:
        """Copy one segment into the next larger size: always larger, since its tail may be full."""
        least = int(self._capacities[segment] * 9 // 8) + 1
        while True:
            grown = int(_grown(self._counts[segment : segment + 1], 1).item())
            capacity = max(grown, least)
            memory = np.empty(_segment_bytes(np.array([capacity])).item(), np.uint8)
            slots = len(memory) // _SLOT_BYTES
            high, low = memory[: 8 * slots].view(np.uint64), memory[8 * slots :].view(np.uint32)
            high[:] = _EMPTY
            old = self._memory[segment]
            if old is None or _refill(*self._halves(segment), high, low, capacity):
                break
            least = capacity * 9 // 8 + 1
        if slots > 1 << 31:
            raise StoreError("index: one of 4096 segments would exceed 2**31 rows; add shards")
        self._held += len(memory) - (0 if old is None else len(old))
        self._memory[segment] = memory
        self._bases[segment] = memory.ctypes.data
        self._capacities[segment] = capacity


def _grown(counts: np.ndarray, extra: int) -> np.ndarray:
    """Capacity of a segment that holds ``counts`` entries and is about to take ``extra`` more."""
    return np.maximum(_FIRST_CAPACITY, np.ceil((counts + extra) / _AFTER_GROWTH)).astype(np.int64)


def _segment_bytes(capacity: np.ndarray) -> np.ndarray:
    return (capacity + capacity // 64 + 2) * _SLOT_BYTES
