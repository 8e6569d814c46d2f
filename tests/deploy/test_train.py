"""`terrace train`: what it reports, refuses, and survives."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import ps
from deploy.command import run
from ps.launch import Launch
from worker.data.trace import open_trace, read_all

DATA = "synthetic:rows=60000,examples=8000,features=4,dense=2,zipf=0.5"
SMALL = ["--data", DATA, "--batch-size", "100", "--ram", "3MiB", "--threads", "1"]


def _train(store: Path, *more: str) -> tuple[int, dict[str, Any]]:
    report = store.with_suffix(".json")
    code = run(["train", *SMALL, "--store", str(store), "--json", str(report), *more])
    return code, json.loads(report.read_text()) if report.exists() else {}


def test_report_has_what_design_promises(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, report = _train(tmp_path / "s", "--steps", "20", "--prefetch", "0")
    assert code == 0
    assert len(report["losses"]) == 20
    assert report["loss"] == report["losses"][-1]
    assert {"auc", "logloss", "examples_per_s", "hit_rate", "ssd_rows_read", "ssd_rows_written",
            "rows", "bytes", "rows_crc"} <= report.keys()  # fmt: skip
    assert 0 < report["bytes"]["ram_peak"] <= report["bytes"]["ram_budget"]
    assert report["rows"] == report["stats"]["tables"]["features"]["first_seen"]["keys"]
    out = capsys.readouterr()
    assert "rows in ssd" in out.out
    assert "--resume" in out.out
    assert "disk:" in out.err


def test_checkpoints_come_after_steps_or_minutes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, (every, made) in enumerate((("2", 3), ("1e-9min", 6), ("10min", 1), ("0", 1))):
        code, report = _train(tmp_path / str(number), "--steps", "6", "--checkpoint-every", every)
        assert (code, report["checkpoints"]) == (0, made)
        assert report["checkpoint_seconds"] > 0
    assert "1, in 0." in capsys.readouterr().out
    for wrong in ("10s", "1.5", "min", ""):
        assert run(["train", *SMALL, "--checkpoint-every", wrong]) == 1
        assert f"or minutes such as 10min, got {wrong!r}" in capsys.readouterr().err


def test_tiers_do_not_show_in_the_report(tmp_path: Path) -> None:
    _, plain = _train(tmp_path / "a", "--steps", "30", "--ram", "64MiB", "--prefetch", "0")
    _, tight = _train(tmp_path / "b", "--steps", "30", "--ram", "1500KB", "--prefetch", "4")
    _, three = _train(tmp_path / "c", "--steps", "30", "--hbm", "200KiB")
    assert tight["ssd_rows_written"] > plain["ssd_rows_written"]
    assert set(three["hit_rate"]) == {"hbm", "ram", "ssd"}
    _, ahead = _train(tmp_path / "d", "--steps", "30", "--ram", "1500KB", "--lookahead", "8")
    for other in (tight, three, ahead):
        assert other["losses"] == plain["losses"]
        assert other["rows_crc"] == plain["rows_crc"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--ram", "8GBs"), ("--ram", "8GBs")),
        (("--ram", "10KB"), ("--ram", "at least")),
        (("--optimizer", "sdg"), ("--optimizer", "sgd", "sdg")),
        (("--preset", "big"), ("preset", "small")),
        (("--device", "cuda", "--hbm", "1GiB"), ("CUDA",)),
        (("--batch-size", "0"), ("batch_size",)),
        (("--lookahead", "1"), ("--lookahead", "2", "1")),
        (("--dense-lr", "1e38"), ("dense_lr", "1e+38")),
        (("--dense-lr", "nan"), ("dense_lr", "nan")),
        (("--data", "nowhere.tsv"), ("nowhere.tsv",)),
    ],
)
def test_bad_input_gets_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: tuple[str, ...],
    words: tuple[str, ...],
) -> None:
    if more[0] == "--device":
        torch = pytest.importorskip("torch")
        if torch.cuda.is_available():
            pytest.skip("a CUDA device is here")
    code, _ = _train(tmp_path / "s", "--steps", "2", *more)
    lines = capsys.readouterr().err.strip().splitlines()
    assert code == 1
    assert all(word in lines[-1] for word in words), lines


def test_store_with_rows_is_never_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, first = _train(tmp_path / "s", "--steps", "5")
    code, _ = _train(tmp_path / "s", "--steps", "5")
    assert code == 1
    assert "--resume" in capsys.readouterr().err
    code, _ = _train(tmp_path / "s", "--steps", "5", "--resume", "--dim", "8")
    assert code == 1
    assert "dim 16, expected 8" in capsys.readouterr().err
    code, again = _train(tmp_path / "s", "--steps", "5", "--resume")
    assert (code, again["rows_crc"], again["losses"]) == (0, first["rows_crc"], [])


def _start(store: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", "from deploy.command import main; main()", "train", *SMALL]
    return subprocess.Popen(
        [*command, "--store", str(store), "--json", str(store.with_suffix(".json")), *more],
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip


def _wait_for_a_checkpoint(process: subprocess.Popen[str], store: Path) -> None:
    """Until the data file holds a checkpoint: it has grown beyond an empty store's."""
    while process.poll() is None:
        if (store / "data.mdb").exists() and (store / "data.mdb").stat().st_size > 400_000:
            return


@pytest.mark.parametrize(
    "blow",
    [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.stress), signal.SIGKILL],
)
def test_interrupted_run_resumes_with_the_same_losses(tmp_path: Path, blow: signal.Signals) -> None:
    _, whole = _train(tmp_path / "whole", "--checkpoint-every", "5", "--epochs", "3")
    process = _start(tmp_path / "cut", "--checkpoint-every", "5", "--epochs", "3")
    _wait_for_a_checkpoint(process, tmp_path / "cut")
    process.send_signal(blow)
    process.communicate(timeout=120)
    assert process.returncode == (-signal.SIGKILL if blow == signal.SIGKILL else 130)
    code, rest = _train(tmp_path / "cut", "--checkpoint-every", "5", "--epochs", "3", "--resume")
    assert code == 0
    assert 0 < len(rest["losses"]) < len(whole["losses"])
    assert rest["losses"] == whole["losses"][-len(rest["losses"]) :]
    assert rest["rows_crc"] == whole["rows_crc"]


@pytest.mark.filterwarnings("ignore:.*gave up the checkpoint:ResourceWarning")
def test_full_disk_stops_with_the_last_checkpoint_good(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--checkpoint-every", "10", "--epochs", "3")
    code, _ = _train(tmp_path / "s", "--disk", "3MiB", *more)
    assert code == 1
    assert "disk" in capsys.readouterr().err.splitlines()[-1]
    _, whole = _train(tmp_path / "whole", *more)
    code, rest = _train(tmp_path / "s", "--resume", *more)
    assert code == 0
    assert rest["losses"] == whole["losses"][-len(rest["losses"]) :]


def test_skipped_lines_are_counted(tmp_path: Path) -> None:
    good = "\t".join(["1", *["5"] * 13, *["68fd1e64"] * 26])
    bad = "1\t2\t3"
    (tmp_path / "log.tsv").write_text("\n".join([good, bad] * 60) + "\n")
    data = ("--data", str(tmp_path / "log.tsv"), "--batch-size", "10")
    code, report = _train(tmp_path / "s", *data, "--bad-lines", "skip")
    assert (code, report["bad_lines"]) == (0, 60)
    assert run(["train", *SMALL, "--store", str(tmp_path / "t"), *data]) == 1


def test_a_recorded_run_can_be_read_as_a_trace(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "trace.npy"
    code, report = _train(tmp_path / "s", "--record", str(path), "--prefetch", "0")
    recorded, trained = open_trace(str(path)), open_trace(DATA, batch_size=100)
    assert (code, recorded.format) == (0, "npy, recorded batches")
    got, want = read_all(recorded), read_all(trained)
    assert np.array_equal(got.keys, want.keys) and np.array_equal(got.batches, want.batches)
    # What was evaluated is not in it, and results are those of a run without.
    _, plain = _train(tmp_path / "t", "--prefetch", "0")
    assert (report["losses"], report["rows_crc"]) == (plain["losses"], plain["rows_crc"])
    capsys.readouterr()
    assert _train(tmp_path / "u", "--record", str(path))[0] == 1
    assert "expected a new file to record to" in capsys.readouterr().err.splitlines()[-1]
    assert _train(tmp_path / "u", "--record", str(tmp_path / "w"), "--verify")[0] == 1
    assert "--record: not with --verify" in capsys.readouterr().err
    more = ("--resume", "--epochs", "2", "--prefetch", "0", "--record", str(tmp_path / "2.npy"))
    _train(tmp_path / "s", *more)
    assert np.array_equal(read_all(open_trace(str(tmp_path / "2.npy"))).keys, want.keys)


def test_a_ghost_says_what_other_sizes_would_hit_and_is_not_seen_in_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, ghost = _train(tmp_path / "g", "--steps", "40", "--ghost")
    assert code == 0
    assert "features: with 2x the RAM" in capsys.readouterr().out
    _, plain = _train(tmp_path / "p", "--steps", "40")
    assert plain["ghost"] is None
    assert (ghost["losses"], ghost["rows_crc"]) == (plain["losses"], plain["rows_crc"])
    sizes = {size["times_ram"]: size for size in ghost["ghost"]["features"]["sizes"]}
    assert sizes[1.0]["hit_rate"] == pytest.approx(ghost["hit_rate"]["ram"]["key"], abs=0.05)
    assert _train(tmp_path / "v", "--ghost", "--verify")[0] == 1
    assert "--ghost: not with --verify" in capsys.readouterr().err


def _launch(store: Path, *more: str) -> subprocess.Popen[str]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    main = ["--no-python", sys.executable, "-c", "from deploy.command import main; main()"]
    worker = ["--nproc-per-node", "2", *main, "train", *SMALL]
    return subprocess.Popen(
        [*torchrun, *worker, "--store", str(store / "store"), "--json", str(store / "report.json"),
         *more],
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip


def _end(process: subprocess.Popen[str]) -> tuple[str, str]:
    """What it said; nothing that torchrun started is left, however it ended."""
    workers = psutil.Process(process.pid).children(recursive=True)
    try:
        return process.communicate(timeout=120)
    finally:
        for each in (process, *workers):
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        process.wait()


def test_workers_of_torchrun_stop_together_go_on_together_and_one_speaks(tmp_path: Path) -> None:
    stores = [tmp_path / "store" / f"{rank}-of-2" for rank in range(2)]
    process = _launch(tmp_path, "--checkpoint-every", "5", "--epochs", "10000")
    for store in stores:
        _wait_for_a_checkpoint(process, store)
    process.send_signal(signal.SIGTERM)
    _, err = _end(process)
    assert process.returncode != 0
    assert err.count("stopping after this step") == 1, err
    assert err.count("2 workers on this machine: --ram 3.00 MiB each, 6.00 MiB together") == 1, err
    assert err.count("disk:") == 1
    step = json.loads((tmp_path / "report.json").read_text())["step"]
    for store in stores:
        with ps.open(store, ram="4MiB", launch=Launch()) as opened:
            assert opened.checkpoints[-1] == step
    process = _launch(tmp_path, "--resume", "--steps", str(step + 3), "--epochs", "10000")
    out, err = _end(process)
    assert process.returncode == 0, err
    assert err.count(f"resumed at step {step}") == 1
    assert out.count("go on: terrace train") == 1
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["step"], len(report["losses"]), report["train"]["examples"]) == (
        step + 3, 3, 300,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--durability", "strict"), ("rank 1: ", "--durability: not with several")),
        (("--ghost",), ("rank 1: ", "--ghost: not with several workers")),
        (("--record", "x.npy"), ("rank 1: ", "--record: not with several workers")),
        (("--verify",), ("rank 1: ", "--verify: not with several workers")),
    ],
)
def test_what_several_workers_cannot_do_is_refused(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    more: tuple[str, ...],
    words: tuple[str, ...],
) -> None:
    place = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    code, _ = _train(tmp_path / "s", *more)
    lines = capsys.readouterr().err.strip().splitlines()
    assert (code, len(lines)) == (1, 1)
    assert all(word in lines[0] for word in words), lines
    monkeypatch.delenv("RANK")
    assert _train(tmp_path / "s")[0] == 1
    assert "RANK: expected in the environment" in capsys.readouterr().err
