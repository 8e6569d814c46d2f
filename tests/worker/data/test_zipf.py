"""Zipf: the sampler draws by the distribution it names."""

from __future__ import annotations

import math

import numba as nb
import numpy as np
import pytest
from numpy.typing import NDArray

from worker.data.zipf import Zipf, draw_rank, prepare_zipf


@nb.njit
def draw(count: int, seed: int, zipf: Zipf) -> NDArray[np.int64]:
    ranks = np.empty(count, dtype=np.int64)
    counter = np.uint64(seed)
    for i in range(count):
        ranks[i], counter = draw_rank(counter, zipf)
    return ranks


@pytest.mark.parametrize("n", [1, 2, 50])
@pytest.mark.parametrize("s", [0.0, 0.5, 1.0, 1.05, 3.0])
def test_ranks_come_as_often_as_the_formula_says(n: int, s: float) -> None:
    """Chi-square against rank ** -s; the bound is met by chance once in 10**5 runs or less."""
    count = 100_000
    ranks = draw(count, 7, prepare_zipf(n, s))
    assert ranks.min() >= 1 and ranks.max() <= n
    weights = np.arange(1, n + 1, dtype=np.float64) ** -s
    expected = count * weights / weights.sum()
    seen = np.bincount(ranks, minlength=n + 1)[1:]
    # Ranks expected under 5 times are one group, as the test wants.
    rare = expected < 5
    expected = np.append(expected[~rare], expected[rare].sum())
    seen = np.append(seen[~rare], seen[rare].sum())
    kept = expected > 0
    chi = ((seen[kept] - expected[kept]) ** 2 / expected[kept]).sum()
    freedom = int(kept.sum()) - 1
    assert chi <= freedom + 5 * math.sqrt(2 * freedom) + 15


@pytest.mark.parametrize("s", [0.0, 1.05])
def test_ten_thousand_million_rows_need_no_memory_and_keep_their_shape(s: float) -> None:
    n = 10_000_000_000
    ranks = draw(100_000, 1, prepare_zipf(n, s))
    assert ranks.min() >= 1 and ranks.max() <= n
    power = 1.0 - s
    # The share of ranks up to 10**5, by the integral of x ** -s from 1/2 on.
    share = (100_000.5**power - 0.5**power) / ((n + 0.5) ** power - 0.5**power)
    assert abs((ranks <= 100_000).mean() - share) < 0.02


def test_the_same_counter_gives_the_same_ranks() -> None:
    zipf = prepare_zipf(1000, 1.05)
    assert np.array_equal(draw(100, 3, zipf), draw(100, 3, zipf))
    assert not np.array_equal(draw(100, 3, zipf), draw(100, 4, zipf))
