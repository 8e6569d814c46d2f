"""Hashes: every value of every feature has its key by the table, in any format."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from worker.data.hash import integer_keys, missing_key, text_keys, unit

from .oracle import fnv1a, integer_key, signed, text_key

texts = st.one_of(
    st.binary(max_size=12),
    st.text("0123456789abcdef", min_size=8, max_size=8).map(str.encode),
    st.text("0123456789abcdefABCDEFg/:`@", min_size=8, max_size=8).map(str.encode),
)


@given(st.lists(texts), st.integers(0, 2**20))
def test_text_keys_follow_the_table(values: list[bytes], feature: int) -> None:
    text = np.frombuffer(b"".join(values), dtype=np.uint8)
    offsets = np.cumsum([0, *map(len, values)], dtype=np.int64)
    got = text_keys(text, offsets, feature).view(np.int64).tolist()
    assert got == [text_key(value, feature) for value in values]


@given(st.lists(st.integers(-(2**63), 2**63 - 1)), st.integers(0, 2**20))
def test_integer_keys_follow_the_table(values: list[int], feature: int) -> None:
    got = integer_keys(np.array(values, dtype=np.int64), feature).view(np.int64).tolist()
    assert got == [integer_key(value, feature) for value in values]


def test_a_missing_value_has_a_key_of_its_own_in_each_feature() -> None:
    keys = {signed(int(missing_key(np.uint64(feature)))) for feature in range(1000)}
    keys |= {text_key(b"00000000", feature) for feature in range(1000)}
    assert len(keys) == 2000


def test_the_oracle_hashes_as_the_standard_says() -> None:
    """Vectors of RFC 9923."""
    assert fnv1a(b"") == 0xCBF29CE484222325
    assert fnv1a(b"a") == 0xAF63DC4C8601EC8C
    assert fnv1a(b"foobar") == 0x85944171F73967E8


def test_random_bits_make_a_number_from_0_up_to_1() -> None:
    assert unit(np.uint64(0)) == 0.0
    assert unit(np.uint64(2**63)) == 0.5
    assert 1.0 - 2.0**-52 < unit(np.uint64(2**64 - 1)) < 1.0
