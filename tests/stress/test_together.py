"""Workers that share a store are killed at any moment: they end as if nothing had been.

torchrun starts all of them again, and they go back to the last checkpoint of all. A run of one
layout is the same to the bit each time, so losses from there on, and rows, are as in another run.
"""

from __future__ import annotations

import json
import random
import re
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.stress.torchrun import DEADLINE_SECONDS, Words, descendants, wait, workers

EVERY = 20


def words(folder: Path, steps: int) -> Words:
    data = "synthetic:rows=30000,examples=1000000,features=4,dense=2,zipf=1.05"
    return [
        "--data", data, "--batch-size", "100", "--threads", "1", "--steps", str(steps),
        "--checkpoint-every", str(EVERY), "--store", str(folder / "store"), "--ram", "16MiB",
        "--json", str(folder / "report.json"), "--resume",
    ]  # fmt: skip


def report(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return found


@pytest.mark.parametrize(
    ("kills", "steps"),
    [(1, 200), pytest.param(10, 6000, marks=pytest.mark.stress)],
    ids=["one", "ten"],
)
def test_killed_workers_end_with_the_losses_and_rows_of_others(
    tmp_path: Path, kills: int, steps: int
) -> None:
    folders = [tmp_path / name for name in ("undisturbed", "disturbed")]
    for folder in folders:
        folder.mkdir()
    with workers(words(folders[0], steps), tmp_path / "log") as process:
        assert process.wait(DEADLINE_SECONDS) == 0, (tmp_path / "log").read_text()[-3000:]
    expected = report(folders[0])
    log, rng, pause = folders[1] / "log", random.Random(kills), threading.Event()
    with workers(words(folders[1], steps), log, restarts=kills) as process:
        for number in range(kills):
            wait(process, lambda number=number: len(_began(log)) > number, log)
            pause.wait(rng.uniform(0, steps / 200))
            victims = [each for each in descendants(process) if "RANK" in _environment(each)]
            assert victims, f"they ended before they were killed {kills} times; make it longer"
            rng.choice(victims).kill()
            print(f"kill {number + 1}")
        assert process.wait(DEADLINE_SECONDS) == 0, log.read_text()[-3000:]
    found, began = report(folders[1]), _began(log)
    print(f"began at {began} of {steps}")
    assert len(began) == kills + 1
    assert found["step"] == expected["step"] == steps
    assert found["losses"] == expected["losses"][began[-1] :]
    assert found["rows_crc"] == expected["rows_crc"]


def _began(log: Path) -> list[int]:
    """At which step each start of the workers began."""
    return [int(n) for n in re.findall(r"(?:resumed|starting) at step (\d+)", log.read_text())]


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except psutil.Error:
        return {}
