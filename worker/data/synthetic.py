"""Synthetic data: a stream of any length with Zipf keys and labels from a planted model.

Every number of example e is a function of (seed, e), so a stream can start anywhere at once and
does not depend on the batch size. The planted model is one a recommender can learn: each key has a
hidden weight w, each dense value x a hidden weight v (both from a hash, variance 1), and the label
is 1 with the chance ::

    sigmoid(SPARSE * sum(w) / sqrt(F * mean bag) + DENSE * sum(v * x) / sqrt(I) + BIAS)

so an AUC means something. Keys are ranks of a bounded Zipf distribution scattered over 64 bits by
``storage.keys.mix``: with ``shared=1`` all features draw from one space of ``rows`` keys (rank 1 is
the hottest key of all of them), with ``shared=0`` each has ``rows`` of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import cos, exp, log, pi, sqrt
from typing import Any, NamedTuple

import numba as nb
import numpy as np
import torch
from numpy.typing import NDArray

from storage.errors import ConfigError
from storage.keys import mix
from worker.data.batch import Batch
from worker.data.dataset import Dataset
from worker.data.hash import unit
from worker.data.zipf import STEP, Zipf, draw_rank, prepare_zipf

SPARSE, DENSE, BIAS = 2.0, 0.5, -1.0
"""Scales of the planted model's three terms; the best possible AUC is then about 0.85."""

_BLOCK = 4096
_MOST_ROWS = 1 << 40
_FEATURE_SHIFT, _16, _MASK_16 = np.uint64(40), np.uint64(16), np.uint64(0xFFFF)
# One stream of random numbers for each use, so that no use disturbs another.
_EXAMPLE, _BAG, _KEY, _VALUE = (np.uint64(salt << 56) for salt in (1, 2, 3, 4))


class Recipe(NamedTuple):
    """What to generate; a tuple because kernels take no dataclass."""

    rows: int = 1_000_000
    zipf: float = 1.05
    features: int = 26
    dense: int = 13
    bag_low: int = 1
    bag_high: int = 1
    examples: int = 1_000_000
    seed: int = 0
    shared: int = 1

    def describe(self) -> str:
        """The specification that gives this recipe."""
        bag = str(self.bag_low)
        if self.bag_high != self.bag_low:
            bag += f"-{self.bag_high}"
        return (
            f"synthetic:rows={self.rows},zipf={self.zipf:g},features={self.features},"
            f"dense={self.dense},bag={bag},examples={self.examples},seed={self.seed},"
            f"shared={self.shared}"
        )


# Least and greatest value of each option.
_RANGES = {
    "rows": (1, _MOST_ROWS),
    "zipf": (0, 10),
    "features": (1, 10_000),
    "dense": (0, 10_000),
    "bag": (0, 10_000),
    "examples": (1, 10**15),
    "seed": (0, 2**62),
    "shared": (0, 1),
}


def parse_recipe(options: str, *, seed: int = 0) -> Recipe:
    """The recipe in ``rows=1e6,zipf=1.05,bag=1-8,...``; options left out keep their defaults.

    seed: used when the options have none. Raises ConfigError naming the option, what came and what
    may come.
    """
    values: dict[str, Any] = {"seed": seed}
    for option in filter(None, options.split(",")):
        name, _, text = (part.strip() for part in option.partition("="))
        if name not in _RANGES:
            raise ConfigError(
                f"synthetic: expected options {', '.join(_RANGES)} as name=value, got {option!r}"
            )
        if name == "bag":
            low, dash, high = text.partition("-")
            values["bag_low"] = _number(name, low)
            values["bag_high"] = _number(name, high) if dash else values["bag_low"]
        else:
            values[name] = _number(name, text)
    recipe = Recipe(**values)
    if recipe.bag_low > recipe.bag_high:
        raise ConfigError(f"synthetic: bag={recipe.bag_low}-{recipe.bag_high} goes downwards")
    return recipe


def _number(name: str, text: str) -> float | int:
    low, high = _RANGES[name]
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high or (name != "zipf" and value != int(value)):
        kind = "number" if name == "zipf" else "whole number"
        raise ConfigError(f"synthetic: {name} must be a {kind} from {low} to {high}, got {text!r}")
    # Through text where it is one: a float would round a large seed.
    return value if name == "zipf" else int(text) if text.isdecimal() else int(value)


class Synthetic(Dataset):
    """Endlessly repeatable generated examples; the held-out ones follow those to train on."""

    def __init__(self, recipe: Recipe, *, holdout: float = 0.1) -> None:
        self.name = recipe.describe()
        self.dense_names = tuple(f"x{number}" for number in range(recipe.dense))
        self.feature_names = tuple(f"f{number}" for number in range(recipe.features))
        self._recipe = recipe
        self._zipf = prepare_zipf(recipe.rows, recipe.zipf)
        self._held_out = int(recipe.examples * holdout)

    @property
    def train_examples(self) -> int:
        """Examples of one epoch."""
        return self._recipe.examples

    def _read_train(self, first: int) -> Iterator[Batch]:
        return self._generate(first, self._recipe.examples)

    def _read_test(self) -> Iterator[Batch]:
        return self._generate(self._recipe.examples, self._recipe.examples + self._held_out)

    def _generate(self, first: int, stop: int) -> Iterator[Batch]:
        """Examples ``first`` to ``stop - 1`` in blocks."""
        for start in range(first, stop, _BLOCK):
            numbers = np.arange(start, min(start + _BLOCK, stop), dtype=np.int64)
            offsets = draw_offsets(numbers, self._recipe)
            labels, dense, ids = draw_examples(numbers, offsets, self._recipe, self._zipf)
            yield Batch(*(torch.from_numpy(array) for array in (labels, dense, ids, offsets)))


@nb.njit(nogil=True, cache=True)
def draw_offsets(numbers: NDArray[np.int64], recipe: Recipe) -> NDArray[np.int64]:
    """Where the bags of some examples begin. numbers: (B,) int64 -> (B*F+1,) int64."""
    offsets = np.zeros(numbers.shape[0] * recipe.features + 1, dtype=np.int64)
    seed = mix(np.uint64(recipe.seed) ^ _BAG)
    choices = recipe.bag_high - recipe.bag_low + 1
    bag = 0
    for number in numbers:
        counter = mix(seed ^ np.uint64(number))
        for _ in range(recipe.features):
            extra = np.int64(unit(mix(counter)) * choices)
            offsets[bag + 1] = offsets[bag] + recipe.bag_low + extra
            counter += STEP
            bag += 1
    return offsets


@nb.njit(nogil=True, cache=True)
def draw_examples(
    numbers: NDArray[np.int64], offsets: NDArray[np.int64], recipe: Recipe, zipf: Zipf
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
    """Labels (B,) float32, dense values (B, I) float32 and keys (N,) int64 of some examples.

    numbers: (B,) int64. offsets: (B*F+1,) int64, what ``draw_offsets`` gives for them.
    """
    features = recipe.features
    labels = np.empty(numbers.shape[0], dtype=np.float32)
    dense = np.empty((numbers.shape[0], recipe.dense), dtype=np.float32)
    ids = np.empty(offsets[-1], dtype=np.int64)
    seed = mix(np.uint64(recipe.seed) ^ _EXAMPLE)
    sparse_scale = SPARSE / sqrt(max(features * (recipe.bag_low + recipe.bag_high) / 2.0, 1.0))
    dense_scale = DENSE / sqrt(max(recipe.dense, 1.0))
    for row in range(numbers.shape[0]):
        counter = mix(seed ^ np.uint64(numbers[row]))
        logit = BIAS
        for feature in range(features):
            prefix = np.uint64(0 if recipe.shared else feature + 1) << _FEATURE_SHIFT
            bag = row * features + feature
            for place in range(offsets[bag], offsets[bag + 1]):
                rank, counter = draw_rank(counter, zipf)
                key = mix(prefix | np.uint64(rank - 1))
                ids[place] = np.int64(key)
                logit += sparse_scale * planted_weight(key ^ _KEY, recipe.seed)
        for column in range(recipe.dense):
            value, counter = _draw_normal(counter)
            dense[row, column] = value
            weight = planted_weight(np.uint64(column) ^ _VALUE, recipe.seed)
            logit += dense_scale * weight * value
        labels[row] = np.float32(unit(mix(counter)) < 1.0 / (1.0 + exp(-logit)))
    return labels, dense, ids


@nb.njit(nogil=True, cache=True)
def planted_weight(bits: Any, seed: int) -> Any:
    """The hidden weight (float64) behind 64 bits: a sum of four uniforms, mean 0, variance 1."""
    mixed = mix(bits ^ mix(np.uint64(seed)))
    total = 0.0
    for _ in range(4):
        total += np.float64(mixed & _MASK_16)
        mixed >>= _16
    return (total / 65536.0 - 2.0) * sqrt(3.0)


@nb.njit(nogil=True, cache=True)
def _draw_normal(counter: Any) -> tuple[Any, Any]:
    """A normal number (float64; Box and Muller 1958) and the counter for the next."""
    radius = sqrt(-2.0 * log(1.0 - unit(mix(counter))))
    angle = 2.0 * pi * unit(mix(counter + STEP))
    return radius * cos(angle), counter + STEP + STEP
