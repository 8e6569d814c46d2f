"""Rehearsals: batches through the product's own tiers, to count what they would hit.

`storage.cache.CacheTier` and `storage.hierarchy.Hierarchy` do here what they do in training: a
batch's working set is made resident and pinned, its rows are changed, and they are let go when
``depth`` more batches are resident. Only the rows have no content, and the SSD is `Beyond`.

Threads: one owner.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from storage.array import FloatArray
from storage.beyond import Beyond
from storage.block import BlockShape
from storage.cache import CacheTier
from storage.codec import CODECS
from storage.errors import WorkingSetError
from storage.hierarchy import Hierarchy
from storage.keys import Deduper
from storage.policies.belady import make_belady, next_uses, schedule
from storage.policy import Policy
from storage.rows import Counts, Keys, Positions
from storage.stats import FirstSeen

_WIDTH = 1
_STAGING = 1 << 22


@dataclass(frozen=True, eq=False)
class Batches:
    """Working sets one after the other. keys: (M,) uint64. counts: (M,) int32, uses in the batch.
    edges: (B+1,) int64, where each batch begins."""

    keys: Keys
    counts: Counts
    edges: Positions

    def __len__(self) -> int:
        return len(self.edges) - 1

    def __iter__(self) -> Iterator[tuple[Keys, Counts]]:
        for start, end in pairwise(self.edges):
            yield self.keys[start:end], self.counts[start:end]

    @property
    def largest(self) -> int:
        """Keys of the largest working set."""
        return int(np.diff(self.edges).max(initial=0))


def batches_of(keys: Keys, edges: NDArray[Any]) -> Batches:
    """The working sets of (N,) accesses that are cut at ``edges``, (B+1,), from 0 to N."""
    deduper, unique, counts = Deduper(), [], []
    for start, end in pairwise(edges):
        some, _, uses = deduper.dedupe(keys[start:end])
        unique.append(some)
        counts.append(uses)
    sizes = [len(some) for some in unique]
    return Batches(np.concatenate(unique), np.concatenate(counts), np.cumsum([0, *sizes]))


class Rehearsal:
    """Tiers of so many rows, the top one first, over an SSD; all empty at first.

    policy: a name, of all tiers. distinct: different keys that come at most. depth: batches made
    resident ahead, as in `worker.prefetch`. Names of tiers are as in training: one is "ram", two
    are "hbm" and "ram".
    """

    def __init__(
        self,
        capacities: Sequence[int],
        policy: str,
        *,
        distinct: int,
        depth: int = 0,
        staging_bytes: int = _STAGING,
    ) -> None:
        self.caches = [
            CacheTier(name, _rows(capacity), capacity=capacity, width=_WIDTH, policy=policy)
            for name, capacity in zip(("hbm", "ram")[-len(capacities) :], capacities, strict=True)
        ]
        self._assemble(distinct, depth, staging_bytes)

    @classmethod
    def best(cls, capacity: int, batches: Batches, *, distinct: int, depth: int = 0) -> Rehearsal:
        """One tier that knows the future: it evicts the row needed furthest away. `run` it with
        these batches only."""
        rehearsal = cls.__new__(cls)
        policy = Policy.of(make_belady(capacity, len(batches.keys)), capacity)
        cache = CacheTier("ram", _rows(capacity), capacity=capacity, width=_WIDTH, policy=policy)
        rehearsal.caches = [cache]
        rehearsal._assemble(distinct, depth, _STAGING)
        codes = np.unique(batches.keys, return_inverse=True)[1]
        rehearsal._nexts = next_uses(codes, distinct)
        return rehearsal

    def _assemble(self, distinct: int, depth: int, staging_bytes: int) -> None:
        self.beyond = Beyond(distinct, _WIDTH)
        self._depth = depth
        self._nexts: Positions | None = None
        self._flying: deque[Positions] = deque()
        below: Any = self.beyond
        for cache in reversed(self.caches):
            below = Hierarchy(
                cache, below, budget=None, shape=BlockShape(_WIDTH, 0, CODECS["float32"]),
                fresh=lambda keys: np.zeros((len(keys), _WIDTH), np.float32),
                staging_bytes=staging_bytes,
            )  # fmt: skip
        self._hierarchy: Hierarchy = below

    @property
    def first_seen(self) -> FirstSeen:
        """Keys that no tier had ever held."""
        return self._hierarchy.first_seen

    def run(self, batches: Batches) -> None:
        """Use these batches, in order.

        Raises: WorkingSetError for a batch that does not fit into the top tier by itself.
        """
        done = 0
        for keys, counts in batches:
            positions = self._bring(keys, counts)
            if self._nexts is not None:
                schedule(self.caches[0].policy.state, positions, self._nexts[done:][: len(keys)])
            done += len(keys)
            self._flying.append(positions)
        while self._flying:
            self._finish()

    def _bring(self, keys: Keys, counts: Counts) -> Positions:
        while len(self._flying) > self._depth:
            self._finish()
        while True:
            try:
                return self._hierarchy.pin(keys, counts)
            except WorkingSetError:
                # As in training, little room means fewer batches ahead.
                if not self._flying:
                    raise
                self._finish()

    def _finish(self) -> None:
        """The oldest batch in flight takes its step."""
        positions = self._flying.popleft()
        self.caches[0].dirty[positions] = 1
        self._hierarchy.unpin(positions)


def _rows(capacity: int) -> FloatArray:
    return FloatArray(capacity, _WIDTH, 0, torch.device("cpu"))
