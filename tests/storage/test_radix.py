"""Radix: what a dict keeps, in the order of a sort."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.keys import mix_keys, unmix_keys
from storage.radix import newest

LAST = 2**64 - 1
mixed_keys = st.one_of(
    st.integers(0, 3), st.integers(LAST - 3, LAST), st.integers(2**52 - 2, 2**52 + 2),
    st.integers(2**42 - 2, 2**42 + 2), st.integers(0, LAST),
)  # fmt: skip


def as_a_dict(keys: np.ndarray, addresses: np.ndarray) -> tuple[list[int], list[int]]:
    last = dict(zip(mix_keys(keys).tolist(), addresses.tolist(), strict=True))
    return sorted(last), [last[mixed] for mixed in sorted(last)]


@given(st.lists(mixed_keys, max_size=80))
def test_of_each_key_the_last_address_is_kept_in_rising_order(mixed: list[int]) -> None:
    keys = unmix_keys(np.array(mixed, np.uint64))
    addresses = np.arange(len(keys)) + 7
    expected = as_a_dict(keys, addresses)
    found, places = newest(keys, addresses)
    assert (found.tolist(), places.tolist()) == expected


@pytest.mark.parametrize("distinct", [3, 1000, 10**9])
def test_many_keys(distinct: int) -> None:
    keys = np.random.default_rng(0).integers(0, distinct, 50_000).astype(np.uint64)
    addresses = np.arange(len(keys))
    expected = as_a_dict(keys, addresses)
    found, places = newest(keys, addresses)
    assert (found.tolist(), places.tolist()) == expected
