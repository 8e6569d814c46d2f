from __future__ import annotations

import numpy as np
import pytest

from storage.marks import MARK_BYTES, Marks


@pytest.mark.parametrize(
    ("start", "end", "count", "found"),
    [
        (0, 10, 10, [1, 4, 9]),
        (2, 10, 10, [4, 9]),
        (0, 9, 10, [1, 4]),
        (0, 10, 2, [1, 4]),
        (10, 10, 3, []),
        (0, 0, 3, []),
    ],
)
def test_dirty_positions_are_found_in_order(
    start: int, end: int, count: int, found: list[int]
) -> None:
    marks = Marks(10)
    marks.dirty[[1, 4, 9]] = 1
    assert marks.dirty_positions(start, end, count).tolist() == found


def test_what_is_given_back_reads_as_zero_and_the_rest_stays() -> None:
    marks = Marks(1 << 16)
    for array in (marks.steps, marks.dirty, marks.pins, marks.keys):
        array[:] = 1
    marks.release(1 << 15)
    for array in (marks.steps, marks.dirty, marks.pins, marks.keys):
        assert array[: 1 << 15].all()
        assert not array[-1]


def test_a_position_takes_what_is_said() -> None:
    marks = Marks(1)
    arrays = (marks.steps, marks.dirty, marks.pins, marks.keys)
    assert sum(array.itemsize for array in arrays) == MARK_BYTES
    assert all(isinstance(array, np.ndarray) for array in arrays)
