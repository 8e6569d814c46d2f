"""Keys: how a 64-bit id becomes an array, is mixed, placed in a bucket, and made unique in a batch.

A key is any of the 2**64 bit patterns; 0 and 2**64 - 1 are keys like all others. Placement never
uses the key itself but ``mix`` of it, so that ids handed out in order spread evenly.

Threads: the functions hold no state and release the GIL in their loops. A `Deduper` owns scratch
memory and belongs to one thread at a time.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
import torch
from numpy.typing import NDArray

from storage.errors import ConfigError, KeyRangeError

Keys = NDArray[np.uint64]

BUCKETS = 4096
"""Parts of the key space: the smallest piece that can move between shards."""

_BUCKET_SHIFT = np.uint64(52)

# splitmix64 (Steele, Lea, Flood 2014) with Stafford's "Mix13" constants. The increment is added
# before mixing, so the fixed point of the bare finalizer (0 -> 0) is not a key that users have.
_INCREMENT = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLY_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLY_2 = np.uint64(0x94D049BB133111EB)
# Inverses of the two odd multipliers modulo 2**64.
_DIVIDE_1 = np.uint64(pow(0xBF58476D1CE4E5B9, -1, 2**64))
_DIVIDE_2 = np.uint64(pow(0x94D049BB133111EB, -1, 2**64))
_27, _30, _31 = np.uint64(27), np.uint64(30), np.uint64(31)
_54, _60, _62 = np.uint64(54), np.uint64(60), np.uint64(62)

_SMALLEST_TABLE = 1024


@nb.njit(nogil=True, cache=True)
def mix(key: Any) -> Any:
    """The mixed key: a bijection of 64-bit numbers in which every input bit moves every output bit.

    ``key``: uint64 scalar (from Python an np.uint64: numba refuses an int from 2**63 up). For use
    in other kernels. ``unmix`` takes it back, so an index may keep mixed keys only. Source: the
    output function of splitmix64 (Steele, Lea and Flood, OOPSLA 2014), increment included, so
    ``mix(0)`` is not 0.
    """
    x = np.uint64(key) + _INCREMENT
    x = (x ^ (x >> _30)) * _MULTIPLY_1
    x = (x ^ (x >> _27)) * _MULTIPLY_2
    return x ^ (x >> _31)


@nb.njit(nogil=True, cache=True)
def unmix(mixed: Any) -> Any:
    """The key whose ``mix`` is ``mixed`` (uint64 scalar).

    An xor-shift by s bits is undone by xor-ing the shifts by s, 2s, 3s ... below 64.
    """
    x = np.uint64(mixed)
    x = (x ^ (x >> _31) ^ (x >> _62)) * _DIVIDE_2
    x = (x ^ (x >> _27) ^ (x >> _54)) * _DIVIDE_1
    return (x ^ (x >> _30) ^ (x >> _60)) - _INCREMENT


@nb.njit(nogil=True, cache=True)
def bucket_of(mixed: Any) -> Any:
    """The bucket, 0 to ``BUCKETS - 1``, of a *mixed* key (uint64 scalar): its top 12 bits."""
    return np.uint64(mixed) >> _BUCKET_SHIFT


@nb.njit(nogil=True, cache=True)
def mix_keys(keys: Keys) -> Keys:
    """``mix`` of every key, a copy. keys: (U,) uint64 -> (U,) uint64."""
    mixed = np.empty_like(keys)
    for i in range(keys.shape[0]):
        mixed[i] = mix(keys[i])
    return mixed


@nb.njit(nogil=True, cache=True)
def unmix_keys(mixed: Keys) -> Keys:
    """The keys that ``mix_keys`` made ``mixed`` of, a copy. mixed: (U,) uint64 -> (U,) uint64."""
    keys = np.empty_like(mixed)
    for i in range(mixed.shape[0]):
        keys[i] = unmix(mixed[i])
    return keys


def as_keys(ids: torch.Tensor | NDArray[Any]) -> Keys:
    """Ids of any integer type as keys: (N,) uint64, in order, flattened.

    ids: int64 or uint64 of any shape: a view when contiguous on the host, so it lives and changes
    with ``ids``; an int64 keeps its bit pattern, -1 is key 2**64 - 1. Narrower integers are widened
    as int64 would be, a copy; ids on another device are copied to the host.

    Raises ConfigError when the ids are not integers.
    """
    array = ids.detach().cpu().numpy() if isinstance(ids, torch.Tensor) else ids
    if array.dtype.kind not in "iu":
        raise ConfigError(
            f"ids have dtype {array.dtype}, expected an integer type; convert them with .long()"
        )
    flat = np.ascontiguousarray(array).reshape(-1)
    if not flat.dtype.isnative or flat.dtype.itemsize < 8:
        flat = flat.astype(np.int64 if flat.dtype.kind == "i" else np.uint64)
    return flat.view(np.uint64)


def check_range(keys: Keys, rows: int | None, table: str) -> None:
    """Checks that every key is below ``rows``; a table without ``rows`` takes any key.

    keys: (N,) uint64. Raises KeyRangeError naming the table, the first bad id as the user gave it
    (patterns from 2**63 up are shown as the negative int64), its position and the size.
    """
    if rows is None or rows >= 2**64:
        return
    position = int(_first_from(keys, np.uint64(rows)))
    if position < keys.shape[0]:
        given = int(keys[position : position + 1].view(np.int64)[0])
        raise KeyRangeError(
            f"table {table!r}: id {given} at position {position} of the batch, expected 0 to "
            f"{rows - 1} (rows={rows}); correct the ids or declare the table with more rows, "
            "or with rows=None for any id"
        )


@nb.njit(nogil=True, cache=True)
def _first_from(keys: Keys, bound: Any) -> Any:
    """The first position whose key is ``bound`` or more, or the number of keys."""
    # A pass that counts without branching is vectorised; nearly every batch ends here.
    bad = np.int64(0)
    for i in range(keys.shape[0]):
        bad += np.int64(keys[i] >= bound)
    if bad == 0:
        return keys.shape[0]
    position = 0
    while keys[position] < bound:
        position += 1
    return position


class Deduper:
    """Makes batches of keys unique with scratch memory that is kept from batch to batch.

    Owned by one thread at a time; what it returns is the caller's. The scratch table holds 4 bytes
    an entry and grows to at least twice the unique keys of the largest batch.
    """

    def __init__(self) -> None:
        self._table = np.zeros(_SMALLEST_TABLE, np.uint32)
        self._unique = np.empty(0, np.uint64)
        self._counts = np.empty(0, np.int32)

    def dedupe(self, keys: Keys) -> tuple[Keys, NDArray[np.int32], NDArray[np.int32]]:
        """The unique keys in order of first occurrence, where each access went, and how often.

        keys: (N,) uint64, N below 2**31. Returns copies: unique (U,) uint64; inverse (N,) int32
        with ``unique[inverse] == keys``; counts (U,) int32, summing to N.

        Raises ConfigError when the batch has 2**31 keys or more.
        """
        if keys.shape[0] >= 2**31:
            raise ConfigError(
                f"a batch of {keys.shape[0]} keys, expected fewer than 2**31; split the batch"
            )
        if self._unique.shape[0] < keys.shape[0]:
            self._unique = np.empty(keys.shape[0], np.uint64)
            self._counts = np.empty(keys.shape[0], np.int32)
        inverse = np.empty(keys.shape[0], np.int32)
        self._table, found = _number(keys, self._table, self._unique, self._counts, inverse)
        return self._unique[:found].copy(), inverse, self._counts[:found].copy()

    @property
    def nbytes(self) -> int:
        """Bytes of scratch memory held now."""
        return self._table.nbytes + self._unique.nbytes + self._counts.nbytes


def dedupe(keys: Keys) -> tuple[Keys, NDArray[np.int32], NDArray[np.int32]]:
    """``Deduper.dedupe`` with scratch of its own: for one batch, not for a stream of them."""
    return Deduper().dedupe(keys)


@nb.njit(nogil=True, cache=True)
def _number(keys: Keys, table: Any, unique: Keys, counts: Any, inverse: Any) -> Any:
    """Numbers the keys by first occurrence; returns the table (larger if it had to grow), and U.

    An entry of the open-addressing table is 32 bits, 0 for empty: the unique number plus one in its
    low bits, as many as the batch needs, and a tag of the mixed key above them. A differing tag
    saves the visit to ``unique``; an equal one is settled there, so the result is exact.
    """
    table[:] = 0
    mask = np.uint64(table.shape[0] - 1)
    number_bits = np.uint64(1)
    while (1 << np.int64(number_bits)) <= keys.shape[0]:
        number_bits += np.uint64(1)
    number_mask = np.uint32((np.uint64(1) << number_bits) - np.uint64(1))
    found = 0
    for i in range(keys.shape[0]):
        key = keys[i]
        mixed = mix(key)
        # The low bits choose the slot and the high ones the tag. Not the other way round: the keys
        # of one shard agree in their top bits, its buckets.
        tag = np.uint32((mixed >> np.uint64(32)) << number_bits)
        slot = mixed & mask
        while True:
            entry = table[slot]
            if entry == 0:
                unique[found] = key
                counts[found] = 1
                inverse[i] = found
                found += 1
                table[slot] = tag | np.uint32(found)
                if 2 * found > table.shape[0]:
                    table = _grown(table, unique, found, number_bits)
                    mask = np.uint64(table.shape[0] - 1)
                break
            if (entry ^ tag) & ~number_mask == 0:
                number = np.int64(entry & number_mask) - 1
                if unique[number] == key:
                    counts[number] += 1
                    inverse[i] = number
                    break
            slot = (slot + np.uint64(1)) & mask
    return table, found


@nb.njit(nogil=True, cache=True)
def _grown(table: Any, unique: Keys, found: int, number_bits: Any) -> Any:
    """A table of twice the size holding the ``found`` unique keys."""
    larger = np.zeros(2 * table.shape[0], np.uint32)
    mask = np.uint64(larger.shape[0] - 1)
    for number in range(found):
        mixed = mix(unique[number])
        slot = mixed & mask
        while larger[slot] != 0:
            slot = (slot + np.uint64(1)) & mask
        larger[slot] = np.uint32((mixed >> np.uint64(32)) << number_bits) | np.uint32(number + 1)
    return larger
