"""Dues: the row needed last goes first, and no row is kept for a batch that is past."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from storage.due import NEEDED, PINNED, Dues

CAPACITY = 12


def positions(*some: int) -> np.ndarray:
    return np.array(some, np.int64)


def batches(*some: int) -> np.ndarray:
    return np.array(some, np.uint32)


def started(capacity: int = CAPACITY) -> tuple[Dues, np.ndarray]:
    pins = np.zeros(capacity, np.uint16)
    dues = Dues(pins)
    dues.begin()
    return dues, pins


@given(
    st.lists(st.integers(0, 5), min_size=CAPACITY, max_size=CAPACITY),
    st.lists(st.integers(0, 2), min_size=CAPACITY, max_size=CAPACITY),
    st.lists(st.booleans(), min_size=CAPACITY, max_size=CAPACITY),
    st.integers(0, CAPACITY),
    st.integers(0, CAPACITY),
)
def test_the_furthest_are_those_needed_last_and_pinned_by_nobody(
    due: list[int], pinned: list[int], ahead: list[bool], count: int, end: int
) -> None:
    dues, pins = started()
    pins += np.array(pinned, np.uint16)
    for mark in (False, True):
        chosen = [p for p in range(CAPACITY) if ahead[p] == mark]
        dues.set(positions(*chosen), batches(*(due[p] for p in chosen)), ahead=mark)
    assert dues.check() == []
    assert (pins & PINNED).tolist() == pinned
    assert dues.at(np.arange(CAPACITY)).tolist() == due
    assert dues.ahead(np.arange(CAPACITY)).tolist() == [
        a and d > 0 for a, d in zip(ahead, due, strict=True)
    ]
    loose = [p for p in range(end) if due[p] and not pinned[p]]
    expected = sorted(sorted(loose, key=lambda p: (-due[p], p))[:count])
    assert dues.furthest(count, end).tolist() == expected


def test_a_row_that_moves_takes_along_what_needs_it() -> None:
    dues, pins = started()
    dues.set(positions(1, 2), batches(5, 6), ahead=True)
    dues.move(positions(1, 2), positions(7, 0))
    assert dues.at(positions(0, 1, 2, 7)).tolist() == [6, 0, 0, 5]
    assert dues.ahead(positions(0, 1, 2, 7)).tolist() == [True, False, False, True]
    assert (pins > 0).tolist() == [p in (0, 7) for p in range(CAPACITY)]
    assert dues.check() == []


def test_a_row_ahead_of_its_use_is_so_until_it_arrives() -> None:
    dues, _ = started()
    dues.set(positions(3), batches(2), ahead=True)
    assert dues.ahead(positions(3, -1)).tolist() == [True, False]
    assert np.flatnonzero(dues.unused()).tolist() == [3]
    dues.arrived(positions(3))
    assert not dues.unused().any() and dues.at(positions(3)).tolist() == [2]


def test_a_row_kept_for_a_batch_that_is_past_is_found() -> None:
    dues, _ = started()
    dues.set(positions(3), batches(4))
    dues.past = 3
    assert dues.check() == []
    dues.past = 4
    assert "batch 4" in dues.check()[0]


def test_a_row_kept_for_nobody_is_found() -> None:
    dues, pins = started()
    pins[5] |= NEEDED
    assert "no batch" in dues.check()[0]
    dues.end()
    assert dues.check() == [] and not pins.any()
    pins[5] |= NEEDED
    assert "nobody knows" in dues.check()[0]


def test_before_it_begins_it_knows_nothing_and_costs_nothing() -> None:
    pins = np.zeros(CAPACITY, np.uint16)
    dues, some = Dues(pins), positions(0, 3)
    dues.set(some, batches(1, 2))
    dues.clear(some)
    dues.move(some, positions(1, 2))
    dues.arrived(some)
    dues.release(1)
    assert not pins.any() and dues.at(some).tolist() == [0, 0]
    assert not dues.ahead(some).any() and len(dues.unused()) == 0
    assert len(dues.furthest(5, CAPACITY)) == 0
