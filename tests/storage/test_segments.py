"""Segments count what is live, and free nothing that a cut may still look into."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.segments import Segments

BITS = 3  # eight rows a block


def segments_of(blocks: int) -> Segments:
    made = Segments(BITS)
    made.reserve(blocks)
    made.add(np.arange(0, 0 + blocks))
    return made


def at(*places: tuple[int, int]) -> np.ndarray:
    return np.array([block << BITS | place for block, place in places], np.int64)


def test_rows_are_counted_where_they_are() -> None:
    made = segments_of(200)
    made.move(np.full(3, -1), at((0, 0), (63, 7), (64, 1)))
    assert [made.live(s) for s in range(3)] == [2, 1, 0]
    made.move(at((0, 0), (64, 1)), at((199, 2)))
    assert [made.live(s) for s in range(4)] == [1, 0, 0, 1]
    assert made.blocks == 200 and made.count(3) == 8 and made.present.tolist() == [0, 1, 2, 3]


def test_the_emptiest_comes_first_and_only_whole_committed_segments() -> None:
    made = segments_of(5 * 64)
    for segment, live in enumerate((5, 1, 3, 0, 0)):
        made.move(np.full(live, -1), at(*((64 * segment + i, 0) for i in range(live))))
    assert made.emptiest(9, 4 * 64).tolist() == [3, 1, 2, 0]
    assert made.emptiest(2, 5 * 64 - 1).tolist() == [3, 1]
    made.mark_emptied(3, 320)
    made.mark_stuck(1)
    assert made.emptiest(9, 4 * 64).tolist() == [2, 0]
    assert made.emptied_blocks == 64


@pytest.mark.parametrize(
    ("ends", "free"),
    [
        ([], True),
        ([64], True),  # a cut that ends before the segment does not look into it
        ([65], False),
        ([128], False),
        ([299], False),
        ([300], True),  # one that has all the copies need not
        ([300, 400], True),
        ([64, 300], True),
        ([200, 400], False),
    ],
)
def test_a_segment_is_freed_when_every_cut_is_before_it_or_after_its_copies(
    ends: list[int], free: bool
) -> None:
    made = segments_of(300)
    made.mark_emptied(1, 300)
    assert made.freeable(ends).tolist() == ([1] if free else [])


def test_a_segment_with_live_rows_is_never_called_empty() -> None:
    made = segments_of(64)
    made.move(np.array([-1]), at((5, 5)))
    with pytest.raises(AssertionError):
        made.mark_emptied(0, 64)


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=30))
def test_memory_is_what_was_announced(ends: list[int]) -> None:
    made, end = Segments(BITS), 0
    for more in ends:
        bound, before = made.growth_bound(end + more), made.bytes
        made.reserve(end + more)
        assert before + bound >= made.bytes
        assert made.reserved >= end + more
        made.add(np.arange(end, end + more))
        end += more
    assert made.blocks == end


def test_what_is_gone_at_the_front_costs_no_memory_for_ever() -> None:
    made, most = Segments(BITS), 0
    for segment in range(20_000):
        made.reserve(64 * (segment + 1))
        made.add(np.arange(64 * segment, 64 * segment + 64))
        made.move(np.array([-1]), at((64 * segment + 1, 1)))
        if segment >= 10:
            old = segment - 10
            made.move(at((64 * old + 1, 1)), np.empty(0, np.int64))
            made.mark_emptied(old, 64 * (segment + 1))
            made.drop(made.freeable([64 * (segment + 1)]))
        most = max(most, made.bytes)
        assert made.blocks == 64 * len(made.present) and made.emptied_blocks == 0
    assert made.present.tolist() == list(range(19_990, 20_000)) and made.span == 10
    assert made.live(19_995) == 1
    assert most < 13 * 5 * 1024 + 2 * 4 * 4096 + 8 * 400


def test_blocks_are_counted_as_they_come_and_go() -> None:
    made = segments_of(300)
    assert (made.blocks, made.emptied_blocks) == (300, 0)
    made.mark_emptied(1, 300)
    made.mark_dead(300)
    assert (made.blocks, made.emptied_blocks) == (300, 256)  # the fifth is not whole
    made.drop(made.freeable([300]))
    assert (made.blocks, made.emptied_blocks) == (44, 0)
