"""Reader: blocks as they were written, whichever way they are read; damage is told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from storage.log import BlockLog
from tests.storage.test_tier import shape_of

SHAPE = shape_of()
BLOCKS = 500


@pytest.fixture
def log(tmp_path: Path) -> Iterator[BlockLog]:
    with closing(BlockLog(tmp_path, ["s", "t"])) as made:
        blocks = np.zeros(BLOCKS, SHAPE.dtype)
        blocks["count"] = 1
        blocks["keys"][:, 0] = np.arange(BLOCKS)
        made.append("t", 0, blocks)
        made.wait()
        yield made


def read(log: BlockLog, numbers: np.ndarray) -> tuple[np.ndarray, list[int]]:
    out = np.full(len(numbers), np.zeros((), SHAPE.dtype), SHAPE.dtype)
    return out, log.read("t", numbers, out)


def through_the_library(log: BlockLog) -> None:
    """As where the file is of a format that is not walked."""
    with log.transaction() as txn:
        log._reader._roots = (txn.id(), {})


@pytest.mark.parametrize("library", [False, True])
@pytest.mark.parametrize("count", [0, 1, 3, 200, BLOCKS])
def test_blocks_come_as_they_were_written(log: BlockLog, count: int, library: bool) -> None:
    if library:
        through_the_library(log)
    numbers = np.sort(np.random.default_rng(count).permutation(BLOCKS)[:count])
    out, damaged = read(log, numbers)
    assert damaged == []
    assert out["keys"][:, 0].tolist() == numbers.tolist() == out["number"].tolist()


@pytest.mark.parametrize("library", [False, True])
def test_missing_and_damaged_ones_are_told(log: BlockLog, library: bool) -> None:
    with log.transaction(log._blocks["t"], write=True) as txn:
        txn.put(np.uint64(7).tobytes(), bytes(SHAPE.bytes))
        txn.put(np.uint64(9).tobytes(), txn.get(np.uint64(8).tobytes()))  # in another's place
        txn.put(np.uint64(11).tobytes(), b"short")
        txn.delete(np.uint64(13).tobytes())
    if library:
        through_the_library(log)
    out, damaged = read(log, np.arange(5, 20))
    assert damaged == [2, 4, 6, 8]
    whole = np.setdiff1d(np.arange(15), damaged)
    assert out["keys"][whole, 0].tolist() == (whole + 5).tolist()


def test_a_value_that_the_walk_misreads_is_read_through_the_library(log: BlockLog) -> None:
    with log.transaction() as txn:
        log._reader._roots = (txn.id(), {"blocks/t": 2})  # some other page
    out, damaged = read(log, np.arange(BLOCKS))
    assert damaged == [] and out["keys"][:, 0].tolist() == list(range(BLOCKS))


def test_the_walk_finds_all_that_is_sound(log: BlockLog) -> None:
    read(log, np.arange(3))
    root = log._reader._roots[1]["blocks/t"]
    numbers = np.arange(BLOCKS + 2)
    out, places = np.zeros(len(numbers), SHAPE.dtype), np.zeros(len(numbers), np.uint32)
    assert log._reader._fetch(root, numbers, out, places) == [BLOCKS, BLOCKS + 1]
    assert (places[:BLOCKS] > 0).all() and not places[BLOCKS:].any()


def test_blocks_are_seen_once_they_are_committed(log: BlockLog) -> None:
    for first in range(BLOCKS, BLOCKS + 60, 10):
        blocks = np.zeros(10, SHAPE.dtype)
        blocks["keys"][:, 0] = np.arange(first, first + 10)
        log.append("t", first, blocks)
        log.wait()
        out, damaged = read(log, np.arange(first - 5, first + 10))
        assert damaged == [] and out["keys"][:, 0].tolist() == list(range(first - 5, first + 10))
