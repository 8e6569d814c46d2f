"""Examine finds damaged and missing blocks, whether rows in them count or not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from storage.errors import CorruptError
from storage.examine import examine
from storage.log import BlockLog
from storage.losses import Losses
from storage.reachable import Reachable
from tests.storage.test_ssd import numbered
from tests.storage.test_tier import make_ssd, rows_of, shape_of

SHAPE = shape_of()


@pytest.fixture
def log(tmp_path: Path) -> Iterator[BlockLog]:
    """Ten blocks of new keys, then the keys of the first again."""
    with closing(BlockLog(tmp_path, ["t"])) as made:
        ssd = make_ssd(made)
        ssd.write(rows_of(numbered(0, 10 * SHAPE.rows), 1))
        ssd.write(rows_of(numbered(0, SHAPE.rows), 2))
        ssd.flush()
        yield made


def examined(log: BlockLog) -> Losses:
    losses, seen = Losses("t"), []
    reachable = Reachable(log, "t", SHAPE.place_bits, [log.committed["t"]], losses)
    examine(log, reachable, SHAPE, losses, seen.append)
    assert sum(seen) == log.committed["t"] - len(losses.unknown)
    return losses


def damage(log: BlockLog, database: object, number: int) -> None:
    with log.transaction(database, write=True) as txn:
        value = bytearray(txn.get(np.uint64(number).tobytes()))
        value[len(value) // 2] ^= 4
        txn.put(np.uint64(number).tobytes(), bytes(value))


def test_a_sound_log_has_no_losses(log: BlockLog) -> None:
    assert not examined(log)


def test_damaged_and_missing_blocks_are_told_with_their_keys(log: BlockLog) -> None:
    damage(log, log._blocks["t"], 0)
    damage(log, log._blocks["t"], 3)
    with log.transaction(log._blocks["t"], write=True) as txn:
        txn.delete(np.uint64(5).tobytes())
    found = examined(log)
    keys = {n: list(range(n * SHAPE.rows, (n + 1) * SHAPE.rows)) for n in (3, 5)}
    assert found.blocks == {0: [], **keys}
    assert found.unknown == []


def test_a_damaged_directory_alone_is_no_loss_but_with_its_block_is(log: BlockLog) -> None:
    with log.transaction(log._directories["t"].database) as txn:
        first = next(int(np.frombuffer(key, np.uint64)[0]) for key, _ in txn.cursor())
    damage(log, log._directories["t"].database, first)
    assert not examined(log)
    damage(log, log._blocks["t"], 1)
    found = examined(log)
    assert found.unknown == [1] and found.blocks == {}
    with pytest.raises(CorruptError, match="block 1"):
        Reachable(log, "t", SHAPE.place_bits, [log.committed["t"]])


def test_damaged_tombstones_are_counted(log: BlockLog) -> None:
    log.tombstones["t"].bury(log.committed["t"], numbered(0, 3))
    damage(log, log.tombstones["t"]._database, 0)
    assert examined(log).tombstones == 1
