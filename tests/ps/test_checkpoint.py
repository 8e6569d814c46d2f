"""Checkpoints: the last two are kept, each whole, whatever the size of their state."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ps.checkpoint import Checkpoints, Cut
from ps.state import pack_state
from storage.errors import CorruptError
from storage.log import BlockLog


@pytest.fixture
def log(tmp_path: Path) -> Iterator[BlockLog]:
    log = BlockLog(tmp_path, ["ads"])
    yield log
    log.close()


def cut_at(end: int) -> Cut:
    return Cut({"ads": end}, {"ads": 2 * end})


def test_a_new_log_has_no_cut_and_no_checkpoint(log: BlockLog) -> None:
    checkpoints = Checkpoints(log)
    assert (checkpoints.steps, checkpoints.cut, checkpoints.newest()) == ([], Cut({}, {}), None)


def test_the_last_two_are_kept_and_nothing_of_the_others(log: BlockLog) -> None:
    checkpoints = Checkpoints(log)
    for step in (10, 20, 30, 5):
        packed = pack_state({"step": step, "x": torch.full((3,), step)})
        checkpoints.add(step, cut_at(step), *packed)
    assert checkpoints.steps == [30, 5]
    assert checkpoints.cut == Checkpoints(log).cut == cut_at(5)
    newest = checkpoints.newest()
    assert newest is not None
    step, cut, state = newest
    assert (step, cut, state["step"], state["x"].tolist()) == (5, cut_at(5), 5, [5, 5, 5])
    assert len(log.names("state/")) == 2


def test_a_cut_does_not_move_the_checkpoints(log: BlockLog) -> None:
    checkpoints = Checkpoints(log)
    checkpoints.add(1, cut_at(3), *pack_state({}))
    checkpoints.make_cut(cut_at(9))
    for found in (checkpoints, Checkpoints(log)):
        assert found.cut == cut_at(9)
        assert found.newest() == (1, cut_at(3), {})
        assert found.ends("ads") == [9, 3] and found.ends("other") == [0, 0]


def test_state_larger_than_a_piece_comes_back_whole(log: BlockLog) -> None:
    tensor = torch.arange(5_000_000)  # 40 MB, three pieces
    checkpoints = Checkpoints(log)
    checkpoints.add(1, cut_at(0), *pack_state({"x": tensor}))
    assert len(log.names("state/")) == 3
    newest = checkpoints.newest()
    assert newest is not None
    assert torch.equal(newest[2]["x"], tensor)
    checkpoints.add(2, cut_at(0), *pack_state({}))
    checkpoints.add(3, cut_at(0), *pack_state({}))
    assert len(log.names("state/")) == 2


def test_the_older_of_two_can_be_given_up(log: BlockLog) -> None:
    checkpoints = Checkpoints(log)
    for step in (1, 2):
        checkpoints.add(step, cut_at(10 * step), *pack_state({"x": torch.ones(3)}))
    assert checkpoints.give_up_older() == 1
    for found in (checkpoints, Checkpoints(log)):
        assert found.steps == [2] and found.ends("ads") == [20, 20]
    assert len(log.names("state/")) == 1


def test_the_newest_is_shown_by_another_log_alone(log: BlockLog, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = BlockLog(tmp_path / "other", ["ads"])
    try:
        checkpoints, there = Checkpoints(log), Checkpoints(other)
        assert (there.number, there.newest_cut) == (0, Cut({}, {}))
        for step in (7, 8):
            there.add(step, cut_at(step), *pack_state({"x": torch.ones(3)}))
        for step in (1, 2, 3):
            checkpoints.add(step, cut_at(step), *pack_state({"x": torch.full((3,), step)}))
        checkpoints.make_cut(cut_at(9))
        checkpoints.copy_state(other)
        assert Checkpoints(other).steps == [7, 8]
        other.commit(checkpoints.newest_facts(other))
        found = Checkpoints(other)
        assert (found.steps, found.cut, found.number) == ([3], cut_at(3), 3)
        newest = found.newest()
        assert newest is not None and newest[2]["x"].tolist() == [3, 3, 3]
        assert found.lineage.token(3) == checkpoints.lineage.token(3) != ""
        assert len(other.names("state/")) == 1
    finally:
        other.close()


def test_what_is_left_of_an_unfinished_copy_gets_into_no_state(log: BlockLog) -> None:
    checkpoints = Checkpoints(log)
    for piece in range(3):
        log.commit({f"state/000000000001/{piece:06d}": b"left"})
    checkpoints.add(1, cut_at(1), *pack_state({"x": torch.ones(3)}))
    newest = checkpoints.newest()
    assert newest is not None and newest[2]["x"].tolist() == [1, 1, 1]


def test_a_cut_whose_name_is_damaged_is_not_taken_for_none(log: BlockLog) -> None:
    Checkpoints(log).make_cut(cut_at(3))
    with log.transaction(write=True) as txn:
        value = txn.pop(b"cut", db=log._facts)
        txn.put(b"cuu", value, db=log._facts)
    with pytest.raises(CorruptError, match=r"damage in .*'cuu'"):
        Checkpoints(log)


def test_check_names_the_checkpoint_whose_state_is_damaged(log: BlockLog) -> None:
    checkpoints = Checkpoints(log)
    checkpoints.add(7, cut_at(3), *pack_state({"x": torch.ones(3)}))
    assert checkpoints.check() == []
    (name,) = log.names("state/")
    with log.transaction(write=True) as txn:
        txn.put(name.encode(), b"nonsense", db=log._facts)
    (line,) = Checkpoints(log).check()
    assert "step 7" in line
