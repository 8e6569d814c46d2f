"""Synthetic data: any part of the stream from its numbers alone, and labels that can be learned."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.errors import ConfigError
from worker.data.batch import join
from worker.data.synthetic import (
    BIAS,
    DENSE,
    SPARSE,
    Recipe,
    Synthetic,
    parse_recipe,
    planted_weight,
)

from .oracle import mix, rows_of

SMALL = "rows=1000,features=3,dense=2,examples=500"


@given(
    st.integers(1, 200),
    st.integers(0, 12),
    st.sampled_from(["", "bag=4", "bag=0-3", "shared=0,bag=1-2", "zipf=0"]),
)
@settings(max_examples=25)
def test_a_stream_can_start_anywhere_and_ignores_the_batch_size(
    batch_size: int, start: int, more: str
) -> None:
    data = Synthetic(parse_recipe(f"{SMALL},{more}"))
    whole = rows_of(list(data.train(64)))
    assert len(whole) == 500
    assert rows_of(list(data.train(batch_size, start=start))) == whole[batch_size * start :]


def test_bags_have_the_sizes_asked_for() -> None:
    fixed = next(Synthetic(parse_recipe(f"{SMALL},bag=5")).train(500))
    assert set(fixed.offsets.diff().tolist()) == {5}
    ranged = next(Synthetic(parse_recipe(f"{SMALL},bag=0-3")).train(500))
    counts = torch.bincount(ranged.offsets.diff(), minlength=4)
    # 1500 bags, 375 of each size expected, standard deviation 17.
    assert counts.shape == (4,) and int((counts - 375).abs().max()) < 85


def test_features_share_one_space_of_keys_or_have_their_own() -> None:
    shared = next(Synthetic(parse_recipe("rows=4,examples=4000,features=3")).train(4000))
    assert {mix(rank) for rank in range(4)} == {key % 2**64 for key in shared.ids.tolist()}
    own = next(Synthetic(parse_recipe("rows=4,examples=4000,features=3,shared=0")).train(4000))
    keys = [set(own.ids.view(-1, 3)[:, feature].tolist()) for feature in range(3)]
    assert [len(each) for each in keys] == [4, 4, 4] and len(set.union(*keys)) == 12


def test_labels_follow_the_planted_model() -> None:
    """Calibration: in each tenth of the planted chance, the share of ones is that chance."""
    recipe = parse_recipe("examples=40000,bag=1-3,features=5,dense=4,seed=3")
    batch = join(list(Synthetic(recipe).train(40_000)))
    key_salt, value_salt = np.uint64(3 << 56), np.uint64(4 << 56)
    keys, where = np.unique(batch.ids.numpy().view(np.uint64), return_inverse=True)
    hidden = np.array([planted_weight(key ^ key_salt, 3) for key in keys])
    assert abs(hidden.mean()) < 0.1 and abs(hidden.std() - 1) < 0.05
    sums = np.add.reduceat(hidden[where], batch.offsets.numpy()[::5][:-1])
    dense = np.array([planted_weight(np.uint64(column) ^ value_salt, 3) for column in range(4)])
    logit = BIAS + SPARSE * sums / math.sqrt(10) + DENSE * batch.dense.numpy() @ dense / 2
    chance = 1 / (1 + np.exp(-logit))
    labels = batch.labels.numpy()
    for part in np.array_split(np.argsort(chance), 10):
        error = 5 * math.sqrt(0.25 / part.shape[0])
        assert abs(labels[part].mean() - chance[part].mean()) < error


def test_dense_values_are_normal() -> None:
    dense = next(Synthetic(parse_recipe("examples=20000,dense=3")).train(20_000)).dense
    assert torch.allclose(dense.mean(0), torch.zeros(3), atol=0.04)
    assert torch.allclose(dense.std(0), torch.ones(3), atol=0.03)
    assert torch.allclose((dense.abs() < 1).float().mean(0), torch.full((3,), 0.6827), atol=0.02)


def test_held_out_examples_follow_those_to_train_on() -> None:
    data = Synthetic(parse_recipe(SMALL), holdout=0.2)
    longer = Synthetic(parse_recipe("rows=1000,features=3,dense=2,examples=600"))
    assert rows_of(list(data.test(7))) == rows_of(list(longer.train(600)))[500:]
    assert data.train_examples == 500


def test_seeds_differ_and_the_one_in_the_specification_wins() -> None:
    assert parse_recipe("", seed=5).seed == 5
    assert parse_recipe("seed=4611686018427387903", seed=5).seed == 2**62 - 1
    one, two = (next(Synthetic(parse_recipe(SMALL, seed=seed)).train(9)) for seed in (0, 1))
    assert not torch.equal(one.ids, two.ids)


def test_a_recipe_describes_itself() -> None:
    recipe = parse_recipe("rows=1e6,zipf=1.2,bag=1-8,seed=9,shared=0")
    assert recipe == Recipe(rows=1_000_000, zipf=1.2, bag_high=8, seed=9, shared=0)
    assert parse_recipe(recipe.describe().removeprefix("synthetic:")) == recipe


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("row=5", "rows, zipf, features, dense, bag, examples, seed, shared"),
        ("rows", "got ''"),
        ("rows=0", "rows must be a whole number from 1"),
        ("rows=many", "'many'"),
        ("rows=2.5", "'2.5'"),
        ("zipf=-1", "zipf must be a number from 0"),
        ("zipf=nan", "'nan'"),
        ("bag=8-1", "bag=8-1"),
        ("bag=1-", "bag must be"),
        ("shared=2", "shared must be a whole number from 0 to 1"),
    ],
)
def test_a_slip_in_the_specification_is_named(options: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_recipe(options)
    assert words in str(caught.value) and "\n" not in str(caught.value)
