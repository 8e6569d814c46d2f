"""Marker: wherever a checkpoint is interrupted, all shards go back to the old one or to the new."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ps.client.client import Client, Step
from ps.client.marker import Marker
from storage.errors import DiskFullError, StoreError, TerraceError, UnavailableError
from tests.ps.client.shards import SECONDS, Served, make_client, serving

KEYS = np.arange(64, dtype=np.uint64)
PUSH = (np.full((64, 4), -1.0, np.float32), np.ones(64, np.int32), Step(1.0, 1, 1.0))


class Worker:
    def __init__(self, served: Sequence[Served], **options: Any) -> None:
        self.client: Client = make_client(served, **options)
        self.marker = Marker(self.client)
        self.made = 0

    def step(self) -> None:
        self.made += 1
        self.client.push("sums", KEYS, *PUSH)
        self.client.advance(self.made)

    @property
    def rows(self) -> set[float]:
        """What is in the rows of all shards: one number, or they are a mix."""
        self.client.flush()
        found: set[float] = set()
        for piece in self.client.peek("sums", KEYS):
            found |= set(piece.values.ravel().tolist())
        return found

    def close(self) -> None:
        self.client.close()


@pytest.mark.parametrize("shards", [1, 2, 4])
@pytest.mark.parametrize("durability", ["strict", "interval", "checkpoint"])
def test_all_shards_go_back_together(tmp_path: Path, shards: int, durability: str) -> None:
    with serving(tmp_path, shards, durability=durability) as served:
        one = Worker(served)
        with pytest.raises(StoreError, match="expected a checkpoint to resume from, found none"):
            one.marker.resume()
        for step in (1, 2, 3):
            one.step()
            one.marker.checkpoint(step, {"at": step, "weights": torch.full((3,), float(step))})
        one.step()
        assert one.rows == {4}
        step, state = one.marker.resume()
        assert step == 3 and one.rows == {3}
        assert state["at"] == 3 and state["weights"].tolist() == [3, 3, 3]
        one.close()
        one = Worker(served)  # another process
        assert one.marker.step == 3 and one.marker.resume()[0] == 3
        one.close()


class _FailedError(Exception):
    pass


# Where a checkpoint over these shards may be interrupted: (shard, what it was about to do or did).
PLACES = [
    *(("Prepare", shard, when) for shard in (1, 2, 3, 0) for when in ("before", "after")),
    *(("Commit", shard, when) for shard in (1, 2, 3) for when in ("before", "after")),
]


@pytest.mark.parametrize(("method", "shard", "when"), PLACES)
@pytest.mark.parametrize("crash", ["worker", "all"])
def test_an_interrupted_checkpoint_is_the_old_one_or_the_new(
    tmp_path: Path, method: str, shard: int, when: str, crash: str
) -> None:
    with serving(tmp_path, 4, durability="interval") as served:
        one = Worker(served)
        one.step()
        one.marker.checkpoint(1, {"at": 1})
        one.step()
        call = one.client.call

        def failing(to: int, name: str, *others: Any, **options: Any) -> Any:
            hit = (name, to) == (method, shard)
            if hit and when == "before":
                raise _FailedError
            reply = call(to, name, *others, **options)
            if hit:
                raise _FailedError
            return reply

        one.client.call = failing  # type: ignore[method-assign]
        with pytest.raises(_FailedError):
            one.marker.checkpoint(2, {"at": 2})
        one.close()
        if crash == "all":
            for server in served:
                server.crash()
                server.start()
        marked = method == "Commit" or (shard == 0 and when == "after")
        two = Worker(served)
        assert two.marker.step == (2 if marked else 1)
        step, state = two.marker.resume()
        assert step == state["at"] == (2 if marked else 1)
        assert two.rows == {step}
        # And it goes on from there, with the same step or a later one.
        for later in (2, 3) if not marked else (3, 4):
            two.step()
            two.marker.checkpoint(later, {"at": later})
        expected = two.rows
        two.step()
        step, state = two.marker.resume()
        assert step == state["at"] == later and two.rows == expected == {later}
        for server in served:
            assert server.shard is not None
            assert server.shard.store.checkpoints == [later - 1, later]
        two.close()


def test_shards_that_crash_while_it_is_made_are_waited_for(tmp_path: Path) -> None:
    """Also shard 0 between two pieces of the state, and after the last."""
    weights = torch.arange(3 << 20, dtype=torch.float32)  # 12 MiB: three pieces and a bit
    with serving(tmp_path, 2, durability="strict") as served:
        one = Worker(served)
        one.step()
        one.marker.checkpoint(1, {})
        call, crashes = one.client.call, []

        def crashing(to: int, name: str, *others: Any, **options: Any) -> Any:
            reply = call(to, name, *others, **options)
            if name == "Prepare" and len(crashes) < 6:
                crashes.append(to)
                served[to].crash()
                served[to].start()
                if len(crashes) in (3, 5):
                    # As if the answer had been lost with it.
                    reply = call(to, name, *others, **options)
            return reply

        one.client.call = crashing  # type: ignore[method-assign]
        one.step()
        one.marker.checkpoint(2, {"weights": weights})
        assert len(crashes) == 6
        one.client.call = call  # type: ignore[method-assign]
        step, state = one.marker.resume()
        assert step == 2 and torch.equal(state["weights"], weights) and one.rows == {2}
        one.close()


def test_a_checkpoint_of_the_same_step_again_is_the_newer_one(tmp_path: Path) -> None:
    with serving(tmp_path, 2) as served:
        one = Worker(served)
        for value in (1, 2):
            one.step()
            one.marker.checkpoint(7, {"value": value})
        one.step()
        step, state = one.marker.resume()
        assert step == 7 and state["value"] == 2 and one.rows == {2}
        one.close()


def together(*calls: Callable[[], Any]) -> list[Any]:
    with ThreadPoolExecutor(len(calls)) as threads:
        futures: list[Future[Any]] = [threads.submit(call) for call in calls]
        return [future.exception(2 * SECONDS) or future.result() for future in futures]


def checkpoints(workers: Sequence[Worker], step: int) -> list[Callable[[], None]]:
    return [partial(one.marker.checkpoint, step, {"at": step}) for one in workers]


@pytest.fixture
def pair(tmp_path: Path) -> Any:
    with serving(tmp_path, 2) as served:
        workers = [Worker(served, rank=rank, world=2) for rank in range(2)]
        yield served, workers
        for one in workers:
            one.close()


def test_two_workers_make_one_checkpoint_and_go_back_to_it(pair: Any) -> None:
    served, workers = pair
    for step in (1, 2):
        for one in workers:
            one.step()
        together(*checkpoints(workers, step))
    workers[1].step()
    found = together(*(one.marker.resume for one in workers))
    assert [(step, state["at"]) for step, state in found] == [(2, 2), (2, 2)]
    assert workers[0].rows == workers[1].rows == {4}
    assert all(len(server.shard.store.checkpoints) == 2 for server in served)


def test_a_worker_started_anew_goes_back_with_one_that_was_not(pair: Any) -> None:
    """Though they have met different numbers of times, and the one waits in a checkpoint."""
    served, workers = pair
    for step in (1, 2, 3):
        together(*checkpoints(workers, step))
    workers[1].close()
    workers[1] = Worker(served, rank=1, world=2)
    for _ in range(2):
        found = together(*(one.marker.resume for one in workers))
        assert [step for step, _ in found] == [3, 3]
    for step in (4, 5):
        together(*checkpoints(workers, step))
        assert [one.marker.step for one in workers] == [step, step]


def test_what_fails_at_rank_0_is_raised_everywhere_and_the_next_one_works(pair: Any) -> None:
    _, workers = pair
    call = workers[0].client.call

    def full(to: int, name: str, *others: Any, **options: Any) -> Any:
        if name == "Prepare":
            raise DiskFullError("no room")
        return call(to, name, *others, **options)

    workers[0].client.call = full
    found = together(*checkpoints(workers, 1))
    assert isinstance(found[0], DiskFullError)
    assert isinstance(found[1], StoreError) and "no room" in str(found[1])
    assert [one.marker.step for one in workers] == [-1, -1]
    workers[0].client.call = call
    together(*checkpoints(workers, 2))
    assert [one.marker.step for one in workers] == [2, 2]


def test_who_does_not_come_is_named(tmp_path: Path) -> None:
    with serving(tmp_path) as served:
        one = Worker(served, world=2, timeout_seconds=1.0)
        with pytest.raises(UnavailableError, match="ranks missing: 1"):
            one.marker.checkpoint(1, {})
        one.close()


def test_a_checkpoint_and_a_return_are_no_meeting(tmp_path: Path) -> None:
    """One worker still waits in a checkpoint when another goes back: neither takes the other for
    one that does the same."""
    with serving(tmp_path) as served:
        workers = [Worker(served, rank=rank, world=2, timeout_seconds=1.5) for rank in range(2)]
        together(*checkpoints(workers, 1))
        found = together(lambda: workers[0].marker.checkpoint(2, {}), workers[1].marker.resume)
        assert all(isinstance(error, TerraceError) for error in found)
        assert served[0].shard is not None and served[0].shard.store.checkpoints == [1]
        found = together(*(one.marker.resume for one in workers))
        assert [step for step, _ in found] == [1, 1]
        for one in workers:
            one.close()
