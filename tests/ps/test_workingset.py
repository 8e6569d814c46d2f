"""WorkingSet: released once, by the last holder, however holders end."""

from __future__ import annotations

import gc
import threading
from typing import Any

from ps.workingset import Hold, WorkingSet


def watched() -> tuple[WorkingSet, list[object]]:
    released: list[object] = []
    return WorkingSet({}, lambda one: released.append(one.parts)), released


def test_the_last_holder_releases_it_once() -> None:
    working_set, released = watched()
    first, second = working_set.hold(), working_set.hold()
    first.drop()
    first.drop()
    assert released == []
    assert (first.active, second.active) == (False, True)
    second.drop()
    del working_set, first, second
    gc.collect()
    assert len(released) == 1


def test_a_holder_that_is_thrown_away_lets_go() -> None:
    working_set, released = watched()
    hold: Any = working_set.hold()
    cycle = {"hold": hold}
    cycle["self"] = cycle
    del hold, cycle
    gc.collect()
    assert len(released) == 1


def test_a_set_that_nobody_ever_held_is_released_when_it_goes() -> None:
    working_set, released = watched()
    del working_set
    gc.collect()
    assert len(released) == 1


def test_a_set_and_its_holder_in_one_garbage_cycle_are_released_once() -> None:
    working_set, released = watched()
    cycle: list[Any] = [working_set, working_set.hold()]
    cycle.append(cycle)
    del working_set, cycle
    gc.collect()
    assert len(released) == 1


def test_threads_that_hold_and_drop_release_it_once() -> None:
    working_set, released = watched()
    own = working_set.hold()
    start = threading.Barrier(4, timeout=10)

    def churn(keep: list[Hold]) -> None:
        start.wait()
        for _ in range(2000):
            working_set.hold().drop()
        for hold in keep:
            hold.drop()

    keeps = [[working_set.hold() for _ in range(50)] for _ in range(4)]
    threads = [threading.Thread(target=churn, args=(keep,)) for keep in keeps]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert released == []
    own.drop()
    assert len(released) == 1
