"""What a run over servers reports: that of one machine, and what only servers know."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deploy.command import run
from deploy.served import Served

DATA = "synthetic:rows=60000,examples=8000,features=4,dense=2,zipf=0.5"
SMALL = ["--data", DATA, "--batch-size", "200", "--threads", "1", "--steps", "20"]


def _report(path: Path, *more: str) -> dict[str, object]:
    assert run(["train", *SMALL, *more, "--json", str(path)]) == 0
    found: dict[str, object] = json.loads(path.read_text())
    return found


@pytest.mark.parametrize("admission", [[], ["--admit", "2", "--admit-by", "exact"]])
def test_servers_change_no_figure_of_training(
    admission: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    embedded = ["--store", str(tmp_path / "store"), "--ram", "8MiB"]
    here = _report(tmp_path / "here.json", *admission, *embedded)
    with Served(tmp_path / "shards", 2, ("--ram", "16MiB")) as served:
        remote = ["--servers", served.addresses, "--ram", "2MiB"]
        there = _report(tmp_path / "there.json", *admission, *remote)
        out = capsys.readouterr().out
        assert "--servers" in out and "rows used so many steps old" in out
        # Not empty any more.
        assert run(["train", *SMALL, *admission, *remote]) == 1
        assert "add --resume" in capsys.readouterr().err
        again = _report(tmp_path / "again.json", *admission, *remote, "--epochs", "2", "--resume")
    for name in ("losses", "auc", "logloss", "rows", "rows_crc", "skipped_rows"):
        assert there[name] == here[name], name
    assert there["staleness"] == {"0": there["stats"]["tables"]["features"]["tiers"][0]["keys"]}  # type: ignore[index]
    assert set(there["hit_rate"]) == {"ram", "shard ram"}  # type: ignore[call-overload]
    if admission:
        assert there["admission"]["keys_admitted"] == here["admission"]["keys_admitted"]  # type: ignore[index]
    assert again["step"] == 20


def test_options_of_one_machine_are_refused_beside_servers(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for option in (["--verify"], ["--ghost"], ["--disk", "1GiB"]):
        assert run(["train", "--data", DATA, "--servers", "127.0.0.1:1", *option]) == 1
        said = capsys.readouterr().err
        assert option[0] in said and said.count("\n") == 1
