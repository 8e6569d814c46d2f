"""Bags: every call form brought to accesses and starts; what is no call form is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from storage.errors import ConfigError
from worker.input import bags_of

FORM: dict[str, Any] = {"include_last_offset": False, "padding_idx": None}


def test_a_matrix_is_a_bag_by_row() -> None:
    bags = bags_of(torch.tensor([[1, 2], [3, 1]]), None, **FORM)
    assert (bags.keys.tolist(), bags.starts.tolist(), len(bags)) == ([1, 2, 3, 1], [0, 2, 4], 2)
    assert bags.bag_of().tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_offsets_say_where_bags_start(dtype: torch.dtype) -> None:
    ids, offsets = torch.arange(5, dtype=dtype), torch.tensor([0, 2, 2, 5], dtype=dtype)
    assert bags_of(ids, offsets, **FORM).starts.tolist() == [0, 2, 2, 5, 5]
    last = bags_of(ids, offsets, include_last_offset=True, padding_idx=None)
    assert last.starts.tolist() == [0, 2, 2, 5]


def test_what_lies_behind_the_last_offset_is_not_looked_up() -> None:
    ids = torch.arange(5)
    bags = bags_of(ids, torch.tensor([0, 2]), include_last_offset=True, padding_idx=None)
    assert bags.keys.tolist() == [0, 1]
    assert bags.weights(torch.arange(5.0)).tolist() == [0, 1]


def test_padding_is_left_out_wherever_it_stands() -> None:
    ids = torch.tensor([9, 1, 9, 9, 2, 9])
    offsets = torch.tensor([0, 3, 4, 6])
    bags = bags_of(ids, offsets, include_last_offset=False, padding_idx=9)
    assert (bags.keys.tolist(), bags.starts.tolist()) == ([1, 2], [0, 1, 1, 2, 2])
    assert bags.weights(torch.arange(6.0)).tolist() == [1, 4]
    assert bags.weights(None).shape == (0,)


def test_a_negative_padding_id_is_the_key_of_its_bits() -> None:
    bags = bags_of(torch.tensor([[-1, 5]]), None, include_last_offset=False, padding_idx=-1)
    assert bags.keys.tolist() == [5]
    assert bags_of(torch.tensor([[-1]]), None, **FORM).keys.tolist() == [2**64 - 1]


@pytest.mark.parametrize(
    ("ids", "offsets"),
    [
        (torch.ones(2, 2, dtype=torch.int64), torch.tensor([0])),
        (torch.ones(3, dtype=torch.int64), None),
        (torch.ones(1, 2, 3, dtype=torch.int64), None),
        (torch.ones(3), torch.tensor([0])),
        (torch.ones(3, dtype=torch.int64), torch.tensor([1, 2])),
        (torch.ones(3, dtype=torch.int64), torch.tensor([0, 2, 1])),
        (torch.ones(3, dtype=torch.int64), torch.tensor([0, 4])),
    ],
)
def test_what_is_no_call_form_is_refused(ids: torch.Tensor, offsets: torch.Tensor | None) -> None:
    with pytest.raises(ConfigError) as caught:
        bags_of(ids, offsets, **FORM)
    assert "\n" not in str(caught.value)


def test_keys_are_a_view_where_they_can_be() -> None:
    ids = torch.arange(4)
    bags = bags_of(ids, torch.tensor([0]), **FORM)
    assert np.shares_memory(bags.keys, ids.numpy())
