"""Reuse: exact curves equal a list that is searched, samples equal the paper in plain Python."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import ConfigError
from storage.keys import mix
from storage.reuse import MissRatioCurve, ghost_bytes, small_curve
from worker.data.trace import open_trace

EVERY = 2**64
SIZES = [0, 1, 2, 3, 5, 10, 30, 100, 500]


def keys(ids: list[int]) -> np.ndarray:
    return np.array(ids, np.uint64)


def place(key: int) -> int:
    """What is compared with the threshold."""
    return (int(mix(np.uint64(key))) << 12) % EVERY


class Stack:
    """Keys by last use, the latest first; distances are places in the list."""

    def __init__(self, rate: float = 1.0, most_keys: int | None = None) -> None:
        self.stack: list[int] = []
        self.threshold = int(rate * EVERY)
        self.most_keys = most_keys
        self.found: list[tuple[float, float]] = []
        self.weights = 0.0
        self.accesses = 0

    def look(self, key: int) -> None:
        self.accesses += 1
        if place(key) < self.threshold or self.threshold == EVERY:
            weight = EVERY / self.threshold
            self.weights += weight
            if key in self.stack:
                distance = self.stack.index(key) * weight
                self.found.append((int(distance) if self.most_keys else distance, weight))

    def use(self, key: int) -> None:
        if place(key) < self.threshold or self.threshold == EVERY:
            if key in self.stack:
                self.stack.remove(key)
            self.stack.insert(0, key)
            if self.most_keys and len(self.stack) > self.most_keys:
                self.threshold = max(map(place, self.stack))
                self.stack = [key for key in self.stack if place(key) < self.threshold]

    def hit_rate(self, size: int) -> float:
        """A size between two distances has a part of the accesses at the larger one."""
        step = 1.0 if self.most_keys else EVERY / self.threshold
        hits = sum(w * min(max((size - d) / step, 0.0), 1.0) for d, w in self.found)
        hits += (self.accesses - self.weights) * (size >= 1)
        return min(max(hits / max(1, self.accesses), 0.0), 1.0)


ids = st.lists(st.one_of(st.integers(0, 9), st.integers(0, 400)), max_size=300)
kinds = st.sampled_from(
    [{}, {"rate": 0.5}, {"rate": 0.1}, {"most_keys": 1}, {"most_keys": 7},
     {"rate": 0.5, "most_keys": 20}]
)  # fmt: skip


@given(st.lists(ids, max_size=4), kinds)
def test_curves_are_those_of_a_list(parts: list[list[int]], kind: dict[str, float]) -> None:
    stack, curve = Stack(**kind), MissRatioCurve(**kind)  # type: ignore[arg-type]
    for part in parts:
        curve.add(keys(part))
        for key in part:
            stack.look(key)
            stack.use(key)
    assert curve.accesses == stack.accesses
    assert curve.distinct_estimate == pytest.approx(len(stack.stack) * EVERY / stack.threshold)
    want = [stack.hit_rate(size) for size in SIZES]
    assert curve.hit_rate(SIZES) == pytest.approx(want, abs=1e-9)


@given(st.lists(ids, max_size=6), kinds)
def test_a_batch_is_looked_up_as_a_whole(parts: list[list[int]], kind: dict[str, float]) -> None:
    stack, curve = Stack(**kind), MissRatioCurve(**kind)  # type: ignore[arg-type]
    for part in parts:
        unique = list(dict.fromkeys(part))
        curve.add_batch(keys(unique))
        for act in (stack.look, stack.use):
            for key in unique:
                act(key)
    want = [stack.hit_rate(size) for size in SIZES]
    assert curve.hit_rate(SIZES) == pytest.approx(want, abs=1e-9)


def test_many_keys_are_exact_and_how_they_are_cut_leaves_no_trace() -> None:
    trace = np.random.default_rng(3).zipf(1.1, 60_000).astype(np.uint64) % np.uint64(20_000)
    whole, cut = MissRatioCurve(), MissRatioCurve()
    whole.add(trace)
    for part in np.array_split(trace, 37):
        cut.add(part)
    sizes = np.arange(0, 22_000, 100)
    assert np.array_equal(whole.hit_rate(sizes), cut.hit_rate(sizes))
    distinct = len(np.unique(trace))
    assert whole.distinct_estimate == distinct
    assert whole.hit_rate([distinct])[0] == 1 - distinct / len(trace)


def test_memory_stays_what_it_was_with_a_bound_on_keys() -> None:
    curve = MissRatioCurve(most_keys=1000)
    held = curve.nbytes
    curve.add(np.arange(100_000, dtype=np.uint64))
    assert curve.nbytes == held < 300_000
    assert curve.rate == pytest.approx(0.01, rel=0.15)
    assert curve.distinct_estimate == pytest.approx(100_000, rel=0.15)


def test_exact_memory_follows_distinct_keys_not_accesses() -> None:
    curve = MissRatioCurve()
    for _ in range(200):
        curve.add(np.arange(1000, dtype=np.uint64))
    assert curve.nbytes < 100_000


def test_no_access_has_no_hits() -> None:
    assert MissRatioCurve().hit_rate([0, 5]).tolist() == [0, 0]
    curve = MissRatioCurve(rate=0.001)
    curve.add(keys([1]))
    assert 0 <= curve.hit_rate([1])[0] <= 1


@pytest.mark.parametrize("rate", [0.0, -1.0, 1.01, float("nan")])
def test_a_rate_is_a_share(rate: float) -> None:
    with pytest.raises(ConfigError, match="rate: expected a share"):
        MissRatioCurve(rate)


def test_at_least_one_key_is_tracked() -> None:
    with pytest.raises(ConfigError, match="most_keys: expected 1 or more, got 0"):
        MissRatioCurve(most_keys=0)


# LRU at 1 % and 10 % of the distinct keys, as the folder's README gives them.
LRU = {
    "scarab-recs.trace.xz": (0.347, 0.606),
    "orm-busy.trace.xz": (0.770, 0.880),
    "web12.trace.xz": (0.398, 0.685),
    "web07.trace.xz": (0.392, 0.557),
    "OLTP.lis.zst": (0.416, 0.665),
    "cloudPhysicsIO.csv.gz": (0.162, 0.195),
}


@pytest.mark.parametrize("name", LRU)
def test_real_traces_have_their_published_hit_rates(shared_data: Path, name: str) -> None:
    if name.endswith("zst"):
        pytest.importorskip("pyarrow")
    trace = open_trace(str(shared_data / "traces" / name))
    exact, sample = MissRatioCurve(), MissRatioCurve(most_keys=8192)
    for piece in trace.pieces():
        exact.add(piece.keys)
        sample.add(piece.keys)
    distinct = int(exact.distinct_estimate)
    sizes = [round(distinct * share) for share in (0.01, 0.1)]
    assert exact.hit_rate(sizes) == pytest.approx(LRU[name], abs=0.0006)
    # At the sizes that people ask about.
    several = np.geomspace(distinct / 1000, distinct, 50)
    assert np.abs(exact.hit_rate(several) - sample.hit_rate(several)).mean() < 0.02
    if name.startswith("scarab"):
        assert exact.hit_rate([100_000])[0] == pytest.approx(0.7591, abs=0.00005)


@pytest.mark.parametrize("ram", [1 << 20, 8 << 20, 24 << 20, 1 << 40])
def test_a_small_curve_keeps_to_its_share(ram: int) -> None:
    curve = small_curve(ram)
    curve.add(np.arange(50_000, dtype=np.uint64))
    assert curve.nbytes == ghost_bytes(ram) <= max(ram / 48, 128 << 10)
    assert ghost_bytes(ram) <= 450 << 10


def test_keys_are_found_after_others_were_given_up_beside_them() -> None:
    """A table that is half full has keys in each other's way."""
    trace = np.random.default_rng(5).integers(0, 2000, 6000).tolist()
    stack, curve = Stack(most_keys=511), MissRatioCurve(most_keys=511)
    curve.add(keys(trace))
    for key in trace:
        stack.look(key)
        stack.use(key)
    sizes = [10, 100, 300, 500]
    assert curve.distinct_estimate == pytest.approx(len(stack.stack) * EVERY / stack.threshold)
    assert curve.hit_rate(sizes) == pytest.approx([stack.hit_rate(s) for s in sizes], abs=1e-9)
