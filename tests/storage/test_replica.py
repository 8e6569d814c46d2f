"""Replica: block for block what the source has, and only that; what differs is copied anew."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
import pytest

from storage.block import SEGMENT_BLOCKS
from storage.errors import CorruptError
from storage.log import BlockLog
from storage.replica import Replica
from tests.storage.test_log import SHAPE, blocks_from, expect, expected_list, fill, flip, listed

END = 5 * SEGMENT_BLOCKS + 7
Logs = tuple[BlockLog, BlockLog, Replica]


@pytest.fixture
def logs(tmp_path: Path) -> Iterator[Logs]:
    """A log of ``END`` blocks, an empty one, and the replica between them, of small batches."""
    with ExitStack() as stack:
        for name in ("source", "copy"):
            (tmp_path / name).mkdir()
        source = stack.enter_context(closing(BlockLog(tmp_path / "source", ["t"])))
        copy = stack.enter_context(closing(BlockLog(tmp_path / "copy", ["t"])))
        fill(source, END)
        yield source, copy, Replica(source, copy, "t", SHAPE, batch_bytes=1)


def numbers(log: BlockLog) -> list[int]:
    return log.numbers("t", 0, 1 << 40).tolist()


def complete(replica: Replica, begin: int = 0, end: int = END) -> int:
    """Bring the copy up to date: how many blocks that took."""
    parted = replica.resume(begin, end)
    count = replica.count(parted, end)
    assert sum(replica.extend(parted, end)) == count
    return count


def test_all_is_copied_with_its_directory(logs: Logs) -> None:
    source, copy, replica = logs
    assert complete(replica) == END
    found = np.zeros(END, SHAPE.dtype)
    assert copy.read("t", np.arange(END), found) == []
    expect(found, 0)
    assert listed(copy) == expected_list(END)
    assert complete(replica) == 0
    fill(source, 100)
    assert complete(replica, END, END + 50) == 50
    assert numbers(copy) == list(range(END + 50))
    assert listed(copy) == expected_list(END + 50)


def test_gaps_stay_gaps_and_what_is_freed_goes(logs: Logs) -> None:
    source, copy, replica = logs
    scratch = np.zeros(8, SHAPE.dtype)
    source.free("t", [1, 3], scratch)
    assert complete(replica) == END - 2 * SEGMENT_BLOCKS
    assert numbers(copy) == numbers(source)
    source.free("t", [0, 4, 5], scratch)
    assert sum(replica.trim(END)) == 2 * SEGMENT_BLOCKS + 7
    assert numbers(copy) == numbers(source) == list(range(2 * SEGMENT_BLOCKS, 3 * SEGMENT_BLOCKS))
    assert listed(copy) == listed(source)


@pytest.mark.parametrize("have", [1, 63, 64, 200, END - 1, END])
def test_what_an_interrupted_one_left_is_not_copied_again(logs: Logs, have: int) -> None:
    _, copy, replica = logs
    fill(copy, have)
    again = END - have + have % SEGMENT_BLOCKS if have < END else 0
    assert complete(replica) == again
    assert listed(copy) == expected_list(END)


@pytest.mark.parametrize("different", [0, 70, END - 1, END, END + 5])
def test_what_differs_is_replaced(logs: Logs, different: int) -> None:
    source, copy, replica = logs
    fill(copy, different)
    blocks = blocks_from(different, 100)
    blocks["records"][0, 0, 3] ^= 1  # one bit of the first
    copy.append("t", different, blocks)
    copy.wait()
    complete(replica)
    assert numbers(copy) == numbers(source)
    found = np.zeros(END, SHAPE.dtype)
    assert copy.read("t", np.arange(END), found) == []
    expect(found, 0)
    assert listed(copy) == expected_list(END)


def test_blocks_where_the_source_has_none_are_removed(logs: Logs) -> None:
    source, copy, replica = logs
    source.free("t", [2], np.zeros(8, SHAPE.dtype))
    fill(copy, END)
    complete(replica)
    assert numbers(copy) == numbers(source)
    assert listed(copy) == listed(source)


def test_what_lies_below_the_beginning_is_not_looked_at(logs: Logs) -> None:
    _, copy, replica = logs
    blocks = blocks_from(0, 100)
    blocks["records"] ^= 1
    copy.append("t", 0, blocks)
    copy.wait()
    assert complete(replica, 100) == END - 100
    found = np.zeros(100, SHAPE.dtype)
    assert copy.read("t", np.arange(100), found) == []
    assert found["records"].tobytes() == blocks["records"].tobytes()


def test_a_damaged_block_is_named(tmp_path: Path) -> None:
    for name in ("source", "copy"):
        (tmp_path / name).mkdir()
    with closing(BlockLog(tmp_path / "source", ["t"])) as log:
        fill(log, END)
    # Its keys are in the directory, too: damage the records, which are alike in a block.
    block = blocks_from(100, 1)
    flip(tmp_path / "source", block["keys"].tobytes(), SHAPE.bytes - 3000)
    with (
        closing(BlockLog(tmp_path / "source", ["t"])) as source,
        closing(BlockLog(tmp_path / "copy", ["t"])) as copy,
    ):
        replica = Replica(source, copy, "t", SHAPE, batch_bytes=1)
        with pytest.raises(CorruptError, match=r"table 't': expected a sound block 100, "):
            complete(replica)


def test_a_block_that_is_gone_in_both_is_not_the_same(logs: Logs) -> None:
    source, copy, replica = logs
    complete(replica)
    for log in (source, copy):
        with log.transaction(write=True) as txn:
            assert txn.delete(np.uint64(100).tobytes(), db=log._blocks["t"])
    with pytest.raises(CorruptError, match="expected a sound block 100, "):
        complete(replica)


def test_tombstones_follow_and_what_hides_nothing_goes(logs: Logs) -> None:
    source, copy, replica = logs

    def bury() -> None:
        with copy.transaction(write=True) as txn:
            replica.bury(txn)

    complete(replica)
    source.tombstones["t"].bury(10, np.arange(3000, dtype=np.uint64))
    assert replica.continues() and 24_000 < replica.tombstone_bytes() < 25_000
    bury()
    assert list(copy.tombstones["t"].records()) == list(source.tombstones["t"].records())
    assert replica.continues() and replica.tombstone_bytes() == 0
    source.free("t", [0], np.zeros(8, SHAPE.dtype))
    source.tombstones["t"].bury(90, np.array([5], np.uint64))
    source.tombstones["t"].exhume(SEGMENT_BLOCKS)
    assert len(list(source.tombstones["t"])) == 1
    bury()
    assert len(list(copy.tombstones["t"])) == 4  # what they hide is still there
    list(replica.trim(END))
    assert list(copy.tombstones["t"].records()) == list(source.tombstones["t"].records())


def test_other_tombstones_are_noticed(logs: Logs) -> None:
    source, copy, replica = logs
    copy.tombstones["t"].bury(10, np.array([5], np.uint64))
    assert not replica.continues()
    source.tombstones["t"].bury(10, np.array([6], np.uint64))
    assert not replica.continues()
    source.tombstones["t"].bury(10, np.array([5], np.uint64))
    assert not replica.continues()


def test_blocks_go_whole_where_tombstones_count_higher_numbers_as_used(logs: Logs) -> None:
    # `BlockLog.committed` says so, too: a buffer must not be used again while it is on its way.
    _, copy, replica = logs
    copy.tombstones["t"].bury(10**6, np.array([5], np.uint64))
    complete(replica)
    found = np.zeros(END, SHAPE.dtype)
    assert copy.read("t", np.arange(END), found) == []
    expect(found, 0)
