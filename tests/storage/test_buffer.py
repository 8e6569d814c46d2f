"""WriteBuffer: a row is where its address says, in a buffer, on its way, or on the disk."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np

from storage.buffer import WriteBuffer
from storage.log import BlockLog
from storage.places import Places
from tests.storage.test_tier import shape_of

SHAPE = shape_of()


def fill(buffer: WriteBuffer, first: int, count: int) -> np.ndarray:
    keys = np.arange(first, first + count, dtype=np.uint64)
    records = np.repeat(keys.astype(np.uint8)[:, None], SHAPE.record_bytes, axis=1)
    return buffer.fill(keys, np.full(count, 3, np.uint32), records)


def keys_at(buffer: WriteBuffer, addresses: np.ndarray) -> list[int]:
    numbers = np.unique(addresses >> SHAPE.place_bits)
    blocks = np.zeros(len(numbers), SHAPE.dtype)
    assert buffer.read(numbers, blocks) == []
    which = np.searchsorted(numbers, addresses >> SHAPE.place_bits)
    found: list[int] = blocks["keys"][which, addresses & (1 << SHAPE.place_bits) - 1].tolist()
    return found


def test_rows_keep_their_addresses_on_all_their_way(tmp_path: Path) -> None:
    with closing(BlockLog(tmp_path, ["t"])) as log:
        buffer = WriteBuffer("t", SHAPE, log, Places(), blocks=2)
        addresses = np.empty(0, np.int64)
        for first in range(0, 20 * SHAPE.rows, SHAPE.rows):
            addresses = np.concatenate((addresses, fill(buffer, first, SHAPE.rows)))
            if not buffer.room:
                assert buffer.send().tolist() == [first // SHAPE.rows - 1, first // SHAPE.rows]
            assert keys_at(buffer, addresses) == list(range(first + SHAPE.rows))
        assert buffer.end == 20 and log.committed["t"] <= 20
        log.wait()
        buffer.collect()
        assert len(buffer.arrays) == 3


def test_a_block_that_is_ended_takes_no_more_rows(tmp_path: Path) -> None:
    with closing(BlockLog(tmp_path, ["t"])) as log:
        buffer = WriteBuffer("t", SHAPE, log, Places(), blocks=4)
        fill(buffer, 0, 3)
        buffer.end_block()
        buffer.end_block()
        assert buffer.end == 1
        assert fill(buffer, 9, 1)[0] >> SHAPE.place_bits == 1
        assert buffer.send().tolist() == [0]  # the full blocks only


def test_an_empty_buffer_sends_nothing(tmp_path: Path) -> None:
    with closing(BlockLog(tmp_path, ["t"])) as log:
        assert WriteBuffer("t", SHAPE, log, Places(), blocks=4).send().tolist() == []
