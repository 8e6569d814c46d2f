"""Metrics: the figures of one shard as Prometheus reads them.

Two kinds. What happens (a pull, a push, a refusal) is counted when it happens, in `pulled`,
`pushed`, `refused` and `waited`. What is (rows, bytes, sessions) and what the store counts itself
are read at a scrape from a source given to `watch`. The source may have to wait for the shard's
owner, so it is asked once a second at most and by one scrape at a time; others get the last
answer. A source that raises costs its figures, not the scrape: ``terrace_figures_up`` is 0 then.

Threads: any.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

# Of the body that `expose` returns.
CONTENT_TYPE = CONTENT_TYPE_LATEST
Source = Callable[[], Mapping[str, Any]]

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60)
_BYTES = tuple(4**power for power in range(5, 14))  # 1 KiB to 64 MiB
_STEPS = (0, 1, 2, 4, 8, 16, 32, 64)
_FRESH_SECONDS = 1.0
# Each reason is a series that Prometheus keeps: a wrong caller must not make them without end.
_MOST_REASONS = 32

# Figures of the shard: where a source has them, the name, the help. A source may lack any.
_GAUGES = (
    (("queue", "items"), "terrace_queue_items", "Requests that wait for the owner thread."),
    (("queue", "bytes"), "terrace_queue_bytes", "Bytes of requests that wait."),
    (("disk_bytes", "file"), "terrace_disk_file_bytes", "Bytes of the store's file."),
    (("disk_bytes", "used"), "terrace_disk_used_bytes", "Bytes in use in the store's file."),
    (("disk_bytes", "total"), "terrace_disk_cap_bytes", "Bytes that the file may grow to."),
    (("disk_bytes", "free"), "terrace_disk_free_bytes", "Bytes that can still be written."),
    (("checkpoint_age_seconds",), "terrace_checkpoint_age_seconds",
     "Time since the newest checkpoint was committed."),
    (("sessions",), "terrace_sessions", "Sessions of workers that are open."),
    (("recovering",), "terrace_recovering", "1 while workers replay after a restart, else 0."),
)  # fmt: skip
# Counters of each tier: where its report has them, the name, the help.
_TIER_COUNTERS = (
    ("accesses", "terrace_accesses", "Rows asked of a tier, duplicates of a batch included."),
    ("access_hits", "terrace_access_hits", "Rows asked of a tier that it had."),
    ("keys", "terrace_keys", "Unique keys of batches asked of a tier."),
    ("key_hits", "terrace_key_hits", "Unique keys of batches asked of a tier that it had."),
)


class Metrics:
    """See the module's docstring; in a registry of its own.

    clock: seconds, never going back.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._registry = registry = CollectorRegistry()
        self._pull_seconds = Histogram(
            "terrace_pull_duration_seconds", "Time from a pull's arrival to its reply.",
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self._push_seconds = Histogram(
            "terrace_push_duration_seconds", "Time from a push's arrival to its reply.",
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self._pull_bytes = Histogram(
            "terrace_pull_size_bytes", "Bytes of a pull's reply.",
            buckets=_BYTES, registry=registry,
        )  # fmt: skip
        self._push_bytes = Histogram(
            "terrace_push_size_bytes", "Bytes of a push's request.",
            buckets=_BYTES, registry=registry,
        )  # fmt: skip
        self._pulled = Counter("terrace_rows_pulled", "Rows sent to workers.", registry=registry)
        self._pushed = Counter(
            "terrace_rows_pushed", "Rows whose gradients were applied.", registry=registry
        )
        self._skipped = Counter(
            "terrace_rows_skipped", "Rows left out, their gradient not being finite.",
            registry=registry,
        )  # fmt: skip
        self._refused = Counter(
            "terrace_requests_refused", "Requests refused, by reason.", ["reason"],
            registry=registry,
        )  # fmt: skip
        self._staleness = Histogram(
            "terrace_staleness_steps", "Steps by which pulled rows were behind the worker.",
            buckets=_STEPS, registry=registry,
        )  # fmt: skip
        self._lock = threading.Lock()
        self._reasons: set[str] = set()
        self._figures = _Figures(clock)
        registry.register(self._figures)

    def pulled(self, seconds: float, *, rows: int, size: int) -> None:
        """Count a pull that was answered with so many rows; size: bytes of the reply."""
        self._pull_seconds.observe(seconds)
        self._pull_bytes.observe(size)
        self._pulled.inc(rows)

    def pushed(self, seconds: float, *, rows: int, size: int, skipped: int = 0) -> None:
        """Count a push whose gradients of ``rows`` rows were applied, ``skipped`` others not.

        size: bytes of the request.
        """
        self._push_seconds.observe(seconds)
        self._push_bytes.observe(size)
        self._pushed.inc(rows)
        self._skipped.inc(skipped)

    def refused(self, reason: str) -> None:
        """Count a refused request. reason: a word of the code's, never what a client sent.

        After 32 different reasons the rest are "other".
        """
        with self._lock:
            if reason not in self._reasons:
                if len(self._reasons) >= _MOST_REASONS:
                    reason = "other"
                self._reasons.add(reason)
        self._refused.labels(reason).inc()

    def observed(self, staleness_steps: int) -> None:
        """Count a pull by how many steps its rows were behind the worker's own clock."""
        self._staleness.observe(staleness_steps)

    def watch(self, stats: Source) -> None:
        """Read the other figures from this source from now on, at most once a second.

        It returns what `Store.stats` does, and beside it ``queue`` {items, bytes}, ``sessions``,
        ``recovering``, ``checkpoint_age_seconds`` and ``disk_bytes`` {free}: what is missing or
        None is left out of a scrape. It may raise, and may be called from any thread.
        """
        self._figures.watch(stats)

    def expose(self) -> bytes:
        """All figures in Prometheus's text format; takes as long as the source does."""
        return generate_latest(self._registry)


class _Figures(Collector):
    """The figures of the source, as of the last second."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._begun = clock()
        self._asking = threading.Lock()
        self._source: Source | None = None
        self._asked: float | None = None
        self._last: list[Metric] = []
        self._up = False
        self._growing = _Growing()

    def watch(self, source: Source) -> None:
        """Ask this source from now on."""
        with self._asking:
            self._source, self._asked = source, None

    def collect(self) -> Iterable[Metric]:
        """All families; the source is asked only if nobody is asking it and its figures are old."""
        if self._asking.acquire(blocking=False):
            try:
                self._refresh()
            finally:
                self._asking.release()
        yield GaugeMetricFamily(
            "terrace_uptime_seconds", "Time since the shard's start.", self._clock() - self._begun
        )
        yield GaugeMetricFamily(
            "terrace_figures_up", "1 if the shard's own figures could be read, else 0.", self._up
        )
        yield from self._last

    def _refresh(self) -> None:
        now = self._clock()
        if self._source is None or (self._asked is not None and now - self._asked < _FRESH_SECONDS):
            return
        self._asked = now
        try:
            stats = self._source()
            self._last, self._up = [*_gauges(stats), *self._tables(stats)], True
        except Exception:  # whatever is wrong with the shard, what it counted itself is shown
            self._last, self._up = [], False

    def _tables(self, stats: Mapping[str, Any]) -> list[Metric]:
        rows = GaugeMetricFamily("terrace_rows", "Rows that a tier holds.", labels=_TIER)
        used = GaugeMetricFamily(
            "terrace_ram_used_bytes", "Bytes of the RAM budget that are held.", labels=["table"]
        )
        budget = GaugeMetricFamily(
            "terrace_ram_budget_bytes", "Bytes of RAM that a table may hold.", labels=["table"]
        )
        counters = {
            figure: CounterMetricFamily(name, text, labels=_TIER)
            for figure, name, text in _TIER_COUNTERS
        }
        for table, report in stats.get("tables", {}).items():
            for tier in report["tiers"]:
                labels = [table, tier["tier"]]
                rows.add_metric(labels, tier["rows"])
                for figure, family in counters.items():
                    count = self._growing.count((table, tier["tier"], figure), tier[figure])
                    family.add_metric(labels, count)
            parts = dict(report["ram_bytes"])
            budget.add_metric([table], parts.pop("total"))
            del parts["peak"]  # what is left are the parts that are held
            used.add_metric([table], sum(parts.values()))
        return [rows, used, budget, *counters.values()]


_TIER = ["table", "tier"]


def _gauges(stats: Mapping[str, Any]) -> Iterable[Metric]:
    """A family for each figure of the shard that the source has."""
    for path, name, text in _GAUGES:
        value: Any = stats
        for step in path:
            value = None if value is None else value.get(step)
        if value is not None:
            yield GaugeMetricFamily(name, text, float(value))


class _Growing:
    """Counts that go on where the store's begin anew, as they do when it goes back."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, ...], tuple[int, int]] = {}

    def count(self, name: tuple[str, ...], value: int) -> int:
        """What was counted in all, now that the store says ``value``."""
        before, last = self._seen.get(name, (0, 0))
        if value < last:
            before += last
        self._seen[name] = before, value
        return before + value
