"""`terrace backup`: what it says, Ctrl-C, and that training goes on from what it made."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import ps
from deploy.command import run

DATA = "synthetic:rows=20000,examples=8000,features=4"


def train(store: Path, *more: str) -> list[str]:
    return ["train", "--data", DATA, "--ram", "16MiB", "--batch-size", "256",
            "--store", str(store), *more]  # fmt: skip


def losses(report: Path) -> object:
    return json.loads(report.read_text())["losses"]


def test_training_goes_on_in_the_backup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, copy, report = tmp_path / "s", tmp_path / "b", tmp_path / "r.json"
    assert run(train(store, "--steps", "10")) == 0
    capsys.readouterr()
    assert run(["backup", str(store), str(copy), "--json", str(report)]) == 0
    out = capsys.readouterr().out
    found = json.loads(report.read_text())
    assert found.keys() == {"step", "blocks_copied", "bytes_written", "blocks_removed", "seconds"}
    assert found["step"] == 10 and found["blocks_copied"] > 0 == found["blocks_removed"]
    assert f"{copy}: step 10, {found['blocks_copied']:,} blocks" in out and out.count("\n") == 1
    assert run(["check", str(copy)]) == 0
    digests = []
    for folder in (store, copy):
        assert run(train(folder, "--steps", "20", "--resume", "--json", str(report))) == 0
        with ps.open(folder, None, ram="16MiB") as opened:
            digests.append(opened.digest())
    assert digests[0] == digests[1]


def test_an_error_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ps.open(tmp_path / "s", [ps.Table("ads", dim=8)], ram="4MiB") as store:
        assert run(["backup", str(tmp_path / "s"), str(tmp_path / "b")]) == 1
        assert "has it open" in capsys.readouterr().err
        store.checkpoint(1)
    assert run(["backup", str(tmp_path / "none"), str(tmp_path / "b")]) == 1
    assert capsys.readouterr().err.count("\n") == 1


INTERRUPTED = """
import os, signal, sys
import ps.backup
from deploy.command import run
from storage.log import BlockLog
signal.signal(signal.SIGINT, signal.default_int_handler)  # also where it came in ignored
append = BlockLog.append
def interrupt(self, table, first, blocks):
    append(self, table, first, blocks)
    os.kill(os.getpid(), signal.SIGINT)
BlockLog.append = interrupt
sys.exit(run(["backup", *sys.argv[1:]]))
"""


def test_ctrl_c_ends_it_and_the_next_one_goes_on(tmp_path: Path) -> None:
    store, copy = str(tmp_path / "s"), str(tmp_path / "b")
    with ps.open(store, [ps.Table("ads", dim=64)], ram="16MiB") as opened:
        opened.write("ads", np.arange(20_000), np.ones((20_000, 64)))
        opened.checkpoint(3)
        digest = opened.digest()
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, store, copy],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 128 + signal.SIGINT and "Traceback" not in done.stderr
    assert run(["backup", store, copy]) == 0
    with ps.open(copy, None, ram="16MiB") as opened:
        assert opened.resume()[0] == 3
        assert opened.digest() == digest
