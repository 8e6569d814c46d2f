"""Coming: batches are known in the order in which they were announced, as far as there is room."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

import ps
from ps.store import Store
from ps.workingset import Asked

TABLES = [ps.Table(name, dim=4, optimizer=ps.SGD(lr=0.1)) for name in ("ads", "users")]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with ps.open(tmp_path, TABLES, ram="8MiB", threads=1) as store:
        yield store


def ask(store: Store, start: int, *tables: str) -> Mapping[str, Asked]:
    keys = np.arange(start, start + 10, dtype=np.uint64)
    return store.ask({table: [keys] for table in tables})


def stage(store: Store, asked: Mapping[str, Asked]) -> None:
    store.stage_asked(asked).hold().drop()
    store.settle()


def due(store: Store, table: str, start: int) -> set[int]:
    top = store.stacks[table].top
    return set(top.dues.at(top.place(np.arange(start, start + 10, dtype=np.uint64))).tolist())


def test_each_table_keeps_the_rows_of_the_batches_that_name_it(store: Store) -> None:
    asked = [(0, ["ads"]), (0, ["ads", "users"]), (50, ["users"]), (0, ["users"])]
    batches = [ask(store, start, *tables) for start, tables in asked]
    for batch in batches:
        store.coming.announce(batch)
    stage(store, batches[0])
    assert due(store, "ads", 0) == {2}
    assert store.stacks["users"].hierarchy.ahead is None  # no turn came
    stage(store, batches[1])
    assert due(store, "ads", 0) == {0} and due(store, "users", 0) == {4}
    stage(store, batches[2])
    assert due(store, "users", 0) == {4} and due(store, "users", 50) == {0}
    stage(store, batches[3])
    assert due(store, "users", 0) == {0}
    assert store.check() == []
    store.coming.end()
    assert all(stack.hierarchy.ahead is None for stack in store.stacks.values())
    assert store.check() == []


def test_a_batch_that_was_not_announced_takes_no_turn(store: Store) -> None:
    first, second = ask(store, 0, "ads"), ask(store, 0, "ads")
    store.coming.announce(first)
    stage(store, second)
    assert store.stacks["ads"].hierarchy.ahead is None
    with store.planner:
        assert store.coming.turn(second) == 0
        assert store.coming.turn(first) == store.coming.turn(first) == 1


def test_batches_that_find_no_room_come_in_later(store: Store) -> None:
    batches = [ask(store, 0, "ads")] + [ask(store, start, "ads") for start in (100, 200, 0)]
    store.coming.announce(batches[0])
    stage(store, batches[0])  # the look-ahead is made for one batch and a quarter
    for batch in batches[1:]:
        store.coming.announce(batch)
    ahead = store.stacks["ads"].hierarchy.ahead
    assert ahead is not None
    for number, batch in enumerate(batches[1:], start=2):
        with store.planner:
            assert store.coming.turn(batch) == number
        assert ahead.window.batches == [number]
        stage(store, batch)
    assert store.check() == []
    store.coming.end()


def test_what_is_given_up_is_not_begun_again_before_the_loop_ends(store: Store) -> None:
    batches = [ask(store, 0, "ads") for _ in range(3)]
    for batch in batches:
        store.coming.announce(batch)
    stage(store, batches[0])
    assert store.coming.give_up() and not store.coming.give_up()
    stage(store, batches[1])
    assert store.stacks["ads"].hierarchy.ahead is None and due(store, "ads", 0) == {0}
    store.coming.end()
    store.coming.announce(batches[2])
    stage(store, batches[2])
    assert store.stacks["ads"].hierarchy.ahead is not None
    store.coming.end()
