"""Partition: which shard has which part of the key space.

key -> mixed key -> bucket (its top 12 bits) -> shard, by a table of 4096 entries. A working set is
cut by counting its keys in buckets, so that each shard's share is one slice, in the order of mixed
keys by bucket. Resharding moves buckets, never single keys.

Threads: values and pure functions; the kernels release the GIL.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numba as nb
import numpy as np
from numpy.typing import NDArray

from storage.errors import ConfigError
from storage.keys import BUCKETS, bucket_of, mix
from storage.rows import Keys, Positions

MOST_SHARDS = 1024
"""A shard then has four buckets; more would not be even."""


@dataclass(frozen=True)
class Split:
    """A working set by shard. order: (U,) int64, indices of the keys, those of shard 0 first.
    edges: (N + 1,) int64: shard s has ``order[edges[s]:edges[s + 1]]``.
    """

    order: Positions
    edges: NDArray[np.int64]

    def __iter__(self) -> Iterator[Positions]:
        """The indices of each shard's keys, views."""
        for first, last in zip(self.edges[:-1], self.edges[1:], strict=True):
            yield self.order[first:last]


class Partition:
    """``shards`` shards with buckets in a row, as even as 4096 goes.

    owners: (4096,) uint16, the shard of each bucket. version: of that table; client and shard must
    have the same. Raises: ConfigError.
    """

    def __init__(self, shards: int) -> None:
        if not 1 <= shards <= MOST_SHARDS:
            raise ConfigError(f"shards: expected 1 to {MOST_SHARDS}, got {shards}")
        self.shards = shards
        self.owners = (np.arange(BUCKETS, dtype=np.int64) * shards // BUCKETS).astype(np.uint16)
        self.version = int(google_crc32c.value(self.owners.astype("<u2").tobytes()))

    def split(self, keys: Keys) -> Split:
        """Which keys each shard has. keys: (U,) uint64; duplicates stay beside each other's."""
        order, ends = _by_bucket(keys)
        edges = np.zeros(self.shards + 1, np.int64)
        edges[1:] = ends[np.searchsorted(self.owners, np.arange(self.shards), side="right") - 1]
        return Split(order, edges)

    def misplaced(self, keys: Keys, shard: int) -> int:
        """Index of the first key that ``shard`` has not, -1 when it has all. keys: (U,) uint64."""
        return int(_misplaced(keys, self.owners, shard))


@nb.njit(nogil=True, cache=True)
def _by_bucket(keys: Keys) -> Any:
    """The keys' indices sorted by bucket, stable, and the end of each bucket there."""
    buckets = np.empty(keys.shape[0], np.uint16)
    starts = np.zeros(BUCKETS + 1, np.int64)
    for i in range(keys.shape[0]):
        bucket = bucket_of(mix(keys[i]))
        buckets[i] = bucket
        starts[np.int64(bucket) + 1] += 1
    for bucket in range(BUCKETS):
        starts[bucket + 1] += starts[bucket]
    following = starts[:-1].copy()
    order = np.empty(keys.shape[0], np.int64)
    for i in range(keys.shape[0]):
        bucket = buckets[i]
        order[following[bucket]] = i
        following[bucket] += 1
    return order, starts[1:]


@nb.njit(nogil=True, cache=True)
def _misplaced(keys: Keys, owners: Any, shard: Any) -> Any:
    for i in range(keys.shape[0]):
        if owners[bucket_of(mix(keys[i]))] != shard:
            return i
    return -1
