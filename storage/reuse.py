"""Reuse: the hit rate of an LRU cache of every size, from one pass over the accesses.

The *distance* of an access is the number of other keys used since its key was used last. A cache of
C keys that evicts the least recently used one hits exactly when the distance is below C (Mattson et
al. 1970), so a histogram of distances is the hit curve of all sizes. `storage.distance` finds them.

Exact, or of a sample. Sampled are the keys whose mixed key is below a threshold, each with all its
accesses: a share ``rate`` of the keys, among which distances are ``rate`` times the real ones
(SHARDS: Waldspurger, Park, Garthwaite and Ahmad, FAST 2015). With ``most_keys`` the threshold falls
so that no more keys are tracked: the memory is constant, however long the trace. An access counts
1 / rate, at the rate of its time. What all of these are short of the accesses that there were, or
above, goes to the smallest distance (the paper's SHARDS-adj).

Threads: one owner; the kernels release the GIL.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.distance import BUCKETS, COLD, EDGES, EVERY, LIVE, copy, look, sample, track, use
from storage.errors import ConfigError
from storage.keys import Keys

_SLOTS = 1024
_SHARE = 48
_LEAST_BITS, _MOST_BITS = 10, 13


class MissRatioCurve:
    """Hit rates of LRU at all sizes, for the accesses added so far.

    rate: share of the keys to look at; 1 is exact. most_keys: track so many at most, and lower the
    rate as keys become more. accesses: how many were added. Raises: ConfigError.

    >>> curve = MissRatioCurve()
    >>> curve.add(np.array([7, 8, 7, 7, 9, 8], np.uint64))
    >>> curve.hit_rate([1, 2, 3]).round(3).tolist(), curve.distinct_estimate
    ([0.167, 0.333, 0.5], 3.0)
    """

    def __init__(self, rate: float = 1.0, *, most_keys: int | None = None) -> None:
        if not 2.0**-32 <= rate <= 1.0:
            raise ConfigError(f"rate: expected a share from 2**-32 to 1, got {rate}")
        if most_keys is not None and most_keys < 1:
            raise ConfigError(f"most_keys: expected 1 or more, got {most_keys}")
        self.accesses = 0
        self._bounded = most_keys is not None
        threshold = min(int(rate * 2.0**64), int(EVERY))
        entries = 0 if most_keys is None else most_keys + 1
        # Twice the entries, as a power of two, and no fewer than the smallest table.
        slots = max(_SLOTS, 1 << (2 * entries - 1).bit_length() if entries else 0)
        self._tracked = track(slots, entries, threshold)
        self._counts = np.zeros(BUCKETS if self._bounded else slots // 2)

    @property
    def rate(self) -> float:
        """The share of the keys that is looked at now."""
        return min(1.0, int(self._tracked.threshold[0]) * 2.0**-64)

    @property
    def distinct_estimate(self) -> float:
        """About how many different keys there were; exact at rate 1."""
        return int(self._tracked.state[LIVE]) / self.rate

    @property
    def nbytes(self) -> int:
        """Bytes of memory held; with ``most_keys`` it is the same from beginning to end."""
        return sum(array.nbytes for array in self._tracked) + self._counts.nbytes

    def add(self, keys: Keys) -> None:
        """Accesses one after the other. keys: (n,) uint64, duplicates welcome; not kept."""
        self._use(keys, counting=True)
        self.accesses += len(keys)

    def add_batch(self, keys: Keys) -> None:
        """The working set of a batch, looked up as a whole before any of its keys counts as used.

        That is how tiers work. keys: (U,) uint64, unique; not kept.
        """
        sampled = sample(keys, self._tracked.threshold[0])
        look(self._tracked, sampled, self._counts)
        self._use(sampled, counting=False)
        self.accesses += len(keys)

    def hit_rate(self, sizes: Sequence[float] | NDArray[Any]) -> NDArray[np.float64]:
        """The share of all accesses that an LRU cache would answer. sizes: (n,), of keys.

        (n,) float64; 0 before the first access. In a sample, a size between two distances takes a
        part of the accesses at the larger one.
        """
        wanted = np.asarray(sizes, np.float64)
        sums = np.concatenate(([0.0], np.cumsum(self._counts)))
        at = EDGES if self._bounded else np.arange(len(sums)) / self.rate
        amiss = self.accesses - sums[-1] - self._tracked.sums[COLD]
        hits = np.interp(wanted, at, sums) + np.where(wanted >= 1, amiss, 0.0)
        return np.clip(hits / max(1, self.accesses), 0.0, 1.0)

    def _use(self, keys: Keys, *, counting: bool) -> None:
        done = use(self._tracked, keys, 0, self._counts, counting)
        while done < len(keys):
            self._grow()
            done = use(self._tracked, keys, done, self._counts, counting)

    def _grow(self) -> None:
        slots = 2 * len(self._tracked.keys)
        larger = track(slots, 0, int(self._tracked.threshold[0]))
        copy(self._tracked, larger)
        self._tracked = larger
        counts = np.zeros(slots // 2)
        counts[: len(self._counts)] = self._counts
        self._counts = counts


def small_curve(ram: int) -> MissRatioCurve:
    """A curve that takes 1/48 of ``ram`` bytes at most, but 125 KiB if that is less; tracks 1023
    keys at least and 8191 at most (410 KiB).
    """
    curve = MissRatioCurve(most_keys=(1 << _LEAST_BITS) - 1)
    for bits in range(_LEAST_BITS + 1, _MOST_BITS + 1):
        larger = MissRatioCurve(most_keys=(1 << bits) - 1)
        if larger.nbytes * _SHARE > ram:
            break
        curve = larger
    return curve


def ghost_bytes(ram: int) -> int:
    """Bytes that ``small_curve(ram)`` holds from beginning to end."""
    return small_curve(ram).nbytes
