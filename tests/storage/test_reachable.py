"""Reachable: a bit for each version that a kept cut shows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from storage.log import BlockLog
from storage.reachable import Reachable
from tests.storage.test_ssd import numbered
from tests.storage.test_tier import make_ssd, rows_of, shape_of

SHAPE = shape_of()


@pytest.fixture
def log(tmp_path: Path) -> Iterator[BlockLog]:
    with closing(BlockLog(tmp_path, ["t"])) as made:
        yield made


def reachable(log: BlockLog, *ends: int) -> np.ndarray:
    """By block, how many rows."""
    found = Reachable(log, "t", SHAPE.place_bits, ends)
    chosen = found.select(np.arange(log.committed["t"]), SHAPE.rows)
    assert found.rows == chosen.sum()
    return chosen.sum(axis=1)


def test_versions_of_all_cuts_count_once_and_others_not_at_all(log: BlockLog) -> None:
    ssd = make_ssd(log)
    for tag in range(3):  # three blocks of the same keys
        ssd.write(rows_of(numbered(0, SHAPE.rows), tag))
        ssd.flush()
    assert reachable(log, 3).tolist() == [0, 0, SHAPE.rows]
    assert reachable(log, 3, 1, 1).tolist() == [SHAPE.rows, 0, SHAPE.rows]
    assert reachable(log, 0).tolist() == [0, 0, 0]


def test_a_tombstone_hides_older_versions_from_older_cuts_too(log: BlockLog) -> None:
    ssd = make_ssd(log)
    ssd.write(rows_of(numbered(0, SHAPE.rows), 1))
    ssd.flush()
    ssd.write(rows_of(numbered(900, SHAPE.rows), 1))
    ssd.flush()
    ssd.delete(numbered(0, 3))
    ssd.write(rows_of(numbered(0, 1), 2))
    ssd.flush()
    assert reachable(log, 1, 3).tolist() == [SHAPE.rows - 3, SHAPE.rows, 1]
    assert reachable(log, 1).tolist() == [SHAPE.rows - 3, 0, 0]
