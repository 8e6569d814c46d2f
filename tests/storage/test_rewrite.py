"""Rewrite: every kept cut shows in the new log what it showed in the old one, and no more is there.

The oracle keeps all versions and tombstones in Python and looks through them one by one.
"""

from __future__ import annotations

import tempfile
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.errors import CorruptError
from storage.log import BlockLog
from storage.reachable import Reachable
from storage.rewrite import Rewrite
from storage.ssd import SsdTier
from tests.storage.test_ssd import numbered
from tests.storage.test_tier import make_ssd, rows_of, shape_of

SHAPE = shape_of()
keys = st.lists(st.integers(0, 40), unique=True, min_size=1, max_size=30)
steps = st.lists(st.tuples(st.sampled_from(["write", "write", "delete", "cut"]), keys), max_size=25)
Version = tuple[int, int, int]
"""Key, block, tag."""


def shown(versions: list[Version], deleted: list[tuple[int, int]], end: int) -> dict[int, int]:
    """What a cut with this end shows: key -> tag of its newest version that nothing hides."""
    view: dict[int, int] = {}
    for key, block, tag in versions:
        hidden = any(key == other and block < made_at for other, made_at in deleted)
        if block < end and not hidden:
            view[key] = tag
    return view


def tags(ssd: SsdTier) -> dict[int, int]:
    return {int(k): int(t) for rows in ssd.scan() for k, t in zip(rows.keys, rows.steps)}  # noqa: B905


def rewrite(source: BlockLog, target: BlockLog, ends: list[int]) -> dict[int, int]:
    seen: list[int] = []
    reachable = Reachable(source, "t", SHAPE.place_bits, ends)
    moved = Rewrite(source, target, "t", SHAPE).run(reachable, ends, seen.append)
    assert sum(seen) == reachable.rows
    return moved


@given(steps)
@settings(max_examples=50)
def test_every_cut_shows_what_it_showed(steps: list[tuple[str, list[int]]]) -> None:
    with (
        tempfile.TemporaryDirectory() as old, tempfile.TemporaryDirectory() as new,
        closing(BlockLog(Path(old), ["t"])) as source,
        closing(BlockLog(Path(new), ["t"])) as target,
    ):  # fmt: skip
        ssd = make_ssd(source)
        versions: list[Version] = []
        deleted: list[tuple[int, int]] = []
        ends: list[int] = []
        for tag, (action, chosen) in enumerate(steps):
            named = np.array(chosen, np.uint64)
            if action == "write":
                ssd.write(rows_of(named, tag))
                at = ssd._index.find(named) >> SHAPE.place_bits
                versions += zip(chosen, at.tolist(), [tag] * len(chosen), strict=True)
            elif action == "delete":
                known = named[ssd._index.find(named) >= 0]
                ssd.delete(named)
                deleted += [(int(key), ssd.end) for key in known]
            else:
                ssd.flush()
                ends.append(ssd.end)
        ssd.flush()
        ends = [*ends[-2:], ssd.end]
        moved = rewrite(source, target, ends)
        views = {end: shown(versions, deleted, end) for end in ends}
        copy = make_ssd(target)
        kept = {(k, b) for view in views.values() for k, t in view.items()
                for key, b, tag in versions if (key, tag) == (k, t)}  # fmt: skip
        rows = sum(int(run[1].sum()) for run in target.directory("t"))
        assert rows == len(kept)
        for end in sorted(ends, reverse=True):
            copy.rewind(moved[end])
            assert tags(copy) == views[end]
            assert copy.check() == []


def test_full_blocks_and_nothing_stale(tmp_path: Path) -> None:
    with (
        closing(BlockLog(tmp_path / "a", ["t"])) as source,
        closing(BlockLog(tmp_path / "b", ["t"])) as target,
    ):
        ssd = make_ssd(source)
        for tag in range(5):
            ssd.write(rows_of(numbered(0, 20_000)[tag::2], tag))
            ssd.flush()
        rewrite(source, target, [ssd.end])
        copy = make_ssd(target)
        assert copy.segments.blocks == -(-20_000 // SHAPE.rows)
        assert tags(copy) == tags(ssd)


def test_a_damaged_block_that_counts_ends_it_and_one_that_does_not_is_left_out(
    tmp_path: Path,
) -> None:
    with (
        closing(BlockLog(tmp_path / "a", ["t"])) as source,
        closing(BlockLog(tmp_path / "b", ["t"])) as target,
    ):
        ssd = make_ssd(source)
        ssd.write(rows_of(numbered(0, 3 * SHAPE.rows), 1))
        ssd.write(rows_of(numbered(0, SHAPE.rows), 2))
        ssd.flush()
        with source.transaction(source._blocks["t"], write=True) as txn:
            txn.put(np.uint64(0).tobytes(), bytes(SHAPE.bytes))
        rewrite(source, target, [ssd.end])
        assert tags(make_ssd(target)) == tags(ssd)
        with source.transaction(source._blocks["t"], write=True) as txn:
            txn.put(np.uint64(1).tobytes(), bytes(SHAPE.bytes))
        with pytest.raises(CorruptError, match=f"block 1.*{SHAPE.rows} rows"):
            rewrite(source, target, [ssd.end])
