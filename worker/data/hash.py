"""Hashes: how a value of a feature becomes a 64-bit key, and a counter becomes a random number.

The rule for every reader of columns, feature being the column's number among the features:

=====================================  ======================================================
value                                  key
=====================================  ======================================================
8 lower-case hexadecimal digits v      ``mix(feature << 32 | v)``: exact, no two values of
                                       any features share a key
missing (empty, or the schema's mark)  ``mix(1 << 63 | feature << 32)``: a value of its own
an integer v of a binary format        ``mix(v ^ mix(1 << 62 | feature))``: exact in a feature
any other bytes                        ``mix(FNV-1a(bytes) ^ mix(1 << 63 | 1 << 62 | feature))``
=====================================  ======================================================

``mix`` is the bijection of ``storage.keys``. FNV-1a (64 bits): Fowler, Noll, Vo, RFC 9923. A
million different texts share a key with a chance of 3e-8. The same rule in every format makes a
Criteo log give the same keys as TSV and as Parquet strings.

Threads: pure functions of their arguments, free of the GIL when called from other kernels.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray

from storage.keys import mix

_FNV_BASIS = np.uint64(0xCBF29CE484222325)
_FNV_PRIME = np.uint64(0x100000001B3)
_MISSING = np.uint64(1 << 63)
_INTEGER = np.uint64(1 << 62)
_TEXT = np.uint64(3 << 62)
_4, _11, _32 = np.uint64(4), np.uint64(11), np.uint64(32)
_HEX_DIGITS = 8


@nb.njit(nogil=True, cache=True)
def missing_key(feature: Any) -> Any:
    """The key (uint64) of no value in ``feature`` (integer scalar)."""
    return mix(_MISSING | (np.uint64(feature) << _32))


@nb.njit(nogil=True, cache=True)
def integer_salt(feature: Any) -> Any:
    """What an integer value of ``feature`` is xor-ed with before it is mixed (uint64)."""
    return mix(_INTEGER | np.uint64(feature))


@nb.njit(nogil=True, cache=True)
def value_key(text: NDArray[np.uint8], start: int, stop: int, feature: Any) -> Any:
    """The key (uint64) of the bytes ``text[start:stop]`` in ``feature``, by the module's table."""
    if stop == start:
        return missing_key(feature)
    if stop - start == _HEX_DIGITS:
        # Without branches: digits are random, and a wrong guess costs more than all eight of them.
        value, good = np.uint64(0), np.int64(1)
        for i in range(start, start + _HEX_DIGITS):
            byte = np.int64(text[i])
            good &= np.int64((byte >= 48) & (byte <= 57) | (byte >= 97) & (byte <= 102))
            value = (value << _4) | np.uint64((byte & 15) + 9 * (byte >> 6))
        if good:
            return mix((np.uint64(feature) << _32) | value)
    hashed = _FNV_BASIS
    for i in range(start, stop):
        hashed = (hashed ^ np.uint64(text[i])) * _FNV_PRIME
    return mix(hashed ^ mix(_TEXT | np.uint64(feature)))


@nb.njit(nogil=True, cache=True)
def text_keys(
    text: NDArray[np.uint8], offsets: NDArray[np.int64], feature: int
) -> NDArray[np.uint64]:
    """The keys of many values of one feature, (N,) uint64.

    text: (T,) uint8, the values end to end. offsets: (N+1,) int64 into it.
    """
    keys = np.empty(offsets.shape[0] - 1, dtype=np.uint64)
    for i in range(keys.shape[0]):
        keys[i] = value_key(text, offsets[i], offsets[i + 1], feature)
    return keys


@nb.njit(nogil=True, cache=True)
def integer_keys(values: NDArray[np.int64], feature: int) -> NDArray[np.uint64]:
    """The keys of integer values of one feature. values: (N,) int64 -> (N,) uint64."""
    salt = integer_salt(feature)
    keys = np.empty(values.shape[0], dtype=np.uint64)
    for i in range(values.shape[0]):
        keys[i] = mix(np.uint64(values[i]) ^ salt)
    return keys


@nb.njit(nogil=True, cache=True)
def unit(bits: Any) -> Any:
    """A float64 in [0, 1) from the top 53 of 64 random bits (uint64 scalar)."""
    return np.float64(bits >> _11) * 2.0**-53
