"""Stretches: a set of numbers, compared with Python's."""

from __future__ import annotations

import hypothesis
import numpy as np
from hypothesis import strategies as st

from storage.block import SEGMENT_BITS
from storage.stretches import Stretches

numbers = st.sets(st.integers(0, 400), max_size=60) | st.builds(
    lambda first, count: set(range(first, first + count)), st.integers(0, 300), st.integers(0, 200)
)


def stretches(found: set[int]) -> Stretches:
    return Stretches((number, number + 1) for number in sorted(found))


def listed(found: Stretches, most: int) -> list[int]:
    return [number for batch in found.batches(most) for number in batch.tolist()]


@hypothesis.given(numbers, numbers, st.integers(1, 100), st.integers(0, 500))
def test_it_is_a_set(some: set[int], others: set[int], most: int, end: int) -> None:
    found = stretches(some)
    assert len(found) == len(some)
    assert all(found.first[1:] > found.end[:-1])
    assert listed(found, most) == sorted(some)
    assert all(len(batch) == most for batch in list(found.batches(most))[:-1])
    assert listed(found.below(end), most) == sorted(n for n in some if n < end)
    segments = {number >> SEGMENT_BITS for number in some}
    assert found.segments.tolist() == sorted(segments)
    asked = sorted({number >> SEGMENT_BITS for number in others})
    held = sum(number >> SEGMENT_BITS in asked for number in some)
    assert found.count_in(np.array(asked, np.int64)) == held
    assert found.first_outside(stretches(others)) == min(some - others, default=1 << 62)
