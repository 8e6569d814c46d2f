"""Initial rows: the same bits for the same (seed, table, key), and the distribution asked for."""

from __future__ import annotations

import itertools
import json
import math
import statistics
from collections.abc import Callable

import numpy as np
import pytest

from storage.errors import ConfigError
from storage.initial import Constant, Initial, Normal, Uniform, Zeros, _quantile, initial_from

EDGE_KEYS = np.array([0, 1, 2**63, 2**64 - 1], np.uint64)
MANY_KEYS = np.arange(20_000, dtype=np.uint64)
BOTH = pytest.mark.parametrize("initial", [Uniform(0.5), Normal(0.5)], ids=["uniform", "normal"])


def splitmix64(state: int) -> int:
    x = (state + 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


def random_bits(seed: int, table: str, key: int, lane: int) -> int:
    """The documented generator in Python's unbounded integers: 32 bits of a lane."""
    name = 0xCBF29CE484222325
    for byte in table.encode():
        name = (name ^ byte) * 0x100000001B3 % 2**64
    stream = splitmix64(splitmix64(seed % 2**64) ^ name)
    start = splitmix64(stream ^ splitmix64(key))
    draw = splitmix64((start + (lane // 2) * 0x9E3779B97F4A7C15) % 2**64)
    return draw >> 32 if lane % 2 else draw & 0xFFFFFFFF


@pytest.mark.parametrize(("seed", "table"), [(0, "ads"), (-1, "ads"), (7, "naïve"), (2**63, "")])
def test_uniform_is_the_documented_function_of_seed_table_and_key(seed: int, table: str) -> None:
    rows = Uniform(0.01).rows(seed, table, EDGE_KEYS, 5)
    unit = np.float32(0.01) / np.float32(2**23)
    for (u, key), lane in itertools.product(enumerate(EDGE_KEYS.tolist()), range(5)):
        steps = (random_bits(seed, table, key, lane) >> 8) - 2**23
        assert rows[u, lane] == np.float32(steps + 0.5) * unit


def test_normal_is_the_quantile_of_the_documented_bits() -> None:
    rows = Normal(1.0).rows(3, "ads", MANY_KEYS[:500], 8)
    exact = statistics.NormalDist().inv_cdf
    expected = [
        [exact((random_bits(3, "ads", key, lane) + 0.5) / 2**32) for lane in range(8)]
        for key in range(500)
    ]
    np.testing.assert_allclose(rows, expected, rtol=3e-7, atol=1e-7)


def test_normal_tails_are_right_to_the_last_random_number() -> None:
    exact = statistics.NormalDist().inv_cdf
    for bits in (0, 1, 5, 40, 1000, 2**20, 2**28, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1):
        p = (bits + 0.5) / 2**32
        assert _quantile(p) == pytest.approx(exact(p), rel=3e-7, abs=1e-10)


def test_bits_are_those_of_the_first_release() -> None:
    # Pinned, because a store of an older release counts on them for rows that it never wrote.
    uniform = Uniform(0.01).rows(42, "ads", EDGE_KEYS[[0, 3]], 3).view(np.uint32)
    normal = Normal(0.01).rows(42, "ads", EDGE_KEYS[[0, 3]], 3).view(np.uint32)
    assert [[f"{lane:08x}" for lane in row] for row in uniform.tolist()] == GOLDEN_UNIFORM
    assert [[f"{lane:08x}" for lane in row] for row in normal.tolist()] == GOLDEN_NORMAL


GOLDEN_UNIFORM = [["bb4bf60d", "3b06c812", "bc22d1f2"], ["bb56f407", "bbf96979", "3a5219cc"]]
GOLDEN_NORMAL = [["bb833d52", "3b2ad6c2", "bce01b8c"], ["bb8abce9", "bc40fac2", "3a83e220"]]


@BOTH
def test_a_row_does_not_depend_on_its_batch_or_on_the_width(initial: Initial) -> None:
    rows = initial.rows(0, "ads", MANY_KEYS[:100], 8)
    for u in (0, 57, 99):
        np.testing.assert_array_equal(initial.rows(0, "ads", MANY_KEYS[u : u + 1], 8)[0], rows[u])
    order = np.random.default_rng(0).permutation(100)
    np.testing.assert_array_equal(initial.rows(0, "ads", MANY_KEYS[order], 8), rows[order])
    np.testing.assert_array_equal(initial.rows(0, "ads", MANY_KEYS[:100], 5), rows[:, :5])


def greatest_gap(values: np.ndarray, cdf: Callable[[float], float]) -> float:
    """The Kolmogorov-Smirnov distance times the square root of the sample's size."""
    ordered = np.sort(values.ravel()).astype(np.float64)
    expected = np.array([cdf(value) for value in ordered])
    steps = np.arange(len(ordered) + 1) / len(ordered)
    gap = max(np.abs(expected - steps[1:]).max(), np.abs(expected - steps[:-1]).max())
    return float(gap * math.sqrt(len(ordered)))


@pytest.mark.parametrize(
    ("initial", "deviation", "kurtosis", "cdf"),
    [
        (Uniform(0.5), 0.5 / math.sqrt(3), 1.8, lambda x: x + 0.5),
        (Normal(0.5), 0.5, 3.0, statistics.NormalDist(0, 0.5).cdf),
    ],
    ids=["uniform", "normal"],
)
def test_values_have_the_distribution_asked_for(
    initial: Initial, deviation: float, kurtosis: float, cdf: Callable[[float], float]
) -> None:
    values = initial.rows(1, "ads", MANY_KEYS, 8).astype(np.float64)
    scaled = values / deviation
    root = math.sqrt(values.size)
    # Bounds of about five standard errors; the KS statistic is above 2 once in 1500 samples.
    assert abs(scaled.mean()) < 5 / root
    assert abs((scaled**2).mean() - 1) < 5 * math.sqrt(kurtosis - 1) / root
    assert abs((scaled**4).mean() - kurtosis) < 5 * 10 / root
    assert greatest_gap(values, cdf) < 2.0
    assert np.abs(scaled.mean(axis=0)).max() < 5 / math.sqrt(len(MANY_KEYS))


def test_uniform_stays_within_its_scale() -> None:
    rows = Uniform(0.1).rows(0, "ads", MANY_KEYS, 16)
    assert np.abs(rows).max() <= np.float32(0.1)
    assert np.abs(rows).max() > 0.0999


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1]) * math.sqrt(a.size)


@BOTH
def test_seeds_tables_keys_and_lanes_are_uncorrelated(initial: Initial) -> None:
    rows = initial.rows(1, "ads", MANY_KEYS, 8)
    others = {
        "seed": initial.rows(2, "ads", MANY_KEYS, 8),
        "table": initial.rows(1, "adt", MANY_KEYS, 8),
        "next key": initial.rows(1, "ads", MANY_KEYS + np.uint64(1), 8),
        "key apart by the increment": initial.rows(
            1, "ads", MANY_KEYS + np.uint64(0x9E3779B97F4A7C15), 8
        ),
        "high key bit": initial.rows(1, "ads", MANY_KEYS | np.uint64(1 << 63), 8),
    }
    for name, other in others.items():
        assert abs(correlation(rows, other)) < 5, name
        assert abs(correlation(np.abs(rows), np.abs(other))) < 5, name
        assert not (rows == other).all(axis=1).any(), name
    for lane in range(1, 8):
        assert abs(correlation(rows[:, 0], rows[:, lane])) < 5, lane


def test_constant_and_zeros_fill_every_lane() -> None:
    assert (Constant(-1.5).rows(0, "ads", EDGE_KEYS, 3) == np.full((4, 3), -1.5)).all()
    assert (Zeros().rows(0, "ads", EDGE_KEYS, 3) == np.zeros((4, 3))).all()
    assert Zeros().rows(0, "ads", EDGE_KEYS, 3).dtype == np.float32


@pytest.mark.parametrize("initial", [Uniform(0.01), Normal(1), Constant(-2.5), Zeros()])
def test_a_description_survives_json(initial: Initial) -> None:
    assert initial_from(json.loads(json.dumps(initial.describe()))) == initial


@pytest.mark.parametrize("bad", [-0.1, math.nan, math.inf, 1e39, True, "0.1", None])
@pytest.mark.parametrize("kind", [Uniform, Normal])
def test_a_scale_that_cannot_be_meant_is_refused(kind: type[Initial], bad: object) -> None:
    with pytest.raises(ConfigError, match="expected a finite float32 number of 0 or more"):
        kind(bad)  # type: ignore[call-arg]


@pytest.mark.parametrize("bad", [math.nan, -math.inf, -1e39, "x"])
def test_a_constant_that_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(ConfigError, match="expected a finite float32 number"):
        Constant(bad)


@pytest.mark.parametrize(
    "description",
    [{}, {"kind": "gamma"}, {"kind": "uniform"}, {"kind": "zeros", "scale": 1.0}],
)
def test_a_description_of_another_release_is_refused(description: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"expected (one of uniform|exactly the fields kind)"):
        initial_from(description)
