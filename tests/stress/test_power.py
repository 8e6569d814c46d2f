"""Power cuts at random instants: what had reached the disk is enough for what was promised."""

from __future__ import annotations

import bisect
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

import ps
from storage.errors import TerraceError
from tests.stress.journal import MARKED, Disk, read_journal
from tests.stress.recorder import build, compiler, record
from tests.stress.work import ADS, RAM, Life, Truth, live, shown_by

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C compiler to build the recorder")

INTERVAL = 0.1
# Beside the interval a cut takes its time: the steps it waits for, and the thread's turn.
SLACK = 1.0
LIVES = {
    "strict": Life(1, "strict", steps=40),
    "interval": Life(1, "interval", 50, INTERVAL, checkpoint_every=500, seconds=2.0),
    "checkpoint": Life(1, "checkpoint", steps=60),
    "short": Life(1, "strict", steps=8),
    "unsynced": Life(1, "strict", steps=8, sync=False),
}
"""Recorded for each run; the last two are the recorder's own test."""


class Run:
    """A recorded life in the store at ``path``."""

    def __init__(self, path: Path, life: Life) -> None:
        self.path, self.life = path, life
        self.records = read_journal(path.with_suffix(".journal"))

    @property
    def acknowledgements(self) -> list[int]:
        """Places of the records that say that something is over."""
        return [i for i, one in enumerate(self.records) if one.kind == MARKED]

    def heard(self, instant: int) -> tuple[Truth, int]:
        """What was acknowledged before a record, and the least step that must be there then."""
        truth, begin = Truth(self.life), self.life.first - 1
        steps, times = [begin], []
        for one in self.records[:instant]:
            if one.kind == MARKED:
                what, step = one.data.decode().split()
                truth.heard(what, int(step))
                if what == "step":
                    steps.append(int(step))
                    times.append(one.seconds)
        if self.life.durability != "interval":
            return truth, begin
        before = self.records[instant].seconds - self.life.interval_seconds - SLACK
        return truth, steps[bisect.bisect(times, before)]

    def cut(
        self, instants: Sequence[int], rng: np.random.Generator | None, *, goes_on: bool = True
    ) -> None:
        """Cut the power while the calls at these instants go on, and look at what is left."""
        disk, done = Disk(), 0
        for number, instant in enumerate(instants):
            for one in self.records[done:instant]:
                disk.play(one)
            done = instant
            left = self.path.with_name(f"{self.path.name}-{number}")
            spread(disk.after_cut(self.records[instant], rng), left)
            try:
                truth, lowest = self.heard(instant)
                survives(left, truth, lowest)
                if goes_on:
                    lives_on(left, truth)
            except (AssertionError, TerraceError) as error:
                error.add_note(f"{left}: cut at record {instant} of {len(self.records)}")
                raise
            shutil.rmtree(left)


def spread(files: dict[str, bytes], folder: Path) -> None:
    """Write the files into a new folder."""
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name.lstrip("/")).write_bytes(content)


def survives(path: Path, truth: Truth, lowest: int) -> None:
    """The store opens, is sound, and shows what it may show."""
    with ps.open(path, [ADS], ram=RAM, threads=1) as store:
        assert store.check() == []
        possible = [step for step in truth.possible() if step >= lowest]
        step = truth.settle(shown_by(store), possible)
        newest = max(store.checkpoints, default=0)
        assert newest in truth.checkpoints()
        if truth.life.durability == "checkpoint" and newest:
            assert newest == step
            assert store.resume() == (newest, {"step": newest})
            assert np.array_equal(shown_by(store), truth.base)


def lives_on(path: Path, truth: Truth) -> None:
    """The store takes new steps, and is sound after them."""
    live(path, truth.next_life(steps=4, seconds=0.0), lambda what, step, _: truth.heard(what, step))
    with ps.open(path, [ADS], ram=RAM, threads=1) as store:
        assert store.check() == []
        truth.settle(shown_by(store), truth.possible())


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("recorder"))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, library: Path) -> dict[str, Run]:
    """One run of each life."""
    return make_runs(tmp_path_factory.mktemp("recorded"), library)


def make_runs(folder: Path, library: Path) -> dict[str, Run]:
    record(library, {folder / name: life for name, life in LIVES.items()})
    return {name: Run(folder / name, life) for name, life in LIVES.items()}


@pytest.mark.parametrize("durability", ["strict", "interval", "checkpoint"])
def test_what_was_promised_survives_a_power_cut(recorded: dict[str, Run], durability: str) -> None:
    cut_everywhere(recorded[durability], 2)


@pytest.mark.stress
def test_what_was_promised_survives_hundreds_of_power_cuts(tmp_path: Path, library: Path) -> None:
    for number in range(2):
        runs = make_runs(tmp_path / str(number), library)
        for durability in ("strict", "interval", "checkpoint"):
            cut_everywhere(runs[durability], 20, seed=number)


def cut_everywhere(run: Run, cuts: int, seed: int = 0) -> None:
    """At any instant, and just after an acknowledgement when nothing unsynced is left."""
    rng = np.random.default_rng(seed)
    run.cut(sorted(rng.integers(0, len(run.records), cuts).tolist()), rng)
    after = rng.choice(run.acknowledgements[1:], cuts, replace=False) + 1
    run.cut(sorted(after.clip(max=len(run.records) - 1).tolist()), None)


@pytest.mark.parametrize(
    "cuts", [1, pytest.param(12, marks=pytest.mark.stress)], ids=["few", "many"]
)
def test_a_power_cut_while_a_store_is_made_leaves_one_or_none(
    recorded: dict[str, Run], cuts: int
) -> None:
    """At every call until it is open."""
    run = recorded["short"]
    opened = run.acknowledgements[0]
    run.cut(np.repeat(np.arange(opened), cuts).tolist(), np.random.default_rng(1), goes_on=False)


def test_the_recorder_misses_nothing(recorded: dict[str, Run]) -> None:
    """Played to the end, the journal is the files, byte for byte."""
    run, disk = recorded["short"], Disk()
    for one in run.records:
        disk.play(one)
    found = disk.everything()
    assert {"/data.mdb", "/terrace.json"} <= found.keys()
    for name in found.keys() - {"/lock.mdb"}:  # which LMDB maps, and makes anew
        assert (run.path / name.lstrip("/")).read_bytes() == found[name], name


def test_without_syncs_the_same_cut_loses_what_was_acknowledged(recorded: dict[str, Run]) -> None:
    """At the end, when of what is not synced nothing is left."""
    for name in ("short", "unsynced"):
        run = recorded[name]
        with nullcontext() if run.life.sync else pytest.raises(AssertionError, match="the state"):
            run.cut([len(run.records) - 1], None)
