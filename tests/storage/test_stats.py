"""Counters are reported as JSON values."""

from __future__ import annotations

import json

from storage.stats import FirstSeen, TierStats


def test_the_report_has_every_counter_as_a_json_number() -> None:
    stats = TierStats(accesses=5, key_hits=2)
    report = json.loads(json.dumps(stats.report()))
    assert report == {name: getattr(stats, name) for name in TierStats.__slots__}
    assert (report["accesses"], report["key_hits"], report["evicted"]) == (5, 2, 0)


def test_counters_start_at_nothing() -> None:
    assert set(TierStats().report().values()) == {0}
    assert (FirstSeen().accesses, FirstSeen().keys) == (0, 0)
