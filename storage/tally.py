"""Tally: exactly how often keys came, for a bounded number of keys that have not come often enough.

Open addressing with linear probing; a slot is a key and a byte, 0 where the slot is free. A key
whose count reaches the most is said to have and leaves: whoever asked knows it from then on. So
only the keys in waiting take room.

When the keys of a batch do not fit beside those that are here, all counts are halved, rounding
down, until they do; a key whose count is 0 is gone. A batch that has more new keys in waiting than
fit at all leaves none of them behind. Neither depends on the order of its keys.

Threads: one owner.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray

from storage.errors import ConfigError
from storage.keys import mix
from storage.rows import Counts, Keys

SLOT_BYTES = 9
MOST_COUNT = 255
LEAST_BYTES = 1024 * SLOT_BYTES
_LOAD = 0.75
_32, _LOW = np.uint64(32), np.uint64(0xFFFFFFFF)


@nb.njit(nogil=True, cache=True)
def _home(key: Any, size: Any) -> Any:
    return np.int64(((mix(key) & _LOW) * np.uint64(size)) >> _32)


@nb.njit(nogil=True, cache=True)
def _slot(keys: Any, counts: Any, key: Any) -> Any:
    """The slot of a key, or the free one where it would be."""
    slot: Any = _home(key, keys.shape[0])
    while counts[slot] != 0 and keys[slot] != key:
        slot = slot + 1 if slot + 1 < keys.shape[0] else 0
    return slot


@nb.njit(nogil=True, cache=True)
def _find(keys: Any, counts: Any, asked: Any, out: Any) -> None:
    for u in range(asked.shape[0]):
        out[u] = counts[_slot(keys, counts, asked[u])]


@nb.njit(nogil=True, cache=True)
def _set(keys: Any, counts: Any, given: Any, totals: Any) -> Any:
    """Set counts; 0 removes the key. Returns how many keys more there are."""
    more = 0
    for u in range(given.shape[0]):
        slot = _slot(keys, counts, given[u])
        if totals[u] == 0:
            if counts[slot] != 0:
                _close_gap(keys, counts, slot)
                more -= 1
            continue
        more += counts[slot] == 0
        keys[slot], counts[slot] = given[u], totals[u]
    return more


@nb.njit(nogil=True, cache=True)
def _close_gap(keys: Any, counts: Any, gap: Any) -> None:
    """Free slot ``gap``, moving back what was displaced over it."""
    size = keys.shape[0]
    slot = gap
    while True:
        slot = slot + 1 if slot + 1 < size else 0
        if counts[slot] == 0:
            break
        displaced = (slot - _home(keys[slot], size)) % size
        if displaced >= (slot - gap) % size:
            keys[gap], counts[gap] = keys[slot], counts[slot]
            gap = slot
    counts[gap] = 0


class Tally:
    """See the module's docstring.

    size: bytes to use at most, 9 a slot, of which three quarters are filled; 9,216 or more. most:
    the count with which keys leave, 255 or less. ``capacity``: keys that it holds. Raises:
    ConfigError.
    """

    def __init__(self, size: int, most: int) -> None:
        if size < LEAST_BYTES:
            raise ConfigError(f"exact counts: expected {LEAST_BYTES} bytes or more, got {size}")
        assert 0 < most <= MOST_COUNT
        slots = size // SLOT_BYTES
        self.most = most
        self.capacity = int(_LOAD * slots)
        self._keys: Keys = np.zeros(slots, np.uint64)
        self._counts: NDArray[np.uint8] = np.zeros(slots, np.uint8)
        self._held = 0

    def __len__(self) -> int:
        return self._held

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self._keys.nbytes + self._counts.nbytes

    def estimate(self, keys: Keys) -> NDArray[np.int64]:
        """(U,) int64: how often each key came, 0 for one that is not here."""
        found = np.empty(len(keys), np.int64)
        _find(self._keys, self._counts, keys, found)
        return found

    def add(self, keys: Keys, counts: Counts) -> NDArray[np.int64]:
        """Count a batch: (U,) int64 counts with it, at most ``most``. keys: (U,) uint64, unique."""
        while True:
            before = self.estimate(keys)
            totals: NDArray[np.int64] = np.minimum(before + counts, self.most)
            new = int(np.count_nonzero((before == 0) & (totals < self.most)))
            if self._held + new <= self.capacity or self._held == 0:
                break
            self.halve()
        kept = np.where(totals < self.most, totals, 0)
        if new > self.capacity:
            kept[:] = 0
        self._set(keys, kept)
        return totals

    def forget(self, keys: Keys) -> None:
        """These keys never came."""
        self._set(keys, np.zeros(len(keys), np.int64))

    def halve(self) -> None:
        """Halve all counts, rounding down; those at 0 are gone."""
        held = self.arrays()
        keys, counts = held["keys"], held["counts"] >> np.uint8(1)
        self._counts[:] = 0
        self._held = 0
        self._set(keys[counts > 0], counts[counts > 0])

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What `restore` takes: copies, (n,) uint64 keys and (n,) uint8 counts."""
        taken = self._counts > 0
        return {"keys": self._keys[taken], "counts": self._counts[taken]}

    def restore(self, keys: Keys, counts: NDArray[np.uint8]) -> None:
        """Take over what `arrays` gave, in place of what is here.

        Raises: ValueError when that cannot be meant.
        """
        kinds = keys.dtype == np.uint64 and counts.dtype == np.uint8
        if not kinds or keys.ndim != 1 or keys.shape != counts.shape:
            raise ValueError(f"keys {keys.dtype} {keys.shape}, counts {counts.dtype}")
        if len(keys) > self.capacity or len(np.unique(keys)) < len(keys):
            raise ValueError(f"{len(keys)} keys, expected {self.capacity} at most, each once")
        if len(keys) and not 0 < counts.min() <= counts.max() < self.most:
            raise ValueError(f"counts from {counts.min()} to {counts.max()}")
        self._counts[:] = 0
        self._held = 0
        self._set(keys, counts)

    def _set(self, keys: Keys, counts: NDArray[Any]) -> None:
        self._held += int(_set(self._keys, self._counts, keys, counts))
