"""Batches: cutting and joining examples without changing them."""

from __future__ import annotations

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st

from worker.data.batch import Batch, join, rebatch

FEATURES = 3
Example = tuple[float, list[list[int]]]

examples = st.lists(
    st.tuples(
        st.sampled_from([0.0, 1.0]),
        st.lists(
            st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3),
            min_size=FEATURES,
            max_size=FEATURES,
        ),
    ),
    max_size=20,
)


def make(rows: list[Example]) -> Batch:
    bags = [bag for _, bags in rows for bag in bags]
    sizes = torch.tensor([0, *(len(bag) for bag in bags)])
    return Batch(
        torch.tensor([label for label, _ in rows]),
        torch.tensor([[2 * label] for label, _ in rows]).reshape(-1, 1),
        torch.tensor([key for bag in bags for key in bag], dtype=torch.int64),
        sizes.cumsum(0),
    )


def read(batch: Batch) -> list[Example]:
    assert torch.equal(batch.dense[:, 0], 2 * batch.labels)
    offsets = batch.offsets.tolist()
    assert offsets[0] == 0 and offsets[-1] == len(batch.ids)
    ids = batch.ids.tolist()
    bags = [ids[start:stop] for start, stop in itertools.pairwise(offsets)]
    rows = []
    for row, label in enumerate(batch.labels.tolist()):
        rows.append((label, bags[row * FEATURES : (row + 1) * FEATURES]))
    return rows


@given(examples, st.lists(st.integers(1, 6), min_size=20, max_size=20), st.integers(1, 25))
def test_batches_have_the_size_asked_for_and_the_examples_in_order(
    rows: list[Example], cuts: list[int], batch_size: int
) -> None:
    blocks, start = [], 0
    for cut in cuts:
        if rows[start : start + cut]:
            blocks.append(make(rows[start : start + cut]))
        start += cut
    batches = list(rebatch(iter(blocks), batch_size))
    assert [row for batch in batches for row in read(batch)] == rows
    assert all(batch.size == batch_size for batch in batches[:-1])
    assert all(0 < batch.size <= batch_size for batch in batches)


@given(examples.filter(len), st.data())
def test_a_slice_has_the_examples_it_names(rows: list[Example], data: st.DataObject) -> None:
    stop = data.draw(st.integers(1, len(rows)))
    start = data.draw(st.integers(0, stop - 1))
    part = make(rows).slice(start, stop)
    assert (part.size, part.features) == (stop - start, FEATURES)
    assert read(part) == rows[start:stop]


@given(examples.filter(len), examples.filter(len))
def test_joined_parts_have_the_examples_of_both(one: list[Example], two: list[Example]) -> None:
    assert read(join([make(one), make(two)])) == one + two
