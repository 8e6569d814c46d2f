"""Work: what the processes under faults do to a store, and what the store may show afterwards.

Steps are numbered from 1 on and never done twice: a process that goes on after a crash starts at a
higher number, so that a row of a lost time would be told from one that counts. What a step does is
a function of its number: most write rows, some by `write`, some where they lie as a training step
does; some delete.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import ps

ADS = ps.Table("ads", dim=64, optimizer=ps.SGD(lr=1.0), init=ps.Constant(-1.0))
ROWS, BATCH, RAM = 6000, 300, "1MiB"
KEYS = np.arange(1, ROWS + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
"""(ROWS,) uint64: all keys that there may be."""
Shown = NDArray[np.int64]
"""(ROWS,): the step that wrote what a store shows of each key, 0 for a key that has no row."""
Acknowledge = Callable[[str, int, dict[str, int]], None]
"""Called with what was done ("open", "step", "checkpoint"), its step, and figures."""


@dataclass(frozen=True)
class Life:
    """What one process does: steps from ``first`` on, as many as it lives for or ``steps``.

    seconds: it goes on for as many at least. checkpoint_every: so many steps. sync: False is LMDB
    without, for a recorded life that has to lose something.
    """

    first: int
    durability: str
    steps: int = 1 << 30
    interval_seconds: float = 1.0
    checkpoint_every: int = 6
    seconds: float = 0.0
    sync: bool = True

    def makes_checkpoint(self, step: int) -> bool:
        """Whether a checkpoint follows the step."""
        return step % self.checkpoint_every == 0


def live(path: str | Path, life: Life, acknowledge: Acknowledge) -> None:
    """Open the store and do the steps, acknowledging each; make no cut at the end."""
    with ps.open(
        path, [ADS], ram=RAM, threads=1, durability=life.durability,
        interval_seconds=life.interval_seconds, compact="10GiB",
    ) as store:  # fmt: skip
        acknowledge("open", life.first - 1, {})
        if life.durability == "checkpoint" and store.checkpoints:
            store.resume()
        end, since = life.first + life.steps, time.monotonic()
        for step in itertools.count(life.first):
            if step >= end and time.monotonic() - since >= life.seconds:
                break
            perform(store, step)
            acknowledge("step", step, _figures(store))
            if life.makes_checkpoint(step):
                store.checkpoint(step, {"step": step})
                acknowledge("checkpoint", step, {})
        store.abandon()  # `close` would make a cut of everything


def perform(store: ps.Store, step: int) -> None:
    """Do one step."""
    places = places_of(step)
    if deletes(step):
        store.delete("ads", KEYS[places])
    elif step % 2:
        store.write("ads", KEYS[places], values_of(places, np.full(len(places), step)))
    else:
        train(store, places, step)


def train(store: ps.Store, places: NDArray[np.int64], step: int) -> None:
    """Change rows where they lie in the top tier."""
    working_set = store.stage({"ads": [KEYS[places]]})
    hold, part, top = working_set.hold(), working_set.parts["ads"], store.stacks["ads"].top
    with store.stepping():
        with store.planner:
            (embeddings, *_) = top.array.host
            embeddings[part.positions] = values_of(places, np.full(len(places), step))
            top.steps[part.positions], top.dirty[part.positions] = step, 1
        hold.drop()
    store.settle()


def deletes(step: int) -> bool:
    """Whether the step deletes rows; others write some."""
    return step % 5 == 3


@functools.cache
def places_of(step: int) -> NDArray[np.int64]:
    """Places in `KEYS` of the rows that the step writes or deletes, without duplicates."""
    count = BATCH // 5 if deletes(step) else BATCH
    return np.random.default_rng(step).permutation(ROWS)[:count]


def values_of(places: NDArray[np.int64], steps: NDArray[np.int64]) -> NDArray[np.float32]:
    """(N, dim) float32: what these rows hold when the steps wrote them; step 0 is a fresh row."""
    seeds = KEYS[places] ^ steps.astype(np.uint64) * np.uint64(0xD6E8FEB86659FD93)
    mixed = seeds[:, None] * (2 * np.arange(ADS.dim, dtype=np.uint64) + np.uint64(3))
    values = (mixed >> np.uint64(40)).astype(np.float32)
    values[:, 0] = steps
    values[steps == 0] = -1
    return values


def shown_by(store: ps.Store) -> Shown:
    """What the store shows. Fails when a row is not wholly as one step wrote it."""
    everything = np.arange(ROWS)
    values = store.read("ads", KEYS)
    steps = np.maximum(values[:, 0], 0).astype(np.int64)
    wrong = np.flatnonzero((values != values_of(everything, steps)).any(axis=1))
    assert not len(wrong), f"row {wrong[0]} is not as step {steps[wrong[0]]} wrote it"
    return steps


class Truth:
    """What a store may show after a crash of the process that lives this life on it.

    base: what it showed when the life began. acknowledged: the last step of which the process said
    that it was over, or the one before its first. checkpoint: the last one that is known to be
    there, of this life or an earlier one; 0 for none.
    """

    def __init__(self, life: Life) -> None:
        self.life = life
        self.base: Shown = np.zeros(ROWS, np.int64)
        self.acknowledged = life.first - 1
        self.checkpoint = 0

    def heard(self, what: str, step: int) -> None:
        """The process acknowledged this."""
        if what == "checkpoint":
            self.checkpoint = step
        else:
            self.acknowledged = step

    def next_life(self, **changes: Any) -> Life:
        """Another one after the crash; what it may have done last is not done again."""
        self.life = replace(self.life, first=self.acknowledged + 2, **changes)
        self.acknowledged = self.life.first - 1
        return self.life

    def checkpoints(self) -> set[int]:
        """What the newest checkpoint may be: the one under way may have happened."""
        last = self.acknowledged
        under_way = last >= self.life.first and self.life.makes_checkpoint(last)
        return {self.checkpoint, last} if under_way else {self.checkpoint}

    def possible(self) -> Sequence[int]:
        """The steps after one of which the store may stand."""
        last, begin = self.acknowledged, self.life.first - 1
        if self.life.durability == "strict":
            return [last, last + 1]
        if self.life.durability == "interval":
            return range(max(begin, self.checkpoint), last + 2)
        return sorted({max(begin, step) for step in self.checkpoints()})

    def states(self, possible: Sequence[int]) -> Iterator[tuple[int, Shown]]:
        """(step, what is shown) for each of these steps, and for each end of the deletions.

        A deletion is durable when it returns, however far the rest goes back; the one under way
        may have happened.
        """
        shown, last = self.base.copy(), self.acknowledged
        for step in range(self.life.first - 1, max(possible) + 1):
            if step >= self.life.first:
                places = places_of(step)
                shown[places] = 0 if deletes(step) else step
            if step in possible:
                for end in {max(step, last), max(step, last + 1)}:
                    yield step, _without(shown, range(step + 1, end + 1))

    def settle(self, shown: Shown, possible: Sequence[int]) -> int:
        """The step after which the store stands; fails when it is none of the possible ones."""
        for step, state in self.states(possible):
            if np.array_equal(state, shown):
                self.base = state
                return step
        _, nearest = min(self.states(possible), key=lambda pair: int((pair[1] != shown).sum()))
        rows = np.flatnonzero(nearest != shown)
        raise AssertionError(
            f"expected the state after a step of {min(possible)} to {max(possible)}, the last "
            f"acknowledged being {self.acknowledged}; nearest differs in {len(rows)} rows, row "
            f"{rows[0]} is of step {shown[rows[0]]}, expected {nearest[rows[0]]}"
        )


def _without(shown: Shown, steps: Sequence[int]) -> Shown:
    left = shown.copy()
    for step in steps:
        if deletes(step):
            left[places_of(step)] = 0
    return left


def _figures(store: ps.Store) -> dict[str, int]:
    stats, top = store.stacks["ads"].ssd.stats, store.stacks["ads"].top.stats
    return {
        "moved": stats.rows_moved, "freed": stats.segments_freed, "evicted": top.evicted,
    }  # fmt: skip


def warm(folder: Path) -> None:
    """Do a little of everything once, so that what forks from this process has it compiled."""
    said: list[Any] = []
    for durability in ("strict", "interval"):
        first = 1 if durability == "strict" else 101
        live(folder, Life(first, durability, steps=8), lambda *what: said.append(what))
    with ps.open(folder, [ADS], ram=RAM, threads=1) as store:
        store.resume()
        shown_by(store)
        store.check()
