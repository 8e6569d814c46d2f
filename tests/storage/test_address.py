"""AddressIndex answers as a dict does, and takes no more memory than it said before."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.address import ADDRESSES, ENTRY_BYTES, LEAST_BYTES, AddressIndex
from storage.keys import BUCKETS, mix_keys, unmix, unmix_keys
from storage.radix import newest

LAST = 2**64 - 1


def in_segment(segment: int, remainder: int) -> int:
    return int(unmix(np.uint64(segment << 52 | remainder)))


def crowd(segment: int, start: int, count: int) -> np.ndarray:
    """Keys of one segment with consecutive remainders: all have one home slot."""
    return unmix_keys(np.uint64(segment << 52 | start) + np.arange(count, dtype=np.uint64))


# Remainders at both ends of a segment (runs go round the end) and in the middle of it.
remainders = st.one_of(
    st.integers(0, 12), st.integers(2**51, 2**51 + 12), st.integers(2**52 - 12, 2**52 - 1),
    st.integers(0, 2**52 - 1),
)  # fmt: skip
keys = st.one_of(
    st.builds(in_segment, st.sampled_from([0, 7, BUCKETS - 1]), remainders),
    st.sampled_from([0, LAST]),
)
addresses = st.one_of(st.integers(0, ADDRESSES - 1), st.sampled_from([0, 2**32, ADDRESSES - 1]))
steps = st.lists(
    st.one_of(
        st.tuples(st.just("set"), st.lists(st.tuples(keys, addresses), max_size=30)),
        st.tuples(st.just("load"), st.lists(st.tuples(keys, addresses), max_size=30)),
        st.tuples(st.just("erase"), st.lists(st.tuples(keys, addresses), max_size=20)),
    ),
    max_size=25,
)


@given(steps)
@settings(max_examples=120)
def test_it_answers_as_a_dict_does(steps: list[tuple[str, list[tuple[int, int]]]]) -> None:
    index, model = AddressIndex(), {}
    for action, pairs in steps:
        named = np.array([key for key, _ in pairs], np.uint64)
        if action == "load":
            pairs = list(dict(pairs).items())
            named = np.array([key for key, _ in pairs], np.uint64)
            mixed, places = newest(named, np.array([a for _, a in pairs], np.int64))
            for key, had in zip(unmix_keys(mixed).tolist(), index.load(mixed, places), strict=True):
                assert had == model.get(key, -1)
            model |= dict(pairs)
        elif action == "set":
            before = index.set(named, np.array([address for _, address in pairs], np.int64))
            for (key, address), had in zip(pairs, before.tolist(), strict=True):
                assert had == model.get(key, -1)
                model[key] = address
        else:
            for (key, _), had in zip(pairs, index.erase(named).tolist(), strict=True):
                assert had == model.pop(key, -1)
        asked = np.array([key for key, _ in pairs] + list(model), np.uint64)
        assert index.find(asked).tolist() == [model.get(key, -1) for key in asked.tolist()]
        assert len(index) == len(model)
    found: dict[int, int] = {}
    for number in (0, 7, BUCKETS - 1):
        some, places = index.segment(number)
        assert (np.diff(mix_keys(some).astype(object)) > 0).all()
        found |= dict(zip(some.tolist(), places.tolist(), strict=True))
    assert {k: v for k, v in model.items() if k not in (0, LAST)}.items() <= found.items()


@pytest.mark.parametrize("start", [0, 2**51, 2**52 - 400])
def test_a_crowd_with_one_home_is_found_and_erased_in_any_order(start: int) -> None:
    index, rng = AddressIndex(), np.random.default_rng(0)
    keys = crowd(9, start, 400)
    places = rng.integers(0, ADDRESSES, 400)
    for part in np.array_split(rng.permutation(400), 7):
        index.set(keys[part], places[part])
    order = rng.permutation(400)
    for done, i in enumerate(order):
        assert index.find(keys[order[done:]]).tolist() == places[order[done:]].tolist()
        assert index.erase(keys[i : i + 1]).tolist() == [places[i]]
    assert len(index) == 0 and (index.find(keys) == -1).all()


def test_of_a_key_named_twice_the_last_address_counts() -> None:
    index = AddressIndex()
    index.set(np.array([5, 6, 5], np.uint64), np.array([1, 2, 3]))
    assert index.find(np.array([5, 6], np.uint64)).tolist() == [3, 2]


def test_keys_that_are_known_need_no_memory() -> None:
    index, keys = AddressIndex(), np.arange(30_000, dtype=np.uint64)
    index.set(keys, np.arange(30_000))
    before = index.bytes
    index.set(keys, np.arange(30_000) + 7)
    assert index.bytes == before


def held_bytes(index: AddressIndex) -> int:
    """What the index really holds, array by array."""
    arrays = [v for v in vars(index).values() if isinstance(v, np.ndarray)]
    return sum(array.nbytes for array in (*arrays, *index._memory))


def test_a_row_costs_at_most_16_bytes_and_the_figure_is_what_is_held() -> None:
    index, keys = AddressIndex(), np.arange(350_000, dtype=np.uint64)
    for start in range(0, 350_000, 20_000):
        index.set(keys[start : start + 20_000], np.arange(20_000))
        assert index.bytes == held_bytes(index)
        if len(index) >= 300_000:
            assert index.bytes <= 16 * len(index)


@pytest.mark.parametrize("kind", ["sequential", "random", "one home", "at the end", "few segments"])
def test_growth_stays_within_what_was_announced(kind: str) -> None:
    rng = np.random.default_rng(1)
    count = 60_000
    keys = {
        "sequential": np.arange(count, dtype=np.uint64),
        "random": rng.integers(0, LAST, count, dtype=np.uint64),
        "one home": crowd(3, 2**40, 20_000),
        "at the end": crowd(BUCKETS - 1, 2**52 - 5_000, 5_000),
        "few segments": np.concatenate([crowd(s, 2**33 * s, 500) for s in range(40)]),
    }[kind]
    index, done = AddressIndex(), 0
    while done < len(keys):
        batch = keys[done : done + int(rng.choice([1, 2, 50, 3000]))]
        bound, before = index.growth_bound(len(batch)), index.bytes
        index.set(batch, np.arange(len(batch)))
        assert index.bytes - before <= bound
        assert index.bytes <= LEAST_BYTES + ENTRY_BYTES * len(index)
        done += len(batch)
    assert index.bytes == held_bytes(index)


def test_the_announced_growth_is_no_wild_guess() -> None:
    index, keys = AddressIndex(), np.arange(400_000, dtype=np.uint64)
    index.set(keys[:300_000], np.arange(300_000))
    bound, before = index.growth_bound(100_000), index.bytes
    index.set(keys[300_000:], np.arange(100_000))
    assert bound <= 2 * (index.bytes - before)


def test_segments_grow_at_different_times() -> None:
    # Did all grow at the same number of rows, a fifth of the index would be wanted at once.
    rng, index, grown = np.random.default_rng(0), AddressIndex(), []
    segments = np.arange(BUCKETS, dtype=np.uint64) << np.uint64(52)
    for count in range(80):
        before = index.bytes
        keys = unmix_keys(segments | rng.integers(0, 2**52, BUCKETS, dtype=np.uint64))
        index.set(keys, np.arange(BUCKETS))  # one more row in every segment
        if count >= 40:
            grown.append(index.bytes - before)
    assert max(grown) < 4 * np.mean(grown)


def test_growth_announced_after_deletions_holds_too() -> None:
    rng, index = np.random.default_rng(2), AddressIndex()
    keys = np.arange(50_000, dtype=np.uint64)
    for _ in range(30):
        chosen = rng.permutation(keys)[:8000]
        bound, before = index.growth_bound(len(chosen)), index.bytes
        index.set(chosen, np.arange(8000))
        assert index.bytes - before <= bound
        index.erase(rng.permutation(keys)[:5000])
