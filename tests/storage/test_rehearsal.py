"""Rehearsal: counts what a real store counts on the same batches, tier by tier."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ps
import worker
from storage.cache import CacheTier
from storage.errors import WorkingSetError
from storage.log import BlockLog
from storage.policy import POLICIES
from storage.rehearsal import Batches, Rehearsal, batches_of
from storage.ssd import SsdTier
from tests.storage.replaying import skewed
from tests.storage.test_tier import make_stack

ROWS, BATCH = 1500, 200


def accesses() -> np.ndarray:
    return np.array(skewed(3, 60 * BATCH, ROWS), np.int64)


def working_sets(ids: np.ndarray) -> Batches:
    return batches_of(ids.astype(np.uint64), np.arange(0, len(ids) + 1, BATCH))


def trained(path: Path, ids: np.ndarray, depth: int, policy: str) -> Any:
    """A store that trained on the ids, batch by batch; its stack, and the tiers' sizes."""
    table = ps.Table("ads", dim=4, optimizer=ps.SGD(lr=0.1))
    with ps.open(path, [table], ram="640KiB", policy=policy) as store:
        stack = store.stacks["ads"]
        sizes = [cache.limit for cache in stack.caches]
        bag, sparse = worker.EmbeddingBag(store, "ads", mode="sum"), worker.SparseOptimizer(store)
        batches = torch.from_numpy(ids).split(BATCH)
        loop = worker.prefetch(batches, lambda b: {bag: [(b.view(-1, 1),)]}, depth=depth)
        for batch in loop:
            bag(batch.view(-1, 1)).sum().backward()
            sparse.step()
        assert [cache.limit for cache in stack.caches] == sizes, "the cache shrank on the way"
        return stack, sizes


def assert_same(caches: Sequence[CacheTier], ssd: SsdTier, ours: Rehearsal) -> None:
    counted = ("accesses", "access_hits", "keys", "key_hits", "admitted", "evicted")
    for real, cache in zip(caches, ours.caches, strict=True):
        for name in counted:
            assert getattr(real.stats, name) == getattr(cache.stats, name), (real.name, name)
    assert ssd.stats.rows_read == ours.beyond.stats.rows_read


@pytest.mark.parametrize("policy", ["lru", "sieve", "2q"])
@pytest.mark.parametrize("depth", [0, 2])
def test_a_store_in_training_counts_the_same(tmp_path: Path, policy: str, depth: int) -> None:
    ids = accesses()
    stack, sizes = trained(tmp_path / "store", ids, depth, policy)
    rehearsal = Rehearsal(sizes, policy, distinct=ROWS, depth=depth)
    rehearsal.run(working_sets(ids))
    assert_same(stack.caches, stack.ssd, rehearsal)
    assert stack.hierarchy.first_seen == rehearsal.first_seen


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("sizes", [(400,), (250, 300)])
def test_tiers_over_a_real_log_count_the_same(
    tmp_path: Path, policy: str, sizes: tuple[int, ...]
) -> None:
    batches = working_sets(accesses())
    rehearsal = Rehearsal(sizes, policy, distinct=ROWS, staging_bytes=1024)
    rehearsal.run(batches)
    with closing(BlockLog(tmp_path, ["t"])) as log:
        cache: Any = partial(CacheTier, policy=policy)
        stack = make_stack(log, *sizes, total=64 << 20, cache=cache)
        for keys, counts in batches:
            positions = stack.top.pin(keys, counts)
            stack.caches[0].dirty[positions] = 1
            stack.top.unpin(positions)
        assert_same(stack.caches, stack.ssd, rehearsal)
        assert stack.top.first_seen == rehearsal.first_seen
        assert stack.top.check() == []


def test_nobody_reads_less_than_who_knows_the_future() -> None:
    ids = accesses()
    batches = working_sets(ids)
    best = Rehearsal.best(400, batches, distinct=ROWS)
    best.run(batches)
    for policy in POLICIES:
        other = Rehearsal([400], policy, distinct=ROWS)
        other.run(batches)
        assert best.caches[0].stats.key_hits >= other.caches[0].stats.key_hits, policy
    assert best.first_seen == other.first_seen


def test_little_room_means_fewer_batches_ahead_and_none_an_error() -> None:
    batches = working_sets(accesses())
    rehearsal = Rehearsal([batches.largest], "lru", distinct=ROWS, depth=4)
    rehearsal.run(batches)
    assert rehearsal.caches[0].pinned == 0 and rehearsal.caches[0].check() == []
    with pytest.raises(WorkingSetError):
        Rehearsal([batches.largest - 1], "lru", distinct=ROWS).run(batches)
