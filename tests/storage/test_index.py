"""PositionIndex answers as a dict does, on crowded slots and after any number of deletions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.index import PositionIndex, slots_for
from storage.keys import unmix, unmix_keys

CAPACITY = 40
LAST = 2**64 - 1


def with_tag(tag: int, number: int) -> int:
    """A key whose mixed form ends in ``tag``, so that such keys meet in one slot."""
    return int(unmix(np.uint64(number << 32 | tag)))


# Tags at both ends of the slots, so that runs go round the end; and any keys.
crowded = st.builds(
    with_tag, st.sampled_from([0, 1, 2**31, 2**32 - 2, 2**32 - 1]), st.integers(0, 9)
)
keys = st.one_of(crowded, st.sampled_from([0, LAST]), st.integers(0, LAST))
steps = st.lists(st.tuples(st.booleans(), st.lists(keys, unique=True, max_size=20)), max_size=25)


@given(steps)
@settings(max_examples=150)
def test_it_answers_as_a_dict_does(steps: list[tuple[bool, list[int]]]) -> None:
    owners = np.zeros(CAPACITY, np.uint64)
    index, model, free = PositionIndex(owners), {}, list(range(CAPACITY))
    for adding, batch in steps:
        if adding:
            new = [key for key in batch if key not in model][: len(free)]
            places = [free.pop() for _ in new]
            index.insert(np.array(new, np.uint64), np.array(places, np.int64))
            model.update(zip(new, places, strict=True))
        else:
            gone = [model.pop(key) for key in batch if key in model]
            index.erase(np.array(gone, np.int64))
            free += gone
        asked = np.array([*batch, *model], np.uint64)
        assert index.find(asked).tolist() == [model.get(key, -1) for key in asked.tolist()]
        assert sorted(index.occupied().tolist()) == sorted(model.values())


def test_a_full_index_that_was_emptied_and_filled_again_is_exact() -> None:
    rng, count = np.random.default_rng(0), 5000
    index = PositionIndex(np.zeros(count, np.uint64))
    for _ in range(4):
        keys = rng.integers(0, LAST, count, dtype=np.uint64)
        places = rng.permutation(count)
        index.insert(keys, places)
        np.testing.assert_array_equal(index.find(keys), places)
        index.erase(rng.permutation(places))
        assert (index.find(keys) == -1).all()


@pytest.mark.parametrize("shard", [0, 5, 15])
def test_the_keys_of_one_shard_spread_over_all_slots(shard: int) -> None:
    # Keys of a shard share the top bits of their mixed form: were those the home, a sixteenth of
    # the slots would take them all, and a probe would walk past thousands of slots.
    count = 50_000
    mixed = np.arange(count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    keys = unmix_keys((mixed >> np.uint64(4)) | np.uint64(shard << 60))
    index = PositionIndex(np.zeros(count, np.uint64))
    index.insert(keys, np.arange(count))
    parts = np.array_split(index.slots, 16)
    filled = [float(np.mean(part != np.uint64(LAST))) for part in parts]
    assert min(filled) > 0.6 and max(filled) < 0.8


def test_resizing_keeps_every_key_in_fewer_slots() -> None:
    index = PositionIndex(np.zeros(1000, np.uint64))
    keys = np.arange(300, dtype=np.uint64)
    index.insert(keys, np.arange(300))
    index.resize(300, np.arange(300))
    assert len(index.slots) == slots_for(300)
    assert index.find(keys).tolist() == list(range(300))
    assert (index.find(keys + np.uint64(300)) == -1).all()
    index.erase(np.arange(0, 300, 2))
    assert sorted(index.occupied().tolist()) == list(range(1, 300, 2))
