"""Tree: blocks straight from LMDB's file, by pread, without the GIL and without its memory map.

A page fault in the map costs twice the CPU of a pread, and each value taken through the library two
handovers of the GIL; so threads that read through it reach half of what an SSD can do. This module
walks LMDB's B+tree itself, as lmdb.h and mdb.c (OpenLDAP, 0.9, data version 1) lay it out, while
the caller holds a transaction, so that no page of its snapshot is used anew.

Nothing rests on it: it is careful with whatever bytes it meets, a block that it brings is believed
only with its checksum and number right, and what it does not find the caller reads through the
library. Another version of the format, or another byte order, is not walked at all.

Threads: any; the kernel releases the GIL.
"""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Iterator
from typing import Any

import numba as nb
import numpy as np
from numba import types
from numba.extending import intrinsic

from storage.ring import pointer

PAGE = 4096
CHUNK_BITS = 12
"""Bits of a block number that tell the blocks of a chunk of pages apart (`storage.places`)."""
DEPTH = 8
"""Levels that are walked at most: with 70 nodes in a page, more than there are numbers for."""
_HEADER, _MAGIC, _FORMAT = 16, 0xBEEFC0DE, 1
_BRANCH, _LEAF, _OVERFLOW = 0x01, 0x02, 0x04
_BIG, _TREE = 0x01, 0x02

pread = types.ExternalFunction(
    "pread", types.intp(types.intc, types.uintp, types.uintp, types.int64)
)
"""For kernels: file, address of memory, bytes, place in the file -> bytes read, -1 on failure."""


@intrinsic
def _take(typingctx: Any, address: Any, count: Any) -> Any:
    """Add ``count`` to the int64 at ``address`` and give what it was, atomically."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], context.get_value_type(types.int64).as_pointer())
        return builder.atomic_rmw("add", pointer, args[1], "monotonic")

    return types.int64(types.uint64, types.int64), codegen


@nb.njit(nogil=True, cache=True)
def _wide(page: Any, place: Any) -> Any:
    """The 64-bit number at byte ``place``, which is even, of a page seen as 16-bit numbers."""
    number = np.uint64(0)
    for i in range(4):
        number |= np.uint64(page[(place >> 1) + i]) << np.uint64(16 * i)
    return number


@nb.njit(nogil=True, cache=True)
def _node(page: Any, i: Any, size: Any) -> Any:
    """Where node ``i`` begins; 0 when its first ``size`` bytes do not lie in the page."""
    place = np.int64(page[(_HEADER >> 1) + i])
    return place if place & 1 == 0 and _HEADER <= place <= PAGE - size else 0


@nb.njit(nogil=True, cache=True)
def _find(page: Any, key: Any) -> Any:
    """Place of the node to follow: the last whose key is at most ``key``; 0 when damaged.

    In a branch the first node has no key and stands for all that is smaller; in a leaf the key must
    be there.
    """
    nodes = np.int64(page[6] - _HEADER) >> 1
    if nodes <= 0 or nodes > (PAGE - _HEADER) // 10:
        return 0
    is_branch = page[5] & _BRANCH != 0
    low, high = np.int64(0), nodes - 1
    while low < high:
        middle = (low + high + 1) // 2
        place = _node(page, middle, 16)
        if place == 0:
            return 0
        if _wide(page, place + 8) <= key:
            low = middle
        else:
            high = middle - 1
    if is_branch:
        return _node(page, low, 8)
    place = _node(page, low, 24)
    return place if place and _wide(page, place + 8) == key else 0


@nb.njit(nogil=True, cache=True)
def _descend(fd: Any, root: Any, key: Any, path: Any, held: Any) -> Any:
    """Number of the overflow page where the value of ``key`` begins, and its bytes; 0 for none.

    path: (DEPTH, PAGE/2) uint16, the pages of the last walk; held: their numbers, -1 for none.
    """
    number = root
    for level in range(DEPTH):
        page = path[level]
        if held[level] != number:
            held[level] = -1
            if pread(fd, page.ctypes.data, PAGE, number * PAGE) != PAGE:
                return 0, 0
            held[level] = number
        place = _find(page, key)
        if place == 0:
            return 0, 0
        low = np.int64(page[place >> 1]) | np.int64(page[(place >> 1) + 1]) << 16
        flags = np.int64(page[(place >> 1) + 2])
        if page[5] & _BRANCH:
            number = low | flags << 32
        elif page[5] & _LEAF and flags & _BIG:
            return np.int64(_wide(page, place + 16) & np.uint64((1 << 48) - 1)), low
        else:
            return 0, 0
    return 0, 0


@nb.njit(nogil=True, cache=True)
def _bring(fd: Any, page: Any, number: Any, out: Any, scratch: Any) -> Any:
    """Read the value that begins on a page; whether it is one, of that size and that number."""
    size = out.shape[0]
    if pread(fd, scratch.ctypes.data, size + _HEADER, page * PAGE) != size + _HEADER:
        return False
    out[:] = scratch[_HEADER:]
    pages = scratch.view(np.uint16)
    # Behind the header of the page come four words of a block, then its number.
    return pages[5] & _OVERFLOW != 0 and _wide(pages, _HEADER + 8) == np.uint64(number)


@nb.njit(nogil=True, cache=True)
def fetch(
    fd: Any, root: Any, numbers: Any, places: Any, out: Any, found: Any, taken: Any, at_once: Any,
    path: Any, scratch: Any,
) -> None:  # fmt: skip
    """Read blocks of one tree: several threads may share the work.

    numbers: (n,) int64 ascending. places: (n,) uint32, the page of each where that is known, else
    0; set where it was looked up. out: (n, size) uint8, for blocks of that size. found: (n,) bool,
    set where there is such a block. taken: (1,) int64, how many some thread has taken so far; each
    takes ``at_once``. path: (DEPTH, 2048) uint16 and scratch: (size + 16,) uint8, of this thread
    alone.
    """
    held = np.full(DEPTH, -1, np.int64)
    while True:
        start = _take(np.uint64(taken.ctypes.data), at_once)
        if start >= numbers.shape[0]:
            return
        for i in range(start, min(start + at_once, numbers.shape[0])):
            if places[i] != 0 and _bring(fd, np.int64(places[i]), numbers[i], out[i], scratch):
                found[i] = True
                continue
            page, length = _descend(fd, root, np.uint64(numbers[i]), path, held)
            if page != 0 and length == out.shape[1]:
                found[i] = _bring(fd, page, numbers[i], out[i], scratch)
                places[i] = page if page < 1 << 32 else 0


@nb.njit(nogil=True, cache=True)
def chunk_at(base: Any) -> Any:
    """The pages of a chunk of block numbers, at an integer address."""
    return nb.carray(pointer(base), 1 << CHUNK_BITS, np.uint32)


@nb.njit(nogil=True, cache=True)
def locate(fd: Any, root: Any, begin: Any, end: Any, bases: Any, path: Any) -> None:
    """Note on which pages the blocks from ``begin`` to below ``end`` lie, as far as a tree says.

    bases: (c,) uint64, addresses of chunks of pages, 0 for none. path: as in `fetch`.
    """
    at = np.zeros(DEPTH, np.int64)
    level = 0
    if pread(fd, path[0].ctypes.data, PAGE, root * PAGE) != PAGE:
        return
    while level >= 0:
        page = path[level]
        nodes = min(np.int64(page[6]) - _HEADER >> 1, (PAGE - _HEADER) // 10)
        if at[level] >= nodes:
            level -= 1
            continue
        i = at[level]
        at[level] += 1
        if page[5] & _BRANCH:
            after = _node(page, i + 1, 16) if i + 1 < nodes else 0
            place = _node(page, i, 8)
            if place == 0 or level + 1 == DEPTH:
                return
            if after and _wide(page, after + 8) <= np.uint64(begin):
                continue  # all of that child is lower
            if i and _wide(page, place + 8) >= np.uint64(end):
                return
            low = np.int64(page[place >> 1]) | np.int64(page[(place >> 1) + 1]) << 16
            number = low | np.int64(page[(place >> 1) + 2]) << 32
            level += 1
            at[level] = 0
            if pread(fd, path[level].ctypes.data, PAGE, number * PAGE) != PAGE:
                return
        elif page[5] & _LEAF:
            place = _node(page, i, 24)
            if place and page[(place >> 1) + 2] & _BIG:
                key, where = _wide(page, place + 8), _wide(page, place + 16)
                if key >= np.uint64(end):
                    return
                chunk = np.int64(key >> np.uint64(CHUNK_BITS))
                is_kept = chunk < bases.shape[0] and bases[chunk] != 0
                if key >= np.uint64(begin) and is_kept and where < np.uint64(1 << 32):
                    chunk_at(bases[chunk])[key & np.uint64((1 << CHUNK_BITS) - 1)] = where
        else:
            return


def roots(fd: int, transaction: int) -> dict[str, int]:
    """The root page of each database, by name, as of the snapshot with this number.

    Empty when the file is of another format, or the snapshot is not the newest or the one before.
    """
    if sys.byteorder != "little":
        return {}
    meta = os.pread(fd, PAGE, transaction % 2 * PAGE)
    magic, version = struct.unpack_from("<II", meta, _HEADER)
    page_size = struct.unpack_from("<I", meta, _HEADER + 24)[0]
    number = struct.unpack_from("<Q", meta, _HEADER + 128)[0]
    if (magic, version, page_size, number) != (_MAGIC, _FORMAT, PAGE, transaction):
        return {}
    main = struct.unpack_from("<q", meta, _HEADER + 24 + 48 + 40)[0]
    return {name.decode(errors="replace"): root for name, root in _trees(fd, main, 0)}


def _trees(fd: int, number: int, level: int) -> Iterator[tuple[bytes, int]]:
    """Names and roots of the trees in the main one, from page ``number`` down."""
    page = os.pread(fd, PAGE, number * PAGE) if 0 < number < 1 << 48 else b""
    if len(page) != PAGE or level == DEPTH:
        return
    flags, lower = struct.unpack_from("<HH", page, 10)
    for i in range(max(0, lower - _HEADER) // 2):
        place = struct.unpack_from("<H", page, _HEADER + 2 * i)[0] if i < PAGE // 4 else PAGE
        if not _HEADER <= place <= PAGE - 8:
            return
        low, high, kind, length = struct.unpack_from("<HHHH", page, place)
        if flags & _BRANCH:
            yield from _trees(fd, low | high << 16 | kind << 32, level + 1)
        elif flags & _LEAF and kind & _TREE and place + 8 + length + 48 <= PAGE:
            name = page[place + 8 : place + 8 + length]
            yield name, struct.unpack_from("<q", page, place + 8 + length + 40)[0]
