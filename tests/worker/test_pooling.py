"""Pooling: kernels and tensor operations against a loop, in any ranges."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import ConfigError
from worker.pooling import (
    check_mode,
    pool_max,
    pool_mean,
    pool_sum,
    pool_tensors,
    weight_gradients,
)

NONE = np.empty(0, np.float32)


def batch(seed: int, sizes: list[int], dim: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows (C, D), positions (N,) and starts."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(-4, 5, (12, dim)).astype(np.float32)  # sums are exact, maxima have ties
    positions = rng.integers(0, 12, sum(sizes))
    return rows, positions, np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)


def by_loop(rows: Any, positions: Any, starts: Any, weights: Any, mode: str) -> Any:
    out = np.zeros((len(starts) - 1, rows.shape[1]), np.float32)
    argmax = np.full(out.shape, -1, np.int32)
    for bag in range(len(out)):
        used = np.arange(starts[bag], starts[bag + 1])
        if len(used) == 0:
            continue
        values = rows[positions[used]]
        if mode == "max":
            out[bag], argmax[bag] = values.max(axis=0), used[values.argmax(axis=0)]
        else:
            factors = weights[used] if len(weights) else np.ones(len(used), np.float32)
            out[bag] = (factors[:, None] * values).sum(axis=0)
            if mode == "mean":
                out[bag] /= np.float32(len(used))
    return out, argmax


SIZES = st.lists(st.integers(0, 5), max_size=8)


@given(st.integers(0, 99), SIZES, st.integers(1, 9), st.booleans(), st.integers(0, 8))
def test_every_way_gives_what_a_loop_gives(
    seed: int, sizes: list[int], dim: int, weighted: bool, cut: int
) -> None:
    rows, positions, starts = batch(seed, sizes, dim)
    cut = min(cut, len(sizes))
    weights = np.random.default_rng(seed).integers(-2, 3, len(positions)).astype(np.float32)
    for mode, kernel in (("sum", pool_sum), ("mean", pool_mean), ("max", pool_max)):
        factors = weights if weighted and mode == "sum" and len(weights) else NONE
        expected, best = by_loop(rows, positions, starts, factors, mode)
        out = np.full(expected.shape, 99, np.float32)
        argmax = np.full(expected.shape, 99, np.int32)
        for begin, end in ((cut, len(sizes)), (0, cut)):
            extra = argmax if mode == "max" else factors
            kernel(rows, positions, starts, extra, out, begin, end)
        assert np.array_equal(out, expected), mode
        pooled, winners = pool_tensors(torch.from_numpy(rows), positions, starts, factors, mode)
        assert np.array_equal(pooled.numpy(), expected), mode
        if mode == "max":
            assert np.array_equal(argmax, best)
            assert winners is not None
            assert np.array_equal(winners == -1, best == -1)
            bag, column = np.nonzero(best >= 0)
            won = rows[positions[winners[bag, column]], column]
            assert np.array_equal(won, expected[bag, column])


def test_a_weights_gradient_is_its_row_times_its_bags_gradient() -> None:
    rows, positions, starts = batch(3, [2, 0, 4, 1], 5)
    bags = np.repeat(np.arange(4, dtype=np.int32), np.diff(starts))
    gradient = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    out = np.full(7, 99, np.float32)
    for begin, end in ((0, 3), (3, 7)):
        weight_gradients(rows, positions, bags, gradient, out, begin, end)
    expected = (rows[positions].astype(np.float64) * gradient[bags]).sum(axis=1)
    np.testing.assert_allclose(out, expected, rtol=1e-6)


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ConfigError, match="'median'"):
        check_mode("median")
