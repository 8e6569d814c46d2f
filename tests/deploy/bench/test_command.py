"""`terrace bench store`: a table, a file of figures, and nothing left behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deploy.command import run


def test_it_measures_and_clears_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, report = tmp_path / "b", tmp_path / "r.json"
    arguments = ["bench", "store", "--dir", str(folder), "--rows", str(1 << 17), "--dim", "4",
                 "--rounds", "1", "--reads", "64", "--no-peers", "--json", str(report)]  # fmt: skip
    code = run(arguments)
    out = capsys.readouterr()
    if "direct reads" in out.err:
        pytest.skip(out.err)
    assert code == 0
    assert "random rows read" in out.out
    assert json.loads(report.read_text())["rows"] == 1 << 17
    assert not folder.exists()


def test_a_folder_that_is_there_is_not_touched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").write_text("x")
    assert run(["bench", "store", "--dir", str(tmp_path)]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert (tmp_path / "mine").exists()


@pytest.mark.parametrize(("rows", "under"), [(10**13, ""), (1 << 17, "file")])
def test_what_cannot_be_measured_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: int, under: str
) -> None:
    (tmp_path / "file").write_text("x")
    assert run(["bench", "store", "--dir", str(tmp_path / under / "b"), "--rows", str(rows)]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / under / "b").exists()
