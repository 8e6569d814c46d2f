"""Chance: which keys win a draw, decided by hashing, so that it is the same whoever draws.

Threads: no state; the loop releases the GIL.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray

from storage.keys import mix
from storage.rows import Counts, Keys

_INCREMENT, _SALT = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xE7037ED1A0B428DB)
_11, _UNIT = np.uint64(11), 2.0**-53


def wins(
    stream: np.uint64, keys: Keys, counts: Counts, step: int, probability: float
) -> NDArray[np.bool_]:
    """(U,) bool: which keys win at least one of their draws in this step.

    stream: of the seed and the table. keys: (U,) uint64; counts: (U,) int32, draws of each.
    """
    found = np.zeros(len(keys), np.bool_)
    _draw(stream, keys, counts, np.uint64(step), probability, found)
    return found


@nb.njit(nogil=True, cache=True)
def _draw(stream: Any, keys: Any, counts: Any, step: Any, probability: Any, out: Any) -> None:
    for u in range(keys.shape[0]):
        state = mix(mix(stream ^ _SALT ^ mix(keys[u])) ^ step)
        for _ in range(counts[u]):
            # The top 53 bits, as a float64 below 1.
            if np.float64(mix(state) >> _11) * _UNIT < probability:
                out[u] = True
                break
            state += _INCREMENT
