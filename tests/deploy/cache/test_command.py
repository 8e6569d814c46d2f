"""`terrace cache`: tables, files, and one line for what cannot be meant."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.command import run
from tests.storage.replaying import hits, skewed

KEYS = skewed(2, 5000, 400)


@pytest.fixture
def trace(tmp_path: Path) -> str:
    path = tmp_path / "keys.npy"
    np.save(path, np.array(KEYS, np.uint64))
    return str(path)


def report_of(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    path = tmp_path / "r.json"
    assert run(["cache", *arguments, "--json", str(path)]) == 0
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_hits_go_to_table_csv_plot_and_json(
    trace: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plot, csv = tmp_path / "p.png", tmp_path / "r.csv"
    report = report_of(
        tmp_path, trace, "--policy", "lru,belady", "--size", "20,10%", "--plot", str(plot),
        "--csv", str(csv),
    )  # fmt: skip
    first = report["results"][0]
    assert (first["policy"], first["capacity"], first["accesses"]) == ("lru", 20, 5000)
    assert first["hits"] == sum(hits("lru", 20, KEYS))
    assert first["hit_rate"] == first["hits"] / 5000 and first["accesses_per_s"] > 0
    assert report["distinct"] == report["first_seen"] == len(set(KEYS))
    out = capsys.readouterr().out
    assert f"{first['hit_rate']:.2%}" in out and f"plot: {plot}" in out
    assert plot.stat().st_size > 1000 and csv.read_text().count("\n") == 5


def test_the_stack_is_replayed_by_batches(trace: str, tmp_path: Path) -> None:
    report = report_of(
        tmp_path, trace, "--hbm", "60", "--ram", "30%", "--batch", "50", "--policy", "sieve",
        "--prefetch", "1",
    )  # fmt: skip
    (result,) = report["results"]
    assert [tier["tier"] for tier in result["tiers"]] == ["hbm", "ram", "ssd"]
    assert result["capacity"] == 60 + int(0.3 * len(set(KEYS)))


def test_one_pass_gives_the_curve(trace: str, tmp_path: Path) -> None:
    report = report_of(tmp_path, trace, "--shards", "4000", "--size", "20")
    exact = sum(hits("lru", 20, KEYS)) / 5000
    assert report["results"][0]["hit_rate"] == pytest.approx(exact, abs=0.002)


def test_budgets_are_recommended(
    trace: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = report_of(
        tmp_path, trace, "--recommend", "--hbm-gb", "0.00001", "--ram-gb", "0.001", "--batch",
        "50", "--optimizer", "adagrad", "--dim", "8",
    )  # fmt: skip
    assert report["row_floats"] == 16
    assert set(report["offers"]) >= {"recommended", "all of it"}
    assert "recommended: --hbm" in capsys.readouterr().out


def test_training_data_is_a_trace_and_a_size_above_its_keys_is_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = "synthetic:rows=1e3,examples=500,features=4"
    assert run(["cache", data, "--size", "1M", "--policy", "lru", "--batch", "64"]) == 0
    assert "1,000,000 rows hold all" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--policy", "mru"], "expected some of lru"),
        (["--size", "0"], "expected at least 1 row"),
        (["--hbm", "10"], "--hbm: expected --ram too"),
        (["--ram", "10", "--size", "5"], "expected either one tier's sizes or --ram"),
        (["--shards", "10", "--sample", "0.5"], "expected neither --ram nor --sample"),
        (["--sample", "0"], "expected a share above 0"),
        (["--sample", "1e-9"], "that leaves keys over"),
        (["--size", "5", "--batch", "500"], "rows at once, more than the 5"),
        (["--recommend", "--optimizer", "x"], "--optimizer: expected one of"),
        (["--plot", "p.gif"], "ending in .png or .svg"),
        (["--format", "x"], "format: expected one of"),
    ],
)
def test_what_cannot_be_meant_is_one_line(
    trace: str, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert run(["cache", trace, *arguments]) == 1
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
