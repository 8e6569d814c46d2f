"""Lookups: evaluation changes nothing at all, and tensor operations do what the kernels do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ps
import worker
from ps.store import Store
from storage.array import FloatArray
from tests.storage.digesting import digest
from worker.lookup import anchor

TABLE = ps.Table("ads", dim=6, optimizer=ps.Adagrad(lr=0.5), init=ps.Normal(0.5))


def train(store: Store, batches: int, *, mode: str = "sum", seed: int = 0) -> list[float]:
    """Losses of a run that keeps bringing rows in and pushing rows out."""
    rng = np.random.default_rng(seed)
    bag, sparse = worker.EmbeddingBag(store, "ads", mode=mode), worker.SparseOptimizer(store)
    losses = []
    for _ in range(batches):
        ids = torch.from_numpy(rng.integers(0, 3000, (60, 4)))
        factors = torch.from_numpy(rng.normal(size=(60, 4))).float() if mode == "sum" else None
        out = bag(ids, None, factors)
        loss = (out * torch.from_numpy(rng.normal(size=out.shape)).float()).sum()
        loss = loss + (bag(ids[:7]) ** 2).mean()
        loss.backward()
        sparse.step()
        losses.append(loss.item())
    return losses


@contextmanager
def unchanged(store: Store) -> Iterator[None]:
    def everything() -> Any:
        caches = [digest(cache) for stack in store.stacks.values() for cache in stack.caches]
        return caches, store.stats()

    store.settle()
    rows = store.digest()  # first: it writes what is dirty to the log
    before = everything()
    yield
    assert everything() == before
    assert store.digest() == rows
    assert everything() == before


@pytest.mark.parametrize("hbm", [None, "20KiB"])
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_evaluation_inserts_counts_moves_and_evicts_nothing(
    tmp_path: Path, hbm: str | None, mode: str
) -> None:
    ids = torch.arange(0, 9000, 3).view(-1, 6)  # in RAM, on the SSD, and never seen
    with ps.open(tmp_path, [TABLE], ram="700KiB", hbm=hbm, threads=1) as store:
        bag = worker.EmbeddingBag(store, "ads", mode=mode)
        train(store, 20, mode=mode)
        assert len(store.stacks["ads"].ssd) > 100
        with unchanged(store), torch.no_grad():
            bag(ids)
        with unchanged(store):
            bag.eval()(ids)
        with unchanged(store), torch.inference_mode():
            bag.train()(ids)
        with unchanged(store):
            store.read("ads", ids)


def test_evaluation_between_batches_of_a_prefetch_loop_changes_no_result(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    batches = [torch.from_numpy(rng.integers(0, 3000, (50, 4))) for _ in range(25)]

    def run(evaluate: bool) -> tuple[list[float], int, Any]:
        with ps.open(tmp_path / str(evaluate), [TABLE], ram="700KiB", threads=1) as store:
            bag, sparse = worker.EmbeddingBag(store, "ads"), worker.SparseOptimizer(store)
            losses = []
            for ids in worker.prefetch(batches, lambda ids: {bag: [ids]}, depth=3):
                loss = bag(ids).square().mean()
                loss.backward()
                sparse.step()
                losses.append(loss.item())
                if evaluate:
                    bag.eval()(ids + 1500)
                    bag.train()
            stats = store.stats()["tables"]
            return losses, store.digest(), stats

    assert run(True) == run(False)


def test_a_loop_that_evaluates_is_not_staged(tmp_path: Path) -> None:
    batches = [torch.arange(i, i + 12).view(3, 4) for i in range(8)]
    with ps.open(tmp_path, [TABLE], ram="700KiB", threads=1) as store:
        bag = worker.EmbeddingBag(store, "ads")
        train(store, 3)
        with unchanged(store), torch.no_grad():
            for ids in worker.prefetch(batches, lambda ids: {bag: [ids]}, depth=2):
                bag(ids)
        bag.eval()
        with unchanged(store):
            for ids in worker.prefetch(batches, lambda ids: {bag: [ids]}, depth=2):
                bag(ids)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("depth", [0, 2])
def test_tensor_operations_agree_with_the_kernels(tmp_path: Path, mode: str, depth: int) -> None:
    """The path of a CUDA device on CPU tensors: forward, backward, apply, evict and admit."""
    found = []
    for name in ("kernels", "tensors"):
        with ps.open(tmp_path / name, [TABLE], ram="4MiB", hbm="32KiB", threads=1) as store:
            array = store.stacks["ads"].top.array
            assert isinstance(array, FloatArray)
            if name == "tensors":
                array.host = None
            losses = train(store, 15, mode=mode, seed=depth)
            assert store.stacks["ads"].top.stats.evicted > 100
            store.settle()
            assert store.check() == []
            found.append((losses, store.read("ads", np.arange(3000)), store.stats()))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-5, atol=1e-6)
    assert found[0][2] == found[1][2]


def test_a_weights_gradient_agrees_too(tmp_path: Path) -> None:
    ids = torch.tensor([[1, 2, 1], [9, 5, 5]])
    with ps.open(tmp_path, [TABLE], ram="4MiB", threads=1) as store:
        bag = worker.EmbeddingBag(store, "ads", padding_idx=9)
        slopes = []
        for host in (store.stacks["ads"].top.array.host, None):
            store.stacks["ads"].top.array.host = host
            factors = torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
            bag(ids, None, factors).square().sum().backward()
            slopes.append(factors.grad)
        assert slopes[0].dtype == torch.float64
        assert slopes[0][1, 0] == 0
        torch.testing.assert_close(slopes[0], slopes[1])
        worker.SparseOptimizer(store).zero_grad()


def test_the_anchor_counts_backward_passes_and_shows_infinity(tmp_path: Path) -> None:
    with ps.open(tmp_path, [TABLE], ram="4MiB", threads=1) as store:
        bag, table = worker.EmbeddingBag(store, "ads"), anchor(store, "ads")
        assert anchor(store, "ads") is table
        for count in (1, 2, 3):
            bag(torch.tensor([[1]])).sum().backward()
            assert table.grad == count
        (bag(torch.tensor([[1]])).sum() * torch.inf).backward()
        assert table.grad == torch.inf
        assert [record.finite for record in store.waiting["ads"]] == [True, True, True, False]
        worker.SparseOptimizer(store).zero_grad()
