"""Tables: what any store has to be, and what it inherits."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch

import ps
from ps.client.remote import RemoteStore
from ps.cluster.partitioned import PartitionedStore
from ps.pool import Pool
from ps.store import Store
from ps.tables import Tables
from ps.workingset import Asked, Part, WorkingSet
from storage.errors import ClosedError, ConfigError, KeyRangeError, StoreError

ADS = ps.Table("ads", dim=2, optimizer=ps.SGD(lr=1.0), init=ps.Constant(0.5))
USERS = ps.Table("users", dim=2, optimizer=ps.SGD(lr=1.0), rows=500)
OURS = {name: part for name, part in vars(Tables).items() if not name.startswith("__")}
ABSTRACT = sorted(Tables.__abstractmethods__)


class Shelf(Tables):
    """The least that is one: every row is its key, and pins are only counted."""

    def __init__(self) -> None:
        super().__init__("a shelf", [ADS, USERS], torch.device("cpu"), Pool(1))
        self.stacks = {name: Pins() for name in self.tables}
        self.coming = CountedComing()
        self.peeked: list[int] = []
        self.asked: Mapping[str, Asked] = {}

    def stage_asked(
        self, asked: Mapping[str, Asked], *, ahead: int = 0, beside: bool = False
    ) -> WorkingSet:
        self.asked = asked
        parts = {}
        for name, one in asked.items():
            positions = one.keys.astype(np.int64)
            self.stacks[name].pinned += positions.tolist()
            parts[name] = Part(one.keys, positions, one.counts, one.inverses)
        return WorkingSet(parts, self._release)

    def stepping(self) -> AbstractContextManager[None]:
        return nullcontext()

    def apply(
        self, table: str, records: Sequence[Any], *, lr: float, step: int, scale: float
    ) -> int:
        return 0

    def write(self, table: str, keys: Any, embeddings: Any) -> None:
        self._keys(table, keys)

    def delete(self, table: str, keys: Any) -> None:
        self._keys(table, keys)

    def digest(self) -> int:
        return 0

    def checkpoint(self, step: int, state: Mapping[str, Any] | None = None) -> None:
        pass

    @property
    def wants_checkpoint(self) -> bool:
        return False

    @property
    def checkpoints(self) -> list[int]:
        return []

    def resume(self) -> tuple[int, dict[str, Any]]:
        return 0, {}

    def stats(self) -> dict[str, Any]:
        return {}

    @property
    def stored_rows(self) -> int:
        return 0

    def tiers(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        self.planner.closed = True
        self.pool.close()
        self.observers.close()

    def _peek(self, table: str, keys: np.ndarray) -> np.ndarray:
        assert len(np.unique(keys)) == len(keys)
        self.peeked.append(len(keys))
        return np.stack((keys, keys + 1), axis=1).astype(np.float32)


class Pins:
    """A level of which nobody asks for the top."""

    def __init__(self) -> None:
        self.pinned: list[int] = []

    def unpin(self, positions: np.ndarray) -> None:
        for position in positions.tolist():
            self.pinned.remove(position)


class CountedComing:
    """Announcements that are only counted."""

    ended = 0

    def announce(self, batch: Mapping[str, Asked]) -> None:
        raise AssertionError("nobody announces anything here")

    def give_up(self) -> bool:
        return False

    def end(self) -> None:
        self.ended += 1


@pytest.fixture
def shelf() -> Iterator[Shelf]:
    with Shelf() as shelf:
        yield shelf


@pytest.mark.parametrize("kind", [Store, RemoteStore, PartitionedStore, Shelf])
def test_a_store_has_all_of_it_and_asks_for_no_more(kind: type[Tables]) -> None:
    assert not inspect.isabstract(kind)
    for name, ours in OURS.items():
        theirs = inspect.getattr_static(kind, name)
        assert isinstance(theirs, property) == isinstance(ours, property), name
        if not inspect.isfunction(ours) or name == "_abc_impl":
            continue
        wanted = inspect.signature(ours).parameters
        given = inspect.signature(theirs).parameters
        for parameter in wanted.values():
            assert given[parameter.name].kind == parameter.kind, f"{name}({parameter})"
            assert given[parameter.name].default == parameter.default, f"{name}({parameter})"
        extra = [given[more] for more in given.keys() - wanted.keys()]
        assert all(more.default is not more.empty for more in extra), f"{name}: {extra}"


@pytest.mark.parametrize("name", ABSTRACT)
def test_nothing_of_it_may_be_left_out(name: str) -> None:
    kind = type("Incomplete", (Shelf,), {name: OURS[name]})
    with pytest.raises(TypeError, match=name):
        kind()


def test_what_a_store_says_of_itself_where_it_is_alone(shelf: Shelf) -> None:
    assert (shelf.rank, shelf.world, shelf.staleness) == (0, 1, None)
    assert shelf.crowded is False
    assert shelf.most(7) == 7 and shelf.squares("ads", None) == 0.0
    assert shelf.due == []
    shelf.waiting = {"ads": [], "users": [object()]}  # type: ignore[list-item]
    assert shelf.due == ["users"]
    shelf.begin_prefetch(beside=True)
    assert shelf.prefetching
    assert list(shelf.tables) == ["ads", "users"]


def test_a_batch_is_asked_for_by_unique_keys(shelf: Shelf) -> None:
    ids = [np.array(each, np.uint64) for each in ([7, 9, 7], [], [9, 1])]
    working_set = shelf.stage({"ads": ids})
    part = working_set.parts["ads"]
    assert shelf.asked.keys() == {"ads"}
    assert (part.keys.tolist(), part.counts.tolist()) == ([7, 9, 1], [2, 2, 1])
    assert [inverse.tolist() for inverse in part.inverses] == [[0, 1, 0], [], [1, 2]]
    with pytest.raises(KeyRangeError, match="'users'"):
        shelf.stage({"users": [np.array([500], np.uint64)]})
    with pytest.raises(ConfigError, match=r"'none': expected one of \['ads', 'users'\]"):
        shelf.ask({"none": ids})


def test_what_was_released_is_unpinned_by_ticks(shelf: Shelf) -> None:
    def pinned() -> list[int]:
        return shelf.stacks["ads"].pinned

    for tick in (1, 2, 2, 3):
        shelf.tick = tick
        hold = shelf.stage({"ads": [np.array([tick], np.uint64)]}).hold()
        hold.drop()
    kept = shelf.stage({"ads": [np.array([9], np.uint64)]}).hold()
    assert pinned() == [1, 2, 2, 3, 9]
    shelf.settle(0)
    assert pinned() == [1, 2, 2, 3, 9]
    shelf.settle(2)
    assert pinned() == [3, 9]
    shelf.settle()
    assert pinned() == [9]
    kept.drop()
    assert pinned() == [9]  # not in the midst of what others do
    shelf.settle()
    assert pinned() == []


def test_the_end_of_a_loop_unpins_but_not_in_a_store_that_is_closed_or_stopped() -> None:
    for ending in (None, "closed", "stopped"):
        with Shelf() as shelf:
            shelf.prefetching = True
            shelf.stage({"ads": [np.array([4], np.uint64)]}).hold().drop()
            if ending == "closed":
                shelf.close()
            if ending == "stopped":
                shelf.planner.failure = RuntimeError("half a change")
            shelf.end_prefetch()
            assert not shelf.prefetching
            assert shelf.stacks["ads"].pinned == ([] if ending is None else [4])
            assert shelf.coming.ended == (ending is None)
            if ending:
                with pytest.raises(ClosedError if ending == "closed" else StoreError):
                    shelf.settle()


def test_rows_are_read_in_pieces_each_key_once_a_piece(shelf: Shelf) -> None:
    keys = np.random.default_rng(0).integers(0, 20_000, (5, 8000))
    found = shelf.read("ads", torch.from_numpy(keys))
    assert found.dtype == np.float32
    assert np.array_equal(found, np.stack((keys.ravel(), keys.ravel() + 1), axis=1))
    assert len(shelf.peeked) == 3 and max(shelf.peeked) < 1 << 14
    assert shelf.read("users", np.array([], np.int64)).shape == (0, 2)
    for wrong, error in ((np.array([500]), KeyRangeError), (np.array([0.5]), ConfigError)):
        with pytest.raises(error):
            shelf.read("users", wrong)


def test_leaving_the_block_closes_and_no_copy_is_made(shelf: Shelf) -> None:
    with Shelf() as other:
        assert not other.planner.closed
    assert other.planner.closed
    with pytest.raises(ClosedError, match="a shelf"):
        other.settle()
    for copying in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(ConfigError, match="look rows up in the process"):
            copying(shelf)
