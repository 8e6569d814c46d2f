"""A checkpoint of all workers that is interrupted anywhere leaves the old or the new one whole."""

from __future__ import annotations

import json
import random
import threading
import time
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest

from tests.crew import started
from tests.stress.interrupted import SECONDS, WORLD


def run(folder: Path, deaths: list[int], *, spare: bool) -> list[dict[str, Any]]:
    """What each worker said. spare: whether the other one is let alone when one dies."""
    (folder / "meet").unlink(missing_ok=True)
    words = [(rank, folder, death) for rank, death in enumerate(deaths)]
    with started("tests.stress.interrupted", words) as processes:
        if not spare:
            _end_with_the_first(processes)
        said = [process.communicate(timeout=SECONDS) for process in processes]
    found: list[dict[str, Any]] = []
    for out, err in said:
        found.append({"err": err})
        for line in out.splitlines():
            found[-1] |= json.loads(line)
    return found


def _end_with_the_first(processes: list[Popen[str]]) -> None:
    """When one has ended the others are killed."""
    deadline = time.monotonic() + SECONDS
    while all(process.poll() is None for process in processes):
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)
    for process in processes:
        process.kill()


@pytest.mark.parametrize(
    "times", [2, pytest.param(100, marks=pytest.mark.stress)], ids=["two", "hundred"]
)
def test_it_leaves_one_of_the_two(tmp_path: Path, times: int) -> None:
    rng = random.Random(times)
    run(tmp_path, [0] * WORLD, spare=True)
    first = run(tmp_path, [0] * WORLD, spare=True)
    step, old, new = 2, 0, 0
    for number in range(times + 1):
        victim = number % WORLD
        deaths = [0] * WORLD
        if number < times:
            deaths[victim] = rng.randint(1, first[victim]["calls"])
        found = run(tmp_path, deaths, spare=rng.random() < 0.5)
        for each in found:
            assert each.keys() >= {"step", "seen", "state"}, each["err"]
            assert each["seen"] == [each["step"]] == [each["state"]], (deaths, found)
        (seen,) = {each["step"] for each in found}
        assert seen in (step, step + 1) if number else seen == step
        if number:
            old, new = old + (seen == step), new + (seen == step + 1)
        step = seen
    print(f"interrupted {times} times: {old} left the old one, {new} the new one")
