"""Metrics: equal to their definitions over pairs and examples, however the batches are cut."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from storage.errors import DataError
from worker.metrics import Auc, ExactAuc, Figures, Metrics, StreamingAuc

KINDS = pytest.mark.parametrize("kind", [ExactAuc, StreamingAuc])

examples = st.lists(
    st.tuples(
        st.one_of(st.sampled_from([-20.0, -1.0, 0.0, 1.0, 30.0]), st.floats(-20, 20, width=32)),
        st.booleans(),
    ),
    max_size=60,
)


def auc_of_pairs(logits: list[float], labels: list[bool]) -> float:
    """The definition: the share of (positive, negative) pairs in order, ties half."""
    wins = [
        1.0 if p > n else 0.5 if p == n else 0.0
        for p, is_positive in zip(logits, labels, strict=True)
        if is_positive
        for n, is_other in zip(logits, labels, strict=True)
        if not is_other
    ]
    return sum(wins) / len(wins) if wins else math.nan


def figures(kind: type[Auc], logits: list[float], labels: list[float], batch: int = 7) -> Figures:
    metrics = Metrics(kind())
    for start in range(0, len(logits), batch):
        cut = slice(start, start + batch)
        metrics.update(torch.tensor(logits[cut]), torch.tensor(labels[cut]))
    return metrics.figures


@given(examples)
@settings(deadline=None)
def test_exact_auc_is_the_share_of_pairs_in_order(cases: list[tuple[float, bool]]) -> None:
    logits, labels = [case[0] for case in cases], [case[1] for case in cases]
    got = figures(ExactAuc, logits, [float(label) for label in labels])
    assert got.auc == pytest.approx(auc_of_pairs(logits, labels), rel=1e-15, nan_ok=True)
    assert got.auc_error == 0 or math.isnan(got.auc)


@given(examples)
@settings(deadline=None)
def test_streaming_auc_is_within_its_stated_error(cases: list[tuple[float, bool]]) -> None:
    logits, labels = [case[0] for case in cases], [case[1] for case in cases]
    got = figures(StreamingAuc, logits, [float(label) for label in labels])
    true = auc_of_pairs(logits, labels)
    assert math.isnan(got.auc) == math.isnan(true)
    assert math.isnan(true) or abs(got.auc - true) <= got.auc_error + 1e-12


def test_streaming_auc_of_many_scores_is_close_and_says_so() -> None:
    random = np.random.default_rng(0)
    labels = random.random(100_000) < 0.03
    logits = (random.normal(-3.5, 1, 100_000) + labels).astype(np.float32)
    exact, streaming = ExactAuc(), StreamingAuc()
    for auc in (exact, streaming):
        auc.update(logits, labels)
    assert streaming.error < 1e-4
    assert abs(streaming.value - exact.value) <= streaming.error
    # Two normals one deviation apart: AUC = Phi(1 / sqrt 2) = 0.7602, give or take 0.005.
    assert exact.value == pytest.approx(0.7602, abs=0.015)


@KINDS
@pytest.mark.parametrize(
    ("logits", "auc"),
    [([3.0, 2.0, -1.0, -2.0], 1.0), ([-3.0, -2.0, 1.0, 2.0], 0.0), ([0.5] * 4, 0.5)],
)
def test_perfect_reversed_and_tied_scores(kind: type[Auc], logits: list[float], auc: float) -> None:
    assert figures(kind, logits, [1.0, 1.0, 0.0, 0.0]).auc == auc


@KINDS
def test_reading_the_auc_does_not_end_the_stream(kind: type[Auc]) -> None:
    auc = kind()
    auc.update(np.array([1, 2], np.float32), np.array([False, True]))
    assert auc.value == 1
    auc.update(np.array([3], np.float32), np.array([False]))
    assert auc.value == 0.5


def test_saturated_probabilities_do_not_tie_scores() -> None:
    # Both probabilities are 1.0 in float32.
    assert figures(ExactAuc, [30.0, 40.0], [0.0, 1.0]).auc == 1.0


def test_streaming_auc_stays_in_its_memory() -> None:
    auc = StreamingAuc()
    for value in (-math.inf, -16.0, 16.0, math.inf, 15.99999):
        auc.update(np.array([value], np.float32), np.array([value > 0]))
    assert auc.value == 1.0


def test_figures_are_their_definitions() -> None:
    random = np.random.default_rng(3)
    logits = random.normal(0, 4, 5000).astype(np.float32)
    labels = (random.random(5000) < 0.3).astype(np.float32)
    got = figures(StreamingAuc, logits.tolist(), labels.tolist(), batch=257)
    z, y = torch.from_numpy(logits).double(), torch.from_numpy(labels).double()
    p, rate = torch.sigmoid(z), float(y.mean())
    logloss = float(F.binary_cross_entropy_with_logits(z, y))
    entropy = -rate * math.log(rate) - (1 - rate) * math.log(1 - rate)
    assert got.examples == 5000
    assert got.base_rate == rate
    assert got.logloss == pytest.approx(logloss, rel=1e-13)
    assert got.normalized_entropy == pytest.approx(logloss / entropy, rel=1e-13)
    assert got.calibration == pytest.approx(float(p.mean() / y.mean()), rel=1e-13)
    assert got.accuracy == float((p.round() == y).double().mean())


def test_predicting_the_base_rate_has_normalized_entropy_and_calibration_1() -> None:
    logit = math.log(0.25 / 0.75)
    got = figures(StreamingAuc, [logit] * 8, [1.0, 0.0, 0.0, 0.0] * 2)
    assert got.normalized_entropy == pytest.approx(1.0, rel=1e-7)
    assert got.calibration == pytest.approx(1.0, rel=1e-7)


def test_a_probability_of_one_half_predicts_a_negative() -> None:
    assert figures(StreamingAuc, [0.0, 0.0], [0.0, 1.0]).accuracy == 0.5


def test_logloss_of_extreme_logits_is_finite_and_exact() -> None:
    assert figures(ExactAuc, [200.0, -200.0, 1e30], [0.0, 1.0, 1.0]).logloss == 400.0 / 3
    assert figures(ExactAuc, [-100.0], [0.0]).logloss == pytest.approx(math.exp(-100), rel=1e-12)


@KINDS
def test_a_nan_logit_is_shown_not_skipped(kind: type[Auc]) -> None:
    got = dataclasses.asdict(figures(kind, [1.0, math.nan, -1.0, -2.0], [1.0, 0.0, 0.0, 1.0]))
    assert (got.pop("examples"), got.pop("base_rate")) == (4, 0.5)
    assert all(math.isnan(value) for value in got.values()), got


@KINDS
def test_figures_of_nothing_and_of_one_class_are_nan_where_undefined(kind: type[Auc]) -> None:
    empty = dataclasses.asdict(figures(kind, [], []))
    assert empty.pop("examples") == 0
    assert all(math.isnan(value) for value in empty.values())
    one = figures(kind, [0.0, 0.0], [0.0, 0.0])
    assert one.logloss == pytest.approx(math.log(2))
    assert math.isnan(one.auc) and math.isnan(one.normalized_entropy)
    assert math.isnan(one.calibration)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float64])
def test_labels_of_any_dtype_are_taken(dtype: torch.dtype) -> None:
    metrics = Metrics(ExactAuc())
    metrics.update(torch.tensor([1.0, -1.0], requires_grad=True), torch.tensor([1, 0]).to(dtype))
    assert metrics.figures.auc == 1


def test_labels_that_are_not_binary_are_refused_and_nothing_is_added() -> None:
    metrics = Metrics(ExactAuc())
    with pytest.raises(DataError, match=r"label 0\.5 at position 1 of the batch, expected 0 or 1"):
        metrics.update(torch.zeros(2), torch.tensor([1.0, 0.5]))
    with pytest.raises(DataError, match=r"shape \(2,\) with labels of shape \(2, 1\)"):
        metrics.update(torch.zeros(2), torch.zeros(2, 1))
    assert metrics.figures.examples == 0
