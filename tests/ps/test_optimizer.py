"""Optimizers as values: what they refuse, what they carry, and that a description loses nothing."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from ps.optimizer import (
    FTRL,
    HYPER_WIDTH,
    OPTIMIZERS,
    SGD,
    Adagrad,
    Adam,
    Optimizer,
    RowWiseAdagrad,
    RowWiseAdam,
    optimizer_from,
)
from storage.errors import ConfigError

UNUSUAL = [
    SGD(0.3, weight_decay=1e-5),
    Adagrad(0.1, lr_decay=1e-3, eps=1e-9, initial_accumulator_value=0.1),
    RowWiseAdagrad(lr=1 / 3, eps=1e-7),
    Adam(betas=(0.85, 0.9999), eps=1e-6),
    RowWiseAdam(lr=0.02, betas=(0.0, 0.5)),
    FTRL(0.05, beta=0.5, l1=1e-3, l2=1e-2),
]


@pytest.mark.parametrize("optimizer", [*UNUSUAL, *(each() for each in OPTIMIZERS.values())])
def test_description_in_json_gives_an_equal_optimizer_back(optimizer: Optimizer) -> None:
    text = json.dumps(optimizer.describe())
    assert optimizer_from(json.loads(text)) == optimizer


def test_numpy_numbers_become_plain_ones() -> None:
    optimizer = Adam(lr=np.float64(0.5), betas=(np.float64(0.5), np.float64(0.25)))  # type: ignore
    assert optimizer == Adam(lr=0.5, betas=(0.5, 0.25))
    assert json.loads(json.dumps(optimizer.describe()))["betas"] == [0.5, 0.25]


def test_arguments_left_out_of_a_description_have_their_default() -> None:
    assert optimizer_from({"name": "rowwise_adagrad", "lr": 0.5}) == RowWiseAdagrad(lr=0.5)


@pytest.mark.parametrize(
    ("description", "named"),
    [
        ({"name": "lion"}, "rowwise_adagrad"),
        ({}, "None"),
        ({"name": ["sgd"]}, "sgd"),
        ({"name": "sgd", "lr": 0.1, "momentum": 0.9}, "momentum"),
        ({"name": "sgd", "lr": "fast"}, "lr"),
    ],
)
def test_unknown_description_is_refused_by_name(description: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        optimizer_from(description)


@pytest.mark.parametrize(
    ("chosen", "arguments"),
    [
        (SGD, {"lr": -0.1}),
        (SGD, {"lr": math.nan}),
        (SGD, {"lr": math.inf}),
        (SGD, {"lr": 1e39}),
        (SGD, {"weight_decay": -1.0}),
        (Adagrad, {"eps": 0.0}),
        (Adagrad, {"eps": 1e-60}),
        (Adagrad, {"lr_decay": -1.0}),
        (RowWiseAdagrad, {"initial_accumulator_value": -1.0}),
        (Adam, {"betas": (1.0, 0.9)}),
        (Adam, {"betas": (0.9, -0.1)}),
        (Adam, {"betas": (0.9, math.nan)}),
        (Adam, {"betas": (0.9,)}),
        (Adam, {"betas": 0.9}),
        (RowWiseAdam, {"eps": 0.0}),
        (FTRL, {"lr": 0.0}),
        (FTRL, {"beta": 0.0}),
        (FTRL, {"l1": -1.0}),
        (FTRL, {"l2": None}),
    ],
)
def test_argument_that_cannot_be_meant_is_refused_by_name(
    chosen: type[Optimizer], arguments: dict[str, Any]
) -> None:
    (argument,) = arguments
    with pytest.raises(ConfigError, match=f"{chosen.name}: {argument}"):
        chosen(**arguments)


def test_state_widths_are_those_of_the_formulas() -> None:
    widths = {name: chosen().state_width(10) for name, chosen in OPTIMIZERS.items()}
    assert widths == {
        "sgd": 0,
        "adagrad": 10,
        "rowwise_adagrad": 1,
        "adam": 20,
        "rowwise_adam": 11,
        "ftrl": 20,
    }


def test_only_an_initial_accumulator_makes_new_state_other_than_zero() -> None:
    assert [each.initial_state for each in UNUSUAL] == [0.0, 0.1, 0.0, 0.0, 0.0, 0.0]


def test_no_two_optimizers_share_a_kind() -> None:
    assert len({chosen.kind for chosen in OPTIMIZERS.values()}) == len(OPTIMIZERS)


@pytest.mark.parametrize("optimizer", UNUSUAL)
def test_constants_are_finite_from_the_first_step_to_the_last(optimizer: Optimizer) -> None:
    for step in (1, 2, 1000, 2**32 - 1):
        constants = optimizer.hyper(step=step)
        assert constants.shape == (HYPER_WIDTH,) and constants.dtype == np.float32
        assert np.isfinite(constants).all()


def test_rate_given_with_a_step_replaces_the_default() -> None:
    assert SGD(lr=0.5).hyper()[0] == 0.5
    assert SGD(lr=0.5).hyper(lr=0.25)[0] == 0.25
    assert SGD(lr=0.5).hyper(lr=0.0)[0] == 0.0


def test_small_corrections_are_computed_before_rounding() -> None:
    # 1 - 0.999 from a float32 0.999 would be off by 5e-5.
    constants = Adam(lr=1.0).hyper(step=1)
    np.testing.assert_allclose(constants[:3], [math.sqrt(0.001) / 0.1, 0.1, 0.001], rtol=1e-7)


@pytest.mark.parametrize("step", [0, -1, 2**32])
def test_step_outside_its_range_is_refused(step: int) -> None:
    with pytest.raises(ConfigError, match="step"):
        SGD().hyper(step=step)


@pytest.mark.parametrize(
    ("optimizer", "rate"), [(SGD(), -1.0), (SGD(), math.nan), (Adam(), 1e39), (FTRL(), 0.0)]
)
def test_scheduled_rate_that_cannot_be_meant_is_refused(optimizer: Optimizer, rate: float) -> None:
    with pytest.raises(ConfigError, match="schedule"):
        optimizer.hyper(lr=rate)
