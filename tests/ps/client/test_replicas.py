"""Replicas: copies no older than was asked for, in places that stay while somebody uses them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import ps
from ps.client.replicas import Replicas
from storage.budget import parse_size
from storage.errors import ConfigError, WorkingSetError
from storage.policy import POLICIES
from tests.ps.client.shards import keys_of

TABLE = ps.Table("ads", dim=4)


def make(rows: int = 32, policy: str = "lru", table: ps.Table = TABLE) -> Replicas:
    replicas = Replicas(table, parse_size("1MiB"), device=torch.device("cpu"), policy=policy)
    size = int(parse_size("1MiB") * (rows + 0.5) / replicas.top.limit)
    replicas = Replicas(table, size, device=torch.device("cpu"), policy=policy)
    assert abs(replicas.top.limit - rows) <= 1
    return replicas


def pin(replicas: Replicas, *keys: int, least: int = 0):  # type: ignore[no-untyped-def]
    counts = np.ones(len(keys), np.int32)
    replicas.ensure_room(keys_of(*keys))
    return replicas.pin(keys_of(*keys), counts, least)


def pulled(replicas: Replicas, *keys: int, clock: int) -> None:
    positions, wanted, _ = pin(replicas, *keys, least=clock)
    values = np.repeat(np.array(keys, np.float32)[:, None], 4, 1) + np.float32(clock) / 100
    replicas.fill(positions[wanted], values[wanted])
    replicas.mark(positions[wanted], clock)
    replicas.unpin(positions)


def test_what_is_not_here_is_to_be_pulled_and_then_is_here() -> None:
    replicas = make()
    positions, pull, used = pin(replicas, 3, 4)
    assert pull.all() and not used.any()
    replicas.fill(positions, np.ones((2, 4), np.float32))
    replicas.mark(positions, 0)
    replicas.unpin(positions)
    again, pull, _ = pin(replicas, 4, 3)
    assert not pull.any() and again.tolist() == positions[::-1].tolist()
    replicas.unpin(again)
    assert replicas.top.check() == [] and replicas.top.pinned == 0


@pytest.mark.parametrize("least", range(8))
def test_a_copy_is_fresh_up_to_its_clock_and_no_further(least: int) -> None:
    replicas = make()
    pulled(replicas, 1, clock=2)
    pulled(replicas, 2, clock=5)
    _, pull, _ = pin(replicas, 1, 2, least=least)
    assert pull.tolist() == [least > 2, least > 5]


def test_rows_that_others_use_are_told_when_they_are_too_old() -> None:
    replicas = make()
    pulled(replicas, 1, 2, 3, clock=1)
    first, _, _ = pin(replicas, 1, 2, least=1)
    positions, pull, used = pin(replicas, 1, 3, 9, least=2)
    assert pull.all() and used.tolist() == [True, False, False]
    assert positions[0] == first[0]
    replicas.unpin(first)
    replicas.unpin(positions)
    assert replicas.top.pinned == 0


def test_stale_copies_are_misses() -> None:
    replicas = make()
    pulled(replicas, 1, 2, clock=1)
    stats, before = replicas.top.stats, replicas.top.stats.key_hits
    counts = np.array([3, 2], np.int32)
    replicas.pin(keys_of(1, 2), counts, 2)
    assert stats.key_hits == before and stats.access_hits == 0
    replicas.mark(replicas.top.place(keys_of(1, 2)), 2)
    replicas.pin(keys_of(1, 2), counts, 2)
    assert stats.key_hits == before + 2 and stats.access_hits == 5


def test_a_batch_that_does_not_fit_changes_nothing_and_says_what_would_do() -> None:
    replicas = make(32)
    held, _, _ = pin(replicas, *range(20))
    before = replicas.top.stats.report()
    with pytest.raises(WorkingSetError) as caught:
        replicas.ensure_room(np.arange(10, 30, dtype=np.uint64).repeat(1))
        replicas.ensure_room(np.arange(10, 50, dtype=np.uint64))
    assert caught.value.needed_bytes > 0
    assert replicas.top.stats.report() == before and replicas.top.pinned == 20
    # Those that are used already need no room.
    positions, _, used = pin(replicas, *range(32))
    assert used.tolist() == [key < 20 and True for key in range(32)]
    assert len(set(positions.tolist())) == 32 and positions[:20].tolist() == held.tolist()


@pytest.mark.parametrize("policy", POLICIES)
def test_random_batches_agree_with_a_dict(policy: str) -> None:
    """clock: of the newest copy that is here; a key that left has none."""
    rng, replicas = np.random.default_rng(3), make(40, policy)
    known: dict[int, int] = {}
    for clock in range(200):
        keys = rng.choice(100, rng.integers(1, 30), replace=False).astype(np.uint64)
        least = max(0, clock - int(rng.integers(0, 4)))
        here = replicas.top.place(keys) >= 0
        replicas.ensure_room(keys)
        positions, pull, used = replicas.pin(keys, np.ones(len(keys), np.int32), least)
        assert not used.any() and (positions >= 0).all()
        for key, there, wanted in zip(keys.tolist(), here, pull, strict=True):
            assert wanted == (not there or known[key] < least)
        values = keys[pull, None].astype(np.float32) + np.zeros((1, 4), np.float32)
        replicas.fill(positions[pull], values)
        replicas.mark(positions[pull], clock)
        known.update(dict.fromkeys(keys[pull].tolist(), clock))
        assert (replicas.top.array.gather(positions)[:, 0] == keys).all()
        replicas.unpin(positions)
        if clock % 20 == 0:
            gone = rng.choice(100, 10, replace=False).astype(np.uint64)
            replicas.forget(gone)
            known.update(dict.fromkeys(gone.tolist(), -1))
        assert replicas.top.check() == []


def test_forgotten_copies_are_pulled_again() -> None:
    replicas = make()
    pulled(replicas, 1, 2, 3, clock=4)
    replicas.forget(keys_of(2, 77))
    assert pin(replicas, 1, 2, 3, least=1)[1].tolist() == [False, True, False]
    replicas.forget()
    assert pin(replicas, 1, 2, 3)[1].all()


def test_ages_are_counted_by_steps_behind_and_the_last_is_so_many_or_more() -> None:
    replicas = make()
    pulled(replicas, 1, 2, clock=3)
    pulled(replicas, 3, clock=5)
    positions = replicas.top.place(keys_of(1, 2, 3))
    replicas.observe(positions, 5)
    replicas.observe(positions[:1], 1000)
    replicas.observe(positions[:1], 1)  # newer than was asked for
    assert replicas.report()["staleness"] == {"0": 2, "2": 2, "64": 1}


def test_a_table_of_few_rows_takes_no_more_memory_than_those() -> None:
    table = ps.Table("ads", dim=4, rows=20)
    assert Replicas(table, 1 << 20, device=torch.device("cpu"), policy="lru").top.limit == 20


def test_a_budget_of_too_few_rows_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected 16 or more; give the worker's top tier more"):
        Replicas(TABLE, 500, device=torch.device("cpu"), policy="lru")
