"""Calls: found again by the same module and the same, unchanged tensors, and by nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import ps
import worker
from ps.store import Store
from worker.call import Call, ask, stage


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    tables = [ps.Table(name, dim=2) for name in ("ads", "users")]
    path: Path = tmp_path_factory.mktemp("store")
    with ps.open(path, tables, ram="4MiB", threads=1) as store:
        yield store


def test_the_same_tensors_are_recognised_through_views(store: Store) -> None:
    bag, ids, offsets = worker.EmbeddingBag(store, "ads"), torch.arange(6), torch.tensor([0, 3])
    call = Call.of(bag, (ids, offsets))
    assert call.is_for(bag, (ids, offsets))
    assert call.is_for(bag, (ids.view(6), offsets[:], None))


def test_anything_else_is_another_call(store: Store) -> None:
    bag, ids, offsets = worker.EmbeddingBag(store, "ads"), torch.arange(6), torch.tensor([0, 3])
    call = Call.of(bag, (ids, offsets))
    assert not call.is_for(worker.EmbeddingBag(store, "ads"), (ids, offsets))
    assert not call.is_for(bag, (ids.clone(), offsets))
    assert not call.is_for(bag, (ids, offsets.clone()))
    assert not call.is_for(bag, (ids[:5], offsets))
    assert not call.is_for(bag, (ids,))
    assert not call.is_for(bag, (ids, offsets, ids))
    assert not call.is_for(bag, (ids, None))
    matrix = torch.arange(6).view(2, 3)
    assert not Call.of(bag, matrix).is_for(bag, (matrix.t(),))
    assert not Call.of(bag, matrix).is_for(bag, (matrix, offsets))


def test_ids_changed_in_place_are_another_call(store: Store) -> None:
    bag, ids = worker.EmbeddingBag(store, "ads"), torch.arange(6).view(2, 3)
    call = Call.of(bag, ids)
    ids += 1
    assert not call.is_for(bag, (ids,))


def test_inference_tensors_have_no_versions_and_are_found_too(store: Store) -> None:
    bag = worker.EmbeddingBag(store, "ads")
    with torch.inference_mode():
        ids = torch.arange(6).view(2, 3)
    assert Call.of(bag, ids).is_for(bag, (ids,))


def test_calls_staged_together_share_one_working_set(store: Store) -> None:
    ads, users = worker.EmbeddingBag(store, "ads"), worker.EmbeddingBag(store, "users")
    one, other = torch.tensor([[3, 4, 3]]), torch.tensor([[4, 5]])
    calls = [Call.of(ads, one), Call.of(users, other), Call.of(ads, other)]
    staged = stage(store, calls, ask(store, calls))
    working_set = staged[0].working_set
    assert all(each.working_set is working_set for each in staged)
    assert working_set.parts["ads"].keys.tolist() == [3, 4, 5]
    assert working_set.parts["ads"].counts.tolist() == [2, 2, 1]
    assert working_set.parts["users"].keys.tolist() == [4, 5]
    assert [each.inverses[0].tolist() for each in staged] == [[0, 1, 0], [0, 1], [1, 2]]
    assert stage(store, [], {}) == []
