"""Ring: a merge of two sorted lots is what inserting them one after another gives."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from storage.keys import mix_keys
from storage.ring import EMPTY, REMAINDER, entries, entry, holds, insert, merge, search

SEGMENT = 5
LAST = 2**52 - 1
remainders = st.dictionaries(
    st.one_of(st.integers(0, 9), st.integers(LAST - 9, LAST), st.integers(0, LAST)),
    st.integers(0, 2**43), max_size=24,
)  # fmt: skip


def ring_of(slots: int) -> tuple[np.ndarray, np.ndarray]:
    return np.full(slots, EMPTY, np.uint64), np.zeros(slots, np.uint32)


def content(words: np.ndarray, lows: np.ndarray) -> dict[int, int]:
    """By remainder, in the order in which the ring has them."""
    keys, addresses = np.empty(len(words), np.uint64), np.empty(len(words), np.int64)
    count = entries(SEGMENT, words, lows, keys, addresses)
    rest = mix_keys(keys[:count]) & REMAINDER
    return dict(zip(rest.tolist(), addresses[:count].tolist(), strict=True))


@given(remainders, remainders, st.integers(1, 9), st.integers(1, 9))
def test_merging_keeps_order_and_the_new_address(
    old: dict[int, int], new: dict[int, int], spare: int, more: int
) -> None:
    words, lows = ring_of(len(old) + spare)
    for remainder, address in old.items():
        slot = search(words, np.uint64(remainder))
        word, low = entry(np.uint64(remainder), address)
        insert(words, lows, slot, np.uint64(word), np.uint32(low))
    assert content(words, lows) == old

    keys = np.array(sorted(new), np.uint64) | np.uint64(SEGMENT << 52)
    both = old | new
    larger = ring_of(len(both) + more)
    addresses = np.array([new[key] for key in sorted(new)], np.int64)
    assert merge(words, lows, keys, addresses, *larger) == len(both)
    assert list(content(*larger).items()) == sorted(both.items())
    for remainder in both:
        assert holds(larger[0], search(larger[0], np.uint64(remainder)), remainder)
