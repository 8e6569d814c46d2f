"""Progress is plain lines where there is no terminal; hit rates leave out first-seen keys."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import ps
from deploy.display import Display, hit_rates, show_table
from worker.trainer import Progress


def test_hits_are_per_access_and_per_key_and_leave_out_first_seen_keys(tmp_path: Path) -> None:
    with ps.open(tmp_path, [ps.Table("t", dim=4)], ram="4MiB") as store:
        for keys in ([1, 1, 1, 2], [1, 3]):
            store.stage({"t": [np.array(keys, np.uint64)]}).hold().drop()
            store.settle()
        rates = hit_rates(store.tiers())
    assert rates["ram"] == {"access": 1 / 6, "key": 1 / 4}
    assert rates["ssd"] == {"access": 0.0, "key": 0.0}


def test_progress_is_a_plain_line_without_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy.display._LINE_SECONDS", 0.0)
    with (
        ps.open(tmp_path, [ps.Table("t", dim=4)], ram="4MiB") as store,
        Display(store, 10) as display,
    ):
        display.show(Progress(step=3, losses=[0.5]))
    err = capsys.readouterr().err
    assert err.startswith("step 3/10  loss 0.5000")
    assert "\x1b" not in err


def test_table_is_printed_whole(capsys: pytest.CaptureFixture[str]) -> None:
    show_table("done", {"steps": 3, "a long name " * 3: "x"})
    assert "steps" in capsys.readouterr().out
