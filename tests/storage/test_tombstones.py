"""Tombstones are durable, in order, and there as long as they may hide something."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from storage.errors import CorruptError
from storage.log import BlockLog
from tests.storage.test_log import SHAPE, fill, flip


def test_tombstones_are_durable_ordered_and_keep_numbers_from_use(tmp_path: Path) -> None:
    first, second = np.arange(3000, dtype=np.uint64), np.array([5, 2**64 - 1], np.uint64)
    with closing(BlockLog(tmp_path, ["t"])) as log:
        fill(log, 10)
        log.tombstones["t"].bury(10, first)
        log.tombstones["t"].bury(12, second)
    with closing(BlockLog(tmp_path, ["t"])) as log:
        log.truncate("t", 4)
        assert log.committed["t"] == 12
        found = list(log.tombstones["t"])
        assert np.concatenate([keys for end, keys in found if end == 10]).tolist() == list(
            range(3000)
        )
        assert [keys.tolist() for end, keys in found if end == 12] == [second.tolist()]
        log.tombstones["t"].exhume(11)
        assert [end for end, _ in log.tombstones["t"]] == [12]
        log.tombstones["t"].exhume(12)
        assert [end for end, _ in log.tombstones["t"]] == [12]


def test_numbers_stay_used_when_nothing_else_is_left(tmp_path: Path) -> None:
    with closing(BlockLog(tmp_path, ["t"])) as log:
        fill(log, 128)
        log.tombstones["t"].bury(128, np.arange(3000, dtype=np.uint64))
        log.free("t", [0, 1], np.zeros(8, SHAPE.dtype))
        log.tombstones["t"].exhume(128)
        assert log.tombstones["t"].span == (2, 3)
    with closing(BlockLog(tmp_path, ["t"])) as log:
        assert log.committed["t"] == 128


def test_a_damaged_tombstone_is_named(tmp_path: Path) -> None:
    keys = np.arange(7_777_777, 7_777_800, dtype=np.uint64)
    with closing(BlockLog(tmp_path, ["t"])) as log:
        log.tombstones["t"].bury(1, keys)
    flip(tmp_path, keys.tobytes(), 3)
    with closing(BlockLog(tmp_path, ["t"])) as log, pytest.raises(CorruptError, match="'t'"):
        list(log.tombstones["t"])
