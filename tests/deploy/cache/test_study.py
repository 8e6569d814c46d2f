"""Studies: numbers against plain Python, by access and by batch, whole and sampled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from deploy.cache.study import KNOWN, Accesses, Plan, check_policies, load, study
from storage.errors import ConfigError
from tests.storage.replaying import hits, skewed
from worker.data.trace import open_trace


def quiet(done: int, total: int) -> None:
    pass


def accesses_of(tmp_path: Path, keys: list[int], batch: int | None = None) -> Accesses:
    path = tmp_path / "keys.npy"
    np.save(path, np.array(keys, np.uint64))
    return load(open_trace(str(path)), batch=batch, rate=1.0, watch=quiet)


def test_hits_first_uses_and_rates_add_up(tmp_path: Path) -> None:
    keys = skewed(0, 4000, 300)
    plan = Plan(("lru", "belady"), ((20,), (10_000,)))
    small, large, best, all_held = study(accesses_of(tmp_path, keys), plan, quiet)
    assert small.hits == sum(hits("lru", 20, keys))
    assert large.hits == all_held.hits == 4000 - len(set(keys))
    assert large.again_rate == 1.0 and small.hits < best.hits < large.hits
    report = small.report()
    assert report["hit_rate"] == small.hits / 4000
    assert report["hits"] + report["misses"] == report["accesses"] == 4000
    assert report["first_seen"] == len(set(keys))


@pytest.mark.parametrize("tiers", [(150,), (60, 100)])
def test_batches_go_through_tiers_and_what_misses_is_read(
    tmp_path: Path, tiers: tuple[int, ...]
) -> None:
    keys = skewed(1, 4000, 300)
    accesses = accesses_of(tmp_path, keys, batch=100)
    lru, best = study(accesses, Plan(("lru", "belady"), (tiers,), by_batch=True), quiet)
    assert [tier["tier"] for tier in lru.tiers] == [*("hbm", "ram")[-len(tiers) :], "ssd"]
    ssd = lru.tiers[-1]
    assert lru.hits + ssd["accesses"] == 4000
    assert lru.ssd_reads == ssd["key_hits"] and ssd["keys"] == lru.ssd_reads + len(set(keys))
    assert best.ssd_reads is not None and best.ssd_reads <= lru.ssd_reads
    assert lru.capacity == best.capacity == sum(tiers)


def test_a_batch_that_does_not_fit_is_told(tmp_path: Path) -> None:
    accesses = accesses_of(tmp_path, list(range(100)), batch=50)
    with pytest.raises(ConfigError, match="a batch needs 50 rows at once, more than the 49"):
        list(study(accesses, Plan(("lru",), ((49,),), by_batch=True), quiet))


def test_a_sample_is_near_the_whole(tmp_path: Path) -> None:
    keys = np.random.default_rng(0).zipf(1.2, 200_000) % 50_000
    path = tmp_path / "keys.npy"
    np.save(path, keys.astype(np.uint64))
    plan = Plan(("lru", "belady"), ((5000,),))
    whole, sample = (
        list(study(load(open_trace(str(path)), batch=None, rate=rate, watch=quiet), plan, quiet))
        for rate in (1.0, 0.2)
    )
    for exact, about in zip(whole, sample, strict=True):
        assert about.accesses == exact.accesses
        assert about.hit_rate == pytest.approx(exact.hit_rate, abs=0.02)
        assert about.first_seen == pytest.approx(exact.first_seen, rel=0.1)


def test_batches_of_a_recorded_trace_are_kept(tmp_path: Path) -> None:
    records = np.zeros(7, [("batch", "<u4"), ("key", "<u8")])
    records["batch"], records["key"] = [3, 3, 3, 4, 4, 9, 9], [1, 1, 2, 2, 3, 1, 1]
    np.save(tmp_path / "t.npy", records)
    accesses = load(open_trace(str(tmp_path / "t.npy")), batch=100, rate=1.0, watch=quiet)
    assert accesses.edges is not None and accesses.edges.tolist() == [0, 3, 5, 7]
    assert (accesses.total, accesses.distinct) == (7, 3)


@pytest.mark.parametrize("rate", [0.0, -1.0, 1.5, float("nan")])
def test_a_share_that_is_none_is_refused(tmp_path: Path, rate: float) -> None:
    np.save(tmp_path / "k.npy", np.arange(3))
    with pytest.raises(ConfigError, match="--sample: expected a share"):
        load(open_trace(str(tmp_path / "k.npy")), batch=None, rate=rate, watch=quiet)


def test_policies_are_named_or_all() -> None:
    assert check_policies("arc, lru,arc") == ("arc", "lru")
    assert check_policies("all") == KNOWN
    with pytest.raises(ConfigError, match=r"expected some of lru, .*belady, or all, got 'mru'"):
        check_policies("lru,mru")
