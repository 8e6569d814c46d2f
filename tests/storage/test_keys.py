"""Keys: mixing is a bijection, dedupe agrees with a dict, bad ids are named as given."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from storage import keys as K
from storage.errors import ConfigError, KeyRangeError

LAST = 2**64 - 1
any_key = st.one_of(st.integers(0, LAST), st.sampled_from([0, 1, 2**63 - 1, 2**63, LAST - 1, LAST]))
few_keys = st.sampled_from([0, 1, 2, 2**32, 2**63, LAST])


def key_arrays(elements: st.SearchStrategy[int]) -> st.SearchStrategy[K.Keys]:
    return hnp.arrays(np.uint64, st.integers(0, 300), elements=elements)


def splitmix64(key: int) -> int:
    """The published algorithm, in Python's unbounded integers."""
    x = (key + 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


def dict_dedupe(keys: K.Keys) -> tuple[list[int], list[int], list[int]]:
    numbers: dict[int, int] = {}
    inverse = [numbers.setdefault(key, len(numbers)) for key in keys.tolist()]
    return list(numbers), inverse, [inverse.count(number) for number in range(len(numbers))]


def test_mix_starts_the_published_splitmix64_sequence_of_seed_0() -> None:
    assert int(K.mix(np.uint64(0))) == 0xE220A8397B1DCDAF


@given(any_key)
@settings(deadline=None)  # the first example compiles
def test_unmix_takes_every_mixed_key_back(key: int) -> None:
    mixed = int(K.mix(np.uint64(key)))
    assert mixed == splitmix64(key)
    assert int(K.unmix(np.uint64(mixed))) == key
    assert int(K.mix(np.uint64(K.unmix(np.uint64(key))))) == key


def test_array_forms_agree_with_the_scalars() -> None:
    keys = np.array([0, 1, 12345, 2**63, LAST], np.uint64)
    mixed = K.mix_keys(keys)
    assert mixed.tolist() == [splitmix64(key) for key in keys.tolist()]
    np.testing.assert_array_equal(K.unmix_keys(mixed), keys)


@pytest.mark.parametrize("stride", [1, 8, 4096, 2**32, 2**52])
def test_regular_ids_fill_the_buckets_evenly(stride: int) -> None:
    each = 64
    keys = np.arange(K.BUCKETS * each, dtype=np.uint64) * np.uint64(stride)
    if stride == 2**52:
        keys = np.unique(keys)[: K.BUCKETS]
        each = 1
    load = np.bincount((K.mix_keys(keys) >> np.uint64(52)).astype(np.int64), minlength=K.BUCKETS)
    # Poisson-like loads: chi-square per degree of freedom is 1 within a few of its sd (0.022).
    assert 0.9 < ((load - each) ** 2).sum() / each / (K.BUCKETS - 1) < 1.1


def test_bucket_is_the_top_twelve_bits() -> None:
    assert int(K.bucket_of(np.uint64(LAST))) == K.BUCKETS - 1
    assert int(K.bucket_of(np.uint64((7 << 52) | 12345))) == 7


def test_one_flipped_key_bit_flips_about_half_the_mixed_bits() -> None:
    keys = np.arange(256, dtype=np.uint64)
    for bit in range(64):
        change = K.mix_keys(keys) ^ K.mix_keys(keys ^ np.uint64(1 << bit))
        flipped = np.unpackbits(change.view(np.uint8)).mean()
        assert 0.45 < flipped < 0.55, bit


@given(key_arrays(any_key) | key_arrays(few_keys))
@settings(deadline=None)  # the first example compiles
def test_dedupe_agrees_with_a_dict(keys: K.Keys) -> None:
    unique, inverse, counts = K.dedupe(keys)
    assert (unique.dtype, inverse.dtype, counts.dtype) == (np.uint64, np.int32, np.int32)
    assert (unique.tolist(), inverse.tolist(), counts.tolist()) == dict_dedupe(keys)


def test_deduper_grows_and_is_not_confused_by_earlier_batches() -> None:
    deduper = K.Deduper()
    rng = np.random.default_rng(0)
    for size in (10, 10, 5000, 5000, 0, 70_000, 70_000, 3):
        keys = rng.integers(0, max(1, size), size).astype(np.uint64)
        unique, inverse, counts = deduper.dedupe(keys)
        np.testing.assert_array_equal(unique[inverse], keys)
        np.testing.assert_array_equal(np.sort(unique), np.unique(keys))
        np.testing.assert_array_equal(np.bincount(inverse, minlength=len(unique)), counts)
        firsts = np.unique(inverse, return_index=True)[1]
        assert (np.diff(firsts) > 0).all()


def test_keys_whose_slots_collide_stay_apart() -> None:
    # Equal low bits of the mixed key send all of them to one slot; equal high ones to one tag too.
    mixed = (np.arange(600, dtype=np.uint64) << np.uint64(20)) | np.uint64(5)
    keys = K.unmix_keys(mixed)
    unique, inverse, counts = K.dedupe(np.concatenate([keys, keys[::-1]]))
    np.testing.assert_array_equal(unique, keys)
    np.testing.assert_array_equal(inverse, [*range(600), *range(599, -1, -1)])
    assert (counts == 2).all()


def test_dedupe_results_are_the_callers_own() -> None:
    deduper = K.Deduper()
    unique, inverse, counts = deduper.dedupe(np.array([7, 7, 9], np.uint64))
    deduper.dedupe(np.array([1, 2, 2], np.uint64))
    assert (unique.tolist(), inverse.tolist(), counts.tolist()) == ([7, 9], [0, 0, 1], [2, 1])


def test_int64_ids_become_a_view_with_the_same_bits() -> None:
    ids = torch.tensor([[1, -1], [2, -(2**63)]])
    keys = K.as_keys(ids)
    assert keys.tolist() == [1, LAST, 2, 2**63]
    ids[0, 0] = 5
    assert keys[0] == 5


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.int8])
def test_narrow_signed_ids_are_the_keys_of_their_int64(dtype: torch.dtype) -> None:
    ids = torch.tensor([3, -1, 100], dtype=dtype)
    np.testing.assert_array_equal(K.as_keys(ids), K.as_keys(ids.long()))


@pytest.mark.parametrize("dtype", ["<u8", ">u8", "<u4", "u1", "<i8", ">i8"])
def test_numpy_ids_of_any_integer_dtype_keep_their_value(dtype: str) -> None:
    assert K.as_keys(np.array([3, 200 if dtype == "u1" else 100], dtype)).tolist()[0] == 3
    assert K.as_keys(np.arange(10, dtype=dtype)[::3]).tolist() == [0, 3, 6, 9]


def test_unsigned_torch_ids_keep_their_value() -> None:
    assert K.as_keys(torch.tensor([LAST], dtype=torch.uint64)).tolist() == [LAST]


@pytest.mark.parametrize("ids", [torch.tensor([1.0]), np.array([True]), torch.tensor([True])])
def test_ids_that_are_not_integers_are_refused(ids: torch.Tensor) -> None:
    with pytest.raises(ConfigError, match=r"dtype (float32|bool|torch\.bool), expected an integer"):
        K.as_keys(ids)


def test_keys_below_the_number_of_rows_pass() -> None:
    K.check_range(np.array([0, 9], np.uint64), 10, "ads")
    K.check_range(np.array([], np.uint64), 10, "ads")
    K.check_range(np.array([LAST], np.uint64), 2**64, "ads")
    K.check_range(np.array([LAST], np.uint64), None, "ads")


@pytest.mark.parametrize(("bad", "shown"), [(10, "10"), (-1, "-1"), (-(2**63), str(-(2**63)))])
def test_first_id_outside_the_table_is_named_as_given(bad: int, shown: str) -> None:
    keys = K.as_keys(torch.tensor([3, 9, bad, 11]))
    with pytest.raises(KeyRangeError) as caught:
        K.check_range(keys, 10, "ads")
    message = str(caught.value)
    assert message.startswith(
        f"table 'ads': id {shown} at position 2 of the batch, expected 0 to 9"
    )
    assert "\n" not in message
