"""Shrink: a smaller file shows the same; deleted rows leave the folder; crashes harm nothing."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

import ps
from ps.directory import BESIDE
from ps.shrink import shrink
from storage.errors import CorruptError, LockedError

ADS = ps.Table("ads", dim=16, optimizer=ps.Adagrad(lr=0.1), init=ps.Zeros())
USERS = ps.Table("users", dim=4, optimizer=ps.SGD(lr=0.1), init=ps.Zeros(), dtype="bfloat16")
ROWS = 6000


def make_store(path: Path) -> list[int]:
    """A store with two checkpoints and a last cut after them: the digests of all three."""
    digests = []
    with ps.open(path, [ADS, USERS], ram="4MiB") as store:
        rng = np.random.default_rng(0)
        for step in range(1, 10):
            keys = rng.permutation(ROWS)[:2000]
            store.write("ads", keys, np.full((2000, 16), step, np.float32))
            store.write("users", keys[:50], np.full((50, 4), step, np.float32))
            if step in (2, 4, 8):
                store.checkpoint(step, {"step": step, "layer": torch.full((3,), float(step))})
                digests.append(store.digest())
        store.cut()
        digests.append(store.digest())
    return digests[1:]


def digests_of(path: Path) -> list[int]:
    found = []
    with ps.open(path, None, ram="4MiB") as store:
        assert store.check() == []
        assert store.checkpoints == [4, 8]
        found.append(store.digest())
        step, state = store.resume()
        assert step == 8 and state["step"] == 8 and state["layer"].tolist() == [8.0] * 3
        found.insert(0, store.digest())
        store._upkeep.checkpoints._manifests.pop(max(store._upkeep.checkpoints._manifests))
        assert store.resume()[0] == 4
        found.insert(0, store.digest())
        store.planner.failure = RuntimeError("looked only")  # makes no cut
    return found


def test_present_and_checkpoints_stay_and_the_file_shrinks(tmp_path: Path) -> None:
    digests = make_store(tmp_path)
    seen: list[tuple[int, int]] = []
    report = shrink(tmp_path, lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] > 0
    assert report.bytes_after < 0.9 * report.bytes_before
    assert report.bytes_after == (tmp_path / "data.mdb").stat().st_size
    assert report.rows["ads"] > ROWS * 0.8
    assert not (tmp_path / BESIDE).exists()
    again = shrink(tmp_path)
    assert again.rows == report.rows
    assert digests_of(tmp_path) == digests


def test_a_deleted_rows_bytes_are_in_no_file(tmp_path: Path) -> None:
    pattern = np.array([1.25, -7.625, 3.1415926, 2.7182818] * 4, np.float32)

    def holders() -> list[str]:
        files = [file for file in tmp_path.rglob("*") if file.is_file()]
        return [file.name for file in files if pattern.tobytes() in file.read_bytes()]

    with ps.open(tmp_path, [ADS], ram="4MiB") as store:
        store.write("ads", np.arange(1000), np.tile(pattern, (1000, 1)))
        store.checkpoint(1)
        store.delete("ads", np.arange(1000))
        store.write("ads", np.arange(1000, 3000), np.ones((2000, 16)))
        store.checkpoint(2)
        store.checkpoint(3)
    assert holders() == ["data.mdb"]
    shrink(tmp_path)
    assert holders() == []
    with ps.open(tmp_path, None, ram="4MiB") as store:
        assert len(store.stacks["ads"].ssd) == 2000
        assert store.resume()[0] == 3


def test_training_goes_on_in_the_new_file(tmp_path: Path) -> None:
    make_store(tmp_path)
    shrink(tmp_path)
    with ps.open(tmp_path, None, ram="4MiB") as store:
        store.write("ads", np.arange(ROWS), np.full((ROWS, 16), 99.0))
        store.checkpoint(9)
        store.checkpoint(10)
    with ps.open(tmp_path, None, ram="4MiB") as store:
        assert (store.read("ads", np.arange(ROWS)) == 99).all()
        assert store.check() == []


def test_a_store_in_use_or_damaged_stays_as_it_is(tmp_path: Path) -> None:
    digests = make_store(tmp_path)
    with ps.open(tmp_path, None, ram="4MiB"), pytest.raises(LockedError):
        shrink(tmp_path)
    file = tmp_path / "data.mdb"
    sound = file.read_bytes()
    damaged = bytearray(sound)
    pattern, at = np.float32(9).tobytes() * 16, 0
    while (at := damaged.find(pattern, at + 4096)) >= 0:
        damaged[at] ^= 1
    file.write_bytes(damaged)
    with pytest.raises(CorruptError, match=r"block \d+.*rows"):
        shrink(tmp_path)
    assert not (tmp_path / BESIDE).exists()
    file.write_bytes(sound)
    assert digests_of(tmp_path) == digests


@pytest.mark.parametrize("blocks", [1, 300, 10**9])
def test_a_kill_leaves_the_old_store_or_the_new_one(tmp_path: Path, blocks: int) -> None:
    digests = make_store(tmp_path)

    def die(done: int, total: int) -> None:
        if done >= min(blocks, total):
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        shrink(tmp_path, die)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert (tmp_path / BESIDE).exists()
    assert digests_of(tmp_path) == digests
    assert not (tmp_path / BESIDE).exists()
