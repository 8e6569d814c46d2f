"""Metrics of binary predictions, gathered batch by batch: AUC, log loss and its relatives.

All are computed from logits in float64, so that a probability rounded to 0 or 1 neither makes a log
loss infinite nor ties two scores. `StreamingAuc` is for "AUC so far", in bounded memory and with a
bound of its error; `ExactAuc` is for a test set, at 4 bytes an example.

Threads: an object belongs to one thread at a time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from storage.errors import DataError

Logits = NDArray[np.float32]
Positive = NDArray[np.bool_]


class Auc(Protocol):
    """The area under the ROC curve: how probably a positive scores above a negative, ties half."""

    def update(self, logits: Logits, positive: Positive) -> None:
        """Adds a batch. logits: (B,) float32, no NaN; positive: (B,) bool."""

    @property
    def value(self) -> float:
        """The AUC of all batches so far; NaN while one of the classes has not been seen."""

    @property
    def error(self) -> float:
        """The true AUC is within this of ``value``; NaN where that is."""


class StreamingAuc:
    """AUC from counts in 2**16 equal bins of the logits between -16 and 16: 1 MiB, whatever comes.

    Pairs in one bin count half, though any part of them may be ordered: ``error`` is half of their
    share of all pairs. Beyond +-16 (a probability of 1e-7) all logits fall into the outer bins.
    """

    _BINS = 2**16
    _RANGE = 16.0

    def __init__(self) -> None:
        self._negatives = np.zeros(self._BINS, np.int64)
        self._positives = np.zeros(self._BINS, np.int64)

    def update(self, logits: Logits, positive: Positive) -> None:
        """As `Auc.update`."""
        scale = self._BINS / (2 * self._RANGE)
        clipped = np.clip(logits.astype(np.float64), -self._RANGE, self._RANGE)
        bins = np.minimum((clipped + self._RANGE) * scale, self._BINS - 1).astype(np.int64)
        # add.at touches B bins; bincount would write all of them each batch.
        np.add.at(self._positives, bins[positive], 1)
        np.add.at(self._negatives, bins[~positive], 1)

    @property
    def value(self) -> float:
        """As `Auc.value`."""
        below = np.cumsum(self._negatives) - self._negatives
        return self._share(below + self._negatives / 2)

    @property
    def error(self) -> float:
        """As `Auc.error`."""
        return self._share(self._negatives / 2)

    def _share(self, weights: NDArray[np.float64]) -> float:
        """The positives' sum of weights as a part of all pairs: exact below 2**53 pairs."""
        pairs = float(self._positives.sum()) * float(self._negatives.sum())
        return float(self._positives @ weights) / pairs if pairs else math.nan


class ExactAuc:
    """AUC by the ranks of all scores (Mann and Whitney 1947). Keeps 4 bytes an example.

    Reading ``value`` sorts: O(n log n), and about 20 bytes a positive and 4 a negative meanwhile.
    """

    def __init__(self) -> None:
        self._negatives: list[Logits] = []
        self._positives: list[Logits] = []

    def update(self, logits: Logits, positive: Positive) -> None:
        """As `Auc.update`."""
        self._positives.append(logits[positive])
        self._negatives.append(logits[~positive])

    @property
    def value(self) -> float:
        """As `Auc.value`."""
        self._positives, self._negatives = [_merged(self._positives)], [_merged(self._negatives)]
        positives, negatives = np.sort(self._positives[0]), np.sort(self._negatives[0])
        pairs = len(positives) * len(negatives)
        # A positive beats the negatives left of its first place, and ties those up to its last.
        twice = np.searchsorted(negatives, positives, "left").sum(dtype=np.int64)
        twice += np.searchsorted(negatives, positives, "right").sum(dtype=np.int64)
        return int(twice) / (2 * pairs) if pairs else math.nan

    @property
    def error(self) -> float:
        """0, or NaN where ``value`` is."""
        return self.value * 0.0


def _merged(chunks: list[Logits]) -> Logits:
    return np.concatenate([np.empty(0, np.float32), *chunks])


@dataclass(frozen=True)
class Figures:
    """Metrics of the examples so far; NaN where the definition divides by nothing.

    ``logloss``: mean cross entropy, in nats. ``normalized_entropy``: log loss by that of always
    predicting ``base_rate``, below 1 when the model knows more (He et al., ADKDD 2014).
    ``calibration``: mean prediction by mean label (the same paper). ``accuracy``: of predicting a
    positive above a probability of one half. ``base_rate``: mean label. ``auc_error``: the AUC is
    within this of ``auc``.
    """

    examples: int
    auc: float
    auc_error: float
    logloss: float
    normalized_entropy: float
    calibration: float
    accuracy: float
    base_rate: float


class Metrics:
    """Gathers `Figures` over batches, in bounded memory but for what ``auc`` keeps.

    Sums are float64, so figures depend on how the examples were cut into batches by rounding only,
    about 1e-16 relative. A logit that is NaN makes all figures but the base rate NaN: it is shown,
    not skipped.
    """

    def __init__(self, auc: Auc) -> None:
        self._auc = auc
        self._examples = 0
        self._positives = 0
        self._right = 0
        self._unordered = False
        self._loss = 0.0
        self._predicted = 0.0

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Adds a batch; waits for the tensors' device.

        logits: (B,) floating, on any device; labels: (B,) of any dtype, each 0 or 1.

        Raises DataError when the shapes differ or a label is neither 0 nor 1; nothing is added.
        """
        scores = logits.detach().float().cpu().numpy()
        positive = _positive(labels, scores.shape)
        z = scores.astype(np.float64)
        # exp(-|z|) cannot overflow; both the loss and the probability are stable in terms of it.
        with np.errstate(under="ignore", invalid="ignore"):
            small = np.exp(-np.abs(z))
            loss = np.maximum(np.where(positive, -z, z), 0.0) + np.log1p(small)
            probability = np.where(z >= 0, 1.0, small) / (1.0 + small)
        self._examples += len(z)
        self._positives += int(positive.sum())
        self._right += int(((z > 0) == positive).sum())
        self._loss += float(loss.sum())
        self._predicted += float(np.where(np.isnan(z), np.nan, probability).sum())
        ordered = ~np.isnan(z)
        self._unordered |= not ordered.all()
        self._auc.update(scores[ordered], positive[ordered])

    @property
    def figures(self) -> Figures:
        """The figures so far, a frozen value."""
        n, positives = self._examples, self._positives
        spoilt = math.nan if self._unordered else 0.0
        logloss = _ratio(self._loss, n)
        return Figures(
            examples=n,
            auc=self._auc.value + spoilt,
            auc_error=self._auc.error + spoilt,
            logloss=logloss,
            normalized_entropy=_ratio(logloss, _entropy(positives, n)),
            calibration=_ratio(self._predicted, positives),
            accuracy=_ratio(self._right, n) + spoilt,
            base_rate=_ratio(positives, n),
        )


def _positive(labels: Tensor, shape: tuple[int, ...]) -> Positive:
    """The labels as booleans. Raises DataError when they cannot be."""
    if tuple(labels.shape) != shape or len(shape) != 1:
        raise DataError(
            f"logits of shape {shape} with labels of shape {tuple(labels.shape)}, expected (B,) of "
            "both; squeeze or flatten them"
        )
    array = labels.detach().cpu().numpy()
    bad = (array != 0) & (array != 1)
    if bad.any():
        position = int(bad.argmax())
        raise DataError(
            f"label {array[position]} at position {position} of the batch, expected 0 or 1; "
            "these metrics are of binary labels"
        )
    return np.asarray(array == 1)


def _entropy(positives: int, n: int) -> float:
    """The log loss of always predicting the base rate."""
    if positives in (0, n):
        return 0.0
    rate = positives / n
    return -rate * math.log(rate) - (1.0 - rate) * math.log1p(-rate)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan
