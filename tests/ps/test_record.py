"""Records of several uses become one apply, against NumPy, on the host and by tensor operations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

import ps
from ps.optimizer import Optimizer
from ps.pool import Pool
from ps.record import Record, apply, condense, condensed
from ps.stack import Stack
from ps.store import Store
from storage.array import FloatArray

DIM = 5
OPTIMIZERS = (
    ps.SGD(lr=0.1), ps.Adagrad(lr=0.1), ps.RowWiseAdagrad(lr=0.1), ps.Adam(lr=0.1),
    ps.RowWiseAdam(lr=0.1), ps.FTRL(lr=0.1),
)  # fmt: skip


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    pool = Pool(2)
    yield pool
    pool.close()


def record(seed: int, held: np.ndarray, *, kind: str = "sum", accesses: int = 60) -> Record:
    """A use of some of the positions ``held``, with its inverse in order of first use."""
    rng = np.random.default_rng(seed)
    positions = rng.permutation(held)[: len(held) // 2].astype(np.int64)
    bags = np.sort(rng.integers(0, 9, accesses)).astype(np.int32)
    inverse = rng.integers(0, len(positions), accesses).astype(np.int32)
    weights = rng.normal(size=accesses).astype(np.float32) if kind == "weighted" else None
    argmax = None
    if kind == "max":
        argmax = np.full((9, DIM), -1, np.int32)
        for bag in np.unique(bags):
            argmax[bag] = rng.choice(np.flatnonzero(bags == bag), DIM)
    gradient = torch.from_numpy(rng.normal(size=(9, DIM)).astype(np.float32))
    none = np.empty(0, np.float32)
    return Record(
        positions, inverse, bags, none if weights is None else weights, gradient, argmax, (), True
    )


def summed(records: Sequence[Record], capacity: int) -> np.ndarray:
    """The definition: float32, access after access, record after record."""
    total = np.zeros((capacity, DIM), np.float32)
    for one in records:
        gradient = one.gradient.numpy()
        for n, (u, bag) in enumerate(zip(one.inverse, one.bags, strict=True)):
            part = gradient[bag]
            if len(one.weights):
                part = one.weights[n] * part
            if one.argmax is not None:
                part = np.where(one.argmax[bag] == n, part, np.float32(0))
            total[one.positions[u]] += part
    return total


KINDS = [["sum"], ["max"], ["weighted"], ["sum", "max", "weighted", "sum"]]


@pytest.mark.parametrize("kinds", KINDS, ids="+".join)
def test_duplicates_are_summed_in_the_order_of_records_and_accesses(
    kinds: list[str], pool: Pool
) -> None:
    records = [record(seed, np.arange(40), kind=kind) for seed, kind in enumerate(kinds)]
    positions, gradients, uses = condense(DIM, records, pool)
    accesses = np.concatenate([one.positions[one.inverse] for one in records])
    assert np.array_equal(uses, np.bincount(accesses, minlength=40)[positions])
    expected = summed(records, 40)
    assert np.array_equal(gradients, expected[positions])
    assert len(set(positions.tolist())) == len(positions)
    assert set(positions.tolist()) == {p for one in records for p in one.positions.tolist()}


def opened(path: Path, optimizer: Optimizer) -> tuple[Store, Stack, np.ndarray]:
    """A store with 40 pinned rows: (store, its stack, their positions)."""
    store = ps.open(path, [ps.Table("ads", dim=DIM, optimizer=optimizer)], ram="2MiB", threads=1)
    working_set = store.stage({"ads": [np.arange(40, dtype=np.uint64)]})
    return store, store.stacks["ads"], working_set.parts["ads"].positions


def rows_after(
    path: Path, optimizer: Optimizer, kinds: list[str], pool: Pool, how: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    store, stack, held = opened(path, optimizer)
    skipped = 0
    with store:
        if how == "tensors":
            assert isinstance(stack.top.array, FloatArray)
            stack.top.array.host = None  # as on a device without host views
        for step in (1, 2, 3):
            records = [record(10 * step + i, held, kind=kind) for i, kind in enumerate(kinds)]
            if step == 3:
                records[0].gradient[2, 1] = torch.inf
            if how == "condensed":
                records = [condensed(DIM, records, pool)]
            skipped += apply(stack, records, pool, lr=0.1, step=step, scale=0.5)
        rows = stack.top.rows_at(held)
    return rows.values, rows.steps, rows.dirty, skipped


@pytest.mark.parametrize("kinds", KINDS, ids="+".join)
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: o.name)
def test_tensor_operations_and_condensed_records_give_the_bits_of_the_kernels(
    tmp_path: Path, optimizer: Optimizer, kinds: list[str], pool: Pool
) -> None:
    ways = {
        how: rows_after(tmp_path / how, optimizer, kinds, pool, how)
        for how in ("kernels", "condensed", "tensors")
    }
    values, steps, dirty, skipped = ways.pop("kernels")
    assert skipped > 0
    assert np.isfinite(values).all()
    assert set(steps.tolist()) >= {2, 3}
    assert np.array_equal(dirty, steps > 0)
    for other in ways.values():
        assert np.array_equal(other[0], values)
        assert np.array_equal(other[1], steps)
        assert np.array_equal(other[2], dirty)
        assert other[3] == skipped


def test_one_sgd_step_is_the_learning_rate_times_the_sum(tmp_path: Path, pool: Pool) -> None:
    store, stack, held = opened(tmp_path, ps.SGD(lr=1.0))
    with store:
        before = stack.top.rows_at(held).values
        records = [record(1, held), record(2, held, kind="weighted")]
        apply(stack, records, pool, lr=0.25, step=7, scale=2.0)
        expected = before - 0.25 * 2.0 * summed(records, stack.top.limit)[held]
        np.testing.assert_allclose(stack.top.rows_at(held).values, expected, rtol=1e-6, atol=1e-6)


def test_dropping_a_record_lets_its_rows_go(tmp_path: Path) -> None:
    store, stack, held = opened(tmp_path, ps.SGD(lr=1.0))
    with store:
        store.settle()
        assert stack.top.pinned == 0  # nobody held what `opened` staged
        working_set = store.stage({"ads": [np.arange(3, dtype=np.uint64)]})
        none = np.empty(0, np.int32)
        one = Record(
            held, none, none, np.empty(0, np.float32), torch.zeros(0, DIM), None,
            (working_set.hold(), working_set.hold()), True,
        )  # fmt: skip
        store.settle()
        assert stack.top.pinned == 3
        one.drop()
        one.drop()
        store.settle()
        assert stack.top.pinned == 0
