"""`terrace check` and `terrace stats` on sound and damaged stores."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import ps
from deploy.command import run


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A closed store of 5,000 rows with a checkpoint at step 3."""
    with ps.open(tmp_path / "s", [ps.Table("ads", dim=8)], ram="4MiB") as opened:
        opened.write("ads", np.arange(5000), np.full((5000, 8), 0.777, np.float32))
        opened.checkpoint(3)
    return tmp_path / "s"


def test_sound_store_is_called_sound(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", str(store), "--json", str(store / "r.json")]) == 0
    assert "5,000 rows" in capsys.readouterr().out
    assert json.loads((store / "r.json").read_text())["sound"]


def test_stats_shows_tables_rows_and_checkpoints(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["stats", str(store), "--json", str(store / "r.json")]) == 0
    out = capsys.readouterr().out
    assert "5,000" in out
    assert json.loads((store / "r.json").read_text())["checkpoints"] == [3]


def test_flipped_bit_is_found_with_table_and_rows(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = bytearray((store / "data.mdb").read_bytes())
    # Some pages of the file are free and hold what they held before, so one flip may miss.
    pattern, at = np.float32(0.777).tobytes() * 8, 0
    while (at := content.find(pattern, at + 4096)) >= 0:
        content[at] ^= 1
    (store / "data.mdb").write_bytes(bytes(content))
    assert run(["check", str(store), "--json", str(store / "r.json")]) == 1
    out = capsys.readouterr().out
    assert "ads" in out
    assert "rows" in out
    assert not json.loads((store / "r.json").read_text())["sound"]


def test_repair_keeps_what_is_whole(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = bytearray((store / "data.mdb").read_bytes())
    pattern, at, flips = np.float32(0.777).tobytes() * 8, 0, 0
    while (at := content.find(pattern, at + 4096)) >= 0 and flips < 20:
        content[at] ^= 1
        flips += 1
    (store / "data.mdb").write_bytes(bytes(content))
    assert run(["check", str(store)]) == 1
    assert run(["check", str(store), "--repair", "--json", str(store / "r.json")]) == 0
    assert "repaired" in capsys.readouterr().out
    report = json.loads((store / "r.json").read_text())
    assert report["repaired"] and report["lost_rows"] > 0
    assert run(["check", str(store)]) == 0
    with ps.open(store, None, ram="4MiB") as opened:
        found = opened.read("ads", np.arange(5000))
    assert 0 < (found == np.float32(0.777)).all(axis=1).sum() < 5000


def test_damage_that_opening_would_trip_over_is_told_without(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = bytearray((store / "data.mdb").read_bytes())
    for page in (0, 4096):
        content[page + 128] ^= 8  # the root of LMDB's tree
    (store / "data.mdb").write_bytes(bytes(content))
    assert run(["check", str(store)]) == 1
    assert "data.mdb: main DB" in capsys.readouterr().out
