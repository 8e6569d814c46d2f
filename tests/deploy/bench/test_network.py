from __future__ import annotations

from pathlib import Path

import pytest

from deploy.bench.network import Plan, bench_network
from deploy.command import run


def test_figures_are_those_of_the_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["certificate", str(tmp_path / "tls"), "--hosts", "127.0.0.1"]) == 0
    plan = Plan(tmp_path / "stores", 3000, 2000, 8, 2, [1], tmp_path / "tls")
    figures = bench_network(plan, print)
    assert set(figures["rows_per_s"]) == set(figures["push_rows_per_s"]) == {"1"}
    for name in ("pull", "push"):
        assert figures[f"{name}_fraction"] > 0
        assert figures[f"{name}_bytes_per_s"] > 0
        assert figures[f"mtls_{name}_bytes_per_s"] > 0
    assert figures["bare_grpc_bytes_per_s"] > 0
    capsys.readouterr()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--shards", "none"], "--shards"),
        (["--rows", "10", "--stored", "5"], "--rows"),
        (["--dir", "."], "--dir"),
    ],
)
def test_what_cannot_be_meant_is_one_line(
    arguments: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = [] if "--dir" in arguments else ["--dir", str(tmp_path / "new")]
    assert run(["bench", "network", *where, *arguments]) == 1
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1
