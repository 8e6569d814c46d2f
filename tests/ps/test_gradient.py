"""Merging: every sum in batch order, whatever is cut where; maxima; and finite or not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from ps.gradient import all_finite, group, merge, merge_max

Floats = NDArray[np.float32]
NO_WEIGHTS = np.empty(0, np.float32)


@dataclass
class Record:
    """One backward pass: accesses, the bags they lie in, and the bags' gradients."""

    inverse: NDArray[np.int64]
    bags: NDArray[np.int32]
    weights: Floats
    gradient: Floats

    def merge_into(self, out: Floats) -> None:
        starts, order = group(self.inverse, len(out))
        merge(starts, order, self.bags, self.weights, self.gradient, out, 0, len(out))


@st.composite
def records(draw: st.DrawFn, unique_count: int, dim: int, weighted: bool) -> Record:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    accesses, bag_count = draw(st.integers(0, 60)), draw(st.integers(1, 20))
    return Record(
        rng.integers(0, unique_count, accesses),
        np.sort(rng.integers(0, bag_count, accesses)).astype(np.int32),
        rng.standard_normal(accesses).astype(np.float32) if weighted else NO_WEIGHTS,
        rng.standard_normal((bag_count, dim)).astype(np.float32),
    )


def loop(record: Record, out: Floats) -> Floats:
    """The definition: one access after the other in batch order, float32."""
    for n, u in enumerate(record.inverse):
        weight = record.weights[n] if len(record.weights) else np.float32(1)
        out[u] += weight * record.gradient[record.bags[n]]
    return out


def same_bits(a: Floats, b: Floats) -> bool:
    return bool((a.view(np.uint32) == b.view(np.uint32)).all())


@given(hnp.arrays(np.int64, st.integers(0, 100), elements=st.integers(0, 9)))
def test_group_is_a_stable_sort_by_unique_row(inverse: NDArray[np.int64]) -> None:
    starts, order = group(inverse, 10)
    assert order.tolist() == np.argsort(inverse, kind="stable").tolist()
    assert np.diff(starts).tolist() == np.bincount(inverse, minlength=10).tolist()


def test_group_takes_either_width_of_integers() -> None:
    inverse = np.array([2, 0, 2], np.int32)
    for each in (inverse, inverse.astype(np.int64)):
        starts, order = group(each, 4)
        assert (starts.tolist(), order.tolist()) == ([0, 1, 1, 3, 3], [1, 0, 2])


def test_nothing_to_group_or_to_merge() -> None:
    starts, order = group(np.empty(0, np.int32), 0)
    assert (starts.tolist(), order.tolist()) == ([0], [])
    nothing = Record(starts[:0], order, NO_WEIGHTS, np.ones((1, 4), np.float32))
    nothing.merge_into(np.empty((0, 4), np.float32))


@given(st.data(), st.integers(1, 70), st.booleans())
def test_merge_adds_in_batch_order(data: st.DataObject, dim: int, weighted: bool) -> None:
    record = data.draw(records(7, dim, weighted))
    merged = np.zeros((7, dim), np.float32)
    record.merge_into(merged)
    assert same_bits(merged, loop(record, np.zeros((7, dim), np.float32)))


@given(st.data(), st.booleans())
def test_records_one_by_one_merge_as_one_record(data: st.DataObject, weighted: bool) -> None:
    first, second = (data.draw(records(5, 9, weighted)) for _ in range(2))
    one_by_one, at_once = np.zeros((2, 5, 9), np.float32)
    first.merge_into(one_by_one)
    second.merge_into(one_by_one)
    Record(
        np.concatenate((first.inverse, second.inverse)),
        np.concatenate((first.bags, second.bags + np.int32(len(first.gradient)))),
        np.concatenate((first.weights, second.weights)),
        np.concatenate((first.gradient, second.gradient)),
    ).merge_into(at_once)
    assert same_bits(one_by_one, at_once)


@given(st.data(), st.integers(0, 7), st.integers(0, 7))
def test_ranges_of_unique_rows_do_not_change_bits(data: st.DataObject, a: int, b: int) -> None:
    record = data.draw(records(7, 13, weighted=True))
    whole, cut = np.zeros((2, 7, 13), np.float32)
    record.merge_into(whole)
    starts, order = group(record.inverse, 7)
    low, high = sorted((a, b))
    for begin, end in ((high, 7), (0, low), (low, high)):
        merge(starts, order, record.bags, record.weights, record.gradient, cut, begin, end)
    assert same_bits(whole, cut)


def test_weights_of_one_are_no_weights() -> None:
    rng = np.random.default_rng(0)
    gradient = rng.standard_normal((50, 24)).astype(np.float32)
    record = Record(rng.integers(0, 6, 50), np.arange(50, dtype=np.int32), NO_WEIGHTS, gradient)
    plain, weighted = np.zeros((2, 6, 24), np.float32)
    record.merge_into(plain)
    record.weights = np.ones(50, np.float32)
    record.merge_into(weighted)
    assert same_bits(plain, weighted)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_maxima_receive_what_torch_gives_them(dtype: type) -> None:
    rng = np.random.default_rng(1)
    table = torch.from_numpy(rng.standard_normal((6, 11)).astype(np.float32)).requires_grad_()
    ids, offsets = torch.from_numpy(rng.integers(0, 6, 40)), torch.tensor([0, 7, 7, 20, 33])
    upstream = torch.from_numpy(rng.standard_normal((5, 11)).astype(np.float32))
    torch.nn.functional.embedding_bag(ids, table, offsets, mode="max").backward(upstream)

    bags = np.repeat(np.arange(5), [7, 0, 13, 13, 7]).astype(np.int32)
    argmax = np.full((5, 11), -1, dtype)
    rows = table.detach().numpy()[ids.numpy()]
    for bag in (0, 2, 3, 4):
        members = np.flatnonzero(bags == bag)
        argmax[bag] = members[rows[members].argmax(axis=0)]
    out = np.zeros((6, 11), np.float32)
    starts, order = group(ids.numpy(), 6)
    merge_max(starts, order, bags, argmax, upstream.numpy(), out, 0, 2)
    merge_max(starts, order, bags, argmax, upstream.numpy(), out, 2, 6)
    np.testing.assert_allclose(out, table.grad.numpy(), rtol=1e-6, atol=1e-7)


@given(hnp.arrays(np.uint32, st.integers(0, 40)))
def test_finite_is_what_numpy_calls_finite(bits: NDArray[np.uint32]) -> None:
    values = bits.view(np.float32)
    assert all_finite(values) == bool(np.isfinite(values).all())


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [0, 4095, 4096, 9999])
def test_one_bad_value_is_found_anywhere(bad: float, where: int) -> None:
    values = np.full((100, 100), np.finfo(np.float32).max, np.float32)
    assert all_finite(values)
    values.flat[where] = bad
    assert not all_finite(values)
