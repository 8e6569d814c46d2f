"""`terrace train --admit`: what the options mean, and what is said about it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import ps
from deploy.admit import admission, shown
from deploy.command import run
from storage.errors import ConfigError

DATA = "synthetic:rows=60000,examples=8000,features=4,dense=2,zipf=0.8"
SMALL = ["--data", DATA, "--batch-size", "100", "--ram", "6MiB", "--threads", "1"]


def train(store: Path, *more: str) -> tuple[int, dict[str, Any]]:
    file = store.with_suffix(".json")
    file.unlink(missing_ok=True)
    code = run(["train", *SMALL, "--store", str(store), "--json", str(file), *more])
    return code, json.loads(file.read_text()) if file.exists() else {}


@pytest.mark.parametrize(
    ("options", "meant"),
    [
        ((None, "sketch", None, None), None),
        ((None, "probability", None, None), None),
        ((2, "sketch", None, None), ps.CountMin(2)),
        ((3, "sketch", 50, "1MiB"), ps.CountMin(3, bytes=1 << 20, decay=50)),
        ((2, "exact", None, None), ps.ExactCount(2)),
        ((4, "probability", None, None), ps.Probability(0.25)),
    ],
)
def test_options_mean_what_they_say(options: Any, meant: object) -> None:
    times, by, decay, size = options
    assert admission(times, by, decay=decay, size=size) == meant


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((0, "probability", None, None), "--admit: expected 1"),
        ((256, "exact", None, None), "times=256"),
        ((None, "sketch", 5, None), "--admit-decay 5: expected --admit "),
        ((None, "sketch", None, "1MiB"), "--admit-bytes 1MiB: expected --admit "),
        ((2, "probability", 5, None), "--admit-by sketch or exact"),
        ((2, "exact", None, "1MB5"), "--admit-bytes"),
        ((2, "sketch", None, "1KiB"), "bytes=1024"),
    ],
)
def test_options_that_cannot_be_meant_are_named(options: Any, words: str) -> None:
    times, by, decay, size = options
    with pytest.raises(ConfigError, match=words):
        admission(times, by, decay=decay, size=size)


def test_the_run_names_its_admission(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, plain = train(tmp_path / "plain", "--steps", "40")
    assert plain["admission"] is None
    assert "refused" not in capsys.readouterr().out
    code, twice = train(tmp_path / "twice", "--steps", "40", "--admit", "2", "--admit-by", "exact")
    assert code == 0
    found = twice["admission"]
    assert (found["kind"], found["threshold"], found["decay"]) == ("exact", 2, None)
    assert found["rows"] == twice["rows"] == found["keys_admitted"] < plain["rows"]
    assert found["gradients_dropped"] == found["keys_refused"] > 0  # a key came once in the step
    assert found["keys_refused"] >= plain["rows"] - twice["rows"]
    out = capsys.readouterr().out
    assert "exact, from 2 uses on" in out and f"{found['keys_refused']:,}" in out
    code, _ = train(tmp_path / "twice", "--steps", "50", "--resume")
    assert code == 1
    assert "made with admission exact(times=2" in capsys.readouterr().err


def test_lines_for_people_name_every_kind() -> None:
    found = {"keys_admitted": 1, "keys_refused": 2000, "gradients_dropped": 3}
    sketch = {**found, "kind": "sketch", "threshold": 2, "decay": 1000}
    assert shown(sketch)["keys get a row"] == "sketch, from 2 uses on, halved every 1,000 steps"
    chance = {**found, "kind": "probability", "threshold": 1 / 3}
    assert shown(chance)["keys get a row"] == "probability, 0.333 a use"
    assert shown(chance)["keys admitted / refused"] == "1 / 2,000"


@pytest.mark.parametrize("by", ["sketch", "probability"])
def test_a_run_with_admission_is_verified_and_resumed(tmp_path: Path, by: str) -> None:
    more = ("--admit", "2", "--admit-by", by, "--checkpoint-every", "10")
    ram = "3500KB" if by == "sketch" else "1200KB"
    code, report = train(tmp_path / "v", "--verify", "--steps", "30", *more, "--ram", ram)
    assert (code, report["equal"], report["exact"]) == (0, True, True)
    assert report["evicted"] > 0
    _, whole = train(tmp_path / "whole", "--steps", "40", *more)
    train(tmp_path / "two", "--steps", "20", *more)
    _, rest = train(tmp_path / "two", "--steps", "40", "--resume", *more)
    assert rest["losses"] == whole["losses"][20:]
    assert rest["rows_crc"] == whole["rows_crc"]
