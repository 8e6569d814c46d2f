"""What a store does, at random: rows are what a dict says, pins hold, and the budget is kept.

Steps, writes, deletions, cuts, crashes, going back to the older of two kept cuts, and compaction in
segments of two blocks. Two and three tiers with a budget so tight that rows are evicted, moved and
written below all the time; and the same run against a cache whose pins do nothing, which it must
find out.
"""

from __future__ import annotations

import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from storage.cache import CacheTier
from storage.compaction import Compaction
from storage.errors import WorkingSetError
from storage.log import BlockLog
from storage.policy import POLICIES
from storage.rows import Keys, Positions
from tests.storage.digesting import digest
from tests.storage.test_hierarchy import change, numbered, values_at
from tests.storage.test_tier import LAST, as_keys, fresh, make_stack, ones, rows_of

UNIVERSE = np.concatenate((as_keys(0, LAST), numbered(1, 90)))
chosen = st.lists(st.sampled_from(UNIVERSE.tolist()), unique=True, max_size=12)


class StackMachine(RuleBasedStateMachine):
    """Pins, steps, writes, deletions, flushes, going back and opening again, against a dict."""

    capacities: tuple[int, ...] = (30,)
    cache: type[CacheTier] = CacheTier

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "log"
        self.log = BlockLog(self.path, ["t"])
        self.tag = 1
        self.truth: dict[int, int] = {}
        self.build()
        # The kept cuts, the last one at the end: the log's end and what was true.
        self.cuts = [(self.stack.ssd.end, dict(self.truth))]

    def build(self) -> None:
        self.stack = make_stack(self.log, *self.capacities, cache=self.cache)
        self.compaction = Compaction(self.stack.ssd, nullcontext)
        self.pins: list[tuple[Keys, Positions]] = []
        self.tight = 0

    def teardown(self) -> None:
        self.log.close()
        self.folder.cleanup()

    def next_tag(self) -> int:
        self.tag += 1
        return self.tag

    def compare(self, keys: Keys, values: np.ndarray, steps: np.ndarray) -> None:
        """Rows are what was last written, or as nobody has seen them."""
        for i, key in enumerate(keys.tolist()):
            tag = self.truth.get(key)
            wanted = fresh(keys[i : i + 1]) if tag is None else rows_of(keys[i : i + 1], tag).values
            assert values[i].tolist() == wanted[0].tolist(), f"key {key}"
            assert steps[i] == (tag or 0), f"key {key}"

    @property
    def pinned_keys(self) -> set[int]:
        return {key for keys, _ in self.pins for key in keys.tolist()}

    @rule(keys=chosen)
    def pin(self, keys: list[int]) -> None:
        batch = np.array(keys, np.uint64)
        before = digest(self.stack.caches[0])
        try:
            positions = self.stack.top.pin(batch, ones(batch))
        except WorkingSetError as error:
            assert error.needed_bytes > 0
            if "'ram'" not in str(error) or len(self.capacities) == 1:
                assert digest(self.stack.caches[0]) == before
            return
        self.pins.append((batch, positions))
        self.compare(batch, values_at(self.stack, positions), self.stack.caches[0].steps[positions])

    @precondition(lambda self: self.pins)
    @rule(which=st.integers(0, 99))
    def unpin(self, which: int) -> None:
        self.stack.top.unpin(self.pins.pop(which % len(self.pins))[1])

    @precondition(lambda self: self.pins)
    @rule(which=st.integers(0, 99))
    def step(self, which: int) -> None:
        keys, positions = self.pins[which % len(self.pins)]
        change(self.stack, positions, keys, self.next_tag())
        self.truth.update(dict.fromkeys(keys.tolist(), self.tag))

    @rule(keys=chosen)
    def write(self, keys: list[int]) -> None:
        batch = np.array(keys, np.uint64)
        try:
            self.stack.top.write(rows_of(batch, self.next_tag()))
        except WorkingSetError:
            steps = self.stack.top.peek(batch)[0].steps.tolist()
            keys = [key for key, step in zip(keys, steps, strict=True) if step == self.tag]
        self.truth.update(dict.fromkeys(keys, self.tag))

    @rule(keys=chosen)
    def delete(self, keys: list[int]) -> None:
        gone = [key for key in keys if key not in self.pinned_keys]
        self.stack.top.delete(np.array(gone, np.uint64))
        for key in gone:
            for truth in (self.truth, *(truth for _, truth in self.cuts)):
                truth.pop(key, None)

    @rule(keys=chosen)
    def peek(self, keys: list[int]) -> None:
        before = [digest(cache) for cache in self.stack.caches]
        self.agree(np.array(keys, np.uint64))
        assert [digest(cache) for cache in self.stack.caches] == before

    @rule()
    def flush(self) -> None:
        try:
            self.stack.top.flush()
        except WorkingSetError:
            return
        assert not any(cache.dirty.any() for cache in self.stack.caches)
        self.cuts = [*self.cuts[-1:], (self.stack.ssd.end, dict(self.truth))]

    @rule()
    def empty_a_segment(self) -> None:
        self.compaction.step(lambda: 1 << 30, everything=True)

    @rule()
    def free(self) -> None:
        self.stack.ssd.free([end for end, _ in self.cuts])

    @rule(left=st.integers(0, 4000))
    def tighten(self, left: int) -> None:
        """Somebody else takes memory: ``left`` bytes of the budget stay free."""
        budget = self.stack.budget
        assert budget is not None
        if budget.free > left:
            self.tight += budget.free - left
            budget.hold("somebody else", self.tight)

    @precondition(lambda self: not self.pins)
    @rule()
    def crash_and_open_again(self) -> None:
        """Only what was flushed counts; the log may hold more."""
        self.log.close()
        self.log = BlockLog(self.path, ["t"])
        self.log.truncate("t", self.cuts[-1][0])
        self.truth = dict(self.cuts[-1][1])
        self.build()

    @precondition(lambda self: not self.pins)
    @rule(which=st.integers(0, 1))
    def go_back(self, which: int) -> None:
        """To the older of two kept cuts, now and then: all that is newer is given up."""
        self.cuts = self.cuts[: 1 + which % len(self.cuts)]
        self.stack.ssd.rewind(self.cuts[-1][0])
        self.truth = dict(self.cuts[-1][1])
        self.build()

    def agree(self, keys: Keys) -> None:
        rows, missing = self.stack.top.peek(keys)
        rows.values[missing] = fresh(keys[missing])
        self.compare(keys, rows.values, rows.steps)

    @invariant()
    def pinned_rows_stay_where_they_are(self) -> None:
        for keys, positions in self.pins:
            assert self.stack.caches[0].place(keys).tolist() == positions.tolist()

    @invariant()
    def rows_are_those_of_the_dict(self) -> None:
        self.agree(UNIVERSE)
        assert self.stack.top.check() == []

    @invariant()
    def the_budget_is_kept(self) -> None:
        budget, ram, ssd = self.stack.budget, self.stack.caches[-1], self.stack.ssd
        assert budget is not None
        assert budget.peak <= budget.total
        buffers = [ssd._staging, *ssd._buffer.arrays]
        held = ssd._index.bytes + sum(buffer.nbytes for buffer in buffers)
        held += ssd.segments.bytes + self.compaction._blocks.nbytes
        held += ram.limit * ram.array.bytes_per_position + ram.overhead_bytes
        assert held + self.tight <= budget.total


def run_machine(capacities: tuple[int, ...], cache: type[CacheTier], *, examples: int = 50) -> None:
    machine = type("Machine", (StackMachine,), {"capacities": capacities, "cache": cache})
    run_state_machine_as_test(
        machine,
        settings=hypothesis.settings(
            max_examples=examples, stateful_step_count=40, deadline=None, derandomize=True,
            suppress_health_check=list(hypothesis.HealthCheck),
            phases=[hypothesis.Phase.generate],  # to shrink a failure takes minutes
        ),
    )  # fmt: skip


@pytest.fixture
def every_row_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The index grows from its first row on, and not only from 30,000 on."""
    monkeypatch.setattr("storage.ssd.LEAST_BYTES", 0)


@pytest.fixture
def tiny_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two blocks, so that a run of forty steps empties and frees some."""
    for module in ("log", "segments", "compaction", "ssd"):
        monkeypatch.setattr(f"storage.{module}.SEGMENT_BITS", 1)
    for module in ("log", "compaction"):
        monkeypatch.setattr(f"storage.{module}.SEGMENT_BLOCKS", 2)


@pytest.mark.usefixtures("every_row_counts", "tiny_segments")
@pytest.mark.parametrize("capacities", [(30,), (16, 50)], ids=["two tiers", "three tiers"])
def test_anything_a_store_does_agrees_with_a_dict(capacities: tuple) -> None:
    run_machine(capacities, CacheTier)


def evicting_by(policy: str) -> type[CacheTier]:
    """A cache with this policy."""

    class Cache(CacheTier):
        def __init__(self, *given: Any, **options: Any) -> None:
            super().__init__(*given, **(options | {"policy": policy}))

    return Cache


@pytest.mark.usefixtures("every_row_counts", "tiny_segments")
@pytest.mark.parametrize("policy", POLICIES)
def test_anything_a_store_does_agrees_with_a_dict_under_any_policy(policy: str) -> None:
    run_machine((16, 50), evicting_by(policy), examples=2)


@pytest.mark.stress
@pytest.mark.usefixtures("every_row_counts", "tiny_segments")
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("capacities", [(30,), (16, 50)], ids=["two tiers", "three tiers"])
def test_thousands_of_steps_agree_with_a_dict_under_any_policy(
    policy: str, capacities: tuple[int, ...]
) -> None:
    run_machine(capacities, evicting_by(policy), examples=100)


class Unpinned(CacheTier):
    """A cache whose pins do nothing."""

    def pin(self, positions: Positions) -> None:
        pass

    def unpin(self, positions: Positions) -> None:
        pass


@pytest.mark.usefixtures("every_row_counts", "tiny_segments")
@pytest.mark.parametrize("capacities", [(30,), (16, 50)], ids=["two tiers", "three tiers"])
def test_the_same_run_finds_out_when_pins_do_nothing(capacities: tuple) -> None:
    with pytest.raises(AssertionError):
        run_machine(capacities, Unpinned)
