"""Directory: lists just the blocks that are there, whatever of it is missing or damaged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from storage.log import BlockLog
from tests.storage.test_tier import shape_of

SHAPE = shape_of()


@pytest.fixture
def log(tmp_path: Path) -> Iterator[BlockLog]:
    """Blocks 0 to 199 and 300 to 309, one row each, with the number as key."""
    with closing(BlockLog(tmp_path, ["t"])) as made:
        for first, count in ((0, 200), (300, 10)):
            blocks = np.zeros(count, SHAPE.dtype)
            blocks["count"], blocks["keys"][:, 0] = 1, np.arange(first, first + count)
            made.append("t", first, blocks)
            made.wait()
        yield made


def runs(log: BlockLog) -> list[int]:
    """Where they begin."""
    return [first for first, _, _ in log.directory("t")]


def test_numbers_and_keys(log: BlockLog) -> None:
    everything = [*range(200), *range(300, 310)]
    assert log.numbers("t", 0, 1000).tolist() == everything
    assert log.numbers("t", 128, 305).tolist() == [*range(128, 200), *range(300, 305)]
    assert log.numbers("t", 256, 300).tolist() == []
    for number in (0, 77, 199, 300, 309):
        assert log.keys_of("t", number).tolist() == [number]
    for number in (200, 299, 310):
        assert log.keys_of("t", number).tolist() == []


def test_what_was_cut_back_in_the_middle_of_a_run_is_still_listed(log: BlockLog) -> None:
    log.truncate("t", 150)
    assert log.numbers("t", 0, 1000).tolist() == list(range(150))
    assert log.numbers("t", 128, 192).tolist() == list(range(128, 150))


def test_damaged_and_missing_runs_are_made_up_for(log: BlockLog) -> None:
    database = log._directories["t"].database
    first, second = runs(log)[:2]
    with log.transaction(database, write=True) as txn:
        txn.put(np.uint64(first).tobytes(), b"no run at all")
        txn.delete(np.uint64(second).tobytes())
    assert log.numbers("t", 0, 1000).tolist() == [*range(200), *range(300, 310)]
    assert log.keys_of("t", first).tolist() == []
    keys = [key for _, _, keys in log.directory("t") for key in keys.tolist()]
    assert keys == [*range(200), *range(300, 310)]
