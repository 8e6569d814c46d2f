"""Planner: who may change a store, and when nobody may any more."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from ps.planner import Planner
from storage.errors import (
    ClosedError,
    ConfigError,
    CorruptError,
    DiskFullError,
    StoreError,
    WorkingSetError,
)


def test_turns_do_not_overlap() -> None:
    planner = Planner(Path("store"))
    inside: list[int] = []

    def work() -> None:
        for _ in range(200):
            with planner, planner:  # reentrant
                inside.append(1)
                assert len(inside) == 1
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert inside == []


def test_closed_and_stopped_stores_give_no_turn_but_the_last(tmp_path: Path) -> None:
    planner = Planner(tmp_path)
    planner.failure = DiskFullError("no room")
    with pytest.raises(StoreError, match=r"stopped after an error \(no room\)"), planner:
        pass
    with planner.ending():
        planner.closed = True
    with pytest.raises(ClosedError, match=str(tmp_path)), planner:
        pass
    # Refusing a turn did not keep the lock.
    taken = threading.Thread(target=lambda: planner.ending().__enter__())
    taken.start()
    taken.join(10)
    assert not taken.is_alive()


@pytest.mark.parametrize(
    "error", [StoreError("x"), OSError("x"), MemoryError(), KeyboardInterrupt()], ids=repr
)
def test_what_may_cut_a_change_in_two_stops_the_store(error: BaseException) -> None:
    planner = Planner(Path("store"))
    with pytest.raises(type(error)), planner, planner.changing():
        raise error
    with pytest.raises(StoreError, match="stopped"):
        planner.ensure_usable()


@pytest.mark.parametrize(
    "error",
    [ConfigError("x"), CorruptError("x"), DiskFullError("x"), WorkingSetError("x", needed_bytes=1)],
    ids=repr,
)
def test_what_is_found_before_a_change_does_not(error: Exception) -> None:
    planner = Planner(Path("store"))
    with pytest.raises(type(error)), planner, planner.changing():
        raise error
    planner.ensure_usable()


def test_a_fork_gets_no_turn_even_if_the_lock_was_taken() -> None:
    planner = Planner(Path("store"))
    with planner:
        child = os.fork()
        if child == 0:
            try:
                with planner:
                    os._exit(1)
            except StoreError as error:
                os._exit(0 if "fork" in str(error) else 2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
