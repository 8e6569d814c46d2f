"""AddressIndex: where on the SSD the newest version of a key lies, in 12 bytes a slot.

The mixed key is a bijection of the key, so place can stand for bits: the top 12 bits of the mixed
key choose one of 4096 segments, and the segment stores the other 52 exactly. With a 44-bit address
that makes 96 bits, and every key is known exactly: there are no tags, hence no clashes of tags, and
a write-back needs no read to find out whose slot it has met. (The alternative, an 8-byte slot of
tag and address, cannot be split when it grows without reading keys back from the disk, since the
bits it would be split by are not in the slot.)

A segment is a `storage.ring`, where a search stays short at a load of 0.9. Full segments are copied
into larger ones, a few at a time: the whole index never exists twice. Its size depends on the
number of entries only, so no choice of keys makes it larger. Loads after growth differ from
segment to segment, 0.78 to 0.86, or all 4096 would grow at nearly the same moment, by a tenth of
the index. It holds 14 bytes a row on average, 15.4 at most.

An address is ``block << place_bits | place``, 44 bits: with 14 rows a block that is 2**40 blocks,
4 PiB of writes over the life of a table.

Threads: one owner.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray

from storage.errors import StoreError
from storage.keys import BUCKETS, bucket_of, mix, mix_keys, unmix_keys
from storage.ring import (
    EMPTY,
    REMAINDER,
    SLOT_BYTES,
    address_at,
    entries,
    entry,
    expect,
    following,
    holds,
    home,
    insert,
    lows_at,
    merge,
    search,
    words_at,
)
from storage.rows import Keys, Positions

ADDRESSES = 0xFFF << 32
"""All addresses are below this: 44 bits, but for the last 2**32, which look like an empty slot."""
_FULL = 0.9
_LEAST_LOAD, _LOADS = 0.78, 0.08
_FIRST_CAPACITY = 8
_MOST = 1 << 31
ENTRY_BYTES = 16
"""Bytes that one more key costs at most, beyond `LEAST_BYTES`."""
LEAST_BYTES = BUCKETS * (24 + _FIRST_CAPACITY * SLOT_BYTES)
"""Bytes of an index whose segments hold a few keys each."""
_12, _52 = np.uint64(12), np.uint64(52)
# Keys that are got ready before their turn.
_AHEAD = 8
_NO_KEYS, _NO_ADDRESSES = np.empty(0, np.uint64), np.empty(0, np.int64)
_ONE_EACH, _NO_EDGES = np.ones(BUCKETS, np.int64), np.zeros(BUCKETS + 1, np.int64)
# Segments that grow at once when many do.
_AT_ONCE = 16


@nb.njit(nogil=True, cache=True)
def _expect(bases: Any, capacities: Any, keys: Any, i: Any) -> None:
    """Get ready for key ``i``, if there is one."""
    if i < keys.shape[0]:
        mixed = mix(keys[i])
        segment = np.int64(bucket_of(mixed))
        expect(bases[segment], capacities[segment], mixed & REMAINDER)


@nb.njit(nogil=True, cache=True)
def _find(bases: Any, capacities: Any, keys: Any, addresses: Any) -> None:
    for i in range(keys.shape[0]):
        _expect(bases, capacities, keys, i + _AHEAD)
        mixed = mix(keys[i])
        segment = np.int64(bucket_of(mixed))
        capacity = capacities[segment]
        addresses[i] = -1
        if capacity == 0:
            continue
        words = words_at(bases[segment], capacity)
        remainder = mixed & REMAINDER
        slot = search(words, remainder)
        if holds(words, slot, remainder):
            lows = lows_at(bases[segment], capacity)
            addresses[i] = address_at(words, lows, slot)


@nb.njit(nogil=True, cache=True)
def _set(
    bases: Any, capacities: Any, counts: Any, keys: Any, addresses: Any, before: Any, start: Any
) -> Any:
    """Set addresses from ``start`` on: how many are done when a segment must grow, or all.

    before: set to the address that each key had, -1 for a new one.
    """
    for i in range(start, keys.shape[0]):
        _expect(bases, capacities, keys, i + _AHEAD)
        mixed = mix(keys[i])
        segment = np.int64(bucket_of(mixed))
        capacity = capacities[segment]
        if capacity == 0:
            return i
        words, lows = words_at(bases[segment], capacity), lows_at(bases[segment], capacity)
        remainder = mixed & REMAINDER
        word, low_word = entry(remainder, addresses[i])
        slot = search(words, remainder)
        before[i] = -1
        if holds(words, slot, remainder):
            before[i] = address_at(words, lows, slot)
            words[slot], lows[slot] = word, low_word
        elif counts[segment] >= np.int64(capacity * _FULL):
            return i
        else:
            insert(words, lows, slot, word, low_word)
            counts[segment] += 1
    return keys.shape[0]


@nb.njit(nogil=True, cache=True)
def _look_up(bases: Any, capacities: Any, mixed: Any, before: Any, added: Any) -> None:
    """before: set to the address of each mixed key. added: counts new ones by segment."""
    for i in range(mixed.shape[0]):
        segment = np.int64(bucket_of(mixed[i]))
        capacity, remainder = capacities[segment], mixed[i] & REMAINDER
        before[i] = -1
        if capacity:
            words, lows = words_at(bases[segment], capacity), lows_at(bases[segment], capacity)
            slot = search(words, remainder)
            if holds(words, slot, remainder):
                before[i] = address_at(words, lows, slot)
        added[segment] += before[i] < 0


@nb.njit(nogil=True, cache=True)
def _merge_all(
    bases: Any, capacities: Any, counts: Any, segments: Any, memory: Any, slots: Any,
    mixed: Any, addresses: Any, edges: Any,
) -> None:  # fmt: skip
    """`_merge` of some segments into ``slots`` slots each, which lie at ``memory``."""
    for i in range(segments.shape[0]):
        segment = segments[i]
        old_words = words_at(bases[segment], capacities[segment])
        old_lows = lows_at(bases[segment], capacities[segment])
        part = slice(edges[segment], edges[segment + 1])
        words_at(memory[i], slots[i])[:] = EMPTY
        counts[segment] = merge(
            old_words, old_lows, mixed[part], addresses[part],
            words_at(memory[i], slots[i]), lows_at(memory[i], slots[i]),
        )  # fmt: skip
        bases[segment], capacities[segment] = memory[i], slots[i]


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
        words, lows = words_at(bases[segment], capacity), lows_at(bases[segment], capacity)
        slot = search(words, mixed & REMAINDER)
        if not holds(words, slot, mixed & REMAINDER):
            continue
        before[i] = address_at(words, lows, slot)
        behind = following(slot, capacity)
        while words[behind] != EMPTY and home(words[behind] >> _12, capacity) != behind:
            words[slot], lows[slot] = words[behind], lows[behind]
            slot, behind = behind, following(behind, capacity)
        words[slot] = EMPTY
        counts[segment] -= 1


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
        that come second copies of a few segments, which exist while they grow, as large as keys
        make them that were not chosen to meet there.
        """
        least = np.where(self._capacities == 0, _FIRST_CAPACITY, 0)
        needed = self._counts / _load(np.arange(BUCKETS)) + 1 - self._capacities
        ahead = np.maximum(least, needed)
        slots = added / _LEAST_LOAD + min(float(ahead.sum()), added * float(ahead.max()))
        copied = 1.25 * int(self._capacities.max()) + added // (BUCKETS // 4) + _FIRST_CAPACITY
        return int(SLOT_BYTES * (slots + _AT_ONCE * copied)) + 1

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
            self._make_room(keys[done:])

    def load(self, mixed: Keys, addresses: Positions) -> Positions:
        """As `set`, for very many keys: each segment is filled once, from front to back.

        mixed: (U,) uint64 mixed keys, rising, each once. Returns (U,) int64, the address each key
        had, -1 for a new one.
        """
        before, added = np.empty(len(mixed), np.int64), np.zeros(BUCKETS, np.int64)
        _look_up(self._bases, self._capacities, mixed, before, added)
        edges = np.searchsorted(mixed, np.arange(BUCKETS, dtype=np.uint64) << _52)
        edges = np.append(edges, len(mixed))
        full = self._counts + added > (self._capacities * _FULL).astype(np.int64)
        growing = np.flatnonzero(full)
        for start in range(0, len(growing), _AT_ONCE):
            self._grow(growing[start : start + _AT_ONCE], added, mixed, addresses, edges)
        rest = np.repeat(~full, np.diff(edges))
        self.set(unmix_keys(mixed[rest]), addresses[rest])
        return before

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
            found = entries(number, *self._halves(number), keys, addresses)
            assert found == count, "a segment holds another number of entries than it counts"
        return keys, addresses

    def _halves(self, segment: int) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
        return _split(self._memory[segment])

    def _make_room(self, keys: Keys) -> None:
        """Grow every segment that these keys, each but once, would fill; a few at a time."""
        new = mix_keys(keys[self.find(keys) < 0]) >> _52
        added = np.bincount(new.view(np.int64), minlength=BUCKETS)
        growing = np.flatnonzero(self._counts + added > (self._capacities * _FULL).astype(np.int64))
        for start in range(0, len(growing), _AT_ONCE):
            self._grow(growing[start : start + _AT_ONCE], added)

    def _grow(
        self,
        segments: Positions,
        added: Positions = _ONE_EACH,
        mixed: Keys = _NO_KEYS,
        addresses: Positions = _NO_ADDRESSES,
        edges: Positions = _NO_EDGES,
    ) -> None:
        """Copy segments into larger ones that take ``added`` more: the new entries, if given.

        added, edges: by segment. A few at once, since both copies of each exist meanwhile.
        """
        slots = _grown(segments, self._counts[segments] + added[segments])
        if slots.max() > _MOST:
            raise StoreError(
                f"index: expected at most {_MOST} slots in each of {BUCKETS} segments, got "
                f"{slots.max()}; divide the table among more shards"
            )
        memory = [np.empty(size, np.uint8) for size in (slots * SLOT_BYTES).tolist()]
        places = np.array([m.__array_interface__["data"][0] for m in memory], np.uint64)
        tables = (self._bases, self._capacities, self._counts)
        _merge_all(*tables, segments, places, slots, mixed, addresses, edges)
        for segment, new in zip(segments.tolist(), memory, strict=True):
            self._held += len(new) - len(self._memory[segment])
            self._memory[segment] = new


def _split(memory: NDArray[np.uint8]) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
    """Views of a segment's words and of the lower address bits behind them."""
    slots = len(memory) // SLOT_BYTES
    return memory[: 8 * slots].view(np.uint64), memory[8 * slots :].view(np.uint32)


def _load(segment: Any) -> Any:
    """Load of a segment just after it grew, 0.78 to 0.86."""
    return _LEAST_LOAD + _LOADS / BUCKETS * segment


def _grown(segments: Positions, counts: Positions) -> Positions:
    """Capacities of segments that grow because they are to hold so many entries."""
    slots: Positions = np.ceil(counts / _load(segments)).astype(np.int64)
    return np.maximum(slots, _FIRST_CAPACITY)
