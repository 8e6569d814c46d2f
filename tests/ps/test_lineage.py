"""Lineage: a checkpoint has one name for good, in every copy of its log that shares it."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path

from ps.checkpoint import Checkpoints, Cut
from ps.lineage import FACT, Lineage
from ps.state import pack_state
from storage.log import BlockLog

EMPTY = Cut({"ads": 0}, {"ads": 0})


def add_checkpoints(path: Path, count: int) -> list[str]:
    """Make so many in one opening: the tokens of all there ever were, from number 1 on."""
    with closing(BlockLog(path, ["ads"])) as log:
        checkpoints = Checkpoints(log)
        for _ in range(count):
            checkpoints.add(1, EMPTY, *pack_state({}))
        known = [checkpoints.lineage.token(n) for n in range(1, checkpoints.number + 1)]
        again = Lineage(log)
        assert [again.token(n) for n in range(1, checkpoints.number + 1)] == known
    return known


def test_each_opening_that_makes_a_checkpoint_names_those_from_then_on(tmp_path: Path) -> None:
    first = add_checkpoints(tmp_path, 3)
    assert len(set(first)) == 1 and first[0]
    assert add_checkpoints(tmp_path, 0) == first
    second = add_checkpoints(tmp_path, 2)
    assert second[:3] == first
    assert second[3] == second[4] not in first


def test_a_copy_that_goes_on_by_itself_shares_only_what_was_before(tmp_path: Path) -> None:
    before = add_checkpoints(tmp_path / "a", 2)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    ours, theirs = (add_checkpoints(tmp_path / name, 1) for name in "ab")
    assert ours[:2] == theirs[:2] == before
    assert ours[2] != theirs[2]


def test_a_log_without_one_gets_one_that_names_nothing_before(tmp_path: Path) -> None:
    add_checkpoints(tmp_path, 3)
    with closing(BlockLog(tmp_path, ["ads"])) as log:
        log.forget([FACT])
        assert Lineage(log).token(3) == ""
    assert add_checkpoints(tmp_path, 1)[:3] == ["", "", ""]


def test_a_commit_that_failed_is_noted_by_the_next(tmp_path: Path) -> None:
    with closing(BlockLog(tmp_path, ["ads"])) as log:
        lineage = Lineage(log)
        lineage.facts_with(1)  # was never committed
        log.commit(lineage.facts_with(1))
        assert len(Lineage(log).token(1)) == 16
