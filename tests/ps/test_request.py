"""Requests: unique keys with the way back to every access of every lookup."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ps
from ps.request import unique_keys
from storage.errors import KeyRangeError
from storage.keys import Deduper

lookups = st.lists(st.lists(st.integers(0, 9), max_size=6), min_size=1, max_size=4)
TABLE = ps.Table("ads", dim=2, optimizer=ps.SGD(lr=0.1), rows=10)


@given(lookups)
def test_every_access_is_found_again(ids: list[list[int]]) -> None:
    requests = [np.array(each, np.uint64) for each in ids]
    unique, inverses, counts = unique_keys(TABLE, requests, Deduper())
    flat = [key for each in ids for key in each]
    assert unique.tolist() == list(dict.fromkeys(flat))
    assert counts.tolist() == [flat.count(key) for key in unique.tolist()]
    assert [unique[inverse].tolist() for inverse in inverses] == ids


def test_keys_beyond_the_table_are_refused() -> None:
    with pytest.raises(KeyRangeError, match="id 10 at position 1"):
        unique_keys(TABLE, [np.array([1], np.uint64), np.array([10], np.uint64)], Deduper())
