"""EmbeddingBag equals torch.nn.EmbeddingBag, in value and gradient, and leaves no pins."""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import ps
import worker
from ps.store import Store
from storage.errors import ClosedError, ConfigError, KeyRangeError, MismatchError, WorkingSetError
from tests.storage.digesting import digest

ROWS, DIM = 20, 5
FIXED = ps.Table("fixed", dim=DIM, optimizer=ps.SGD(lr=1.0), rows=ROWS)
ANY = ps.Table("any", dim=DIM, optimizer=ps.SGD(lr=1.0), init=ps.Normal(1.0))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    path: Path = tmp_path_factory.mktemp("store")
    with ps.open(path, [FIXED, ANY], ram="4MiB", threads=2) as store:
        yield store


@pytest.fixture(autouse=True)
def no_pins_left(store: Store) -> Iterator[None]:
    yield
    store.settle()
    assert not store.waiting
    assert all(stack.top.pinned == 0 for stack in store.stacks.values())


def filled(store: Store, seed: int) -> Tensor:
    """Set all rows of the fixed table: (ROWS, DIM) float32."""
    weight = torch.from_numpy(np.random.default_rng(seed).normal(size=(ROWS, DIM))).float()
    store.write("fixed", torch.arange(ROWS), weight)
    return weight


@st.composite
def calls(draw: st.DrawFn) -> tuple[dict[str, Any], Tensor, Tensor | None, bool, int]:
    """Options of the module, ids, offsets, whether there are weights, and a seed."""
    mode = draw(st.sampled_from(["sum", "mean", "max"]))
    dtype = draw(st.sampled_from([torch.int32, torch.int64]))
    padding = draw(st.none() | st.integers(-ROWS, ROWS - 1))
    options: dict[str, Any] = {"mode": mode, "padding_idx": padding}
    weighted, seed = mode == "sum" and draw(st.booleans()), draw(st.integers(0, 999))
    some = st.integers(0, ROWS - 1)
    if draw(st.booleans()):
        length = draw(st.integers(1, 4))
        shape = draw(st.lists(st.lists(some, min_size=length, max_size=length), max_size=6))
        ids = torch.tensor(shape, dtype=dtype).reshape(len(shape), length)
        return options, ids, None, weighted, seed
    ids = torch.tensor(draw(st.lists(some, max_size=20)), dtype=dtype)
    options["include_last_offset"] = draw(st.booleans())
    cuts = sorted(draw(st.lists(st.integers(0, len(ids)), max_size=6)))
    last = [len(ids)] if options["include_last_offset"] else []
    return options, ids, torch.tensor([0, *cuts, *last], dtype=dtype), weighted, seed


@given(calls())
def test_values_and_gradients_are_those_of_torch(
    store: Store, call: tuple[dict[str, Any], Tensor, Tensor | None, bool, int]
) -> None:
    options, ids, offsets, weighted, seed = call
    weight = filled(store, seed)
    theirs = nn.EmbeddingBag(ROWS, DIM, _weight=weight.clone(), **options)
    ours, sparse = worker.EmbeddingBag(store, "fixed", **options), worker.SparseOptimizer(store)
    factors = [None, None]
    if weighted:
        plain = torch.from_numpy(np.random.default_rng(seed).normal(size=ids.shape)).float()
        factors = [plain.clone().requires_grad_(), plain.clone().requires_grad_()]
    expected = theirs(ids, offsets, factors[0])
    found = ours(ids, offsets, factors[1])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(ours(ids, offsets, factors[1]), expected, rtol=1e-5, atol=1e-6)
    slope = torch.from_numpy(np.random.default_rng(seed + 1).normal(size=expected.shape)).float()
    (expected * slope).sum().backward()
    (found * slope).sum().backward()
    sparse.step()
    assert theirs.weight.grad is not None
    after = torch.from_numpy(store.read("fixed", torch.arange(ROWS)))
    torch.testing.assert_close(after, weight - theirs.weight.grad, rtol=1e-5, atol=1e-5)
    if weighted:
        torch.testing.assert_close(factors[1].grad, factors[0].grad, rtol=1e-5, atol=1e-5)


def test_ids_of_an_unbounded_table_are_any_64_bits(store: Store) -> None:
    ids = torch.tensor([[-1, 0], [2**63 - 1, -(2**63)], [-1, -7]])
    unique, index = ids.unique(return_inverse=True)
    rows = torch.from_numpy(store.read("any", unique))
    theirs = nn.EmbeddingBag(len(unique), DIM, mode="sum", _weight=rows.clone())
    ours, sparse = worker.EmbeddingBag(store, "any"), worker.SparseOptimizer(store)
    torch.testing.assert_close(ours(ids), theirs(index))
    ours(ids).square().sum().backward()
    theirs(index).square().sum().backward()
    sparse.step()
    assert theirs.weight.grad is not None
    after = torch.from_numpy(store.read("any", unique))
    torch.testing.assert_close(after, rows - theirs.weight.grad)
    assert torch.equal(
        torch.from_numpy(store.read("any", np.array([2**64 - 1], np.uint64))),
        torch.from_numpy(store.read("any", torch.tensor([-1]))),
    )


@pytest.mark.parametrize("padding", [ROWS - 1, -1])
def test_padding_of_a_fixed_table_counts_from_the_end_as_in_torch(
    store: Store, padding: int
) -> None:
    ids, weight = torch.tensor([[ROWS - 1, 2], [3, 4]]), filled(store, 6)
    theirs = nn.EmbeddingBag(ROWS, DIM, mode="mean", padding_idx=padding, _weight=weight)
    ours = worker.EmbeddingBag(store, "fixed", mode="mean", padding_idx=padding)
    torch.testing.assert_close(ours(ids), theirs(ids))
    assert ours.padding_idx == theirs.padding_idx


def test_an_id_of_an_unbounded_table_can_be_its_padding(store: Store) -> None:
    bag = worker.EmbeddingBag(store, "any", padding_idx=-1)
    out = bag(torch.tensor([[-1, 5], [-1, -1]]))
    assert torch.equal(out[0].detach(), torch.from_numpy(store.read("any", torch.tensor([5])))[0])
    assert out[1].tolist() == [0] * DIM


@pytest.mark.parametrize("bad", [ROWS, -1])
def test_an_id_outside_a_fixed_table_changes_nothing(store: Store, bad: int) -> None:
    filled(store, 0)
    store.settle()
    content = store.digest()
    before = [digest(stack.top) for stack in store.stacks.values()], store.stats()
    bag = worker.EmbeddingBag(store, "fixed")
    for mode in (bag.train(), bag.eval()):
        with pytest.raises(KeyRangeError, match=f"'fixed'.*{bad}"):
            mode(torch.tensor([[1, bad]]))
    assert ([digest(stack.top) for stack in store.stacks.values()], store.stats()) == before
    assert store.digest() == content


def test_two_modules_on_one_table_make_one_merged_step(store: Store) -> None:
    weight = filled(store, 1)
    first, second = (worker.EmbeddingBag(store, "fixed", mode=mode) for mode in ("sum", "max"))
    sparse = worker.SparseOptimizer(store)
    table = nn.Parameter(weight.clone())
    a, b = torch.tensor([[1, 2, 1], [3, 4, 4]]), torch.tensor([[2, 5], [1, 3]])
    loss = nn.functional.embedding_bag(a, table, mode="sum").square().sum()
    loss = loss + nn.functional.embedding_bag(b, table, mode="max").square().sum()
    loss.backward()
    (first(a).square().sum() + second(b).square().sum()).backward()
    sparse.step()
    assert sparse.param_groups[0]["steps"] == 1
    assert table.grad is not None
    after = torch.from_numpy(store.read("fixed", torch.arange(ROWS)))
    torch.testing.assert_close(after, weight - table.grad)


def test_a_module_used_twice_in_a_step_learns_from_both(store: Store) -> None:
    weight = filled(store, 2)
    bag, sparse = worker.EmbeddingBag(store, "fixed"), worker.SparseOptimizer(store)
    table = nn.Parameter(weight.clone())
    ids = torch.tensor([[1, 2], [2, 3]])
    for weights in (None, torch.tensor([[1.0, -2.0], [0.5, 3.0]])):
        nn.functional.embedding_bag(
            ids, table, mode="sum", per_sample_weights=weights
        ).square().sum().backward()
        bag(ids, None, weights).square().sum().backward()
    sparse.step()
    assert table.grad is not None
    after = torch.from_numpy(store.read("fixed", torch.arange(ROWS)))
    torch.testing.assert_close(after, weight - table.grad)


def test_micro_batches_accumulate_to_the_bits_of_one_batch(store: Store) -> None:
    weight = filled(store, 3)
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, ROWS, (12, 3)))
    slope = torch.from_numpy(np.random.default_rng(1).normal(size=(12, DIM))).float()
    bag, sparse = worker.EmbeddingBag(store, "fixed"), worker.SparseOptimizer(store)
    (bag(ids) * slope).sum().backward()
    sparse.step()
    whole = store.read("fixed", torch.arange(ROWS))
    store.write("fixed", torch.arange(ROWS), weight)
    for some in (slice(0, 5), slice(5, 6), slice(6, 12)):
        (bag(ids[some]) * slope[some]).sum().backward()
    sparse.step()
    assert np.array_equal(store.read("fixed", torch.arange(ROWS)), whole)


def test_modules_over_several_tables_step_together(store: Store) -> None:
    weight = filled(store, 4)
    fixed, free = worker.EmbeddingBag(store, "fixed"), worker.EmbeddingBag(store, "any")
    ids = torch.tensor([[1, 2]])
    before = store.read("any", ids[0])
    sparse = worker.SparseOptimizer(store)
    (fixed(ids) + 2 * free(ids)).sum().backward()
    sparse.step()
    assert np.allclose(store.read("fixed", ids[0]), weight[1:3] - 1)
    assert np.allclose(store.read("any", ids[0]), before - 2)


def test_a_graph_that_is_thrown_away_lets_its_rows_go(store: Store) -> None:
    bag = worker.EmbeddingBag(store, "fixed")
    out = bag(torch.tensor([[1, 2]]))
    store.settle()
    assert store.stacks["fixed"].top.pinned == 2
    del out
    store.settle()
    assert store.stacks["fixed"].top.pinned == 0


def test_a_call_that_fails_after_staging_leaves_no_pins(store: Store) -> None:
    bag = worker.EmbeddingBag(store, "fixed")
    with pytest.raises(NotImplementedError):
        bag(torch.tensor([[1, 2]]), None, torch.ones(1, 2, device="meta"))
    gc.collect()
    store.settle()
    assert store.stacks["fixed"].top.pinned == 0


def test_backward_after_the_step_that_used_the_graph_is_refused(store: Store) -> None:
    bag, sparse = worker.EmbeddingBag(store, "fixed"), worker.SparseOptimizer(store)
    weight = filled(store, 5)
    loss = bag(torch.tensor([[1, 2]])).sum()
    loss.backward(retain_graph=True)
    loss.backward(retain_graph=True)
    sparse.step()
    assert np.allclose(store.read("fixed", torch.tensor([1])), weight[1] - 2)
    with pytest.raises(ConfigError, match="run forward again"):
        loss.backward()
    sparse.zero_grad()


def test_a_second_derivative_is_refused_and_not_wrong(store: Store) -> None:
    bag = worker.EmbeddingBag(store, "fixed")
    factors = torch.ones(1, 2, requires_grad=True)
    out = bag(torch.tensor([[1, 2]]), None, factors)
    (slope,) = torch.autograd.grad(out.square().sum(), factors, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()
    worker.SparseOptimizer(store).zero_grad()


def test_gradients_that_autograd_is_not_asked_for_are_not_recorded(store: Store) -> None:
    bag, other = worker.EmbeddingBag(store, "fixed"), torch.ones(DIM, requires_grad=True)
    torch.autograd.grad((bag(torch.tensor([[1, 2]])) * other).sum(), other)
    assert not store.waiting


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_evaluation_gives_the_bits_of_training(store: Store, mode: str) -> None:
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, 40, (50, 3)))
    bag = worker.EmbeddingBag(store, "any", mode=mode)
    trained = bag(ids).detach().clone()
    with torch.no_grad():
        assert torch.equal(bag(ids), trained)
    assert torch.equal(bag.eval()(ids), trained)
    assert not bag(ids).requires_grad


def test_evaluation_reads_large_batches_in_pieces(store: Store) -> None:
    rng = np.random.default_rng(0)
    ids = torch.from_numpy(rng.integers(0, 300, 150_000))
    offsets = torch.from_numpy(np.sort(rng.integers(0, 150_000, 60)))
    offsets[0], offsets[30:] = 0, 149_000  # one bag is larger than a piece
    bag = worker.EmbeddingBag(store, "any", mode="mean").eval()
    unique, index = ids.unique(return_inverse=True)
    rows = torch.from_numpy(store.read("any", unique)).double()
    expected = nn.functional.embedding_bag(index, rows, offsets, mode="mean")
    torch.testing.assert_close(bag(ids, offsets).double(), expected, rtol=1e-3, atol=1e-5)


def test_a_state_dict_refers_to_the_table_and_holds_no_rows(store: Store) -> None:
    model = nn.Sequential(worker.EmbeddingBag(store, "fixed"), nn.Linear(DIM, 1))
    state = copy.deepcopy(model.state_dict())
    assert sum(v.numel() for v in state.values() if isinstance(v, Tensor)) == DIM + 1
    assert len(list(model.parameters())) == 2
    model.load_state_dict(state)
    other = nn.Sequential(worker.EmbeddingBag(store, "any"), nn.Linear(DIM, 1))
    with pytest.raises(MismatchError, match="fixed"):
        other.load_state_dict(state)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"table": "none"}, "'none'"),
        ({"mode": "median"}, "'median'"),
        ({"padding_idx": ROWS}, "padding_idx"),
        ({"padding_idx": -ROWS - 1}, "padding_idx"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(
    store: Store, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        worker.EmbeddingBag(store, **{"table": "fixed", **options})


def test_weights_go_with_sums_and_have_the_shape_of_the_ids(store: Store) -> None:
    ids = torch.tensor([[1, 2]])
    with pytest.raises(ConfigError, match="mode 'sum'"):
        worker.EmbeddingBag(store, "fixed", mode="mean")(ids, None, torch.ones(1, 2))
    with pytest.raises(ConfigError, match="shape"):
        worker.EmbeddingBag(store, "fixed")(ids, None, torch.ones(2))


def test_a_working_set_too_large_is_refused_before_any_row_changes(tmp_path: Path) -> None:
    with ps.open(tmp_path, [ANY], ram="800KiB") as store:
        bag, sparse = worker.EmbeddingBag(store, "any"), worker.SparseOptimizer(store)
        bag(torch.arange(100).view(10, 10)).sum().backward()
        sparse.step()
        digest = store.digest()
        ids = torch.arange(50_000).view(10, -1)
        with pytest.raises(WorkingSetError) as caught:
            bag(ids)
        assert store.digest() == digest
        assert store.check() == []
    with ps.open(tmp_path / "larger", [ANY], ram=caught.value.needed_bytes) as store:
        assert worker.EmbeddingBag(store, "any")(ids).shape == (10, DIM)


def test_a_module_of_a_closed_store_says_so(tmp_path: Path) -> None:
    with ps.open(tmp_path, [ANY], ram="2MiB") as store:
        bag, sparse = worker.EmbeddingBag(store, "any"), worker.SparseOptimizer(store)
        loss = bag(torch.tensor([[1]])).sum()
        loss.backward()
    for action in (lambda: bag(torch.tensor([[1]])), sparse.step, bag.eval()):
        with pytest.raises(ClosedError):
            action(*([torch.tensor([[1]])] if action is bag else []))
