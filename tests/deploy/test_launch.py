"""terrace launch: what cannot be meant is told at once; Ctrl-C ends it with a checkpoint."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

import ps
from deploy.command import run
from ps.launch import Launch

SECONDS = 90.0
REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["serve"], "launch: expected -- train ..., got serve"),
        (["train", "--store", "x"], "--store: not in what follows --; give --dir"),
        (["train", "--servers=a:1"], "--servers: not in what follows --"),
    ],
)
def test_what_cannot_be_meant_is_one_line(
    words: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["launch", "--dir", str(tmp_path / "new"), "--", *words]) == 1
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1
    assert not (tmp_path / "new").exists()


@pytest.mark.stress
def test_ctrl_c_ends_workers_with_a_checkpoint_and_the_next_goes_on(tmp_path: Path) -> None:
    words = [
        "launch", "--workers", "2", "--dir", str(tmp_path / "dir"), "--json",
        str(tmp_path / "report.json"), "--", "train", "--data",
        "synthetic:rows=2000,examples=100000,features=4,dense=2", "--epochs", "1000",
        "--batch-size", "200", "--threads", "1", "--ram", "8MiB",
    ]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-c", "from deploy.command import main; main()", *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY,
    )  # fmt: skip
    assert process.stderr is not None
    said, left = [], []
    try:
        for line in process.stderr:
            said.append(line)
            if "loss" in line:  # it trains
                left = psutil.Process(process.pid).children(recursive=True)
                process.send_signal(signal.SIGINT)
                break
        _, err = process.communicate(timeout=SECONDS)
        said.append(err)
    finally:
        process.kill()
        process.communicate()
        for each in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
    everything = "".join(said)
    assert process.returncode == 130, everything
    assert "terrace: stopping after this step" in everything
    assert "Traceback" not in everything
    assert json.loads((tmp_path / "report.json").read_text())["code"] == 130
    with ps.open(tmp_path / "dir/store/0-of-2", ram="4MiB", launch=Launch()) as store:
        assert store.checkpoints[-1] > 0
