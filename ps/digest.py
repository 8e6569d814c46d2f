"""A 64-bit digest of rows that does not depend on their order."""

from __future__ import annotations

from typing import Any

import google_crc32c
import numba as nb
import numpy as np

from storage.keys import mix
from storage.rows import Rows

_64_BITS = 2**64


def rows_digest(table: str, rows: Rows) -> int:
    """Sum mod 2**64 over rows of a 64-bit hash of table name, key, embedding and state.

    Two sets of rows with the same digest are equal to all practical purposes, in any order. The
    step of the last apply is not part of it.
    """
    start = np.uint64(google_crc32c.value(table.encode()))
    return int(_sum(start, rows.keys, rows.values.view(np.uint32))) % _64_BITS


@nb.njit(nogil=True, cache=True)
def _sum(start: Any, keys: Any, words: Any) -> Any:
    total = np.uint64(0)
    for i in range(keys.shape[0]):
        state = mix(keys[i] ^ mix(start))
        for w in range(words.shape[1]):
            state = mix(state ^ np.uint64(words[i, w]))
        total += state
    return total
