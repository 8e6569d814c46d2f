"""Ghost: its estimate for another budget is what a store of that budget then counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ps
from ps.ghost import Ghost
from ps.store import Store
from storage.reuse import MissRatioCurve

ADS = ps.Table("ads", dim=16, optimizer=ps.SGD(lr=0.1))
MIB = 1 << 20


def batches(count: int, size: int) -> list[np.ndarray]:
    rng = np.random.default_rng(7)
    return [
        rng.zipf(1.05, size).astype(np.uint64) % np.uint64(120_000) for _ in range(count)
    ]  # fmt: skip


BATCHES = batches(200, 1500)


def run(path: Path, ram: int, **options: Any) -> tuple[float, Any, Store]:
    """Hit rate by unique key, and the ghost's report."""
    with ps.open(path, [ADS], ram=ram, threads=1, **options) as store:
        exact = Ghost(lambda: store.stacks, lambda ram: MissRatioCurve())
        store.observers.add(exact)
        for ids in BATCHES:
            working_set = store.stage({"ads": [ids]})
            # Rows that changed have an entry in the index of the SSD tier when they leave.
            positions = working_set.parts["ads"].positions
            store.stacks["ads"].top.dirty[positions] = 1
            del working_set
            store.settle()
        assert store.check() == []
        stats = store.stacks["ads"].top.stats
        report = (store.ghost or exact).report()["ads"]
        return stats.key_hits / stats.keys, report, store


@pytest.mark.parametrize(("ghost", "error"), [(False, 0.03), (True, 0.05)])
def test_other_sizes_of_ram_hit_what_was_estimated(
    tmp_path: Path, ghost: bool, error: float
) -> None:
    """All keys looked at give the rates that stores of those sizes count; a sample nearly so."""
    rate, report, _ = run(tmp_path / "1", 8 * MIB, ghost=ghost)
    sizes = {size["times_ram"]: size for size in report["sizes"]}
    rates = [sizes[factor]["hit_rate"] for factor in (0.5, 1.0, 2.0, 4.0)]
    assert rates == sorted(rates) and rates[0] + 0.1 < rates[1] < rates[2] - 0.05
    assert rates[1] == pytest.approx(rate, abs=error)
    for factor, estimate in ((0.5, rates[0]), (2.0, rates[2])):
        ram = int(factor * 8 * MIB)
        assert sizes[factor]["ram_bytes"] == ram
        assert estimate == pytest.approx(run(tmp_path / str(factor), ram)[0], abs=error)
    seen = len({key for ids in BATCHES for key in ids.tolist()})
    assert report["first_seen"] == seen
    assert report["keys"] == sum(len(set(ids.tolist())) for ids in BATCHES)
    share = report["keys"] / (report["keys"] - seen)
    assert sizes[0.5]["hit_rate_seen_before"] == pytest.approx(rates[0] * share)


def test_its_memory_is_part_of_the_budget(tmp_path: Path) -> None:
    _, _, store = run(tmp_path, 4 * MIB, ghost=True)
    budget = store.stacks["ads"].budget
    assert 0 < budget.parts["ghost"] <= 4 * MIB // 30
    assert budget.peak <= budget.total


def test_before_the_first_batch_nothing_was_hit(tmp_path: Path) -> None:
    with ps.open(tmp_path, [ADS], ram="4MiB", ghost=True) as store:
        assert store.ghost is not None
        report = store.ghost.report()["ads"]
    assert (report["keys"], report["first_seen"]) == (0, 0)
    assert all(size["hit_rate"] == 0 for size in report["sizes"])


def test_a_table_of_known_size_never_has_room_for_more(tmp_path: Path) -> None:
    small = ps.Table("small", dim=4, optimizer=ps.SGD(lr=0.1), rows=300)
    with ps.open(tmp_path, [small], ram="4MiB", hbm="64KiB", ghost=True) as store:
        assert store.ghost is not None
        for _ in range(20):
            store.stage({"small": [np.arange(300, dtype=np.uint64)]})
            store.settle()
        report = store.ghost.report()["small"]
    assert max(size["rows"] for size in report["sizes"]) <= 2 * 300
    assert report["sizes"][1]["hit_rate_seen_before"] == pytest.approx(1.0)
