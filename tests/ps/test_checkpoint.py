"""Checkpoints: the last few are kept, each whole, whatever the size of their state."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from ps.checkpoint import COUNTS, FENCES_FACT, SESSIONS_FACT, Checkpoints, Cut
from ps.state import pack_state
from storage.errors import CorruptError, DiskFullError
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


def add(checkpoints: Checkpoints, step: int, **options: Any) -> None:
    """A checkpoint whose cut and state tell its step."""
    packed = pack_state({"x": torch.full((3,), step)})
    checkpoints.add(step, cut_at(step), *packed, **options)


def tokens(checkpoints: Checkpoints) -> list[str]:
    return [checkpoints.lineage.token(number) for number in range(1, checkpoints.number + 1)]


def test_as_many_are_kept_as_asked_for(log: BlockLog) -> None:
    checkpoints = Checkpoints(log)
    found = []
    for step, keep in enumerate((2, 3, 3, 3, 3, 2, 1, 1, 3), 1):
        add(checkpoints, step, keep=keep)
        assert Checkpoints(log).steps == checkpoints.steps
        assert len(log.names("state/")) == len(checkpoints.steps)
        found.append(checkpoints.steps)
    assert found == [[1], [1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 5], [5, 6], [7], [8], [8, 9]]
    assert checkpoints.ends("ads") == [9, 8, 9]


def test_of_several_with_one_step_the_newest_is_meant(log: BlockLog) -> None:
    checkpoints = Checkpoints(log)
    for step, end in ((5, 1), (7, 2), (5, 3)):
        checkpoints.add(step, cut_at(end), *pack_state({"end": end}), keep=3)
    for found in (checkpoints, Checkpoints(log)):
        assert found.newest() == found.newest(5) == (5, cut_at(3), {"end": 3})
        assert found.newest(7) == (7, cut_at(2), {"end": 2})
        assert found.newest(6) is None
    assert checkpoints.give_up_older() == 5
    assert checkpoints.newest(5) == (5, cut_at(3), {"end": 3})


def test_going_back_discards_what_is_newer_with_its_state(log: BlockLog) -> None:
    checkpoints = Checkpoints(log)
    for step in (1, 2, 3, 4):
        add(checkpoints, step, keep=4)
    checkpoints.make_cut(cut_at(9))
    checkpoints.go_back(2, cut_at(2))
    for found in (checkpoints, Checkpoints(log)):
        assert (found.steps, found.cut, found.newest_cut) == ([1, 2], cut_at(2), cut_at(2))
        assert found.ends("ads") == [2, 1, 2]
        newest = found.newest()
        assert newest is not None and newest[2]["x"].tolist() == [2, 2, 2]
        assert found.check() == []
    assert len(log.names("state/")) == 2
    checkpoints.go_back(2, cut_at(2))  # once more changes nothing
    assert Checkpoints(log).steps == [1, 2]


def test_after_going_back_room_is_kept_for_the_state_that_is_newest_now(log: BlockLog) -> None:
    checkpoints = Checkpoints(log)
    checkpoints.add(1, cut_at(1), *pack_state({"x": torch.ones(1000)}))
    checkpoints.add(2, cut_at(2), *pack_state({}))
    checkpoints.go_back(1, cut_at(1))
    assert checkpoints.state_bytes == Checkpoints(log).state_bytes >= 4000


def test_counts_of_a_cut_go_when_it_goes_back(log: BlockLog) -> None:
    checkpoints = Checkpoints(log)
    counts = {"ads": {"n": 1}}
    checkpoints.add(1, cut_at(1), *pack_state({COUNTS: counts}))
    checkpoints.make_cut(cut_at(2), {"ads": {"n": 2}})
    assert Checkpoints(log).counts() == {"ads": {"n": 2}}
    checkpoints.go_back(1, cut_at(1))
    assert Checkpoints(log).counts() == checkpoints.counts() == counts


def test_a_discarded_number_comes_again_under_another_name(log: BlockLog) -> None:
    checkpoints = Checkpoints(log)
    for step in (1, 2, 3):
        add(checkpoints, step, keep=3)
    first = tokens(checkpoints)
    assert len(set(first)) == 1 and first[0]
    checkpoints.go_back(2, cut_at(2))
    assert tokens(checkpoints) == first[:2]
    add(checkpoints, 30, keep=3)
    second = tokens(checkpoints)
    assert second[:2] == first[:2] and second[2] not in first
    # Twice over, and further back than before.
    checkpoints.go_back(2, cut_at(2))
    add(checkpoints, 31, keep=3)
    third = tokens(checkpoints)
    assert third[:2] == first[:2] and third[2] not in (*first, *second)
    checkpoints.go_back(1, cut_at(1))
    for step in (20, 32):
        add(checkpoints, step, keep=3)
    fourth = tokens(checkpoints)
    assert fourth[0] == first[0] and fourth[1] == fourth[2]
    assert fourth[1] not in (*first, *second, *third)
    assert tokens(Checkpoints(log)) == fourth


def test_a_checkpoint_that_was_not_discarded_keeps_its_name(log: BlockLog) -> None:
    checkpoints = Checkpoints(log)
    for step in (1, 2):
        add(checkpoints, step)
    before = tokens(checkpoints)
    checkpoints.go_back(2, cut_at(2))
    add(checkpoints, 3)
    assert tokens(checkpoints) == [*before, before[0]]


def test_what_never_counted_is_discarded_by_its_step(log: BlockLog) -> None:
    checkpoints = Checkpoints(log)
    for step in (10, 20, 30):
        add(checkpoints, step, keep=3)
    first = tokens(checkpoints)
    checkpoints.forget_newer(20)
    for found in (checkpoints, Checkpoints(log)):
        assert found.steps == [10, 20]
    assert len(log.names("state/")) == 2
    add(checkpoints, 30, keep=3)
    assert tokens(checkpoints)[2] not in first
    checkpoints.forget_newer(30)
    assert checkpoints.steps == [10, 20, 30]
    checkpoints.forget_newer(-1)
    assert (Checkpoints(log).steps, log.names("state/")) == ([], [])


def test_notes_are_committed_with_each_cut_or_not_at_all(
    log: BlockLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one transaction: a crash finds both or neither."""
    checkpoints = Checkpoints(log)
    ways: list[Callable[[dict[str, bytes | None]], None]] = [
        lambda notes: add(checkpoints, 7, notes=notes),
        lambda notes: checkpoints.make_cut(cut_at(9), notes=notes),
        lambda notes: checkpoints.make_cut(cut_at(9), {"ads": {}}, notes),
        lambda notes: checkpoints.go_back(7, cut_at(7), notes),
    ]
    for number, way in enumerate(ways):
        transactions = []
        begin = log.transaction

        def counted(*given: Any, begin: Any = begin, seen: Any = transactions, **more: Any) -> Any:
            seen.append(more.get("write", False))
            return begin(*given, **more)

        def full(*given: Any) -> None:
            raise DiskFullError("no room")

        with monkeypatch.context() as patch:
            patch.setattr(log, "put_facts", full)
            with pytest.raises(DiskFullError):
                way({SESSIONS_FACT: b"never"})
        before = log.fact(SESSIONS_FACT), Checkpoints(log).cut, Checkpoints(log).steps
        assert before == (log.fact(SESSIONS_FACT), checkpoints.cut, checkpoints.steps)
        assert before[0] != b"never"
        with monkeypatch.context() as patch:
            patch.setattr(log, "transaction", counted)
            way({SESSIONS_FACT: b"%d" % number})
        assert sum(transactions) == 1
        assert log.fact(SESSIONS_FACT) == b"%d" % number
        assert Checkpoints(log).cut == checkpoints.cut
    way({SESSIONS_FACT: None})
    assert log.fact(SESSIONS_FACT) is None


def test_what_a_shard_knows_goes_into_a_copy(log: BlockLog, tmp_path: Path) -> None:
    checkpoints = Checkpoints(log)
    add(checkpoints, 1, notes={SESSIONS_FACT: b"sessions"})
    log.commit({FENCES_FACT: b"fences"})
    (tmp_path / "other").mkdir()
    with closing(BlockLog(tmp_path / "other", ["ads"])) as other:
        checkpoints.copy(other, {"ads": {1: 1}})
        assert (other.fact(SESSIONS_FACT), other.fact(FENCES_FACT)) == (b"sessions", b"fences")
        assert Checkpoints(other).steps == [1]
