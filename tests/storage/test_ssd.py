"""SsdTier: every row is found at every moment, survives its process, or is named as damaged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from storage.address import LEAST_BYTES
from storage.codec import CODECS
from storage.errors import CorruptError, DiskFullError
from storage.keys import BUCKETS, bucket_of, mix, mix_keys
from storage.log import BlockLog
from storage.rows import Keys
from storage.ssd import SsdTier
from tests.storage.test_log import Unwarned, flip
from tests.storage.test_tier import (
    LAST,
    Oracle,
    as_keys,
    make_ssd,
    ones,
    rows_of,
    shape_of,
)

ROWS = shape_of().rows


def numbered(start: int, count: int) -> Keys:
    return np.arange(start, start + count, dtype=np.uint64)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[BlockLog]:
    with closing(BlockLog(tmp_path, ["t"])) as made:
        yield made


@pytest.mark.parametrize("buffer_bytes", [1, 4096, 5 * 4096, 1 << 20])
def test_a_row_is_found_while_it_is_on_its_way(log: BlockLog, buffer_bytes: int) -> None:
    # Thousands of rows through buffers of one block: some open, some queued, some on the disk.
    ssd, oracle = make_ssd(log, buffer_bytes=buffer_bytes), Oracle()
    rng = np.random.default_rng(0)
    for tag in range(1, 40):
        rows = rows_of(rng.permutation(numbered(0, 2000))[:700], tag)
        ssd.write(rows)
        oracle.write(rows)
        oracle.compare(*ssd.peek(rng.permutation(numbered(0, 2500))[:300]))
    oracle.compare(*ssd.peek(numbered(0, 2500)))
    assert ssd.check() == []


@pytest.mark.parametrize("name", CODECS)
def test_rows_come_back_as_their_codec_rounds_them(log: BlockLog, name: str) -> None:
    ssd, rows = make_ssd(log, name), rows_of(numbered(0, 500), 3)
    rows.values[:] = np.random.default_rng(0).standard_normal(rows.values.shape)
    ssd.write(rows)
    ssd.flush()
    shape = ssd.shape
    wanted = shape.codec.decode(shape.codec.encode(rows.values, shape.dim), shape.dim, 1)
    for tier in (ssd, make_ssd(log, name)):
        np.testing.assert_array_equal(tier.peek(rows.keys)[0].values, wanted)


def test_more_blocks_than_the_read_buffer_holds_are_read_in_pieces(log: BlockLog) -> None:
    ssd, rows = make_ssd(log, buffer_bytes=2 * 4096), rows_of(numbered(0, 50 * ROWS), 1)
    ssd.write(rows)
    ssd.flush()
    mixed = np.random.default_rng(0).permutation(rows.keys)
    found, missing = ssd.lookup(mixed, ones(mixed))
    assert not missing.any()
    np.testing.assert_array_equal(found.values, rows_of(mixed, 1).values)
    assert ssd.stats.bytes_read >= 50 * 4096 and ssd.stats.rows_read == len(mixed)


def test_the_keys_of_a_segment_are_those_of_its_bucket_in_mixed_order(log: BlockLog) -> None:
    ssd, keys = make_ssd(log), numbered(0, 9000)
    ssd.write(rows_of(keys, 1))
    ssd.delete(keys[:100])
    kept = keys[100:]
    for bucket in (0, 77, BUCKETS - 1):
        mine = kept[[int(bucket_of(np.uint64(mix(k)))) == bucket for k in kept]]
        assert ssd._index.segment(bucket)[0].tolist() == mine[np.argsort(mix_keys(mine))].tolist()


def test_what_is_no_row_in_a_block_is_zero(log: BlockLog) -> None:
    # Buffers are used again: what stood in them before must not reach the disk a second time.
    ssd = make_ssd(log, buffer_bytes=1)
    ssd.write(rows_of(numbered(1, 8 * ROWS), 7))
    ssd.write(rows_of(numbered(1, 2), 8))
    ssd.flush()
    ssd.write(rows_of(numbered(1, 1), 9))
    ssd.flush()
    out = np.zeros(2, ssd.shape.dtype)
    assert log.read("t", np.array([8, 9]), out) == []
    assert out["count"].tolist() == [2, 1]
    for block in out:
        for field in ("keys", "steps", "records"):
            assert not block[field][block["count"] :].any()


# -- memory ----------------------------------------------------------------------------------------


def held_bytes(ssd: SsdTier) -> int:
    """Bytes of the arrays that the tier really holds: index and buffers."""
    buffers = [ssd._staging, *ssd._buffer.arrays]
    return ssd._index.bytes + sum(buffer.nbytes for buffer in buffers)


def test_the_memory_it_reports_is_never_less_than_what_it_holds(log: BlockLog) -> None:
    ssd = make_ssd(log)
    least = ssd.memory_bytes
    assert least >= LEAST_BYTES
    for start in range(0, 60_000, 6000):
        before, bound = ssd.memory_bytes, ssd.growth_bound(6000)
        ssd.write(rows_of(numbered(start, 6000), 1))
        assert held_bytes(ssd) <= ssd.memory_bytes <= before + bound
    assert ssd.memory_bytes > least


# -- deleting and going back -----------------------------------------------------------------------


def test_deleted_keys_stay_deleted_and_later_ones_stay_written(log: BlockLog) -> None:
    ssd, keys = make_ssd(log), as_keys(0, 1, 2, LAST)
    ssd.write(rows_of(keys, 1))
    ssd.flush()
    ssd.delete(as_keys(0, 1, LAST))
    ssd.write(rows_of(as_keys(1), 2))
    ssd.flush()
    for tier in (ssd, make_ssd(log)):
        rows, missing = tier.peek(keys)
        assert missing.tolist() == [True, False, False, True]
        assert rows.steps[1:3].tolist() == [2, 1]
        assert tier.check() == []


def test_deleting_more_keys_than_a_buffer_holds_is_remembered(log: BlockLog) -> None:
    ssd, keys = make_ssd(log, buffer_bytes=1), numbered(0, 5 * ROWS + 3)
    ssd.write(rows_of(keys, 1))
    ssd.delete(keys)
    ssd.flush()
    assert len(ssd) == len(make_ssd(log)) == 0


@pytest.mark.parametrize("buffer_bytes", [1, 1 << 16])
def test_going_back_shows_the_rows_of_that_moment(log: BlockLog, buffer_bytes: int) -> None:
    ssd, oracle = make_ssd(log, buffer_bytes=buffer_bytes), Oracle()
    universe = np.concatenate((as_keys(LAST), numbered(0, 900)))
    first = rows_of(universe[:600], 1)
    ssd.write(first)
    oracle.write(first)
    ssd.flush()
    end = ssd.end
    ssd.write(rows_of(universe[300:], 2))
    ssd.delete(universe[:50])
    ssd.flush()
    ssd.write(rows_of(universe[:10], 3))  # still in the open buffer
    ssd.rewind(end)
    # What was deleted meanwhile stays deleted, so numbers go on above its tombstone.
    oracle.delete(universe[:50])
    assert ssd.end >= end
    oracle.compare(*ssd.peek(universe))
    assert ssd.check() == []
    more = rows_of(universe[500:700], 4)
    ssd.write(more)
    oracle.write(more)
    ssd.flush()
    for tier in (ssd, make_ssd(log)):
        oracle.compare(*tier.peek(universe))


def test_rows_that_were_never_committed_are_not_there_after_a_cut_back(log: BlockLog) -> None:
    ssd = make_ssd(log)
    ssd.write(rows_of(numbered(0, 300), 1))
    ssd.flush()
    end = ssd.end
    ssd.write(rows_of(numbered(0, 300), 2))
    ssd.flush()
    log.truncate("t", end)
    rows, missing = make_ssd(log).peek(numbered(0, 300))
    assert not missing.any() and (rows.steps == 1).all()


# -- damage ----------------------------------------------------------------------------------------


def damaged_store(path: Path, block: int) -> tuple[Keys, Keys]:
    """A store of ten blocks of which one has a flipped bit: (keys in it, all other keys)."""
    keys = numbered(5000, 10 * ROWS)
    with closing(BlockLog(path, ["t"])) as log:
        ssd = make_ssd(log, buffer_bytes=4 * 4096)
        ssd.write(rows_of(keys, 1))
        ssd.flush()
    inside = keys[block * ROWS : (block + 1) * ROWS]
    # Steps follow the keys in a block, and only there.
    flip(path, inside.tobytes() + np.ones(4, "<u4").tobytes(), len(inside) * 8 + 1)
    return inside, np.setdiff1d(keys, inside)


def test_a_damaged_block_is_named_with_its_table_and_the_rows_it_held(tmp_path: Path) -> None:
    inside, outside = damaged_store(tmp_path, 3)
    with closing(BlockLog(tmp_path, ["t"])) as log:
        ssd = make_ssd(log)
        for ask in (ssd.peek, lambda keys: ssd.lookup(keys, ones(keys))):
            with pytest.raises(CorruptError, match=r"table 't'.*1 \(3\) are damaged.* 5 rows") as e:
                ask(np.concatenate((outside[:40], inside[:5])))
            assert "\n" not in str(e.value)
        assert ssd.stats.keys == 0
        rows, missing = ssd.peek(outside)
        assert not missing.any() and (rows.steps == 1).all()


def test_checking_names_a_damaged_block_and_how_many_rows_are_lost(tmp_path: Path) -> None:
    inside, _ = damaged_store(tmp_path, 3)
    with closing(BlockLog(tmp_path, ["t"])) as log:
        ssd = make_ssd(log)
        (line,) = ssd.check()
        assert "table 't'" in line and "1 (3)" in line and f" {ROWS} rows" in line
        # Rows that were written again do not depend on it.
        ssd.write(rows_of(inside[:-2], 2))
        (line,) = ssd.check()
        assert " 2 rows" in line
        ssd.write(rows_of(inside[-2:], 2))
        assert ssd.check() == []


def test_checking_finds_rows_that_are_not_where_the_index_says(log: BlockLog) -> None:
    ssd = make_ssd(log)
    ssd.write(rows_of(numbered(0, 300), 1))
    ssd._index.set(as_keys(7), np.array([int(ssd._index.find(as_keys(8))[0])]))
    (line,) = ssd.check()
    assert "expected 300 rows" in line and "found 299" in line
    with pytest.raises(CorruptError):
        ssd.peek(as_keys(7))


# -- full disks ------------------------------------------------------------------------------------


def test_a_write_that_the_disk_refuses_can_be_repeated_when_there_is_room(tmp_path: Path) -> None:
    oracle = Oracle()
    with closing(BlockLog(tmp_path, ["t"], disk_bytes=4 << 20)) as log:
        ssd, tag = make_ssd(log), 0
        with pytest.raises(DiskFullError):
            while True:
                tag += 1
                rows = rows_of(numbered(100 * tag, 1000), tag)
                ssd.write(rows)
                oracle.write(rows)
        for _ in range(3):  # refused again, never a crash, and what was written before stays
            with pytest.raises(DiskFullError):
                ssd.write(rows_of(numbered(10**6, 1000), 1))
        others = numbered(100, 100 * (tag - 1))
        oracle.compare(*ssd.peek(others))
        log.disk_bytes = 8 << 20
        log.wait()  # LMDB resizes only between transactions
        log._env.set_mapsize(8 << 20)
        ssd.write(rows)
        oracle.write(rows)
        ssd.flush()
        oracle.compare(*ssd.peek(numbered(100, 100 * tag + 900)))
        assert ssd.check() == []


def test_keys_whose_deletion_could_not_be_logged_are_still_there(tmp_path: Path) -> None:
    with closing(BlockLog(tmp_path, ["t"], disk_bytes=4 << 20)) as log:
        ssd, keys = make_ssd(log, buffer_bytes=1), numbered(0, ROWS)
        ssd.write(rows_of(keys, 1))
        with pytest.raises(DiskFullError):
            while True:
                ssd.write(rows_of(keys, 2))
        with pytest.raises(DiskFullError):
            ssd.delete(keys[:2])
        assert not ssd.peek(keys)[1].any()


def test_buffers_of_a_failed_writer_are_not_written_to_again(tmp_path: Path) -> None:
    with closing(Unwarned(tmp_path, ["t"], disk_bytes=2 << 20)) as log:
        ssd = make_ssd(log, buffer_bytes=1)
        written = 0
        with pytest.raises(DiskFullError):
            while True:
                ssd.write(rows_of(numbered(written * ROWS, ROWS), 1))
                written += 1
        for _ in range(5):
            with pytest.raises(DiskFullError):
                ssd.write(rows_of(numbered(10**6, ROWS), 9))
        rows, missing = ssd.peek(numbered(0, written * ROWS))
        assert not missing.any() and (rows.steps == 1).all()
