"""Hierarchy: pins hold, the budget is kept, and no failure loses or half-moves a row.

What a store does at random, against a dict, is in test_machine.py.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from storage.errors import ConfigError, CorruptError, DiskFullError, WorkingSetError
from storage.log import BlockLog
from storage.rows import Keys, Positions
from tests.storage.digesting import digest
from tests.storage.test_log import flip
from tests.storage.test_tier import (
    WIDTH,
    Oracle,
    Stack,
    as_keys,
    fresh,
    make_ssd,
    make_stack,
    ones,
    row_cost,
    rows_of,
    shape_of,
)

ROWS = shape_of().rows


def numbered(start: int, count: int) -> Keys:
    return np.arange(start, start + count, dtype=np.uint64)


def values_at(stack: Stack, positions: Positions) -> np.ndarray:
    return stack.caches[0].array.gather(positions)


def change(stack: Stack, positions: Positions, keys: Keys, tag: int) -> None:
    """What a step does to pinned rows."""
    top, rows = stack.caches[0], rows_of(keys, tag)
    top.array.scatter(positions, rows.values)
    top.steps[positions] = tag
    top.dirty[positions] = 1


@pytest.fixture
def log(tmp_path: Path) -> Iterator[BlockLog]:
    with closing(BlockLog(tmp_path, ["t"])) as made:
        yield made


# -- memory ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("capacities", [(6000,), (600, 6000)], ids=["two tiers", "three tiers"])
def test_a_growing_index_shrinks_the_cache_and_the_budget_is_never_exceeded(
    log: BlockLog, capacities: tuple[int, ...]
) -> None:
    stack = make_stack(log, *capacities, buffer_bytes=1 << 13)
    budget, ram = stack.budget, stack.caches[-1]
    assert budget is not None
    rng, oracle = np.random.default_rng(0), {}
    for tag in range(1, 160):
        keys = np.unique(rng.integers(0, 60_000, 400).astype(np.uint64))
        positions = stack.top.pin(keys, ones(keys))
        steps = stack.caches[0].steps[positions].tolist()
        assert steps == [oracle.get(key, 0) for key in keys.tolist()]
        change(stack, positions, keys, tag)
        oracle.update(dict.fromkeys(keys.tolist(), tag))
        if tag % 40 == 0:
            stack.top.flush()  # while rows are pinned
        stack.top.unpin(positions)
        assert budget.used <= budget.peak <= budget.total
    stack.top.flush()
    assert ram.limit < 5000
    assert stack.top.check() == []
    again = make_ssd(log)
    rows, missing = again.peek(np.array(list(oracle), np.uint64))
    assert not missing.any() and rows.steps.tolist() == list(oracle.values())


def test_flushing_writes_every_dirty_row_though_the_cache_shrinks_meanwhile(
    log: BlockLog,
) -> None:
    # Rows that fill the index beyond its least size, so that each row more costs memory.
    make_ssd(log).write(rows_of(numbered(10**6, 34_000), 1))
    log.wait()
    stack = make_stack(log, 3000)
    budget, (ram,) = stack.budget, stack.caches
    assert budget is not None
    keys = np.random.default_rng(0).permutation(numbered(0, 3000))
    stack.top.write(rows_of(keys, 7))
    stack.top.delete(keys[::3])  # holes, into which rows move when the cache shrinks
    budget.hold("somebody else", budget.free)
    limit = ram.limit
    stack.top.flush()
    assert ram.limit < limit and not ram.dirty.any() and stack.top.check() == []
    rows, missing = make_ssd(log).peek(np.setdiff1d(keys, keys[::3]))
    assert not missing.any()
    np.testing.assert_array_equal(rows.values, rows_of(rows.keys, 7).values)


@pytest.mark.parametrize("left", [0, 300, 2000, 10_000])
@pytest.mark.parametrize("rows", [1, 60, 1000])
def test_after_making_room_the_index_can_grow_as_announced(
    log: BlockLog, left: int, rows: int
) -> None:
    make_ssd(log).write(rows_of(numbered(10**6, 34_000), 1))
    log.wait()
    stack = make_stack(log, 3000)
    budget, ram = stack.budget, stack.caches[0]
    assert budget is not None
    stack.top.write(rows_of(numbered(0, 3000), 1))
    budget.hold("somebody else", budget.free - left)
    try:
        stack.top.make_room(rows)
    except WorkingSetError:
        assert left < stack.ssd.growth_bound(1)  # not even one row can be written below
        return
    assert budget.free >= stack.ssd.growth_bound(rows)
    stack.ssd.write(rows_of(numbered(10**9, rows), 1))
    assert stack.ssd.memory_bytes <= budget.parts["ssd"] + budget.free
    assert len(ram) <= ram.limit and stack.top.check() == []


def test_a_working_set_that_does_not_fit_changes_nothing_and_says_what_would_do(
    log: BlockLog,
) -> None:
    stack = make_stack(log, 100)
    held = numbered(0, 60)
    pinned = stack.top.pin(held, ones(held))
    change(stack, pinned, held, 3)
    stack.top.unpin(pinned)
    before, figures = digest(stack.caches[0]), stack.caches[0].stats.report()
    batch = numbered(30, 500)
    with pytest.raises(WorkingSetError) as error:
        stack.top.pin(batch, ones(batch))
    assert digest(stack.caches[0]) == before and stack.caches[0].stats.report() == figures
    assert "\n" not in str(error.value) and str(error.value.needed_bytes) in str(error.value)
    stack.top.flush()
    needed = error.value.needed_bytes
    capacity = (needed - needed // 128 - make_ssd(log).memory_bytes) // row_cost(4 * WIDTH) - 1
    larger = make_stack(log, capacity, total=needed)
    positions = larger.top.pin(batch, ones(batch))
    assert larger.caches[0].steps[positions].tolist() == [3] * 30 + [0] * 470


def test_a_working_set_that_fits_the_tier_but_not_beside_the_pins_is_refused(log: BlockLog) -> None:
    stack = make_stack(log, 100)
    first, second = numbered(0, 60), numbered(50, 60)
    pinned = stack.top.pin(first, ones(first))
    before = digest(stack.caches[0])
    with pytest.raises(WorkingSetError, match=r"60 rows beside 60 in use.*holds 100"):
        stack.top.pin(second, ones(second))
    assert digest(stack.caches[0]) == before
    stack.top.unpin(pinned)
    stack.top.unpin(stack.top.pin(second, ones(second)))


def test_rows_are_pinned_in_a_cache_of_exactly_their_number(log: BlockLog) -> None:
    stack = make_stack(log, 200)
    for start in (0, 100, 1000):
        keys = numbered(start, 200)
        positions = stack.top.pin(keys, ones(keys))
        assert sorted(positions.tolist()) == list(range(200))
        stack.top.unpin(positions)


def test_bytes_that_were_lent_are_free_and_come_back(log: BlockLog) -> None:
    stack, keys = make_stack(log, 3000), numbered(0, 3000)
    budget, ram = stack.budget, stack.caches[0]
    assert budget is not None
    stack.top.write(rows_of(keys, 1))
    stack.top.flush()  # what leaves need not be written
    limit = ram.limit
    budget.hold("somebody else", budget.free - 20_000)
    for _ in range(3):
        assert stack.top.lend(468 * ram.bytes_per_position) and budget.free >= 30_000
        budget.hold("borrower", 468 * ram.bytes_per_position)
        assert ram.limit < limit and stack.top.check() == []
        budget.hold("borrower", 0)
        stack.top.take_back()
        assert ram.limit == limit and budget.used <= budget.total
        assert stack.top.check() == []
    ram.pin(np.arange(5))
    assert not stack.top.lend(468 * ram.bytes_per_position) and ram.limit == limit


def test_a_budget_too_small_for_the_tiers_is_refused_at_once(log: BlockLog) -> None:
    with pytest.raises(ConfigError, match="--ram"):
        make_stack(log, 1000, total=100_000)


# -- failures --------------------------------------------------------------------------------------


@pytest.mark.parametrize("capacities", [(400,), (400, 500)], ids=["two tiers", "three tiers"])
def test_a_lookup_that_fails_leaves_no_pin_and_no_half_admitted_row(
    tmp_path: Path, capacities: tuple[int, ...]
) -> None:
    keys = numbered(5000, 6 * ROWS)
    with closing(BlockLog(tmp_path, ["t"])) as log:
        ssd = make_ssd(log)
        ssd.write(rows_of(keys, 1))
        ssd.flush()
    flip(tmp_path, keys[2 * ROWS : 3 * ROWS].tobytes() + np.ones(4, "<u4").tobytes(), 8 * ROWS)
    with closing(BlockLog(tmp_path, ["t"])) as log:
        stack = make_stack(log, *capacities)
        batch = keys[: 3 * ROWS : 2]  # several pieces, of which the last ones fail
        with pytest.raises(CorruptError, match="'t'"):
            stack.top.pin(batch, ones(batch))
        top = stack.caches[0]
        assert top.pinned == 0 and top.check() == []
        held = top.keys_at(top.occupied())
        assert 0 < len(held) < len(batch) and not np.isin(held, keys[2 * ROWS :]).any()
        np.testing.assert_array_equal(
            top.peek(held)[0].values, rows_of(held, 1).values
        )  # what was brought is whole
        sound = keys[: 2 * ROWS]
        stack.top.unpin(stack.top.pin(sound, ones(sound)))


@pytest.mark.parametrize("capacities", [(200,), (150, 200)], ids=["two tiers", "three tiers"])
def test_no_row_is_lost_when_the_disk_is_full(tmp_path: Path, capacities: tuple[int, ...]) -> None:
    oracle: dict[int, int] = {}
    with closing(BlockLog(tmp_path, ["t"], disk_bytes=2 << 20)) as log:
        stack, rng = make_stack(log, *capacities), np.random.default_rng(0)
        refused = 0
        for tag in range(1, 2000):
            keys = rng.permutation(numbered(0, 2000))[:120]
            try:
                positions = stack.top.pin(keys, ones(keys))
            except DiskFullError:
                refused += 1
                if refused == 4:
                    break
                continue
            change(stack, positions, keys, tag)
            oracle.update(dict.fromkeys(keys.tolist(), tag))
            stack.top.unpin(positions)
        assert refused == 4 and stack.top.check() == []
        with pytest.raises(DiskFullError):
            stack.top.flush()
        rows, missing = stack.top.peek(numbered(0, 2000))
        rows.steps[missing] = 0
        assert rows.steps.tolist() == [oracle.get(key, 0) for key in range(2000)]


def test_a_deletion_that_fails_bares_no_old_version(tmp_path: Path) -> None:
    with closing(BlockLog(tmp_path, ["t"], disk_bytes=2 << 20)) as log:
        stack, key = make_stack(log, 100, buffer_bytes=1), as_keys(3)
        stack.top.write(rows_of(key, 1))
        stack.top.flush()
        stack.top.write(rows_of(key, 2))
        with pytest.raises(DiskFullError):
            while True:
                stack.ssd.write(rows_of(numbered(100, ROWS), 1))
        with pytest.raises(DiskFullError):
            stack.top.delete(key)
        assert stack.top.peek(key)[0].steps.tolist() == [2]


# -- figures and formats ---------------------------------------------------------------------------


def test_a_row_nobody_changed_costs_nothing_below_and_is_the_same_again(log: BlockLog) -> None:
    stack = make_stack(log, 64)
    for start in (0, 64, 128, 0):
        keys = numbered(start, 64)
        positions = stack.top.pin(keys, ones(keys))
        np.testing.assert_array_equal(values_at(stack, positions), fresh(keys))
        stack.top.unpin(positions)
    stack.top.flush()
    assert len(stack.ssd) == 0
    assert (stack.top.first_seen.keys, stack.top.first_seen.accesses) == (256, 256)


def test_a_row_that_is_dirty_below_is_clean_above_until_it_is_changed(log: BlockLog) -> None:
    stack, keys = make_stack(log, 20, 50), numbered(0, 10)
    stack.top.below.write(rows_of(keys, 1))
    positions = stack.top.pin(keys, ones(keys))
    hbm, ram = stack.caches
    assert not hbm.dirty[positions].any() and ram.dirty[ram.place(keys)].all()


def test_hits_are_counted_by_access_and_by_key(log: BlockLog) -> None:
    stack = make_stack(log, 64)
    keys = as_keys(1, 2, 3)
    stack.top.unpin(stack.top.pin(keys[:2], np.array([4, 1], np.int32)))
    stack.top.unpin(stack.top.pin(keys, np.array([4, 1, 7], np.int32)))
    stats = stack.caches[0].stats
    assert (stats.accesses, stats.access_hits, stats.keys, stats.key_hits) == (17, 5, 5, 2)
    assert (stack.top.first_seen.accesses, stack.top.first_seen.keys) == (12, 3)


def test_more_than_a_piece_of_rows_comes_and_goes_at_once(log: BlockLog) -> None:
    stack, oracle = make_stack(log, 300, 500), Oracle()
    rows = rows_of(numbered(0, 2000), 1)
    stack.top.write(rows)
    oracle.write(rows)
    assert stack.top.check() == []
    oracle.compare(*stack.top.peek(numbered(0, 2000)))
    keys = numbered(500, 300)
    positions = stack.top.pin(keys, ones(keys))
    np.testing.assert_array_equal(values_at(stack, positions), rows_of(keys, 1).values)


@pytest.mark.parametrize("name", ["bfloat16", "float16", "int8"])
@pytest.mark.parametrize("capacities", [(200,), (200, 300)], ids=["two tiers", "three tiers"])
def test_after_a_flush_the_resident_rows_are_those_that_would_be_read_back(
    log: BlockLog, name: str, capacities: tuple[int, ...]
) -> None:
    stack = make_stack(log, *capacities, dtype=name, coded=len(capacities) == 2)
    keys = numbered(0, 150)
    positions = stack.top.pin(keys, ones(keys))
    values = np.random.default_rng(0).standard_normal((150, WIDTH)).astype(np.float32)
    stack.caches[0].array.scatter(positions, values)
    stack.caches[0].dirty[positions] = 1
    stack.top.flush()
    resident = values_at(stack, positions)
    assert not np.array_equal(resident, values)
    np.testing.assert_array_equal(resident, make_ssd(log, name).peek(keys)[0].values)
    assert stack.top.check() == []


@pytest.mark.parametrize("capacities", [(64,), (64, 80)], ids=["two tiers", "three tiers"])
def test_checking_finds_a_clean_row_that_is_not_the_one_below(
    log: BlockLog, capacities: tuple[int, ...]
) -> None:
    stack, keys = make_stack(log, *capacities), numbered(0, 50)
    stack.top.write(rows_of(keys, 1))
    stack.top.flush()
    assert stack.top.check() == []
    place = stack.caches[0].place(keys[7:8])
    stack.caches[0].steps[place] += 1
    (line,) = stack.top.check()
    assert "1 differ, key 7 first" in line


def test_what_is_evicted_depends_on_the_batches_alone(log: BlockLog) -> None:
    def run(table_log: BlockLog) -> list[int]:
        stack = make_stack(table_log, 100)
        rng = np.random.default_rng(5)
        for _ in range(30):
            keys = rng.permutation(numbered(0, 300))[:60]
            stack.top.unpin(stack.top.pin(keys, ones(keys)))
        return copy.copy(stack.caches[0].keys_at(stack.caches[0].occupied()).tolist())

    assert run(log) == run(log)
