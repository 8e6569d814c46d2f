"""Partition: every key is one shard's, the same on both sides, as evenly as buckets go."""

from __future__ import annotations

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from ps.partition import MOST_SHARDS, Partition
from storage.errors import ConfigError
from storage.keys import BUCKETS

WORD = 2**64
key_arrays = npst.arrays(
    np.uint64,
    st.integers(0, 300),
    # Few of them, so that some come twice; and every bit pattern.
    elements=st.integers(0, 30) | st.integers(0, WORD - 1),
)
shard_counts = st.integers(1, 9) | st.integers(1, MOST_SHARDS) | st.just(MOST_SHARDS)


def bucket(key: int) -> int:
    """As the module's docstring has it, in plain integers."""
    x = (key + 0x9E3779B97F4A7C15) % WORD
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % WORD
    x = (x ^ x >> 27) * 0x94D049BB133111EB % WORD
    return (x ^ x >> 31) >> 52


def shard(key: int, shards: int) -> int:
    return bucket(key) * shards // BUCKETS


@hypothesis.given(keys=key_arrays, shards=shard_counts)
def test_slices_hold_each_key_once_at_its_shard_in_the_order_of_buckets(
    keys: np.ndarray, shards: int
) -> None:
    split = Partition(shards).split(keys)
    assert sorted(split.order.tolist()) == list(range(len(keys)))
    slices = list(split)
    assert len(slices) == shards
    assert split.edges[0] == 0 and split.edges[-1] == len(keys)
    for number, indices in enumerate(slices):
        assert {shard(int(key), shards) for key in keys[indices]} <= {number}
    # Stable: what shares a bucket, duplicates above all, stays in the order in which it came.
    expected = sorted(range(len(keys)), key=lambda i: bucket(int(keys[i])))
    assert split.order.tolist() == expected


@hypothesis.given(keys=key_arrays, shards=shard_counts, data=st.data())
def test_a_key_of_another_shard_is_found(
    keys: np.ndarray, shards: int, data: st.DataObject
) -> None:
    partition = Partition(shards)
    own = data.draw(st.integers(0, shards - 1))
    wrong = [i for i, key in enumerate(keys.tolist()) if shard(key, shards) != own]
    assert partition.misplaced(keys, own) == (wrong[0] if wrong else -1)
    for number, indices in enumerate(partition.split(keys)):
        assert partition.misplaced(keys[indices], number) == -1


def test_keys_that_may_not_be_written_to_or_lie_apart_are_taken() -> None:
    keys = np.arange(1000, dtype=np.uint64)
    apart = np.repeat(keys, 2)[::2]
    frozen = np.frombuffer(keys.tobytes(), np.uint64)
    orders = [Partition(3).split(each).order.tolist() for each in (keys, apart, frozen)]
    assert orders[0] == orders[1] == orders[2]
    wrong = Partition(3).misplaced(keys, 0)
    assert wrong == Partition(3).misplaced(apart, 0) == Partition(3).misplaced(frozen, 0) >= 0


def test_shards_are_even_to_one_bucket_and_the_tables_differ() -> None:
    versions = set()
    for shards in range(1, MOST_SHARDS + 1):
        partition = Partition(shards)
        sizes = np.bincount(partition.owners, minlength=shards)
        assert len(sizes) == shards
        assert sizes.max() - sizes.min() <= 1 and sizes.min() >= 4
        assert (np.diff(partition.owners.astype(int)) >= 0).all()
        versions.add(partition.version)
    assert len(versions) == MOST_SHARDS
    assert min(versions) >= 0 and max(versions) < 2**32


def test_the_version_is_the_same_in_every_process() -> None:
    """Of the table as little-endian uint16; what is on disk and on the wire depends on it."""
    assert [Partition(n).version for n in (1, 2, 3)] == [0x90444623, 0x366483B1, 0x0A24008E]


@pytest.mark.parametrize("shards", [0, -1, MOST_SHARDS + 1])
def test_a_number_of_shards_that_cannot_be_meant_is_refused(shards: int) -> None:
    with pytest.raises(ConfigError, match=f"shards: expected 1 to 1024, got {shards}"):
        Partition(shards)
