"""Checkpoints: the last two are kept, each whole, whatever the size of their state."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ps.checkpoint import Checkpoints
from ps.state import pack_state
from storage.log import BlockLog


@pytest.fixture
def log(tmp_path: Path) -> Iterator[BlockLog]:
    log = BlockLog(tmp_path, ["ads"])
    yield log
    log.close()


def test_a_new_log_has_no_cut_and_no_checkpoint(log: BlockLog) -> None:
    checkpoints = Checkpoints(log)
    assert (checkpoints.steps, checkpoints.cut(), checkpoints.newest()) == ([], {}, None)


def test_the_last_two_are_kept_and_nothing_of_the_others(log: BlockLog) -> None:
    checkpoints = Checkpoints(log)
    for step in (10, 20, 30, 5):
        packed = pack_state({"step": step, "x": torch.full((3,), step)})
        checkpoints.add(step, {"ads": step}, *packed)
    assert checkpoints.steps == [30, 5]
    assert checkpoints.cut() == {"ads": 5}
    newest = checkpoints.newest()
    assert newest is not None
    step, ends, state = newest
    assert (step, ends, state["step"], state["x"].tolist()) == (5, {"ads": 5}, 5, [5, 5, 5])
    assert len(log.names("state/")) == 2


def test_a_cut_does_not_move_the_checkpoints(log: BlockLog) -> None:
    checkpoints = Checkpoints(log)
    checkpoints.add(1, {"ads": 3}, *pack_state({}))
    checkpoints.make_cut({"ads": 9})
    assert checkpoints.cut() == {"ads": 9}
    assert checkpoints.newest() == (1, {"ads": 3}, {})


def test_state_larger_than_a_piece_comes_back_whole(log: BlockLog) -> None:
    tensor = torch.arange(5_000_000)  # 40 MB, three pieces
    checkpoints = Checkpoints(log)
    checkpoints.add(1, {"ads": 0}, *pack_state({"x": tensor}))
    assert len(log.names("state/")) == 3
    newest = checkpoints.newest()
    assert newest is not None
    assert torch.equal(newest[2]["x"], tensor)
    checkpoints.add(2, {"ads": 0}, *pack_state({}))
    checkpoints.add(3, {"ads": 0}, *pack_state({}))
    assert len(log.names("state/")) == 2
