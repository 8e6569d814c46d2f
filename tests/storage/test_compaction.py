"""Compaction frees what is stale and nothing that the present or a kept cut can reach."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, nullcontext
from pathlib import Path

import numpy as np
import pytest

from storage.block import SEGMENT_BLOCKS
from storage.compaction import TARGET, Compaction
from storage.log import BlockLog
from storage.ssd import SsdTier
from tests.storage.test_ssd import ROWS, numbered
from tests.storage.test_tier import Oracle, make_ssd, rows_of

# As many rows as fill a segment.
FULL = ROWS * SEGMENT_BLOCKS


@pytest.fixture
def log(tmp_path: Path) -> Iterator[BlockLog]:
    with closing(BlockLog(tmp_path, ["t"])) as made:
        yield made


def empty_all(ssd: SsdTier) -> int:
    """Empty every segment with a stale row: how many steps."""
    compaction, steps = Compaction(ssd, nullcontext), 0
    while compaction.step(lambda: 1 << 30, everything=True):
        steps += 1
        assert steps < 1000
    return steps


def filled(log: BlockLog, segments: int) -> SsdTier:
    ssd = make_ssd(log, buffer_bytes=1 << 18)
    ssd.write(rows_of(numbered(0, segments * FULL), 1))
    ssd.flush()
    return ssd


def test_live_rows_survive_and_stale_segments_go(log: BlockLog) -> None:
    ssd, oracle = filled(log, 3), Oracle()
    oracle.write(rows_of(numbered(0, 3 * FULL), 1))
    newer = rows_of(numbered(0, 2 * FULL)[::2], 2)
    ssd.write(newer)
    oracle.write(newer)
    ssd.flush()
    used = log.used_bytes
    assert empty_all(ssd) >= 2
    ssd.flush()
    assert ssd.free([ssd.end]) >= 2
    assert log.used_bytes < used
    assert ssd.segments.blocks <= 3 * SEGMENT_BLOCKS + 5
    for tier in (ssd, make_ssd(log)):
        oracle.compare(*tier.peek(numbered(0, 3 * FULL)))
        assert tier.check() == []
        assert len(tier) == 3 * FULL


def test_a_row_of_the_last_cut_survives_though_a_newer_one_was_written_uncut(
    log: BlockLog,
) -> None:
    ssd = filled(log, 1)  # the row is cut in one of these blocks
    cut = ssd.end
    ssd.write(rows_of(numbered(0, FULL), 2))  # and evicted uncut to one of these
    ssd.flush()
    assert ssd.segments.live(0) == 0
    empty_all(ssd)
    assert ssd.free([cut]) == 0
    log.truncate("t", cut)  # a crash
    found = make_ssd(log)
    rows, missing = found.peek(numbered(0, FULL))
    assert not missing.any() and (rows.steps == 1).all()


def test_what_no_cut_names_is_freed_at_once(log: BlockLog) -> None:
    ssd = filled(log, 1)
    cut = ssd.end
    for tag in range(2, 10):
        ssd.write(rows_of(numbered(0, FULL), tag))
        ssd.flush()
        empty_all(ssd)
        ssd.free([cut])
        assert ssd.segments.blocks <= 4 * SEGMENT_BLOCKS
    log.truncate("t", cut)
    rows, _ = make_ssd(log).peek(numbered(0, FULL))
    assert (rows.steps == 1).all()


def test_a_kept_checkpoint_keeps_its_blocks_until_it_is_given_up(log: BlockLog) -> None:
    ssd = filled(log, 2)
    kept = ssd.end
    ssd.write(rows_of(numbered(0, 2 * FULL)[::3], 2))
    ssd.flush()
    empty_all(ssd)
    ssd.flush()
    assert ssd.free([kept, ssd.end]) == 0
    ssd.rewind(kept)
    rows, missing = ssd.peek(numbered(0, 2 * FULL))
    assert not missing.any() and (rows.steps == 1).all()
    assert ssd.check() == []


def test_deleted_rows_leave_and_their_tombstones_after_them(log: BlockLog) -> None:
    ssd = filled(log, 2)
    ssd.delete(numbered(0, FULL))
    assert len(list(log.tombstones["t"])) > 0
    empty_all(ssd)
    ssd.flush()
    ssd.free([ssd.end])
    assert ssd.lowest >= SEGMENT_BLOCKS
    assert len(make_ssd(log)) == FULL
    # The other segment is older than the tombstone: only when it goes, too, nothing is hidden.
    assert len(list(log.tombstones["t"])) > 0
    ssd.write(rows_of(numbered(FULL, FULL), 2))
    ssd.flush()
    empty_all(ssd)
    ssd.flush()
    ssd.free([ssd.end])
    assert len(list(log.tombstones["t"])) == 1  # the newest stays
    _, missing = make_ssd(log).peek(numbered(0, 2 * FULL))
    assert missing.tolist() == [True] * FULL + [False] * FULL


@pytest.mark.parametrize("checkpoints", [0, 10])
def test_the_log_stays_short_under_uniform_overwriting(log: BlockLog, checkpoints: int) -> None:
    ssd, rng, rows = filled(log, 8), np.random.default_rng(0), 8 * FULL
    compaction, ends, truth = Compaction(ssd, nullcontext), [ssd.end] * 2, np.ones(rows, np.int64)
    batch, longest = rows // 40, 0
    for tag in range(2, 200):
        chosen = rng.permutation(rows)[:batch]
        ssd.write(rows_of(chosen.astype(np.uint64), tag))
        truth[chosen] = tag
        while compaction.excess and compaction.step(lambda: 1 << 30):
            ssd.free(ends)
        if checkpoints and tag % checkpoints == 0:
            ssd.flush()
            ends = [ends[1], ssd.end]
            ssd.free(ends)
        segments = ssd.segments
        # Beside what is not worth the trouble, three write buffers may be on their way.
        spare = 5 * SEGMENT_BLOCKS
        assert segments.blocks - segments.emptied_blocks <= TARGET * rows / ROWS + spare
        longest = max(longest, segments.blocks)
    # Without checkpoints the first one keeps its blocks: reachable is twice the table.
    reachable = 2 if not checkpoints else 1 + 2 * checkpoints / 40
    assert longest * ROWS <= 1.5 * reachable * rows + 4 * FULL
    found, missing = ssd.peek(numbered(0, rows))
    assert not missing.any() and (found.steps == truth).all()
    assert ssd.check() == []


def test_a_segment_with_a_damaged_block_is_left_where_it_is(tmp_path: Path) -> None:
    from tests.storage.test_log import flip

    with closing(BlockLog(tmp_path, ["t"])) as log:
        filled(log, 2)
    inside = numbered(3 * ROWS, ROWS)
    flip(tmp_path, inside.tobytes() + np.ones(4, "<u4").tobytes(), len(inside) * 8 + 1)
    with closing(BlockLog(tmp_path, ["t"])) as log:
        ssd = make_ssd(log, buffer_bytes=1 << 18)
        ssd.write(rows_of(numbered(10 * ROWS, FULL // 2), 2))
        ssd.write(rows_of(numbered(FULL, FULL // 2), 2))
        ssd.flush()
        empty_all(ssd)
        ssd.flush()
        ssd.free([ssd.end])
        assert ssd.segments.present[0] == 0 and ssd.segments.live(0) == ROWS
        assert 1 not in ssd.segments.present.tolist()
        (line,) = ssd.check()
        assert f" {ROWS} rows" in line
        everything = numbered(0, 2 * FULL)
        _, missing = ssd.peek(np.setdiff1d(everything, inside))
        assert not missing.any()


def test_without_memory_for_its_copies_nothing_is_emptied(
    log: BlockLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.segments._FIRST", 4)
    monkeypatch.setattr("storage.segments._AHEAD", 0)
    ssd = filled(log, 3)
    ssd.write(rows_of(numbered(0, FULL), 2))
    ssd.flush()
    ssd.segments.reserve(ssd.end)
    while ssd.end + 2 * SEGMENT_BLOCKS <= ssd.segments.reserved:
        ssd.write(rows_of(numbered(0, ROWS), 3))
        ssd.flush()
    before, held = ssd.segments.blocks, ssd.memory_bytes
    assert empty_all(ssd) == 0
    assert (ssd.segments.blocks, ssd.memory_bytes) == (before, held)
