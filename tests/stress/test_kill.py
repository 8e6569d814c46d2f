"""Kill -9 at random instants of training: what was acknowledged is there, and nothing is half done.

A kill leaves the page cache as it is, so this finds what is wrong between Terrace's transactions;
`test_power` is about what had not reached the disk.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import ps
from tests.stress.forker import Forker, Said
from tests.stress.work import ADS, RAM, Life, Truth, shown_by

MOST_STEPS, MOST_SECONDS = 25, 0.03


@pytest.fixture(scope="module")
def forker() -> Iterator[Forker]:
    with Forker() as forker:
        yield forker


@pytest.mark.parametrize("durability", ["strict", "interval", "checkpoint"])
@pytest.mark.parametrize(
    "cycles", [2, pytest.param(110, marks=pytest.mark.stress)], ids=["few", "many"]
)
def test_killed_at_any_instant_the_store_shows_a_prefix_of_the_steps(
    tmp_path: Path, forker: Forker, durability: str, cycles: int
) -> None:
    truth = Truth(Life(1, durability, interval_seconds=0.02))
    rng, work = np.random.default_rng(cycles), Counter[str]()
    for _ in range(cycles):
        said = live_and_die(forker, tmp_path, truth.life, rng)
        for one in said:
            truth.heard(one["what"], one["step"])
        work.update(figures_at_the_end(said))
        stands_at_a_possible_step(tmp_path, truth)
        truth.next_life()
    assert work["evicted"] and (cycles < 100 or (work["moved"] and work["freed"])), work


def live_and_die(forker: Forker, path: Path, life: Life, rng: np.random.Generator) -> list[Said]:
    """What a process said that was killed some acknowledgements, and a moment, after its start."""
    pid = forker.begin(path, life)
    said = [forker.hear() for _ in range(rng.integers(0, MOST_STEPS))]
    deadline = time.monotonic() + rng.uniform(0, MOST_SECONDS)
    while (left := deadline - time.monotonic()) > 0:
        said += [one for one in [forker.hear(left)] if one]
    os.kill(pid, signal.SIGKILL)
    rest, code = forker.hear_end()
    assert code == -signal.SIGKILL
    return said + rest


def figures_at_the_end(said: list[Said]) -> dict[str, int]:
    """Rows evicted and moved and segments freed in one life."""
    last = next((one for one in reversed(said) if one["what"] == "step"), {})
    return {name: last[name] for name in ("evicted", "moved", "freed") if name in last}


def stands_at_a_possible_step(path: Path, truth: Truth) -> None:
    """The store opens, is sound, and shows what it may show; that is where the truth goes on."""
    with ps.open(path, [ADS], ram=RAM, threads=1) as store:
        assert store.check() == []
        step = truth.settle(shown_by(store), truth.possible())
        newest = max(store.checkpoints, default=0)
        assert newest in truth.checkpoints()
        truth.checkpoint = newest
        if truth.life.durability == "checkpoint" and newest:
            assert newest == step or step < truth.life.first
            assert store.resume() == (newest, {"step": newest})
            assert np.array_equal(shown_by(store), truth.base)
