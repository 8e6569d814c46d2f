"""`terrace compact`: what it says, and that the store is the smaller for it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import ps
from deploy.command import run


def test_it_says_how_small_the_file_is_now(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "s"
    with ps.open(folder, [ps.Table("ads", dim=8)], ram="4MiB") as store:
        for value in range(6):
            store.write("ads", np.arange(5000), np.full((5000, 8), value, np.float32))
    assert run(["compact", str(folder), "--json", str(tmp_path / "r.json")]) == 0
    assert "5,000 versions of rows" in capsys.readouterr().out
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["bytes_after"] < report["bytes_before"]
    assert run(["check", str(folder)]) == 0


def test_no_store_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compact", str(tmp_path / "none")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
