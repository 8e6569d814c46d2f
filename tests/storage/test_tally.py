"""Tally: a dict does the same."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import ConfigError
from storage.keys import unmix_keys
from storage.tally import LEAST_BYTES, MOST_COUNT, SLOT_BYTES, Tally


class Oracle:
    """What `Tally` promises, with a dict."""

    def __init__(self, capacity: int, most: int) -> None:
        self.capacity, self.most = capacity, most
        self.counts: dict[int, int] = {}

    def add(self, batch: dict[int, int]) -> list[int]:
        while True:
            totals = {k: min(self.most, self.counts.get(k, 0) + c) for k, c in batch.items()}
            new = [k for k, t in totals.items() if k not in self.counts and t < self.most]
            if len(self.counts) + len(new) <= self.capacity or not self.counts:
                break
            self.halve()
        for key, total in totals.items():
            self.counts.pop(key, None)
            if total < self.most and len(new) <= self.capacity:
                self.counts[key] = total
        return list(totals.values())

    def halve(self) -> None:
        self.counts = {key: count // 2 for key, count in self.counts.items() if count > 1}


def shown_by(tally: Tally) -> dict[int, int]:
    held = tally.arrays()
    return dict(zip(held["keys"].tolist(), held["counts"].tolist(), strict=True))


def arrays_of(batch: dict[int, int]) -> tuple[np.ndarray, np.ndarray]:
    return np.array(list(batch), np.uint64), np.array(list(batch.values()), np.int32)


# 40 keys, of which 20 have nearly the same home slot.
CLOSE = unmix_keys(np.arange(20, dtype=np.uint64)).tolist()
KEYS = st.one_of(st.sampled_from([0, 2**64 - 1, *CLOSE]), st.integers(2, 20))
batches = st.dictionaries(KEYS, st.integers(1, 3), max_size=25)
actions = st.lists(
    st.one_of(batches, st.just("halve"), st.lists(KEYS, max_size=6, unique=True)), max_size=20
)


@given(actions=actions, most=st.integers(1, 6), capacity=st.integers(3, 30))
def test_it_counts_as_a_dict_does(actions: list, most: int, capacity: int) -> None:
    tally, oracle = Tally(LEAST_BYTES, most), Oracle(capacity, most)
    tally.capacity = capacity
    for action in actions:
        if action == "halve":
            tally.halve()
            oracle.halve()
        elif isinstance(action, list):
            tally.forget(np.array(action, np.uint64))
            oracle.counts = {k: c for k, c in oracle.counts.items() if k not in action}
        else:
            assert tally.add(*arrays_of(action)).tolist() == oracle.add(action)
        assert shown_by(tally) == oracle.counts
        assert len(tally) == len(oracle.counts)
        keys = np.array([*oracle.counts, 2**62], np.uint64)
        assert tally.estimate(keys).tolist() == [*oracle.counts.values(), 0]


def test_a_full_one_ages_and_goes_on() -> None:
    tally = Tally(LEAST_BYTES, 4)
    twice = np.arange(100, dtype=np.uint64)
    tally.add(twice, np.full(100, 2, np.int32))
    once = np.arange(1000, 1000 + tally.capacity - 100, dtype=np.uint64)
    tally.add(once, np.ones(len(once), np.int32))
    assert len(tally) == tally.capacity == 768
    tally.add(np.array([5000], np.uint64), np.ones(1, np.int32))
    assert shown_by(tally) == {**dict.fromkeys(range(100), 1), 5000: 1}
    many = np.arange(10_000, 12_000, dtype=np.uint64)
    assert (tally.add(many, np.ones(2000, np.int32)) == 1).all()
    assert len(tally) == 0


def test_many_random_keys_are_found_again() -> None:
    rng = np.random.default_rng(2)
    tally = Tally(SLOT_BYTES << 14, MOST_COUNT)
    oracle = Oracle(tally.capacity, MOST_COUNT)
    keys = rng.integers(0, 2**64, 16_000, np.uint64)
    for _ in range(30):
        some = rng.choice(keys, 2000, replace=False)
        batch = dict(zip(some.tolist(), rng.integers(1, 90, 2000).tolist(), strict=True))
        assert tally.add(*arrays_of(batch)).tolist() == oracle.add(batch)
        gone = rng.choice(keys, 300, replace=False)
        tally.forget(gone)
        for key in gone.tolist():
            oracle.counts.pop(key, None)
    assert shown_by(tally) == oracle.counts
    assert tally.nbytes == SLOT_BYTES << 14


def test_what_it_gives_can_be_taken_over_and_nothing_else() -> None:
    tally, other = Tally(LEAST_BYTES, 4), Tally(LEAST_BYTES, 4)
    tally.add(*arrays_of({5: 1, 7: 3, 2**63: 2}))
    other.add(*arrays_of({9: 1}))
    other.restore(**tally.arrays())
    assert shown_by(other) == {5: 1, 7: 3, 2**63: 2} and len(other) == 3
    few = np.arange(3, dtype=np.uint64)
    many = np.arange(tally.capacity + 1, dtype=np.uint64)
    for keys, counts in (
        (few.astype(np.int64), np.ones(3, np.uint8)),
        (few, np.ones(2, np.uint8)),
        (few, np.ones(3, np.int64)),
        (few // np.uint64(2), np.ones(3, np.uint8)),
        (few, np.zeros(3, np.uint8)),
        (few, np.full(3, 4, np.uint8)),
        (many, np.ones(len(many), np.uint8)),
    ):
        with pytest.raises(ValueError, match=r"keys|counts"):
            other.restore(keys, counts)
    assert shown_by(other) == {5: 1, 7: 3, 2**63: 2}
    with pytest.raises(ConfigError, match="9216"):
        Tally(LEAST_BYTES - 1, 2)
