"""Curves: what they say is what replays hit; offers keep to budgets and to what tiers do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from deploy.cache.curve import Demand, measure, offer, recommend, results_of
from deploy.cache.study import Plan, load, study
from storage.errors import ConfigError
from storage.reuse import MissRatioCurve
from tests.deploy.cache.test_study import quiet
from tests.storage.replaying import hits, skewed
from worker.data.trace import Trace, open_trace

BATCH = 100


@pytest.fixture
def trace(tmp_path: Path) -> Trace:
    np.save(tmp_path / "k.npy", np.array(skewed(4, 20_000, 5000), np.uint64))
    return open_trace(str(tmp_path / "k.npy"))


def test_a_curve_says_what_replays_hit(trace: Trace) -> None:
    curve = measure(trace, MissRatioCurve(), batch=None, watch=quiet)
    keys = skewed(4, 20_000, 5000)
    for result in results_of(curve, (10, 200), 1.0):
        assert result.hits == sum(hits("lru", result.capacity, keys))
        assert (result.accesses, result.first_seen) == (20_000, len(set(keys)))


def test_offers_hit_what_the_tiers_of_training_hit(trace: Trace) -> None:
    curve = measure(trace, MissRatioCurve(), batch=BATCH, watch=quiet)
    demand = Demand(hbm=200 * 20, ram=700 * 100, row_floats=5, uses_per_s=curve.accesses)
    one = offer(curve, demand, demand.hbm, demand.ram)
    assert one.hbm_rows == 200
    plan = Plan(("lru",), ((one.hbm_rows, one.ram_rows),), by_batch=True)
    accesses = load(trace, batch=BATCH, rate=1.0, watch=quiet)
    (real,) = study(accesses, plan, quiet)
    hbm, ram, ssd = real.tiers
    assert one.hbm_hits == pytest.approx(hbm["key_hits"] / hbm["keys"], abs=0.01)
    assert one.ram_hits == pytest.approx(ram["key_hits"] / hbm["keys"], abs=0.02)
    assert one.ssd_reads_per_s == pytest.approx(ssd["rows_read"], abs=0.02 * curve.accesses)


def test_what_is_recommended_is_less_and_nearly_as_good(trace: Trace) -> None:
    curve = measure(trace, MissRatioCurve(), batch=BATCH, watch=quiet)
    offers = recommend(curve, Demand(1 << 20, 1 << 30, 16, 1e6))
    best, full = offers["recommended"], offers["all of it"]
    assert best.hbm < 1 << 20 and best.ram < 1 << 30
    assert best.hbm_hits + best.ram_hits >= 0.97 * (full.hbm_hits + full.ram_hits)
    assert full.ssd_reads_per_s == pytest.approx(0, abs=1e-6)
    assert list(offers) == ["recommended", "all of it", "half", "twice"]


def test_too_little_ram_for_the_index_is_told(trace: Trace) -> None:
    curve = measure(trace, MissRatioCurve(), batch=None, watch=quiet)
    with pytest.raises(ConfigError, match=r"--ram-gb: expected more than the .* of"):
        recommend(curve, Demand(0, 1000, 16, 1e6))
