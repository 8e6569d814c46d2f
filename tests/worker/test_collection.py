"""EmbeddingBagCollection equals single EmbeddingBags, from any jagged input."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import ps
import worker
from ps.store import Store
from storage.errors import ConfigError, KeyRangeError, MismatchError

TABLES = [
    ps.Table("small", dim=3, optimizer=ps.Adagrad(lr=0.5), init=ps.Normal(1.0), rows=50),
    ps.Table("large", dim=5, optimizer=ps.SGD(lr=0.5), init=ps.Normal(1.0)),
]
FEATURES = {"age": "small", "ad": "large", "site": "large", "city": "small"}
ORDER = ("site", "age", "city", "ad")


class KeyedJaggedTensor:
    """What torchrec's has, as far as anybody asks; no class of ours."""

    def __init__(self, order: Sequence[str], values: Tensor, lengths: Tensor, weights=None) -> None:
        self._order, self._values, self._lengths, self._weights = order, values, lengths, weights

    def keys(self) -> list[str]:
        return list(self._order)

    def values(self) -> Tensor:
        return self._values

    def lengths(self) -> Tensor:
        return self._lengths

    def weights_or_none(self) -> Tensor | None:
        return self._weights


def jagged(seed: int, batch: int = 6, *, weighted: bool = False) -> KeyedJaggedTensor:
    rng = np.random.default_rng(seed)
    lengths = torch.from_numpy(rng.integers(0, 4, len(ORDER) * batch)).to(torch.int32)
    values = torch.from_numpy(rng.integers(0, 50, int(lengths.sum())))
    weights = torch.from_numpy(rng.normal(size=len(values))).float() if weighted else None
    return KeyedJaggedTensor(ORDER, values, lengths, weights)


def single(features: KeyedJaggedTensor, number: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Ids, offsets and weights of one feature, by the definition of the layout."""
    batch = len(features.lengths()) // len(ORDER)
    ends = torch.cat((torch.zeros(1, dtype=torch.int64), features.lengths().cumsum(0)))
    first, last = int(ends[number * batch]), int(ends[(number + 1) * batch])
    weights = features.weights_or_none()
    offsets = ends[number * batch : (number + 1) * batch] - first
    return features.values()[first:last], offsets, None if weights is None else weights[first:last]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Store, Store]]:
    path: Path = tmp_path_factory.mktemp("stores")
    with (
        ps.open(path / "a", TABLES, ram="4MiB", threads=1) as one,
        ps.open(path / "b", TABLES, ram="4MiB", threads=1) as other,
    ):
        yield one, other


@pytest.mark.parametrize(
    ("mode", "weighted"), [("sum", False), ("sum", True), ("mean", False), ("max", False)]
)
def test_it_equals_single_bags_in_value_and_step(
    stores: tuple[Store, Store], mode: str, weighted: bool
) -> None:
    collection = worker.EmbeddingBagCollection(stores[0], FEATURES, mode=mode)
    bags = {name: worker.EmbeddingBag(stores[1], FEATURES[name], mode=mode) for name in ORDER}
    optimizers = [worker.SparseOptimizer(store) for store in stores]
    for seed in range(4):
        features = jagged(seed, weighted=weighted)
        found = collection(features)
        expected = {name: bags[name](*single(features, i)) for i, name in enumerate(ORDER)}
        assert found.keys() == list(ORDER)
        assert found.length_per_key() == [5, 3, 3, 5]
        for name in ORDER:
            # Rows apart by rounding from the second step on: gradients arrived in another order.
            torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5)
        assert torch.equal(found.values(), torch.cat(list(found.to_dict().values()), dim=1))
        found.values().square().sum().backward()
        torch.cat(list(expected.values()), dim=1).square().sum().backward()
        for optimizer in optimizers:
            optimizer.step()
        for table in ("small", "large"):
            rows = [store.read(table, torch.arange(50)) for store in stores]
            np.testing.assert_allclose(rows[0], rows[1], rtol=1e-4, atol=1e-5)
        collection.eval()
        assert torch.equal(collection(features).values(), collection.train()(features).values())


def test_weights_get_the_gradient_of_single_bags(stores: tuple[Store, Store]) -> None:
    collection = worker.EmbeddingBagCollection(stores[0], FEATURES)
    features = jagged(7, weighted=True)
    weights = features.weights_or_none()
    assert weights is not None
    weights.requires_grad_()
    collection(features).values().square().sum().backward()
    ours, weights.grad = weights.grad, None
    with torch.no_grad():
        rows = {
            name: torch.from_numpy(stores[0].read(FEATURES[name], single(features, i)[0]))
            for i, name in enumerate(ORDER)
        }
    loss = torch.zeros(())
    for i, name in enumerate(ORDER):
        ids, offsets, factors = single(features, i)
        loss = (
            loss
            + torch.nn.functional.embedding_bag(
                torch.arange(len(ids)), rows[name], offsets, mode="sum", per_sample_weights=factors
            )
            .square()
            .sum()
        )
    loss.backward()
    torch.testing.assert_close(ours, weights.grad)
    worker.SparseOptimizer(stores[0]).zero_grad()


def test_each_table_is_asked_once_a_call(stores: tuple[Store, Store]) -> None:
    collection = worker.EmbeddingBagCollection(stores[0], FEATURES)
    assert [table for table, _ in collection.prepare(jagged(0))] == ["large", "small"]
    out = collection(jagged(0))
    out.values().sum().backward()
    assert {name: len(records) for name, records in stores[0].waiting.items()} == {
        "large": 1,
        "small": 1,
    }
    worker.SparseOptimizer(stores[0]).zero_grad()


@pytest.mark.parametrize("depth", [0, 2])
def test_the_prefetch_loop_stages_it(stores: tuple[Store, Store], depth: int) -> None:
    store = stores[0]
    collection = worker.EmbeddingBagCollection(store, FEATURES)
    sparse = worker.SparseOptimizer(store)
    batches = [jagged(seed) for seed in range(5)]
    for features in worker.prefetch(batches, lambda b: {collection: [b]}, depth=depth):
        asked = store.stats()["tables"]["large"]["tiers"][0]["keys"]
        collection(features).values().sum().backward()
        if depth == 0:  # staged already: the call asked no tier again
            assert store.stats()["tables"]["large"]["tiers"][0]["keys"] == asked
        else:
            assert any(staged.call.is_for(collection, (features,)) for staged in store.staged)
        sparse.step()


def test_an_empty_batch_and_some_features_are_fine(stores: tuple[Store, Store]) -> None:
    collection = worker.EmbeddingBagCollection(stores[0], FEATURES)
    none = torch.zeros(0, dtype=torch.int64)
    for mode in (collection.train(), collection.eval()):
        out = mode(worker.Jagged(["age", "ad"], none, none))
        assert out.values().shape == (0, 8)
        out = mode(worker.Jagged(["ad"], torch.tensor([4]), torch.tensor([0, 1])))
        assert out["ad"][0].tolist() == [0] * 5
        assert np.array_equal(out["ad"][1:].detach(), stores[0].read("large", torch.tensor([4])))


@pytest.mark.parametrize(
    ("features", "words"),
    [
        (worker.Jagged(["none"], torch.arange(2), torch.tensor([2])), "none"),
        (worker.Jagged([], torch.arange(0), torch.arange(0)), "features"),
        (worker.Jagged(["ad", "age"], torch.arange(2), torch.tensor([2])), "lengths"),
        (worker.Jagged(["ad"], torch.arange(2), torch.tensor([3])), "lengths"),
        (worker.Jagged(["ad"], torch.arange(2), torch.tensor([3, -1])), "lengths"),
    ],
)
def test_input_that_cannot_be_meant_is_refused(
    stores: tuple[Store, Store], features: worker.Jagged, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        worker.EmbeddingBagCollection(stores[0], FEATURES)(features)


def test_ids_outside_a_fixed_table_leave_no_pins(stores: tuple[Store, Store]) -> None:
    features = worker.Jagged(["ad", "age"], torch.tensor([1, 50]), torch.tensor([1, 1]))
    with pytest.raises(KeyRangeError, match=r"'small'.*50"):
        worker.EmbeddingBagCollection(stores[0], FEATURES)(features)
    stores[0].settle()
    assert all(stack.top.pinned == 0 for stack in stores[0].stacks.values())


def test_weights_go_with_sums_only(stores: tuple[Store, Store]) -> None:
    collection = worker.EmbeddingBagCollection(stores[0], FEATURES, mode="mean")
    with pytest.raises(ConfigError, match="mode 'sum'"):
        collection(jagged(0, weighted=True))


def test_options_that_cannot_be_meant_are_refused(stores: tuple[Store, Store]) -> None:
    for features, mode in (({"a": "none"}, "sum"), ({}, "sum"), (FEATURES, "median")):
        with pytest.raises(ConfigError):
            worker.EmbeddingBagCollection(stores[0], features, mode=mode)


def test_a_state_dict_names_the_features_and_holds_no_rows(stores: tuple[Store, Store]) -> None:
    collection = worker.EmbeddingBagCollection(stores[0], FEATURES)
    state = collection.state_dict()
    assert not any(isinstance(value, Tensor) for value in state.values())
    worker.EmbeddingBagCollection(stores[1], FEATURES).load_state_dict(state)
    with pytest.raises(MismatchError, match="features"):
        worker.EmbeddingBagCollection(stores[1], {"age": "small"}).load_state_dict(state)
