"""Distances: the buckets, and tables that grow, shrink and come to the end of time."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from storage.distance import BUCKETS, EDGES, EVERY, LIVE, NOW, copy, look, track, use


def keys(ids: list[int]) -> np.ndarray:
    return np.array(ids, np.uint64)


def test_buckets_begin_where_their_edges_say() -> None:
    """A distance counted with a heap lands in the bucket whose edges are around it."""
    at = EDGES
    assert at[: 1 << 9].tolist() == list(range(1 << 9)) and (np.diff(at) > 0).all()
    assert len(at) == BUCKETS + 1 and (np.diff(at)[1:] / at[1:-1] <= 1 / 256)[255:].all()
    for others in (0, 1, 511, 512, 700, 1500):
        tracked, counts = track(4096, 2001, int(EVERY)), np.zeros(BUCKETS)
        use(tracked, keys([0, *range(1, others + 1), 0]), 0, counts, True)
        (bucket,) = np.flatnonzero(counts)
        assert at[bucket] <= others < at[bucket + 1]


@given(st.lists(st.integers(0, 60), max_size=600), st.integers(0, 599))
def test_a_copy_with_more_slots_goes_on_as_the_smaller_one(ids: list[int], cut: int) -> None:
    small, large = track(128, 0, int(EVERY)), track(256, 0, int(EVERY))
    counts, later = np.zeros(64), np.zeros(128)
    assert use(small, keys(ids[:cut]), 0, counts, True) == len(ids[:cut])
    copy(small, large)
    counts[:] = 0
    use(small, keys(ids[cut:]), 0, counts, True)
    use(large, keys(ids[cut:]), 0, later, True)
    assert np.array_equal(counts, later[:64]) and not later[64:].any()
    assert small.state[LIVE] == large.state[LIVE] == len(set(ids))


def test_a_full_table_stops_before_the_key_and_counts_it_once() -> None:
    tracked, counts = track(64, 0, int(EVERY)), np.zeros(32)
    ids = keys([*range(32), 5, 32, 5])
    assert use(tracked, ids, 0, counts, True) == 33
    assert (counts.sum(), tracked.sums[1], tracked.state[LIVE]) == (1, 32, 32)
    larger = track(128, 0, int(EVERY))
    copy(tracked, larger)
    counts = np.zeros(64)
    assert use(larger, ids, 33, counts, True) == len(ids)
    assert larger.sums[1] == 33 and np.flatnonzero(counts).tolist() == [1]


def test_time_ends_again_and_again() -> None:
    tracked, counts = track(64, 0, int(EVERY)), np.zeros(32)
    ids = keys([3, 1, 4, 1, 5] * 200)
    use(tracked, ids, 0, counts, True)
    assert tracked.state[NOW] <= 64 and tracked.state[LIVE] == 4
    assert counts.tolist()[:5] == [0, 200, 199, 199 * 3, 0]


def test_accesses_that_are_looked_at_together_do_not_see_each_other() -> None:
    tracked, counts = track(64, 0, int(EVERY)), np.zeros(32)
    use(tracked, keys([1, 2, 3]), 0, counts, True)
    look(tracked, keys([3, 1, 9]), counts)
    assert np.flatnonzero(counts).tolist() == [0, 2] and tracked.sums[1] == 4
    use(tracked, keys([3, 1, 9]), 0, counts, False)
    assert counts.sum() == 2 and tracked.sums[1] == 4
