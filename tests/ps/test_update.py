"""Updates on the host: torch.optim and float64 loops as oracles, and bits that no cut changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ps.gradient import group, merge
from ps.optimizer import FTRL, SGD, Adagrad, Adam, Optimizer, RowWiseAdagrad, RowWiseAdam
from ps.update import apply_bags, apply_rows

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
NO_WEIGHTS = np.empty(0, np.float32)

SIX: list[Optimizer] = [
    SGD(0.05, weight_decay=0.01),
    Adagrad(0.05, lr_decay=0.1, initial_accumulator_value=0.1),
    RowWiseAdagrad(0.05),
    Adam(0.01),
    RowWiseAdam(0.01),
    FTRL(0.1, l1=0.01, l2=0.1),
]
any_optimizer = pytest.mark.parametrize("optimizer", SIX, ids=lambda each: each.name)


@dataclass
class Table:
    """Arrays of one table, as a tier holds them."""

    embeddings: Floats
    state: Floats
    steps: NDArray[np.uint32]
    dirty: NDArray[np.uint8]

    @staticmethod
    def random(optimizer: Optimizer, capacity: int, dim: int, seed: int = 0) -> Table:
        embeddings = np.random.default_rng(seed).standard_normal((capacity, dim))
        state = np.full((capacity, optimizer.state_width(dim)), optimizer.initial_state)
        return Table(
            embeddings.astype(np.float32),
            state.astype(np.float32),
            np.zeros(capacity, np.uint32),
            np.zeros(capacity, np.uint8),
        )

    @property
    def arrays(self) -> tuple[Any, ...]:
        return self.embeddings, self.state, self.steps, self.dirty

    def bits(self) -> bytes:
        return b"".join(array.tobytes() for array in self.arrays)

    def apply(self, optimizer: Optimizer, step: int, ids: Any, gradient: Floats) -> int:
        """One step of accesses to rows ``ids``, each in a bag of its own."""
        positions, inverse = np.unique(ids, return_inverse=True)
        starts, order = group(inverse, len(positions))
        record = starts, order, np.arange(len(ids), dtype=np.int32), NO_WEIGHTS, gradient
        given = optimizer.kind, optimizer.hyper(step=step), step, 1.0, *self.arrays
        return apply_bags(*given, positions, *record, 0, len(positions))


def assert_close(actual: Floats, expected: Any, relative: float) -> None:
    """Each row to ``relative`` of its largest number: a weight that passes 0 has no other scale."""
    expected = np.asarray(expected, np.float64)
    scale = np.abs(expected).max(axis=1, keepdims=True)
    assert (np.abs(actual - expected) <= relative * scale).all()


def batches(dim: int, count: int) -> list[tuple[NDArray[np.int64], Floats]]:
    """Different rows of 30 on each step, with duplicates."""
    rng = np.random.default_rng(7)
    sizes = rng.integers(1, 40, count)
    return [
        (rng.integers(0, 30, size), rng.standard_normal((size, dim)).astype(np.float32))
        for size in sizes
    ]


TorchOptimizer = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]
AGAINST_TORCH: list[tuple[Optimizer, TorchOptimizer]] = [
    (SGD(0.05), partial(torch.optim.SGD, lr=0.05)),
    (Adagrad(0.05), partial(torch.optim.Adagrad, lr=0.05)),
    (
        Adagrad(0.05, lr_decay=0.1, eps=1e-6, initial_accumulator_value=0.1),
        partial(
            torch.optim.Adagrad, lr=0.05, lr_decay=0.1, eps=1e-6, initial_accumulator_value=0.1
        ),
    ),
    (Adam(0.01), partial(torch.optim.SparseAdam, lr=0.01)),
    (
        Adam(0.01, betas=(0.8, 0.99), eps=1e-4),
        partial(torch.optim.SparseAdam, lr=0.01, betas=(0.8, 0.99), eps=1e-4),
    ),
]


@pytest.fixture
def sparse_checks() -> Iterator[None]:
    """torch warns once a process where nobody has said whether sparse tensors are checked."""
    with torch.sparse.check_sparse_tensor_invariants():
        yield


@pytest.mark.usefixtures("sparse_checks")
@pytest.mark.parametrize(("ours", "theirs"), AGAINST_TORCH)
@pytest.mark.parametrize(("steps", "relative"), [(1, 1e-6), (100, 1e-5)])
def test_sparse_steps_equal_torch_optim(
    ours: Optimizer, theirs: TorchOptimizer, steps: int, relative: float
) -> None:
    table = Table.random(ours, 30, 12)
    parameter = torch.nn.Parameter(torch.from_numpy(table.embeddings.copy()))
    oracle = theirs([parameter])
    for step, (ids, gradient) in enumerate(batches(12, steps), start=1):
        parameter.grad = torch.sparse_coo_tensor(
            torch.from_numpy(ids)[None],
            torch.from_numpy(gradient),
            parameter.shape,
        )
        oracle.step()
        assert table.apply(ours, step, ids, gradient) == 0
    assert_close(table.embeddings, parameter.detach().numpy(), relative)


def test_weight_decay_of_touched_rows_equals_torch_sgd_on_them() -> None:
    ours = SGD(0.05, weight_decay=0.1)
    table = Table.random(ours, 30, 12)
    expected = torch.from_numpy(table.embeddings.copy())
    for step, (ids, gradient) in enumerate(batches(12, 50), start=1):
        touched = torch.from_numpy(np.unique(ids))
        parameter = torch.nn.Parameter(expected[touched])
        whole = torch.zeros_like(expected)
        whole.index_add_(0, torch.from_numpy(ids), torch.from_numpy(gradient))
        parameter.grad = whole[touched]
        torch.optim.SGD([parameter], lr=0.05, weight_decay=0.1).step()
        expected[touched] = parameter.detach()
        table.apply(ours, step, ids, gradient)
    assert_close(table.embeddings, expected.numpy(), 1e-5)


def test_dlrm_goldens_of_both_adagrads() -> None:
    # facebookresearch/dlrm: a 4 x 2 table 0 to 7, lr .1, gradient [1, 2] to bag {0, 1, 1}, then to
    # bag {1, 3}.
    goldens: list[tuple[Optimizer, list[list[float]]]] = [
        (
            RowWiseAdagrad(0.1),
            [[-0.0632456, 0.8735089], [1.9084702, 2.8169403], [4, 5], [5.9367542, 6.8735089]],
        ),
        (Adagrad(0.1), [[-0.1, 0.9], [1.8552786, 2.8552787], [4, 5], [5.9, 6.9]]),
    ]
    for optimizer, rows in goldens:
        table = Table.random(optimizer, 4, 2)
        table.embeddings[:] = np.arange(8).reshape(4, 2)
        for step, ids in enumerate(([0, 1, 1], [1, 3]), start=1):
            table.apply(optimizer, step, ids, np.array([[1, 2]] * len(ids), np.float32))
        np.testing.assert_allclose(table.embeddings, rows, rtol=1e-7, atol=1e-7)
        if isinstance(optimizer, RowWiseAdagrad):
            assert table.state[:, 0].tolist() == [2.5, 12.5, 0, 2.5]


def row_wise_adagrad(o: Any, step: int, w: Doubles, state: Doubles, g: Doubles) -> None:
    state[0] += sum(x * x for x in g) / len(g)
    w -= o.lr / (1 + (step - 1) * o.lr_decay) * g / (np.sqrt(state[0]) + o.eps)


def row_wise_adam(o: Any, step: int, w: Doubles, state: Doubles, g: Doubles) -> None:
    first, second = o.betas
    m, v = state[:-1], state[-1:]
    m[:] = first * m + (1 - first) * g
    v[:] = second * v + (1 - second) * sum(x * x for x in g) / len(g)
    w -= o.lr * (m / (1 - first**step)) / (np.sqrt(v / (1 - second**step)) + o.eps)


def ftrl(o: Any, step: int, w: Doubles, state: Doubles, g: Doubles) -> None:
    dim = len(w)
    for i in range(dim):
        n = state[dim + i]
        sigma = (np.sqrt(n + g[i] ** 2) - np.sqrt(n)) / o.lr
        state[i] += g[i] - sigma * w[i]
        state[dim + i] += g[i] ** 2
        z = state[i]
        rate = (o.beta + np.sqrt(state[dim + i])) / o.lr + o.l2
        w[i] = 0 if abs(z) <= o.l1 else -(z - np.sign(z) * o.l1) / rate


@pytest.mark.parametrize(
    ("optimizer", "loop"),
    [
        (RowWiseAdagrad(0.05), row_wise_adagrad),
        (RowWiseAdagrad(0.05, lr_decay=0.1, eps=0.5), row_wise_adagrad),
        (RowWiseAdagrad(0.05, initial_accumulator_value=0.1), row_wise_adagrad),
        (RowWiseAdam(0.01), row_wise_adam),
        (RowWiseAdam(0.01, betas=(0.5, 0.9), eps=0.1), row_wise_adam),
        (FTRL(0.1), ftrl),
        (FTRL(0.1, beta=0.5, l1=0.5, l2=0.1), ftrl),
    ],
)
@pytest.mark.parametrize(("steps", "relative"), [(1, 1e-6), (100, 1e-5)])
def test_steps_equal_a_float64_loop(
    optimizer: Optimizer, loop: Callable[..., None], steps: int, relative: float
) -> None:
    table = Table.random(optimizer, 30, 12)
    w, state = table.embeddings.astype(np.float64), table.state.astype(np.float64)
    for step, (ids, gradient) in enumerate(batches(12, steps), start=1):
        for row in np.unique(ids):
            merged = gradient[ids == row].astype(np.float64).sum(axis=0)
            loop(optimizer, step, w[row], state[row], merged)
        table.apply(optimizer, step, ids, gradient)
    assert_close(table.embeddings, w, relative)
    assert_close(table.state, state, relative * 10)


def test_l1_sets_weights_to_exactly_zero() -> None:
    optimizer = FTRL(0.1, l1=100.0)
    table = Table.random(optimizer, 3, 4)
    table.apply(optimizer, 1, [1], np.ones((1, 4), np.float32))
    assert table.embeddings[1].tolist() == [0, 0, 0, 0]
    assert (table.embeddings[[0, 2]] != 0).all()


@any_optimizer
def test_only_rows_applied_are_marked_and_changed(optimizer: Optimizer) -> None:
    table, before = (Table.random(optimizer, 10, 5) for _ in range(2))
    table.apply(optimizer, 3, [7, 2, 7], np.ones((3, 5), np.float32))
    others = [0, 1, 3, 4, 5, 6, 8, 9]
    assert table.steps.tolist() == [0, 0, 3, 0, 0, 0, 0, 3, 0, 0]
    assert table.dirty.tolist() == [0, 0, 1, 0, 0, 0, 0, 1, 0, 0]
    assert (table.embeddings[others] == before.embeddings[others]).all()
    assert (table.state[others] == before.state[others]).all()
    assert (table.embeddings[[2, 7]] != before.embeddings[[2, 7]]).any(axis=1).all()


@any_optimizer
def test_nothing_to_apply_changes_nothing(optimizer: Optimizer) -> None:
    table = Table.random(optimizer, 3, 4)
    before = table.bits()
    assert table.apply(optimizer, 1, np.empty(0, np.int64), np.empty((0, 4), np.float32)) == 0
    assert table.bits() == before


@any_optimizer
def test_gradient_of_zero_leaves_finite_rows(optimizer: Optimizer) -> None:
    table = Table.random(optimizer, 3, 4)
    for step in (1, 2):
        assert table.apply(optimizer, step, [0, 2], np.zeros((2, 4), np.float32)) == 0
    assert np.isfinite(table.embeddings).all() and np.isfinite(table.state).all()


@any_optimizer
def test_rows_with_nan_or_infinity_are_counted_and_left_alone(optimizer: Optimizer) -> None:
    table, before = (Table.random(optimizer, 6, 9) for _ in range(2))
    gradients = np.ones((5, 9), np.float32)
    gradients[0, 8], gradients[2, 0] = np.nan, -np.inf
    gradients[3, 4] = 1e38  # finite until it is scaled
    positions = np.array([5, 0, 3, 2, 1])
    constants = optimizer.hyper(step=4)
    skipped = apply_rows(
        optimizer.kind, constants, 4, 8.0, *table.arrays, positions, gradients, 0, 5
    )
    assert skipped == 3
    assert table.steps.tolist() == [4, 4, 0, 0, 0, 0]
    untouched = [2, 3, 4, 5]
    assert (table.embeddings[untouched] == before.embeddings[untouched]).all()
    assert (table.state[untouched] == before.state[untouched]).all()
    assert np.isfinite(table.embeddings).all() and np.isfinite(table.state).all()


def test_large_finite_gradients_are_not_taken_for_infinite_ones() -> None:
    table = Table.random(SGD(), 2, 5)
    gradients = np.array([[1e30, 0, 0, 0, 0]], np.float32)  # its square is infinite
    skipped = apply_rows(
        SGD.kind, SGD().hyper(lr=1.0), 1, 1.0, *table.arrays, np.array([1]), gradients, 0, 1
    )
    assert skipped == 0
    assert table.embeddings[1, 0] == np.float32(-1e30)


@any_optimizer
def test_scale_is_applied_before_the_update(optimizer: Optimizer) -> None:
    scaled, whole = (Table.random(optimizer, 4, 6) for _ in range(2))
    gradients, positions = np.full((4, 6), 3.0, np.float32), np.arange(4)
    given = optimizer.kind, optimizer.hyper(), 1
    apply_rows(*given, 0.25, *scaled.arrays, positions, gradients, 0, 4)
    apply_rows(*given, 1.0, *whole.arrays, positions, gradients * np.float32(0.25), 0, 4)
    assert scaled.bits() == whole.bits()


@dataclass
class Work:
    """A random batch over a table: what `apply_bags` takes."""

    table: Table
    positions: NDArray[np.int64]
    grouped: tuple[Any, Any]
    bags: NDArray[np.int32]
    weights: Floats
    gradient: Floats

    @staticmethod
    def random(optimizer: Optimizer, unique: int, dim: int, seed: int, weighted: bool) -> Work:
        rng = np.random.default_rng(seed)
        accesses, bag_count = unique + int(rng.integers(0, 3 * unique + 1)), 5
        inverse = np.concatenate((np.arange(unique), rng.integers(0, max(unique, 1), accesses)))
        inverse = rng.permutation(inverse[:accesses])
        weights = rng.standard_normal(accesses).astype(np.float32) if weighted else NO_WEIGHTS
        return Work(
            Table.random(optimizer, unique + 3, dim, seed),
            rng.permutation(unique + 3)[:unique],
            group(inverse, unique),
            np.sort(rng.integers(0, bag_count, accesses)).astype(np.int32),
            weights,
            rng.standard_normal((bag_count, dim)).astype(np.float32),
        )

    def fused(self, optimizer: Optimizer, table: Table, step: int, begin: int, end: int) -> int:
        given = optimizer.kind, optimizer.hyper(step=step), step, 0.3, *table.arrays
        record = *self.grouped, self.bags, self.weights, self.gradient
        return apply_bags(*given, self.positions, *record, begin, end)

    def in_two(self, optimizer: Optimizer, table: Table, step: int) -> int:
        merged = np.zeros((len(self.positions), table.embeddings.shape[1]), np.float32)
        merge(*self.grouped, self.bags, self.weights, self.gradient, merged, 0, len(merged))
        given = optimizer.kind, optimizer.hyper(step=step), step, 0.3, *table.arrays
        return apply_rows(*given, self.positions, merged, 0, len(merged))


@any_optimizer
@given(
    unique=st.integers(0, 30),
    dim=st.one_of(st.integers(1, 40), st.sampled_from([64, 65, 127, 128, 513])),
    seed=st.integers(0, 2**32),
    weighted=st.booleans(),
    cut=st.integers(0, 30),
)
def test_neither_cuts_nor_fusion_change_bits(
    optimizer: Optimizer, unique: int, dim: int, seed: int, weighted: bool, cut: int
) -> None:
    work = Work.random(optimizer, unique, dim, seed, weighted)
    whole = work.table
    in_ranges, in_two = (Table.random(optimizer, unique + 3, dim, seed) for _ in range(2))
    cut = min(cut, unique)
    for step in (1, 2):
        work.fused(optimizer, whole, step, 0, unique)
        work.fused(optimizer, in_ranges, step, cut, unique)
        work.fused(optimizer, in_ranges, step, 0, cut)
        work.in_two(optimizer, in_two, step)
    assert whole.bits() == in_ranges.bits() == in_two.bits()


@any_optimizer
def test_two_threads_on_disjoint_ranges_equal_one(optimizer: Optimizer) -> None:
    work = Work.random(optimizer, 2000, 64, seed=3, weighted=False)
    serial, threaded = work.table, Table.random(optimizer, 2003, 64, seed=3)
    with ThreadPoolExecutor(2) as pool:
        for step in range(1, 6):
            work.fused(optimizer, serial, step, 0, 2000)
            halves = [
                pool.submit(work.fused, optimizer, threaded, step, *half)
                for half in ((0, 1000), (1000, 2000))
            ]
            assert [half.result() for half in halves] == [0, 0]
    assert serial.bits() == threaded.bits()


@pytest.mark.parametrize("index", [np.int32, np.int64])
def test_either_width_of_indices_gives_the_same_bits(index: type) -> None:
    optimizer = SIX[2]
    work = Work.random(optimizer, 50, 8, seed=5, weighted=True)
    expected = Table.random(optimizer, 53, 8, seed=5)
    work.fused(optimizer, expected, 1, 0, 50)
    starts, order = work.grouped
    work.grouped, work.bags = (starts, order.astype(index)), work.bags.astype(index)
    work.fused(optimizer, work.table, 1, 0, 50)
    assert work.table.bits() == expected.bits()
