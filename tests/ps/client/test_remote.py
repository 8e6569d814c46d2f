"""RemoteStore: a worker over shards computes what a store of its own would, and copies are only so
old as was asked for.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import ps
import worker
from ps.client.remote import RemoteStore
from ps.launch import Launch
from storage.errors import StoreError, TerraceError, UnavailableError, WorkingSetError
from tests.ps.client.shards import SECONDS, SUMS, connect, forwarding, serving, wait_until

PLACES = torch.arange(1000)
"""One memory, or calls would not be those that were announced."""


class Worker:
    """A worker that adds whole numbers to rows: a row says which steps of whom are in it.

    Step n of rank r adds 1 to column r of every key of its batch.
    """

    def __init__(self, store: RemoteStore) -> None:
        self.store = store
        self.bag = worker.EmbeddingBag(store, "sums", mode="sum")
        self.sparse = worker.SparseOptimizer(store)

    def loop(self, batches: Sequence[Tensor], depth: int, **options: Any) -> Iterator[Tensor]:
        return worker.prefetch(
            batches, lambda ids: {self.bag: [(ids, PLACES[: len(ids)])]}, depth=depth, **options
        )

    def forward(self, ids: Tensor) -> Tensor:
        out = self.bag(ids, PLACES[: len(ids)])
        assert isinstance(out, Tensor)
        return out

    def step(self, ids: Tensor) -> Tensor:
        """The rows as the step saw them."""
        out = self.forward(ids)
        rows = out.detach().clone()
        out.backward(-torch.eye(4)[self.store.rank].expand(len(ids), 4))
        self.sparse.step()
        return rows


def ids_of(*ids: int) -> Tensor:
    return torch.tensor(ids)


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Worker]:
    with serving(tmp_path, 2) as served, connect(served) as store:
        one = Worker(store)
        yield one
        one.sparse.zero_grad()
        store.settle()
        if not store.planner.closed:
            assert store.stacks["sums"].top.pinned == 0
            assert store.stacks["sums"].top.check() == []
            assert not store.prefetching


@pytest.mark.parametrize("depth", [0, 2])
def test_alone_every_step_sees_all_steps_before(alone: Worker, depth: int) -> None:
    rng = np.random.default_rng(0)
    batches = [torch.from_numpy(rng.choice(50, 20, replace=False)) for _ in range(40)]
    count = torch.zeros(50)
    for ids in alone.loop(batches, depth):
        assert torch.equal(alone.step(ids)[:, 0], count[ids])
        count[ids] += 1
    assert alone.store.stacks["sums"].top.stats.keys == 40 * 20  # they were those announced
    assert alone.store.stats()["tables"]["sums"]["staleness"].keys() == {"0"}
    np.testing.assert_array_equal(alone.store.read("sums", np.arange(50))[:, 0], count.numpy())


@pytest.mark.parametrize("staleness", [1, 3])
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_copies_are_no_older_than_was_allowed(tmp_path: Path, staleness: int, depth: int) -> None:
    rng = np.random.default_rng(depth)
    batches = [torch.from_numpy(rng.choice(60, 25, replace=False)) for _ in range(60)]
    with (
        serving(tmp_path, 2) as served,
        connect(served, mode="async", staleness=staleness) as store,
    ):
        one, history = Worker(store), [torch.zeros(60)]
        for ids in one.loop(batches, depth):
            seen = one.step(ids)[:, 0]
            oldest = history[max(0, len(history) - 1 - staleness)]
            assert (seen >= oldest[ids]).all() and (seen <= history[-1][ids]).all()
            history.append(history[-1].clone())
            history[-1][ids] += 1
        ages = store.stats()["tables"]["sums"]["staleness"]
        assert max(map(int, ages)) <= staleness and sum(ages.values()) == 60 * 25
        np.testing.assert_array_equal(store.read("sums", np.arange(60))[:, 0], history[-1].numpy())


@pytest.mark.parametrize(
    ("staleness", "depth", "per_batch"), [(0, 0, 1), (0, 2, 1), (2, 2, 1), (1, 3, 1), (2, 2, 2)]
)
def test_two_workers_see_each_other_in_time(
    tmp_path: Path, staleness: int, depth: int, per_batch: int
) -> None:
    """Whatever the interleaving. per_batch: steps that each batch makes."""
    steps, rows = 30, 40

    def run(store: RemoteStore, seed: int) -> int:
        rng, one, made = np.random.default_rng(seed), Worker(store), 0
        batches = [torch.arange(rows) for _ in range(steps)]
        breaches = 0
        for ids in one.loop(batches, depth):
            entered = made
            out = one.forward(ids)
            seen = out.detach().clone()
            for number in range(per_batch):
                out = one.forward(ids) if number else out
                out.backward(-torch.eye(4)[store.rank].expand(rows, 4))
                one.sparse.step()
                made += 1
            breaches += int((seen[:, :2] < entered - staleness).sum())
            assert (seen[:, store.rank] <= entered).all()
            if rng.random() < 0.3:
                threading.Event().wait(rng.random() / 200)  # another interleaving
        ages = store.stats()["tables"]["sums"]["staleness"]
        assert per_batch > 1 or max(map(int, ages)) <= staleness
        store.checkpoint(steps)  # a meeting: nobody closes while another still trains
        return breaches

    with serving(tmp_path, 2) as served:
        stores = [
            connect(served, mode="async", staleness=staleness, launch=Launch(rank, 2))
            for rank in range(2)
        ]
        with ThreadPoolExecutor(2) as threads:
            found = [threads.submit(run, store, seed) for seed, store in enumerate(stores)]
            assert [one.result(3 * SECONDS) for one in found] == [0, 0]
        rows_then = stores[0].read("sums", np.arange(rows))
        assert (rows_then[:, :2] == steps * per_batch).all()
        for store in stores:
            store.close()


def test_a_pull_that_is_too_early_names_whom_it_waits_for(tmp_path: Path) -> None:
    with serving(tmp_path) as served:
        first = connect(served, mode="async", launch=Launch(0, 2), timeout_seconds=1.0)
        one = Worker(first)
        one.step(ids_of(1))
        with pytest.raises(
            UnavailableError, match=r"step 1 of worker 1 \(not connected yet\) at 0"
        ):
            one.step(ids_of(1))
        second = connect(served, mode="async", launch=Launch(1, 2))
        with pytest.raises(UnavailableError, match=r"waited for step 1 of train-1 at 0"):
            one.step(ids_of(1))
        Worker(second).step(ids_of(1))
        assert one.step(ids_of(1))[0, :2].tolist() == [1, 1]
        second.close()  # nobody waits for who has ended
        one.step(ids_of(1))
        one.step(ids_of(1))
        first.close()


def test_no_row_of_a_running_batch_changes_under_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    batches = [torch.from_numpy(rng.choice(30, 20, replace=False)) for _ in range(60)]
    with serving(tmp_path) as served, connect(served, mode="async", staleness=2) as store:
        one, top = Worker(store), store.stacks["sums"].top
        for number, ids in enumerate(one.loop(batches, 2)):
            places = top.place(ids.numpy().view(np.uint64))
            before = top.array.gather(places).tobytes()
            out = one.forward(ids)
            # Until the next but one is staged, if it comes to that.
            with suppress(AssertionError):
                wait_until(lambda n=number: len(store._released) > n, "", seconds=0.01)
            assert top.array.gather(places).tobytes() == before
            out.backward(-torch.ones(20, 4))
            assert top.array.gather(places).tobytes() == before
            one.sparse.step()


@pytest.mark.parametrize("staleness", [0, 2])
def test_calls_that_were_not_announced_see_what_they_should(tmp_path: Path, staleness: int) -> None:
    """They are staged in the loop's thread while the prefetch thread stages the same rows."""
    rng = np.random.default_rng(4)
    batches = [torch.from_numpy(rng.choice(40, 15, replace=False)) for _ in range(80)]
    with (
        serving(tmp_path) as served,
        connect(served, mode="async" if staleness else "sync", staleness=staleness) as store,
    ):
        one, history = Worker(store), [torch.zeros(40)]
        for number, ids in enumerate(one.loop(batches, 2)):
            other = batches[min(number + 1, 79)].flip(0)
            oldest = history[max(0, len(history) - 1 - staleness)]
            seen = one.forward(other)[:, 0].detach()
            assert (seen >= oldest[other]).all() and (seen <= history[-1][other]).all()
            one.step(ids)
            history.append(history[-1].clone())
            history[-1][ids] += 1


@pytest.mark.parametrize("staleness", [0, 2])
@pytest.mark.parametrize("end", ["break", "exception", "error of the loader"])
def test_a_loop_that_is_left_leaves_nothing(tmp_path: Path, staleness: int, end: str) -> None:
    rng = np.random.default_rng(5)
    batches = [torch.from_numpy(rng.choice(30, 15, replace=False)) for _ in range(12)]
    with (
        serving(tmp_path) as served,
        connect(served, mode="async" if staleness else "sync", staleness=staleness) as store,
    ):
        one, count = Worker(store), torch.zeros(30)

        def loader() -> Iterator[Tensor]:
            yield from batches[:6]
            if end == "error of the loader":
                raise LookupError
            yield from batches[6:]

        for _ in range(4):
            with suppress(LookupError):
                for number, ids in enumerate(one.loop(loader(), 3)):  # type: ignore[arg-type]
                    one.step(ids)
                    count[ids] += 1
                    if number == 3 and end == "break":
                        break
                    if number == 3 and end == "exception":
                        raise LookupError
            store.settle()
            top = store.stacks["sums"].top
            assert top.pinned == 0 and top.check() == [] and not store.prefetching
            # Working sets that nobody entered: what came for them is no copy.
            store.staleness = 0
            ids = torch.arange(30)
            assert torch.equal(one.forward(ids)[:, 0].detach(), count)
            one.sparse.zero_grad()
            store.settle()
            store.staleness = staleness


@pytest.mark.parametrize("staleness", [0, 3])
def test_little_memory_means_less_depth_and_no_deadlock(tmp_path: Path, staleness: int) -> None:
    rng = np.random.default_rng(6)
    mode = "async" if staleness else "sync"
    batches = [torch.from_numpy(rng.choice(500, 50, replace=False)) for _ in range(40)]
    with (
        serving(tmp_path) as served,
        connect(served, mode=mode, staleness=staleness, ram="4KiB") as store,
    ):
        top = store.stacks["sums"].top
        assert 50 <= top.limit < 100  # of two working sets only one fits
        one, count = Worker(store), torch.zeros(500)
        for ids in one.loop(batches, 3):
            one.step(ids)
            count[ids] += 1
        assert top.stats.evicted > 0 and top.check() == []
        np.testing.assert_array_equal(store.read("sums", np.arange(500))[:, 0], count.numpy())
        with pytest.raises(WorkingSetError) as caught:
            for ids in one.loop([batches[0], torch.arange(200)], 2):
                one.step(ids)
        assert caught.value.needed_bytes > 4096
        store.settle()
        assert top.pinned == 0 and top.check() == []


def test_a_batch_refused_at_its_second_table_changes_nothing(tmp_path: Path) -> None:
    tables = [SUMS, ps.Table("more", dim=4)]
    with serving(tmp_path) as served, connect(served, tables, ram="8KiB") as store:
        few, many = np.arange(10, dtype=np.uint64), np.arange(5000, dtype=np.uint64)
        hold = store.stage({"sums": [few], "more": [few]}).hold()
        before = [stack.top.stats.report() for stack in store.stacks.values()]
        steps = [stack.top.steps.copy() for stack in store.stacks.values()]
        with pytest.raises(WorkingSetError):
            store.stage({"sums": [np.arange(20, dtype=np.uint64)], "more": [many]})
        assert before == [stack.top.stats.report() for stack in store.stacks.values()]
        for stack, then in zip(store.stacks.values(), steps, strict=True):
            np.testing.assert_array_equal(stack.top.steps, then)
            assert stack.top.pinned == 10
        hold.drop()


def test_evaluation_in_the_middle_of_a_loop_counts_and_keeps_nothing(alone: Worker) -> None:
    batches = [torch.arange(10 * n, 10 * n + 20) for n in range(12)]
    count = torch.zeros(200)
    for ids in alone.loop(batches, 2):
        alone.step(ids)
        count[ids] += 1
        before = alone.store.stacks["sums"].top.stats.keys
        with torch.no_grad():
            every = torch.arange(200)
            assert torch.equal(alone.bag(every, every)[:, 0], count)
        assert alone.store.stacks["sums"].top.stats.keys == before


def test_a_reader_in_another_thread_changes_no_order(alone: Worker) -> None:
    over, failed = threading.Event(), []

    def read() -> None:
        try:
            last = 0.0
            while not over.is_set():
                now = float(alone.store.read("sums", np.array([1]))[0, 0])
                assert now >= last
                last = now
        except BaseException as error:
            failed.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(100):
        assert alone.step(torch.arange(20))[1, 0] == number
    over.set()
    reader.join(SECONDS)
    assert not failed


def test_rows_are_written_deleted_and_read(alone: Worker) -> None:
    store, keys = alone.store, np.array([5, 6, 2**63, 5], np.uint64)
    store.write("sums", keys, np.arange(16.0).reshape(4, 4))
    assert store.read("sums", keys)[:, 0].tolist() == [12, 4, 8, 12]  # the last counts
    store.write("sums", torch.tensor([6]), torch.full((1, 4), 9.0, dtype=torch.float64))
    assert alone.step(ids_of(6))[0].tolist() == [9, 9, 9, 9]
    assert store.read("sums", np.array([6]))[0].tolist() == [10, 9, 9, 9]
    store.delete("sums", keys[:2])
    assert not store.read("sums", keys[:2]).any()
    assert not alone.step(ids_of(5, 6)).any()
    alone.forward(ids_of(5)).sum().backward()
    with pytest.raises(StoreError, match="belong to a batch in flight"):
        store.delete("sums", np.array([5]))


@pytest.mark.parametrize("optimizer", [ps.SGD(lr=0.5), ps.Adam(lr=0.5)])
def test_a_write_inside_a_loop_is_seen_as_on_tiers_of_ones_own(
    tmp_path: Path, optimizer: Any
) -> None:
    table = ps.Table("sums", dim=4, optimizer=optimizer)

    def run(store: Any) -> tuple[list[float], int]:
        one, losses = Worker(store), []
        for number, ids in enumerate(one.loop([torch.arange(20)] * 6, 2)):
            if number in (2, 4):
                store.write("sums", np.array([3, 99]), np.full((2, 4), float(number)))
            loss = one.forward(ids).square().sum()
            loss.backward()
            one.sparse.step()
            losses.append(loss.item())
        return losses, store.digest()

    with ps.open(tmp_path / "own", [table], ram="4MiB", threads=1) as store:
        expected = run(store)
    with serving(tmp_path, 2) as served, connect(served, [table]) as store:
        assert run(store) == expected


def test_a_write_is_not_undone_by_copies_that_wait_for_their_batch(tmp_path: Path) -> None:
    ids = torch.arange(20)
    with serving(tmp_path) as served, connect(served, mode="async", staleness=2) as store:
        one = Worker(store)
        written = -1
        for number, _ in enumerate(one.loop([ids] * 2000, 2)):
            if written < 0 and store._pending:  # not at each batch: that depends on timing
                store.write("sums", np.array([3]), np.full((1, 4), 1e6))
                written = number
            seen = one.step(ids)
            assert written < 0 or seen[3, 0] >= 1e6
            if 0 <= written < number - 5:
                break
        assert written >= 0


def test_gradients_that_are_not_finite_are_left_out_and_counted(tmp_path: Path) -> None:
    def run(store: Any) -> tuple[int, int]:
        bag = worker.EmbeddingBag(store, "sums", mode="sum")
        sparse = worker.SparseOptimizer(store, on_nan="skip")
        gradient = torch.ones(3, 4)
        gradient[1, 2] = torch.nan
        bag(torch.arange(3), torch.arange(3)).backward(gradient)
        sparse.step()
        return sparse.skipped_rows, store.digest()

    with ps.open(tmp_path / "own", [SUMS], ram="4MiB") as store:
        expected = run(store)
    with serving(tmp_path) as served, connect(served) as store:
        assert run(store) == expected and expected[0] == 1
        assert store.stats()["skipped_rows"] == 1


def test_a_step_that_raises_first_counts_as_no_step(alone: Worker) -> None:
    alone.step(ids_of(1))
    alone.forward(ids_of(1)).backward(torch.full((1, 4), torch.nan))
    with pytest.raises(TerraceError, match="finite"):
        alone.sparse.step()
    assert alone.store.steps_made == 1
    assert alone.step(ids_of(1))[0, 0] == 1
    assert alone.store.steps_made == 2


def test_a_step_that_was_cut_in_two_is_not_gone_on_from(tmp_path: Path) -> None:
    """One shard of two was given its share, or a part; resume() makes it whole."""
    with serving(tmp_path, 2) as served:
        store = connect(served, timeout_seconds=0.5, push=1)
        one, both = Worker(store), torch.arange(64)
        one.step(both)
        store.checkpoint(1)
        served[1].deafen()
        with pytest.raises(UnavailableError, match="shard 1"):
            for _ in range(4):
                one.step(both)
        one.sparse.zero_grad()
        served[1].listen()
        if store.client.broken is not None:
            with pytest.raises(StoreError, match="go back to a checkpoint"):
                store.digest()
        assert store.resume()[0] == 1
        assert store.steps_made == 0
        assert (one.step(both)[:, 0] == 1).all()
        assert (store.read("sums", both.numpy())[:, 0] == 2).all()
        store.close()


def test_figures_are_given_while_a_shard_is_away(tmp_path: Path) -> None:
    with serving(tmp_path, 2) as served, connect(served) as store:
        Worker(store).step(torch.arange(9))
        store.client.flush()
        served[1].deafen()
        began = time.monotonic()
        shards = store.stats()["shards"]
        assert time.monotonic() - began < SECONDS / 2
        assert shards[0]["shard"] == 0 and "tables" in shards[0]
        assert shards[1]["shard"] == 1 and "shard 1 at" in shards[1]["away"]
        served[1].listen()
        assert "away" not in store.stats()["shards"][1]


def test_close_makes_all_durable_and_twice_is_fine(tmp_path: Path) -> None:
    with serving(tmp_path, 2, interval=3000.0) as served:
        store = connect(served)
        Worker(store).step(torch.arange(30))
        store.close()
        store.close()
        for one in served:
            one.crash()
            one.start()
        with connect(served, job="other") as store:
            assert (store.read("sums", np.arange(30))[:, 0] == 1).all()


def test_close_with_a_shard_away_is_one_error_in_time(tmp_path: Path) -> None:
    with serving(tmp_path, 2) as served:
        store = connect(served, timeout_seconds=0.5)
        Worker(store).step(torch.arange(30))
        served[1].deafen()
        began = time.monotonic()
        with pytest.raises(UnavailableError, match="shard 1") as caught:
            store.close()
        assert time.monotonic() - began < 5 and "\n" not in str(caught.value)
        store.close()
        served[1].listen()


def interrupted(wait: Callable[[], Any], waiting: Callable[[], Any]) -> None:
    """Ctrl-C in the main thread, once it waits."""

    def press() -> None:
        wait_until(waiting, "the wait")
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    presser = threading.Thread(target=press)
    presser.start()
    with pytest.raises(KeyboardInterrupt):
        wait()
    presser.join(SECONDS)


@pytest.mark.parametrize("call", ["pull", "flush", "digest", "checkpoint"])
def test_ctrl_c_in_a_wait_leaves_what_can_be_closed(tmp_path: Path, call: str) -> None:
    with serving(tmp_path, 2) as served, forwarding(served[1].port) as way:
        real, served[1].port = served[1].port, way.port
        store = connect(served, timeout_seconds=0.8 * SECONDS)
        served[1].port = real
        one = Worker(store)
        one.step(torch.arange(30))
        store.client.flush()
        way.passing.clear()
        calls: dict[str, Callable[[], Any]] = {
            "pull": lambda: one.forward(torch.arange(40, 60)),
            "flush": lambda: (store.client.push("sums", np.arange(9, dtype=np.uint64), *PUSH),
                              store.client.flush()),
            "digest": store.digest,
            "checkpoint": lambda: store.checkpoint(1),
        }  # fmt: skip
        before = threading.active_count()
        stuck = threading.Event()
        threading.Timer(0.2, stuck.set).start()
        interrupted(calls[call], stuck.is_set)
        assert threading.active_count() <= before + 2
        began = time.monotonic()
        store.abandon()
        assert time.monotonic() - began < SECONDS / 2


PUSH = (
    np.ones((9, 4), np.float32), np.ones(9, np.int32), ps.client.client.Step(1.0, 1, 1.0),
)  # fmt: skip
