"""Ring: the entries of one segment of the address index, in order round a ring of slots.

A slot's *home* is ``remainder * capacity >> 52``. Entries stand at or after their home, round the
end, in rising order of their remainder, so a search ends at the first entry that is nearer to its
home (or larger). A slot is a word (the remainder of a mixed key in the upper 52 bits, the upper 12
bits of the address below) and, in an array behind the words, the lower 32 bits of the address.

Kernels only, for use in others; ``words`` and ``lows`` are the two arrays of a segment, which has
an empty slot always.

Threads: no state; the kernels release the GIL.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from storage.keys import unmix

SLOT_BYTES = 12
EMPTY = np.uint64(0xFFFFFFFFFFFFFFFF)
REMAINDER = np.uint64((1 << 52) - 1)
"""Bits of a mixed key that a slot keeps; its segment stands for the others."""
_12, _20, _32, _52 = np.uint64(12), np.uint64(20), np.uint64(32), np.uint64(52)
_LOW12, _LOW32 = np.uint64(0xFFF), np.uint64(0xFFFFFFFF)


@intrinsic
def pointer(typingctx: Any, address: Any) -> Any:
    """A numba pointer from an integer address, for `nb.carray`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.voidptr(types.uint64), codegen


@intrinsic
def _prefetch(typingctx: Any, address: Any) -> Any:
    """Bring the line at an integer address into cache, without waiting; any address will do."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        number, pointer = ir.IntType(32), ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
        prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        place = builder.inttoptr(args[0], pointer)
        builder.call(prefetch, [place, number(0), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(types.uint64), codegen


@nb.njit(nogil=True, cache=True)
def expect(base: Any, capacity: Any, remainder: Any) -> None:
    """Say that a search for ``remainder`` comes soon: a miss costs more than all else in it."""
    slot = np.uint64(home(remainder, capacity))
    _prefetch(np.uint64(base) + np.uint64(8) * slot)
    _prefetch(np.uint64(base) + np.uint64(8) * np.uint64(capacity) + np.uint64(4) * slot)


@nb.njit(nogil=True, cache=True)
def home(remainder: Any, capacity: Any) -> Any:
    """The slot where a search for ``remainder`` begins."""
    return np.int64(((remainder >> _20) * np.uint64(capacity)) >> _32)


@nb.njit(nogil=True, cache=True)
def following(slot: Any, capacity: Any) -> Any:
    """The next slot of the ring."""
    return slot + 1 if slot + 1 < capacity else 0


@nb.njit(nogil=True, cache=True)
def words_at(base: Any, capacity: Any) -> Any:
    """A segment's words: remainder in the upper 52 bits, upper 12 bits of the address below."""
    return nb.carray(pointer(base), capacity, np.uint64)


@nb.njit(nogil=True, cache=True)
def lows_at(base: Any, capacity: Any) -> Any:
    """The lower 32 bits of a segment's addresses."""
    return nb.carray(pointer(base + np.uint64(8 * capacity)), capacity, np.uint32)


@nb.njit(nogil=True, cache=True)
def search(words: Any, remainder: Any) -> Any:
    """The slot that holds ``remainder``, or else the one where it belongs.

    Ends, since a segment always has an empty slot. The order is that of the ring: what came round
    from the end is larger than all others. Looking at homes at every step would cost a third.
    """
    capacity = words.shape[0]
    slot = home(remainder, capacity)
    while slot < capacity and words[slot] != EMPTY:
        other = words[slot] >> _12
        if other == remainder or (other > remainder and home(other, capacity) <= slot):
            return slot
        slot += 1
    if slot < capacity:
        return slot
    slot = 0
    while words[slot] != EMPTY:
        other = words[slot] >> _12
        if other >= remainder or home(other, capacity) <= slot:
            return slot
        slot += 1
    return slot


@nb.njit(nogil=True, cache=True)
def holds(words: Any, slot: Any, remainder: Any) -> Any:
    """Whether what `search` found is ``remainder`` itself."""
    return words[slot] != EMPTY and words[slot] >> _12 == remainder


@nb.njit(nogil=True, cache=True)
def address_at(words: Any, lows: Any, slot: Any) -> Any:
    """The address of the entry at ``slot``."""
    return np.int64(((words[slot] & _LOW12) << _32) | np.uint64(lows[slot]))


@nb.njit(nogil=True, cache=True)
def entry(remainder: Any, address: Any) -> Any:
    """An entry as it stands in a segment."""
    bits = np.uint64(address)
    return (remainder << _12) | (bits >> _32), np.uint32(bits & _LOW32)


@nb.njit(nogil=True, cache=True)
def insert(words: Any, lows: Any, slot: Any, word: Any, low_word: Any) -> None:
    """Put an entry at ``slot``, where it belongs; what stands there and behind moves on by one."""
    while words[slot] != EMPTY:
        words[slot], word = word, words[slot]
        lows[slot], low_word = low_word, lows[slot]
        slot = following(slot, words.shape[0])
    words[slot], lows[slot] = word, low_word


@nb.njit(nogil=True, cache=True)
def first(words: Any) -> Any:
    """Where the smallest remainder may stand: past what has come round from the end."""
    slot = np.int64(0)
    while words[slot] != EMPTY and home(words[slot] >> _12, words.shape[0]) > slot:
        slot += 1
    return slot


@nb.njit(nogil=True, cache=True)
def merge(old_words: Any, old_lows: Any, mixed: Any, addresses: Any, words: Any, lows: Any) -> Any:
    """Fill an empty segment with the entries of an old one and new, sorted ones: how many.

    In order, so only the last need a search. Of a key that both have, the new address counts.
    """
    left, new, slot, count = old_words.shape[0], 0, np.int64(0), 0
    old = first(old_words) if left else 0
    while True:
        while left and old_words[old] == EMPTY:
            old, left = following(old, old_words.shape[0]), left - 1
        if not left and new == mixed.shape[0]:
            return count
        take_old = left > 0
        if new < mixed.shape[0]:
            remainder = mixed[new] & REMAINDER
            take_old = left > 0 and old_words[old] >> _12 < remainder
        if take_old:
            word, low_word = old_words[old], old_lows[old]
        else:
            word, low_word = entry(remainder, addresses[new])
            new += 1
        if left and old_words[old] >> _12 == word >> _12:
            old, left = following(old, old_words.shape[0]), left - 1
        slot = max(slot, home(word >> _12, words.shape[0]))
        if slot < words.shape[0]:
            words[slot], lows[slot] = word, low_word
            slot += 1
        else:
            insert(words, lows, search(words, word >> _12), word, low_word)
        count += 1


@nb.njit(nogil=True, cache=True)
def entries(segment: Any, words: Any, lows: Any, keys: Any, addresses: Any) -> Any:
    """Write the keys and addresses of one segment, in rising order of mixed key: their number."""
    start, count = first(words), 0
    for i in range(words.shape[0]):
        slot = (start + i) % words.shape[0]
        if words[slot] != EMPTY:
            keys[count] = unmix((np.uint64(segment) << _52) | (words[slot] >> _12))
            addresses[count] = address_at(words, lows, slot)
            count += 1
    return count
