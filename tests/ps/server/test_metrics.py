"""Metrics: what a scrape shows, and that it neither holds up the shard nor breaks."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import prometheus_client
import pytest
from prometheus_client.parser import text_string_to_metric_families

import ps
from ps.server.metrics import Metrics

DEADLINE = 10.0
ADS = ps.Table("ads", dim=4, optimizer=ps.SGD(lr=1.0))
Figures = dict[tuple[str, ...], float]


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def scrape(metrics: Metrics) -> Figures:
    """Value by the sample's name and its labels' values, in the order of the labels' names."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics.expose().decode())
        for sample in family.samples
    }


def report(accesses: int = 10, **tier: Any) -> dict[str, Any]:
    """What a store of one table and one tier says."""
    ram = {
        "tier": "ram", "rows": 7, "accesses": accesses, "access_hits": 4, "keys": 5, "key_hits": 2
    }  # fmt: skip
    memory = {"total": 1000, "peak": 900, "index": 300, "rows": 200}
    return {"tables": {"ads": {"tiers": [ram | tier], "ram_bytes": memory}}}


def test_what_happens_is_counted() -> None:
    metrics = Metrics()
    metrics.pulled(0.003, rows=40, size=10_240)
    metrics.pulled(0.3, rows=2, size=512)
    metrics.pushed(0.02, rows=30, size=7_000, skipped=3)
    metrics.refused("overload")
    metrics.refused("overload")
    metrics.refused("token")
    seen = scrape(metrics)
    assert seen["terrace_pull_duration_seconds_count",] == 2
    assert seen["terrace_pull_duration_seconds_sum",] == pytest.approx(0.303)
    assert seen["terrace_pull_duration_seconds_bucket", "0.005"] == 1
    assert seen["terrace_pull_size_bytes_sum",] == 10_752
    assert seen["terrace_pull_size_bytes_bucket", "1024.0"] == 1
    assert seen["terrace_push_duration_seconds_count",] == 1
    assert seen["terrace_push_size_bytes_sum",] == 7_000
    assert seen["terrace_rows_pulled_total",] == 42
    assert seen["terrace_rows_pushed_total",] == 30
    assert seen["terrace_rows_skipped_total",] == 3
    assert seen["terrace_requests_refused_total", "overload"] == 2
    assert seen["terrace_requests_refused_total", "token"] == 1


def test_staleness_is_counted_in_steps() -> None:
    metrics = Metrics()
    for steps in (0, 0, 1, 3, 64, 65):
        metrics.observed(steps)
    seen = scrape(metrics)
    edges = {e: seen["terrace_staleness_steps_bucket", f"{e}.0"] for e in (0, 1, 2, 4, 8, 32, 64)}
    assert edges == {0: 2, 1: 3, 2: 3, 4: 4, 8: 4, 32: 4, 64: 5}
    assert seen["terrace_staleness_steps_bucket", "+Inf"] == 6


def test_reasons_are_no_series_without_end() -> None:
    metrics = Metrics()
    for number in range(1000):
        metrics.refused(f"reason-{number}")
    refused = {k: v for k, v in scrape(metrics).items() if k[0] == "terrace_requests_refused_total"}
    assert len(refused) == 33
    assert refused["terrace_requests_refused_total", "other"] == 1000 - 32


def test_a_store_in_use_is_shown(tmp_path: Path) -> None:
    metrics = Metrics()
    with ps.open(tmp_path, [ADS], ram="3MiB") as store:
        store.write("ads", np.arange(100), np.ones((100, 4), np.float32))
        store.stage({"ads": [np.arange(150, dtype=np.uint64)]})
        metrics.watch(store.stats)
        seen, stats = scrape(metrics), store.stats()
    tiers = {tier["tier"]: tier for tier in stats["tables"]["ads"]["tiers"]}
    assert tiers["ram"]["rows"] > 0 and tiers["ram"]["access_hits"] > 0
    for name, tier in tiers.items():
        assert seen["terrace_rows", "ads", name] == tier["rows"]
        assert seen["terrace_accesses_total", "ads", name] == tier["accesses"]
        assert seen["terrace_access_hits_total", "ads", name] == tier["access_hits"]
        assert seen["terrace_keys_total", "ads", name] == tier["keys"]
        assert seen["terrace_key_hits_total", "ads", name] == tier["key_hits"]
    assert seen["terrace_ram_budget_bytes", "ads"] == 3 << 20
    assert 0 < seen["terrace_ram_used_bytes", "ads"] <= 3 << 20
    assert seen["terrace_disk_file_bytes",] == stats["disk_bytes"]["file"]
    assert ("terrace_disk_cap_bytes",) not in seen  # none was given
    assert seen["terrace_figures_up",] == 1


def test_what_a_shard_adds_is_shown() -> None:
    metrics = Metrics()
    metrics.watch(
        lambda: {
            "queue": {"items": 3, "bytes": 4096},
            "sessions": 2,
            "recovering": True,
            "checkpoint_age_seconds": 12.5,
            "disk_bytes": {"file": 10, "used": 8, "total": None, "free": 1000},
        }
    )
    seen = scrape(metrics)
    assert seen["terrace_queue_items",] == 3
    assert seen["terrace_queue_bytes",] == 4096
    assert seen["terrace_sessions",] == 2
    assert seen["terrace_recovering",] == 1
    assert seen["terrace_checkpoint_age_seconds",] == 12.5
    assert seen["terrace_disk_free_bytes",] == 1000
    assert seen["terrace_figures_up",] == 1


def test_the_source_is_asked_once_a_second() -> None:
    clock, asked = Clock(), []
    metrics = Metrics(clock=clock)

    def source() -> Mapping[str, Any]:
        asked.append(clock.now)
        return {"sessions": len(asked)}

    metrics.watch(source)
    assert asked == []
    for _ in range(5):
        assert scrape(metrics)["terrace_sessions",] == 1
    clock.now += 0.9
    assert scrape(metrics)["terrace_sessions",] == 1
    clock.now += 0.2
    seen = scrape(metrics)
    assert seen["terrace_sessions",] == 2
    assert seen["terrace_uptime_seconds",] == pytest.approx(1.1)
    assert asked == [100.0, pytest.approx(101.1)]


@pytest.mark.parametrize("broken", [{"tables": {"ads": {}}}, {"queue": 3}, {"sessions": "many"}, 5])
def test_what_the_source_has_wrong_breaks_no_scrape(broken: Any) -> None:
    metrics = Metrics()
    metrics.pulled(0.1, rows=1, size=1)
    metrics.watch(lambda: broken)
    seen = scrape(metrics)
    assert seen["terrace_figures_up",] == 0
    assert seen["terrace_rows_pulled_total",] == 1


def test_a_source_that_raises_breaks_no_scrape() -> None:
    clock, failing = Clock(), [False]
    metrics = Metrics(clock=clock)

    def source() -> Mapping[str, Any]:
        if failing[0]:
            raise OSError("gone")
        return {"sessions": 1}

    metrics.watch(source)
    assert scrape(metrics)["terrace_sessions",] == 1
    failing[0] = True
    clock.now += 2
    seen = scrape(metrics)
    assert seen["terrace_figures_up",] == 0
    assert ("terrace_sessions",) not in seen  # rather none than an old one
    failing[0] = False
    clock.now += 2
    assert scrape(metrics)["terrace_figures_up",] == 1


def test_a_scrape_does_not_wait_for_another_ones_source() -> None:
    metrics = Metrics()
    began, go_on = threading.Event(), threading.Event()

    def source() -> Mapping[str, Any]:
        began.set()
        assert go_on.wait(DEADLINE)
        return {"sessions": 1}

    metrics.watch(source)
    with ThreadPoolExecutor(1, thread_name_prefix="terrace-test") as pool:
        slow = pool.submit(scrape, metrics)
        try:
            assert began.wait(DEADLINE)
            assert ("terrace_sessions",) not in scrape(metrics)
        finally:
            go_on.set()
        assert slow.result(DEADLINE)["terrace_sessions",] == 1


def test_counters_grow_where_the_store_begins_anew() -> None:
    clock, counts = Clock(), iter([10, 25, 3, 8])
    metrics = Metrics(clock=clock)
    metrics.watch(lambda: report(next(counts)))
    seen = []
    for _ in range(4):
        seen.append(scrape(metrics)["terrace_accesses_total", "ads", "ram"])
        clock.now += 2
    assert seen == [10, 25, 28, 33]


def test_two_shards_of_one_process_are_apart() -> None:
    one, other = Metrics(), Metrics()
    one.pulled(0.1, rows=5, size=1)
    assert scrape(other)["terrace_rows_pulled_total",] == 0
    assert "terrace" not in prometheus_client.generate_latest().decode()


def test_names_follow_prometheus_and_each_has_help() -> None:
    metrics = Metrics()
    metrics.refused("overload")
    metrics.watch(lambda: report() | {"queue": {"items": 1, "bytes": 1}, "sessions": 1})
    text = metrics.expose().decode()
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    helps = dict(re.findall(r"^# HELP (\S+) (.+)$", text, re.MULTILINE))
    assert set(kinds) == set(helps)
    for name, kind in kinds.items():
        assert re.fullmatch(r"terrace_[a-z_]+", name)
        assert name.endswith("_total") == (kind == "counter"), name
