"""A disk that others have filled: one line says so, and with room again the run goes on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.command import run

DATA = "synthetic:rows=60000,examples=8000,features=4,dense=2,zipf=0.5"
TRAIN = ["train", "--data", DATA, "--batch-size", "100", "--ram", "3MiB", "--threads", "1",
         "--epochs", "2", "--checkpoint-every", "10"]  # fmt: skip
DISK_BYTES, LEFT_BYTES, DEADLINE_SECONDS = 64 << 20, 5 << 20, 120.0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of its own of 64 MiB."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a small disk")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(disk)],
        capture_output=True, text=True,
    )  # fmt: skip
    if mounted.returncode:
        pytest.skip(f"no small disk: {mounted.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def terrace(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from deploy.command import main; main()", *words],
        capture_output=True, text=True, timeout=DEADLINE_SECONDS,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )  # fmt: skip


def test_a_run_that_fills_the_disk_goes_on_when_there_is_room(
    tmp_path: Path, small_disk: Path
) -> None:
    store, ballast = small_disk / "store", small_disk / "ballast"
    with open(ballast, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, DISK_BYTES - LEFT_BYTES)
    full = terrace(*TRAIN, "--store", str(store))
    assert full.returncode == 1
    assert "Traceback" not in full.stderr
    assert "disk" in full.stderr.splitlines()[-1] and "full" in full.stderr.splitlines()[-1]
    assert run(["check", str(store)]) == 0
    ballast.unlink()
    resumed = terrace(*TRAIN, "--store", str(store), "--json", str(tmp_path / "rest"), "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert run([*TRAIN, "--store", str(tmp_path / "s"), "--json", str(tmp_path / "whole")]) == 0
    rest, whole = (json.loads((tmp_path / name).read_text()) for name in ("rest", "whole"))
    assert 0 < len(rest["losses"]) < len(whole["losses"])
    assert rest["losses"] == whole["losses"][-len(rest["losses"]) :]
    assert rest["rows_crc"] == whole["rows_crc"]
