"""Sketch: a dict is the oracle of what it may say, and shards of it say the same."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from storage.errors import ConfigError
from storage.keys import mix_keys, unmix_keys
from storage.rows import Counts, Keys
from storage.sketch import DEPTH, LEAST_BYTES, MOST_COUNT, Sketch

Batch = tuple[Keys, Counts]


def batch_of(ids: list[int]) -> Batch:
    """The ids of a batch, all of one bucket so that they share cells, and how often each comes."""
    keys, counts = np.unique(np.array(ids, np.uint64), return_counts=True)
    return unmix_keys(keys), counts.astype(np.int32)


def random_batch(rng: np.random.Generator, size: int, keys: int) -> Batch:
    found, counts = np.unique(rng.integers(0, keys, size).astype(np.uint64), return_counts=True)
    return found, counts.astype(np.int32)


ids = st.lists(st.integers(0, 40), min_size=1, max_size=60)


@given(batches=st.lists(ids, max_size=12), most=st.one_of(st.integers(1, 20), st.just(MOST_COUNT)))
def test_it_never_says_less_than_how_often_a_key_came(batches: list[list[int]], most: int) -> None:
    sketch, truth = Sketch(LEAST_BYTES, most), Counter[int]()
    for batch in batches:
        keys, counts = batch_of(batch)
        totals = sketch.add(keys, counts)
        truth.update(dict(zip(keys.tolist(), counts.tolist(), strict=True)))
        assert (totals >= [min(most, truth[key]) for key in keys.tolist()]).all()
        assert (totals <= most).all()
    for key, count in truth.items():
        assert sketch.estimate(np.array([key], np.uint64))[0] >= min(most, count)


@given(batches=st.lists(ids, min_size=1, max_size=6), seed=st.integers(0, 99))
def test_the_order_of_a_batch_changes_nothing(batches: list[list[int]], seed: int) -> None:
    one, other = Sketch(LEAST_BYTES, 9), Sketch(LEAST_BYTES, 9)
    rng = np.random.default_rng(seed)
    for batch in batches:
        keys, counts = batch_of(batch)
        order = rng.permutation(len(keys))
        assert np.array_equal(one.add(keys, counts)[order], other.add(keys[order], counts[order]))
    assert np.array_equal(one.cells, other.cells)


def test_cells_are_raised_no_further_than_they_must_be() -> None:
    """Of keys that share some cells only, each keeps its own count better than by plain sums."""
    sketch, plain = Sketch(LEAST_BYTES, MOST_COUNT), np.zeros(LEAST_BYTES, np.int64)
    truth = Counter[int]()
    rng = np.random.default_rng(3)
    places = np.stack([cells_of(key) for key in range(300)])
    for _ in range(40):
        ids, counts = np.unique(rng.integers(0, 300, 100), return_counts=True)
        sketch.add(unmix_keys(ids.astype(np.uint64)), counts.astype(np.int32))
        truth.update(dict(zip(ids.tolist(), counts.tolist(), strict=True)))
        np.add.at(plain, places[ids], counts[:, None])
    exact = np.array([truth[key] for key in range(300)])
    careful = sketch.estimate(unmix_keys(np.arange(300, dtype=np.uint64))) - exact
    careless = np.minimum(plain[places].min(axis=1), MOST_COUNT) - exact
    assert careful.min() >= 0 and careful.sum() < 0.6 * careless.sum()


def cells_of(mixed: int) -> NDArray[np.int64]:
    """(DEPTH,) int64: the cells of a mixed key in a sketch of the least size, flat."""
    alone = Sketch(LEAST_BYTES, MOST_COUNT)
    alone.add(unmix_keys(np.array([mixed], np.uint64)), np.ones(1, np.int32))
    return np.flatnonzero(alone.cells)


def test_few_keys_are_counted_exactly() -> None:
    sketch = Sketch(1 << 20, MOST_COUNT)
    keys = np.arange(2000, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    counts = (np.arange(2000) % 7 + 1).astype(np.int32)
    assert np.array_equal(sketch.add(keys, counts), counts)
    assert np.array_equal(sketch.add(keys, counts), 2 * counts)
    unseen = np.arange(10**6, 10**6 + 5000, dtype=np.uint64)
    assert (sketch.estimate(unseen) == 0).all()


@pytest.mark.parametrize(("most", "cells"), [(1, 4), (3, 4), (4, 2), (15, 2), (16, 1), (255, 1)])
def test_new_keys_are_mistaken_as_often_as_the_docstring_says(most: int, cells: int) -> None:
    sketch, width = Sketch(1 << 18, most), cells * (1 << 18) // DEPTH
    seen = np.random.default_rng(0).integers(0, 2**64, width, np.uint64)
    sketch.add(seen, np.ones(width, np.int32))
    unseen = np.random.default_rng(1).integers(0, 2**64, 20_000, np.uint64)
    mistaken = np.count_nonzero(sketch.estimate(unseen)) / len(unseen)
    assert mistaken == pytest.approx((1 - np.exp(-1)) ** DEPTH, rel=0.2)


@pytest.mark.parametrize(("most", "bits"), [(3, 2), (15, 4), (MOST_COUNT, 8)])
def test_halving_rounds_down_each_cell(most: int, bits: int) -> None:
    sketch, rng = Sketch(LEAST_BYTES, most), np.random.default_rng(7)
    keys = rng.integers(0, 2**64, 20_000, np.uint64)
    sketch.add(keys, rng.integers(1, most + 1, len(keys)).astype(np.int32))

    def counts() -> NDArray[np.uint8]:
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        return (sketch.cells[..., None] >> shifts) & np.uint8(2**bits - 1)

    before, estimates = counts(), sketch.estimate(keys)
    assert before.max() == most
    sketch.halve()
    assert np.array_equal(counts(), before >> 1)
    assert np.array_equal(sketch.estimate(keys), estimates >> 1)


def test_shards_of_the_key_space_say_what_one_sketch_says() -> None:
    whole, parts = Sketch(LEAST_BYTES, 50), [Sketch(LEAST_BYTES, 50) for _ in range(3)]
    rng = np.random.default_rng(5)
    for _ in range(20):
        keys, counts = random_batch(rng, 3000, 10**5)
        shard = (mix_keys(keys) >> np.uint64(52)) % np.uint64(3)
        expected = whole.add(keys, counts)
        for number, part in enumerate(parts):
            mine = shard == number
            assert np.array_equal(part.add(keys[mine], counts[mine]), expected[mine])


def test_what_it_gives_can_be_taken_over_and_nothing_else() -> None:
    sketch, other = Sketch(1 << 17, 5), Sketch(1 << 17, 5)
    keys, counts = random_batch(np.random.default_rng(6), 3000, 5000)
    sketch.add(keys, counts)
    other.restore(**sketch.arrays())
    assert np.array_equal(other.estimate(keys), sketch.estimate(keys))
    for wrong in (sketch.cells[:, :, :, :1], sketch.cells.astype(np.int8)):
        with pytest.raises(ValueError, match="expected"):
            other.restore(wrong)
    assert sketch.nbytes == 1 << 17
    with pytest.raises(ConfigError, match=r"65536.*65535"):
        Sketch(LEAST_BYTES - 1, 2)
