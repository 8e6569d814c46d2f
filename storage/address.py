"""AddressIndex: where on the SSD the newest version of a key lies, in 12 bytes a slot.

The mixed key is a bijection of the key, so place can stand for bits: the top 12 bits of the mixed
key choose one of 4096 segments, and the segment stores the other 52 exactly. With a 44-bit address
that makes 96 bits, and every key is known exactly: there are no tags, hence no clashes of tags, and
a write-back needs no read to find out whose slot it has met. (The alternative, an 8-byte slot of
tag and address, cannot be split when it grows without reading keys back from the disk, since the
bits it would be split by are not in the slot.)

A segment is an ordered ring: a slot's home is ``remainder * capacity >> 52``, entries stand at or
after their home, round the end, in rising order of their remainder, so a search ends at the first
entry that is nearer to its home (or larger) and stays short at a load of 0.9. A full segment alone
is copied into a larger one: the whole index never exists twice. Its size depends on the number of
entries only, so no choice of keys makes it larger. Loads after growth differ from segment to
segment, 0.78 to 0.86, or all 4096 would grow at nearly the same moment, by a tenth of the index.
It holds 14 bytes a row on average, 15.4 at most.

An address is ``block << place_bits | place``, 44 bits: with 14 rows a block that is 2**40 blocks,
4 PiB of writes over the life of a table.

Threads: one owner.
"""

from __future__ import annotations

import math
from typing import Any

import numba as nb
import numpy as np
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from storage.errors import StoreError
from storage.keys import BUCKETS, bucket_of, mix, unmix
from storage.rows import Keys, Positions

ADDRESSES = 0xFFF << 32
"""All addresses are below this: 44 bits, but for the last 2**32, which look like an empty slot."""
_SLOT_BYTES = 12
_FULL = 0.9
_LEAST_LOAD, _LOADS = 0.78, 0.08
_FIRST_CAPACITY = 8
_MOST = 1 << 31
ENTRY_BYTES = 16
"""Bytes that one more key costs at most, beyond `LEAST_BYTES`."""
LEAST_BYTES = BUCKETS * (24 + _FIRST_CAPACITY * _SLOT_BYTES)
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
def _next(slot: Any, capacity: Any) -> Any:
    return slot + 1 if slot + 1 < capacity else 0


@nb.njit(nogil=True, cache=True)
def _high(base: Any, capacity: Any) -> Any:
    """A segment's words: remainder in the upper 52 bits, upper 12 bits of the address below."""
    return nb.carray(_pointer(base), capacity, np.uint64)


@nb.njit(nogil=True, cache=True)
def _low(base: Any, capacity: Any) -> Any:
    """The lower 32 bits of a segment's addresses."""
    return nb.carray(_pointer(base + np.uint64(8 * capacity)), capacity, np.uint32)


@nb.njit(nogil=True, cache=True)
def _search(high: Any, remainder: Any) -> Any:
    """The slot that holds ``remainder``, or else the one where it belongs.

    Ends, since a segment always has an empty slot. The order is that of the ring: what came round
    from the end is larger than all others. Looking at homes at every step would cost a third.
    """
    capacity = high.shape[0]
    slot = _home(remainder, capacity)
    while slot < capacity and high[slot] != _EMPTY:
        other = high[slot] >> _12
        if other == remainder or (other > remainder and _home(other, capacity) <= slot):
            return slot
        slot += 1
    if slot < capacity:
        return slot
    slot = 0
    while high[slot] != _EMPTY:
        other = high[slot] >> _12
        if other >= remainder or _home(other, capacity) <= slot:
            return slot
        slot += 1
    return slot


@nb.njit(nogil=True, cache=True)
def _holds(high: Any, slot: Any, remainder: Any) -> Any:
    return high[slot] != _EMPTY and high[slot] >> _12 == remainder


@nb.njit(nogil=True, cache=True)
def _address(high: Any, low: Any, slot: Any) -> Any:
    return np.int64(((high[slot] & _LOW12) << _32) | np.uint64(low[slot]))


@nb.njit(nogil=True, cache=True)
def _find(bases: Any, capacities: Any, keys: Any, addresses: Any) -> None:
    for i in range(keys.shape[0]):
        mixed = mix(keys[i])
        segment = np.int64(bucket_of(mixed))
        capacity = capacities[segment]
        addresses[i] = -1
        if capacity == 0:
            continue
        high = _high(bases[segment], capacity)
        remainder = mixed & _REMAINDER
        slot = _search(high, remainder)
        if _holds(high, slot, remainder):
            low = _low(bases[segment], capacity)
            addresses[i] = _address(high, low, slot)


@nb.njit(nogil=True, cache=True)
def _insert(high: Any, low: Any, slot: Any, word: Any, low_word: Any) -> None:
    """Put an entry at ``slot``, where it belongs; what stands there and behind moves on by one."""
    while high[slot] != _EMPTY:
        high[slot], word = word, high[slot]
        low[slot], low_word = low_word, low[slot]
        slot = _next(slot, high.shape[0])
    high[slot], low[slot] = word, low_word


@nb.njit(nogil=True, cache=True)
def _set(
    bases: Any, capacities: Any, counts: Any, keys: Any, addresses: Any, before: Any, start: Any
) -> Any:
    """Set addresses from ``start`` on: how many are done when a segment must grow, or all.

    before: set to the address that each key had, -1 for a new one.
    """
    for i in range(start, keys.shape[0]):
        mixed = mix(keys[i])
        segment = np.int64(bucket_of(mixed))
        capacity = capacities[segment]
        if capacity == 0:
            return i
        high, low = _high(bases[segment], capacity), _low(bases[segment], capacity)
        remainder = mixed & _REMAINDER
        address = np.uint64(addresses[i])
        word, low_word = (remainder << _12) | (address >> _32), np.uint32(address & _LOW32)
        slot = _search(high, remainder)
        before[i] = -1
        if _holds(high, slot, remainder):
            before[i] = _address(high, low, slot)
            high[slot], low[slot] = word, low_word
        elif counts[segment] >= np.int64(capacity * _FULL):
            return i
        else:
            _insert(high, low, slot, word, low_word)
            counts[segment] += 1
    return keys.shape[0]


@nb.njit(nogil=True, cache=True)
def _first(high: Any) -> Any:
    """Where the smallest remainder may stand: past what has come round from the end."""
    slot = np.int64(0)
    while high[slot] != _EMPTY and _home(high[slot] >> _12, high.shape[0]) > slot:
        slot += 1
    return slot


@nb.njit(nogil=True, cache=True)
def _refill(old_high: Any, old_low: Any, high: Any, low: Any) -> None:
    """Copy all entries into a larger empty segment, in order, so only the last need a search."""
    start, slot = _first(old_high), np.int64(0)
    for i in range(old_high.shape[0]):
        source = (start + i) % old_high.shape[0]
        word = old_high[source]
        if word == _EMPTY:
            continue
        slot = max(slot, _home(word >> _12, high.shape[0]))
        if slot < high.shape[0]:
            high[slot], low[slot] = word, old_low[source]
            slot += 1
        else:
            _insert(high, low, _search(high, word >> _12), word, old_low[source])


@nb.njit(nogil=True, cache=True)
def _erase(bases: Any, capacities: Any, counts: Any, keys: Any, before: Any) -> None:
    """Forget keys. before: set to the address that each had, -1 for one that was not here."""
    for i in range(keys.shape[0]):
        before[i] = -1
        mixed = mix(keys[i])
        segment = np.int64(bucket_of(mixed))
        capacity = capacities[segment]
        if capacity == 0:
            continue
        high, low = _high(bases[segment], capacity), _low(bases[segment], capacity)
        slot = _search(high, mixed & _REMAINDER)
        if not _holds(high, slot, mixed & _REMAINDER):
            continue
        before[i] = _address(high, low, slot)
        behind = _next(slot, capacity)
        while high[behind] != _EMPTY and _home(high[behind] >> _12, capacity) != behind:
            high[slot], low[slot] = high[behind], low[behind]
            slot, behind = behind, _next(behind, capacity)
        high[slot] = _EMPTY
        counts[segment] -= 1


@nb.njit(nogil=True, cache=True)
def _entries(segment: Any, high: Any, low: Any, keys: Any, addresses: Any) -> Any:
    """Write the keys and addresses of one segment, in rising order of mixed key: their number."""
    start, count = _first(high), 0
    for i in range(high.shape[0]):
        slot = (start + i) % high.shape[0]
        if high[slot] != _EMPTY:
            keys[count] = unmix((np.uint64(segment) << _52) | (high[slot] >> _12))
            addresses[count] = _address(high, low, slot)
            count += 1
    return count


class AddressIndex:
    """Key -> 44-bit address; see the module's docstring. Unbounded; ``bytes`` is what it holds."""

    def __init__(self) -> None:
        self._bases = np.zeros(BUCKETS, np.uint64)
        self._capacities = np.zeros(BUCKETS, np.int64)
        self._counts = np.zeros(BUCKETS, np.int64)
        self._memory = [np.empty(0, np.uint8)] * BUCKETS
        self._held = self._bases.nbytes + self._capacities.nbytes + self._counts.nbytes

    def __len__(self) -> int:
        return int(self._counts.sum())

    @property
    def bytes(self) -> int:
        """Bytes of all segments and of the tables that lead to them."""
        return self._held

    def growth_bound(self, added: int) -> int:
        """Bytes that setting ``added`` new keys can add to `bytes` at most, whatever the keys are.

        A segment with n entries that grows has ``(n + 1) / load`` slots afterwards, so each key
        costs at most ``1 / least load`` slots, beside what a segment near its end grows ahead. To
        that comes a second copy of one segment, which exists while it grows, as large as keys make
        it that were not chosen to meet there.
        """
        least = np.where(self._capacities == 0, _FIRST_CAPACITY, 0)
        needed = self._counts / _load(np.arange(BUCKETS)) + 1 - self._capacities
        ahead = np.maximum(least, needed)
        slots = added / _LEAST_LOAD + min(float(ahead.sum()), added * float(ahead.max()))
        copied = 1.25 * int(self._capacities.max()) + added // (BUCKETS // 4) + _FIRST_CAPACITY
        return int(_SLOT_BYTES * (slots + copied)) + 1

    def find(self, keys: Keys) -> Positions:
        """(U,) int64 addresses, -1 for keys that are not here."""
        addresses = np.empty(len(keys), np.int64)
        _find(self._bases, self._capacities, keys, addresses)
        return addresses

    def set(self, keys: Keys, addresses: Positions) -> Positions:
        """Point keys, known or new, at these addresses; of a key named twice the last counts.

        Returns (U,) int64, the address each key had, -1 for a new one.
        """
        assert not len(addresses) or 0 <= addresses.min() <= addresses.max() < ADDRESSES
        before = np.empty(len(keys), np.int64)
        done, tables = 0, (self._bases, self._capacities, self._counts)
        while True:
            done = _set(*tables, keys, addresses, before, done)
            if done == len(keys):
                return before
            self._grow(int(bucket_of(np.uint64(mix(keys[done])))))

    def erase(self, keys: Keys) -> Positions:
        """Forget keys; unknown ones are fine. Returns (U,) int64, the address each had, or -1."""
        before = np.empty(len(keys), np.int64)
        _erase(self._bases, self._capacities, self._counts, keys, before)
        return before

    def segment(self, number: int) -> tuple[Keys, Positions]:
        """Copies of keys and addresses of segment ``number``, 0 to 4095, by rising mixed key."""
        count = int(self._counts[number])
        keys, addresses = np.empty(count, np.uint64), np.empty(count, np.int64)
        if count:
            found = _entries(number, *self._halves(number), keys, addresses)
            assert found == count, "a segment holds another number of entries than it counts"
        return keys, addresses

    def _halves(self, segment: int) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
        return _split(self._memory[segment])

    def _grow(self, segment: int) -> None:
        """Copy one segment into a larger one."""
        capacity = _grown(segment, int(self._counts[segment]))
        if capacity > _MOST:
            raise StoreError(
                f"index: expected at most {_MOST} slots in each of {BUCKETS} segments, got "
                f"{capacity}; divide the table among more shards"
            )
        memory = np.full(capacity * _SLOT_BYTES, 0xFF, np.uint8)
        old = self._memory[segment]
        if len(old):
            _refill(*_split(old), *_split(memory))
        self._held += len(memory) - len(old)
        self._memory[segment] = memory
        self._bases[segment] = memory.ctypes.data
        self._capacities[segment] = capacity


def _split(memory: NDArray[np.uint8]) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
    """Views of a segment's words and of the lower address bits behind them."""
    slots = len(memory) // _SLOT_BYTES
    return memory[: 8 * slots].view(np.uint64), memory[8 * slots :].view(np.uint32)


def _load(segment: Any) -> Any:
    """Load of a segment just after it grew, 0.78 to 0.86."""
    return _LEAST_LOAD + _LOADS / BUCKETS * segment


def _grown(segment: int, count: int) -> int:
    """Capacity of a segment that is full with ``count`` entries and is about to take one more."""
    load: float = _load(segment)
    return max(_FIRST_CAPACITY, math.ceil((count + 1) / load))
