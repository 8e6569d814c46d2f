"""Sums in lanes and roots, against their definitions in plain Python."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ps.lanes import LANES, root, sum_of_squares
from storage.kernel import kernel


@kernel
def _sum(values: Any) -> Any:
    return sum_of_squares(values)


@kernel
def _root(value: Any) -> Any:
    return root(value)


def in_lanes(values: np.ndarray) -> np.float32:
    lanes = np.zeros(LANES, np.float32)
    for start in range(0, len(values), LANES):
        lanes += values[start : start + LANES] ** 2
    while len(lanes) > 1:
        half = len(lanes) // 2
        lanes = lanes[:half] + lanes[half:]
    return lanes[0]


@pytest.mark.parametrize("count", [0, 16, 64, 208])
def test_a_sum_has_the_bits_of_its_definition(count: int) -> None:
    values = np.random.default_rng(count).normal(size=count).astype(np.float32)
    assert np.float32(_sum(values)).tobytes() == in_lanes(values).tobytes()


def test_a_root_is_rounded_as_numpy_does() -> None:
    values = np.random.default_rng(0).random(100).astype(np.float32)
    assert [np.float32(_root(v)) for v in values] == np.sqrt(values).tolist()
    assert np.isnan(_root(np.float32(-1)))
