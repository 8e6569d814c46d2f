"""Tables and CSV of results."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from deploy.cache.curve import Offer
from deploy.cache.show import show_offers, show_results, write_csv
from deploy.cache.study import Result
from storage.errors import ConfigError

TIERS = (
    {"tier": "hbm", "accesses": 100, "access_hits": 30},
    {"tier": "ram", "accesses": 70, "access_hits": 20},
    {"tier": "ssd", "accesses": 50, "access_hits": 40},
)


def test_a_table_tells_tiers_apart(capsys: pytest.CaptureFixture[str]) -> None:
    show_results("t", [Result("lru", 10, 100, 50, 10, 2e6, 7, TIERS)], 40)
    out = capsys.readouterr().out
    rates = ("25.000%", "50.00%", "55.56%", "30.00%", "20.00%")
    for said in (*rates, "in hbm", "in ram", " 7 ", "2.0"):
        assert said in out


def test_offers_are_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    show_offers("t", {"all of it": Offer(1 << 30, 2 << 30, 5, 10, 0.5, 0.25, 0.1, 1500.0)})
    out = capsys.readouterr().out
    for said in ("all of it", "1.00 GiB", "2.00 GiB", "50.0%", "25.0%", "10.0%", "1,500"):
        assert said in out


def test_csv_has_a_line_for_each_result(tmp_path: Path) -> None:
    write_csv(tmp_path / "r.csv", [Result("lru", 10, 100, 50, 10, 2e6)])
    with (tmp_path / "r.csv").open() as file:
        (line,) = csv.DictReader(file)
    assert (line["policy"], line["capacity"], line["hit_rate"]) == ("lru", "10", "0.5")
    write_csv(None, [])
    with pytest.raises(ConfigError, match=r"--csv .*: cannot be written"):
        write_csv(tmp_path / "none" / "r.csv", [])
