"""LookAhead: misses are those of Belady within the window, and no row is lost over it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
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
from storage.errors import WorkingSetError
from storage.log import BlockLog
from storage.lookahead import LookAhead, look_ahead_bytes
from storage.policy import POLICIES
from storage.rows import Keys, Positions
from tests.storage.test_cache import make_cache
from tests.storage.test_hierarchy import change, numbered, values_at
from tests.storage.test_tier import Stack, fresh, make_ssd, make_stack, ones, rows_of

CAPACITY = 40
chosen = st.lists(st.integers(0, 59), unique=True, max_size=12)


class Fifo(CacheTier):
    """A cache with a policy of its own: the plainest one for an oracle."""

    policy = "fifo"

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, policy=self.policy, **options)


@pytest.fixture
def new_log(tmp_path: Path) -> Iterator[Callable[[], BlockLog]]:
    logs: list[BlockLog] = []

    def make() -> BlockLog:
        logs.append(BlockLog(tmp_path / str(len(logs)), ["t"]))
        return logs[-1]

    yield make
    for log in logs:
        log.close()


def random_batches(count: int, most: int) -> list[Keys]:
    rng = np.random.default_rng(most)
    return [np.unique(rng.zipf(1.2, most) % 150).astype(np.uint64) for _ in range(count)]


def misses_of_belady(batches: list[Keys], reach: int) -> list[int]:
    """By batch, in plain Python: fifo for rows that nothing known needs, else the last needed."""
    held: dict[int, None] = {}
    misses = []
    for turn, batch in enumerate(map(np.ndarray.tolist, batches)):
        coming = [set(keys.tolist()) for keys in batches[turn + 1 : turn + 1 + reach]]

        def due(key: int, known: list[set[int]] = coming) -> int:
            return next((i for i, keys in enumerate(known) if key in keys), len(known))

        missing = [key for key in batch if key not in held]
        for _ in range(max(0, len(held) + len(missing) - CAPACITY)):
            # The first of the greatest: of rows that nothing needs, the one that came first.
            del held[max((key for key in held if key not in batch), key=due)]
        held.update(dict.fromkeys(missing))
        misses.append(len(missing))
    return misses


@pytest.mark.parametrize("most", [10, 25, 38])
@pytest.mark.parametrize("reach", [0, 1, 3, 10])
def test_misses_are_those_of_belady_within_the_window(
    new_log: Callable[[], BlockLog], reach: int, most: int
) -> None:
    batches = random_batches(80, most)
    stack = make_stack(new_log(), CAPACITY, cache=Fifo)
    top = stack.caches[0]
    ahead = stack.top.ahead = LookAhead(top, 10_000, 10_000)
    found, entered = [], 0
    for turn, batch in enumerate(batches, start=1):
        while entered < min(len(batches), turn + reach):
            entered += 1
            assert ahead.enter(entered, batches[entered - 1])
        before = top.stats.key_hits
        stack.top.unpin(stack.top.pin(batch, ones(batch), number=turn))
        found.append(len(batch) - (top.stats.key_hits - before))
        ahead.passed(turn)
        assert top.check() == []
    assert found == misses_of_belady(batches, reach)
    assert top.stats.evicted > CAPACITY


def prepare(log: BlockLog, keys: Keys) -> None:
    ssd = make_ssd(log)
    ssd.write(rows_of(keys, 1))
    ssd.flush()


def run_ahead(log: BlockLog, batches: list[Keys], reach: int, most_ahead: int) -> Stack:
    """Rows of all batches were written before, so that each miss is read from the SSD."""
    prepare(log, numbered(0, 150))
    stack = make_stack(log, CAPACITY, cache=Fifo)
    ahead = stack.top.ahead = LookAhead(stack.caches[0], 10_000, 10_000)
    entered = 0
    for turn, batch in enumerate(batches, start=1):
        while entered < min(len(batches), turn + reach):
            entered += 1
            assert ahead.enter(entered, batches[entered - 1])
        options = {"number": turn, "most_ahead": most_ahead}
        positions = stack.top.pin(batch, np.full(len(batch), 3, np.int32), **options)
        np.testing.assert_array_equal(values_at(stack, positions), rows_of(batch, 1).values)
        stack.top.unpin(positions)
        ahead.passed(turn)
        assert stack.top.check() == []
    return stack


@pytest.mark.parametrize("reach", [1, 4, 20])
@pytest.mark.parametrize("most", [5, 12])
def test_what_is_read_ahead_is_a_miss_of_its_use_and_read_with_others(
    new_log: Callable[[], BlockLog], reach: int, most: int
) -> None:
    batches = random_batches(60, most)
    reads = []
    for most_ahead in (0, 10_000):
        stack = run_ahead(new_log(), batches, reach, most_ahead)
        top, ssd = stack.caches[0].stats, stack.ssd.stats
        assert ssd.keys == ssd.key_hits == top.keys - top.key_hits
        assert ssd.accesses == ssd.access_hits == 3 * ssd.keys
        assert ssd.rows_read == ssd.keys  # nothing was read in vain
        assert top.keys == sum(map(len, batches)) and stack.top.first_seen.keys == 0
        reads.append(ssd.bytes_read)
    assert reads[1] < reads[0]


def test_rows_read_ahead_in_vain_are_gone_at_the_end(new_log: Callable[[], BlockLog]) -> None:
    log = new_log()
    prepare(log, numbered(0, 20))
    stack = make_stack(log, CAPACITY)
    top = stack.caches[0]
    ahead = stack.top.ahead = LookAhead(top, 100, 100)
    for number, start in ((1, 0), (2, 5), (3, 8)):
        ahead.enter(number, numbered(start, 5))
    keys = numbered(0, 5)
    stack.top.unpin(stack.top.pin(keys, ones(keys), number=1, most_ahead=100))
    assert top.keys_at(top.occupied()).tolist() == list(range(13)) and top.check() == []
    keys = numbered(10, 2)  # of batch 3, used before its turn
    stack.top.unpin(stack.top.pin(keys, ones(keys)))
    assert top.stats.key_hits == 0 and stack.ssd.stats.key_hits == 7
    stack.top.write(rows_of(numbered(7, 1), 9))
    ahead.end()
    assert top.keys_at(top.occupied()).tolist() == [*range(5), 7, 10, 11] and top.check() == []


def test_protection_that_is_left_behind_is_found(new_log: Callable[[], BlockLog]) -> None:
    stack = make_stack(new_log(), CAPACITY)
    top, keys = stack.caches[0], numbered(0, 5)
    ahead = LookAhead(top, 100, 100)
    stack.top.unpin(stack.top.pin(keys, ones(keys)))
    ahead.enter(1, keys)
    assert top.check() == []
    ahead.passed(1)  # without the turn in which the rows are used
    assert any("batch 1" in line for line in top.check())


def test_the_bytes_of_dues_and_window_are_counted() -> None:
    assert look_ahead_bytes(1000, 0, 0) >= 4 * 1000
    assert look_ahead_bytes(0, 500, 300) == LookAhead(make_cache(10), 500, 300).window.nbytes


class AheadMachine(RuleBasedStateMachine):
    """Known and unknown batches, pins, steps, writes, deletions, and memory that is lent."""

    policy = "lru"

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.log = BlockLog(Path(self.folder.name) / "log", ["t"])
        cache = type("Cache", (Fifo,), {"policy": self.policy})
        self.stack = make_stack(self.log, 30, cache=cache)
        self.top = self.stack.caches[0]
        self.tag = 1
        self.truth: dict[int, int] = {}
        self.known: list[tuple[int, Keys]] = []
        self.last = 0
        self.lent = False
        self.pins: list[tuple[Keys, Positions]] = []

    def teardown(self) -> None:
        self.log.close()
        self.folder.cleanup()

    @precondition(lambda self: self.stack.top.ahead is None)
    @rule()
    def begin(self) -> None:
        self.lent = self.stack.top.lend(500)
        self.stack.top.ahead, self.last = LookAhead(self.top, 60, 40), 0

    @precondition(lambda self: self.stack.top.ahead is not None)
    @rule()
    def end(self) -> None:
        self.stack.top.ahead.end()
        self.stack.top.ahead, self.known = None, []
        if self.lent:
            self.stack.top.take_back()

    @precondition(lambda self: self.stack.top.ahead is not None)
    @rule(keys=chosen)
    def announce(self, keys: list[int]) -> None:
        batch = np.array(keys, np.uint64)
        if self.stack.top.ahead.enter(self.last + 1, batch):
            self.last += 1
            self.known.append((self.last, batch))

    @precondition(lambda self: self.known)
    @rule(most_ahead=st.sampled_from([0, 3, 100]))
    def turn(self, most_ahead: int) -> None:
        number, batch = self.known[0]
        later = [set(keys.tolist()) for _, keys in self.known[1:]]
        if self.pin(batch, number, most_ahead):
            due = self.top.dues.at(self.top.place(batch)).tolist()
            first = self.known[0][0] + 1
            assert due == [
                next((first + i for i, keys in enumerate(later) if key in keys), 0)
                for key in batch.tolist()
            ]
            self.stack.top.ahead.passed(number)
            self.known.pop(0)

    @rule(keys=chosen)
    def unknown_turn(self, keys: list[int]) -> None:
        self.pin(np.array(keys, np.uint64), 0, 0)

    def pin(self, batch: Keys, number: int, most_ahead: int) -> bool:
        fits = len(set(batch.tolist()) | self.pinned_keys) <= self.top.limit
        try:
            positions = self.stack.top.pin(batch, ones(batch), number=number, most_ahead=most_ahead)
        except WorkingSetError:
            assert not fits
            return False
        self.pins.append((batch, positions))
        return True

    @property
    def pinned_keys(self) -> set[int]:
        return {key for keys, _ in self.pins for key in keys.tolist()}

    @precondition(lambda self: self.pins)
    @rule()
    def unpin(self) -> None:
        self.stack.top.unpin(self.pins.pop(0)[1])

    @precondition(lambda self: self.pins)
    @rule(which=st.integers(0, 99))
    def step(self, which: int) -> None:
        keys, positions = self.pins[which % len(self.pins)]
        self.tag += 1
        change(self.stack, positions, keys, self.tag)
        self.truth.update(dict.fromkeys(keys.tolist(), self.tag))

    @rule(keys=chosen)
    def write(self, keys: list[int]) -> None:
        self.tag += 1
        self.stack.top.write(rows_of(np.array(keys, np.uint64), self.tag))
        self.truth.update(dict.fromkeys(keys, self.tag))

    @rule(keys=chosen)
    def delete(self, keys: list[int]) -> None:
        gone = [key for key in keys if key not in self.pinned_keys]
        self.stack.top.delete(np.array(gone, np.uint64))
        for key in gone:
            self.truth.pop(key, None)

    @rule()
    def flush(self) -> None:
        self.stack.top.flush()

    @invariant()
    def pinned_rows_stay_and_nothing_is_lost(self) -> None:
        for keys, positions in self.pins:
            assert self.top.place(keys).tolist() == positions.tolist()
        universe = numbered(0, 60)
        rows, missing = self.stack.top.peek(universe)
        rows.values[missing] = fresh(universe[missing])
        for i, key in enumerate(universe.tolist()):
            tag = self.truth.get(key)
            expected = (
                rows_of(universe[i : i + 1], tag).values if tag else fresh(universe[i : i + 1])
            )
            assert rows.values[i].tolist() == expected[0].tolist(), f"key {key}"
            assert rows.steps[i] == (tag or 0)
        assert self.stack.top.check() == []


@pytest.mark.parametrize("policy", POLICIES)
def test_whatever_is_known_ahead_no_row_is_lost_and_none_leaves_while_pinned(policy: str) -> None:
    run_state_machine_as_test(
        type("Machine", (AheadMachine,), {"policy": policy}),
        settings=hypothesis.settings(
            max_examples=25 if policy == "lru" else 5, stateful_step_count=40, deadline=None,
            derandomize=True, suppress_health_check=list(hypothesis.HealthCheck),
        ),
    )  # fmt: skip
