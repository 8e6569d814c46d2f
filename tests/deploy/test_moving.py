"""`terrace export` and `terrace import`: what goes out comes in again, bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import ps
from deploy.command import run


@pytest.mark.parametrize("format", ["parquet", "safetensors"])
def test_export_comes_back_as_it_went(tmp_path: Path, format: str) -> None:
    table = ps.Table("ads", dim=8, optimizer=ps.Adam())
    with ps.open(tmp_path / "s", [table], ram="4MiB") as store:
        store.write("ads", np.arange(3000) * 7, np.random.default_rng(0).random((3000, 8)))
        digest = store.digest()
    folder, copy = str(tmp_path / "out"), str(tmp_path / "copy")
    assert run(["export", str(tmp_path / "s"), folder, "--format", format]) == 0
    assert run(["import", folder, copy]) == 0
    with ps.open(copy, None, ram="4MiB") as store:
        assert store.digest() == digest
        assert store.tables["ads"] == table


def test_folder_that_is_no_export_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert run(["import", str(tmp_path / "empty"), str(tmp_path / "copy")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
