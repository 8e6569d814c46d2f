"""`terrace train --verify`: it proves equality, and it would notice a difference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deploy.command import run
from storage.rows import Rows
from storage.ssd import SsdTier

ARGUMENTS = [
    "train", "--data", "synthetic:rows=1e6,examples=8000,features=4,dense=2,zipf=0.3",
    "--batch-size", "100", "--ram", "1500KB", "--threads", "1", "--steps", "60", "--verify",
]  # fmt: skip


@pytest.mark.parametrize("more", [(), ("--hbm", "100KiB"), ("--dtype", "bfloat16")])
def test_runs_agree_while_rows_leave_memory(tmp_path: Path, more: tuple[str, ...]) -> None:
    report = tmp_path / "r.json"
    assert run([*ARGUMENTS, *more, "--json", str(report)]) == 0
    found = json.loads(report.read_text())
    assert found["equal"]
    assert found["exact"] == ("bfloat16" not in more)
    assert found["evicted"] > 1000
    assert len(found["losses"]) == 60


def test_changed_row_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lookup = SsdTier.lookup

    def wrong(tier: SsdTier, keys: Any, counts: Any) -> tuple[Rows, Any]:
        rows, missing = lookup(tier, keys, counts)
        rows.values[~missing, 0] += 0.01
        return rows, missing

    monkeypatch.setattr(SsdTier, "lookup", wrong)
    report = tmp_path / "r.json"
    assert run([*ARGUMENTS, "--json", str(report)]) == 1
    found = json.loads(report.read_text())
    assert not found["equal"]
    assert found["step"] is not None
    assert f"step {found['step']}" in capsys.readouterr().out
