"""Prefetch: the same run as without it, whatever happens to the loop, and nothing left behind."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import ps
import worker
from ps.store import Store
from storage.cache import CacheTier
from storage.due import NEEDED
from storage.errors import ClosedError, ConfigError, KeyRangeError, WorkingSetError
from tests.ps.client.shards import connect, serving

DIM = 6
TABLE = ps.Table("ads", dim=DIM, optimizer=ps.Adagrad(lr=0.5), init=ps.Normal(0.5))
SMALL = "640KiB"  # a thousand rows beside what is fixed
Batch = tuple[Tensor, Tensor]


def make_batches(count: int, *, seed: int = 0, most: int = 250, rows: int = 6000) -> list[Batch]:
    rng = np.random.default_rng(seed)
    batches = []
    for _ in range(count):
        size = int(rng.integers(1, most))
        ids = torch.from_numpy(rng.zipf(1.2, size) * 7919 % rows)
        offsets = torch.from_numpy(np.sort(rng.integers(0, size, 20)))
        offsets[0] = 0
        batches.append((ids, offsets))
    return batches


class Run:
    """A model over a store of its own."""

    def __init__(self, path: Path, *, ram: str = SMALL, hbm: str | None = None) -> None:
        # With lru what is pinned, used lately, makes no difference to who leaves.
        self.store = ps.open(path, [TABLE], ram=ram, hbm=hbm, threads=1, policy="lru")
        self.bag = worker.EmbeddingBag(self.store, "ads")
        self.sparse = worker.SparseOptimizer(self.store)
        self.losses: list[float] = []

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.store.abandon()

    def batches(self, loader: Any, depth: int, lookahead: int | None = None) -> Iterator[Batch]:
        keys: Callable[[Batch], Any] = lambda batch: {self.bag: [batch]}  # noqa: E731
        return worker.prefetch(loader, keys, depth=depth, lookahead=lookahead)

    def backward(self, batch: Batch) -> None:
        loss = self.bag(*batch).square().mean()
        loss.backward()
        self.losses.append(loss.item())

    def step(self, batch: Batch) -> None:
        self.backward(batch)
        self.sparse.step()

    def assert_clean(self) -> None:
        self.store.settle()
        assert self.store.stacks["ads"].top.pinned == 0
        assert not self.store.prefetching
        stack = self.store.stacks["ads"]
        assert stack.hierarchy.ahead is None and not (stack.top._pins & NEEDED).any()
        assert stack.budget.parts.get("look-ahead", 0) == 0
        assert not self.store.staged
        assert not [t for t in threading.enumerate() if t.name == "terrace-prefetch"]
        assert self.store.check() == []

    @property
    def tiers(self) -> Any:
        """Counters of all tiers: what was a hit, what was evicted."""
        return self.store.stats()["tables"]["ads"]["tiers"]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    with Run(tmp_path) as run:
        yield run
        run.sparse.zero_grad()
        run.assert_clean()


DEPTHS = pytest.mark.parametrize("depth", [0, 1, 3])


@DEPTHS
@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_batches_come_in_order_and_all(run: Run, depth: int, count: int) -> None:
    batches = make_batches(count)
    seen = []
    for batch in run.batches(iter(batches), depth):
        run.step(batch)
        seen.append(batch)
    assert [id(batch) for batch in seen] == [id(batch) for batch in batches]
    run.assert_clean()


@DEPTHS
def test_every_batch_is_resident_before_it_is_handed_out(run: Run, depth: int) -> None:
    for ids, _ in run.batches(make_batches(12), depth):
        top = run.store.stacks["ads"].top
        with run.store.planner:
            positions = top.place(ids.unique().numpy().view(np.uint64))
            assert (positions >= 0).all()
            assert not top.unpinned(positions).any()


@pytest.mark.parametrize("hbm", [None, "32KiB"])
def test_no_depth_changes_a_loss_a_row_or_what_is_evicted(tmp_path: Path, hbm: str | None) -> None:
    found = []
    for depth in (0, 1, 2, 4):
        with Run(tmp_path / str(depth), ram="700KiB" if hbm else SMALL, hbm=hbm) as run:
            for batch in run.batches(make_batches(60), depth):
                run.step(batch)
            run.assert_clean()
            assert run.tiers[0]["evicted"] > 500
            found.append((run.losses, run.tiers, run.store.digest()))
    assert all(one == found[0] for one in found)


@DEPTHS
@pytest.mark.parametrize("every", [1, 3])
def test_accumulation_is_the_same_run_at_every_depth(
    tmp_path: Path, depth: int, every: int
) -> None:
    found = []
    for number, staged in enumerate((False, True)):
        with Run(tmp_path / str(number)) as run:
            batches = make_batches(20, most=120)
            for i, batch in enumerate(run.batches(batches, depth) if staged else batches):
                run.backward(batch)
                if i % every == every - 1:
                    run.sparse.step()
            run.sparse.zero_grad()
            run.assert_clean()
            found.append((run.losses, run.tiers, run.store.digest()))
    assert found[0] == found[1]


class LoopError(Exception):
    """Raised by a test."""


def fail(*_: object) -> Any:
    raise LoopError


@DEPTHS
def test_a_break_leaves_nothing(run: Run, depth: int) -> None:
    for i, batch in enumerate(run.batches(make_batches(9), depth)):
        run.step(batch)
        if i == 4:
            break
    run.assert_clean()


@DEPTHS
@pytest.mark.parametrize("where", ["before", "forward", "backward", "step"])
def test_an_exception_in_the_loop_leaves_nothing(run: Run, depth: int, where: str) -> None:
    def loop() -> None:
        for i, batch in enumerate(run.batches(make_batches(9), depth)):
            if i == 4 and where == "before":
                fail()
            out = run.bag(*batch)
            if i == 4 and where == "forward":
                fail()
            out.sum().backward()
            if i == 4 and where == "backward":
                fail()
            run.sparse.step()
            if i == 4:
                fail()

    with pytest.raises(LoopError):
        loop()
    run.sparse.zero_grad()  # as of any torch optimizer whose step did not come
    run.assert_clean()


@DEPTHS
def test_an_error_of_the_loader_comes_at_its_batch(run: Run, depth: int) -> None:
    def loader() -> Iterator[Batch]:
        yield from make_batches(4)
        raise LoopError

    seen = 0
    with pytest.raises(LoopError):
        for batch in run.batches(loader(), depth):
            run.step(batch)
            seen += 1
    assert seen == 4
    run.assert_clean()


@DEPTHS
def test_an_error_of_the_keys_comes_at_its_batch(run: Run, depth: int) -> None:
    seen = 0
    batches = [*make_batches(3), None, *make_batches(2)]
    with pytest.raises(LoopError):
        for batch in worker.prefetch(
            batches, lambda b: {run.bag: [b]} if b else fail(), depth=depth
        ):
            run.step(batch)
            seen += 1
    assert seen == 3
    run.assert_clean()


@DEPTHS
def test_an_id_out_of_range_comes_at_its_batch(tmp_path: Path, depth: int) -> None:
    table = ps.Table("ads", dim=2, rows=10)
    with ps.open(tmp_path, [table], ram="2MiB", threads=1) as store:
        bag, sparse = worker.EmbeddingBag(store, "ads"), worker.SparseOptimizer(store)
        batches = [torch.tensor([[i]]) for i in (1, 2, 10, 3)]
        seen = []
        with pytest.raises(KeyRangeError):
            for ids in worker.prefetch(batches, lambda ids: {bag: [ids]}, depth=depth):
                bag(ids).sum().backward()
                sparse.step()
                seen.append(int(ids))
        assert seen == [1, 2]
        store.settle()
        assert store.stacks["ads"].top.pinned == 0


@DEPTHS
def test_a_loop_without_backward_or_step_leaves_nothing(run: Run, depth: int) -> None:
    for batch in run.batches(make_batches(30), depth):
        run.bag(*batch)
    run.assert_clean()
    for _ in run.batches(make_batches(30), depth):
        pass
    run.assert_clean()
    for batch in run.batches(make_batches(4, most=100), depth):
        run.backward(batch)
    assert run.store.stacks["ads"].top.pinned > 0  # gradients wait, as in any torch optimizer
    run.sparse.zero_grad()
    run.assert_clean()


@DEPTHS
def test_loops_follow_each_other(tmp_path: Path, depth: int) -> None:
    found = []
    for cut in (0, 10):
        with Run(tmp_path / str(cut)) as run:
            batches = make_batches(25)
            for part in (batches[:cut], batches[cut:]):
                for batch in run.batches(part, depth):
                    run.step(batch)
            run.assert_clean()
            found.append((run.losses, run.store.digest()))
    assert found[0] == found[1]


@pytest.mark.parametrize("depth", [0, 2])
def test_a_loop_inside_a_loop_over_one_store_is_refused(run: Run, depth: int) -> None:
    for batch in run.batches(make_batches(3), depth):
        with pytest.raises(ConfigError, match="another loop"):
            next(iter(run.batches(make_batches(3), depth)))
        run.step(batch)
    run.assert_clean()


def test_several_stores_in_one_loop_are_refused(run: Run, tmp_path: Path) -> None:
    with Run(tmp_path / "other") as other:
        keys: Callable[[Batch], Any] = lambda b: {run.bag: [b], other.bag: [b]}  # noqa: E731
        with pytest.raises(ConfigError, match="several stores"):
            next(worker.prefetch(make_batches(1), keys))


def test_a_negative_depth_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="depth"):
        worker.prefetch([], lambda batch: {}, depth=-1)


@DEPTHS
def test_calls_that_were_not_announced_work_too(tmp_path: Path, depth: int) -> None:
    found = []
    for announced in (True, False):
        with Run(tmp_path / str(announced), ram="4MiB") as run:
            other = worker.EmbeddingBag(run.store, "ads", mode="mean")
            keys = (lambda b: {run.bag: [b]}) if announced else (lambda b: {other: [b]})  # noqa: B023
            for ids, offsets in worker.prefetch(make_batches(15), keys, depth=depth):
                loss = (
                    run.bag(ids, offsets).square().mean() + run.bag(ids[:1] + 5, offsets[:1]).sum()
                )
                loss.backward()
                run.sparse.step()
                run.losses.append(loss.item())
            run.assert_clean()
            found.append((run.losses, run.store.digest()))
    assert found[0] == found[1]


@DEPTHS
def test_batches_that_need_no_rows_pass_through(run: Run, depth: int) -> None:
    batches = make_batches(6)
    keys: Callable[[Any], Any] = lambda b: {} if isinstance(b, int) else {run.bag: [b]}  # noqa: E731
    seen: list[Any] = []
    for batch in worker.prefetch([0, *batches[:3], 1, 2, *batches[3:], 3], keys, depth=depth):
        if isinstance(batch, int):
            seen.append(batch)
        else:
            run.step(batch)
    assert seen == [0, 1, 2, 3]
    run.assert_clean()


@pytest.mark.parametrize("depth", [1, 2, 16])
def test_little_ram_shrinks_the_look_ahead_and_never_blocks(tmp_path: Path, depth: int) -> None:
    """Each working set is most of the tier, so that no two fit beside each other."""
    rng = np.random.default_rng(0)
    batches = [
        (torch.from_numpy(rng.choice(4000, 900, replace=False)), torch.tensor([0, 300]))
        for _ in range(12)
    ]
    found = []
    for ahead in (0, depth):
        with Run(tmp_path / str(ahead)) as run:
            assert run.store.stacks["ads"].top.limit < 2 * 900 * 0.8
            for batch in run.batches(batches, ahead):
                run.step(batch)
            run.assert_clean()
            found.append((run.losses, run.tiers, run.store.digest()))
    assert found[0] == found[1]


@DEPTHS
def test_a_batch_too_large_is_an_error_at_its_place_and_says_what_would_do(
    tmp_path: Path, depth: int
) -> None:
    large = (torch.arange(20_000), torch.tensor([0, 7]))
    batches = [*make_batches(5), large, *make_batches(5)]
    with Run(tmp_path / "small") as run:
        with pytest.raises(WorkingSetError) as caught:
            for batch in run.batches(batches, depth):
                run.step(batch)
        assert len(run.losses) == 5
        run.assert_clean()
        after_five = run.store.digest()
    with Run(tmp_path / "five") as run:
        for batch in batches[:5]:
            run.step(batch)
        assert run.store.digest() == after_five
    with Run(tmp_path / "large", ram=str(caught.value.needed_bytes)) as run:
        for batch in run.batches(batches, depth):
            run.step(batch)
        assert len(run.losses) == 11


def test_closing_the_store_inside_the_loop_ends_it(tmp_path: Path) -> None:
    store = ps.open(tmp_path, [TABLE], ram=SMALL, threads=1)
    bag = worker.EmbeddingBag(store, "ads")
    seen = 0
    with pytest.raises(ClosedError):
        for batch in worker.prefetch(make_batches(30), lambda b: {bag: [b]}, depth=2):
            seen += 1
            if seen == 3:
                store.close()
                with pytest.raises(ClosedError):
                    bag(*batch)
    assert 3 <= seen <= 5  # what was ready is handed out still
    assert not [t for t in threading.enumerate() if t.name == "terrace-prefetch"]


class Oracle:
    """Adagrad on a dict of rows, in float64."""

    def __init__(self) -> None:
        self.rows: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def row(self, key: int) -> tuple[np.ndarray, np.ndarray]:
        if key not in self.rows:
            fresh = TABLE.fresh(np.array([key], np.uint64))[0].astype(np.float64)
            self.rows[key] = (fresh[:DIM], fresh[DIM:])
        return self.rows[key]

    def step(self, batch: Batch) -> float:
        """One step of the loss mean(square(bag sums))."""
        ids, edges = batch[0].tolist(), [*batch[1].tolist(), len(batch[0])]
        bags = [ids[a:b] for a, b in itertools.pairwise(edges)]
        sums = np.stack([sum((self.row(k)[0] for k in bag), np.zeros(DIM)) for bag in bags])
        slopes: dict[int, np.ndarray] = {}
        for bag, total in zip(bags, sums, strict=True):
            for key in bag:
                slopes[key] = slopes.get(key, np.zeros(DIM)) + 2 * total / sums.size
        for key, slope in slopes.items():
            values, squares = self.row(key)
            squares += slope**2
            values -= 0.5 * slope / (np.sqrt(squares) + 1e-10)
        return float(np.square(sums).mean())


def uniform_batches(count: int) -> list[Batch]:
    """Each of about 200 rows out of 3000: three times what the tier holds."""
    rng = np.random.default_rng(3)
    offsets = torch.arange(0, 200, 10)
    return [(torch.from_numpy(rng.integers(0, 3000, 200)), offsets) for _ in range(count)]


def agrees_with_the_oracle(path: Path, depth: int, *, read_ahead: int = 0) -> bool:
    """read_ahead: batches that the thread must have read ahead before each is computed."""
    batches, oracle = uniform_batches(60), Oracle()
    expected = [oracle.step(batch) for batch in batches]
    announced = [threading.Event() for _ in batches]
    numbers = iter(announced)

    with Run(path) as run:

        def keys(batch: Batch) -> dict[Any, list[Batch]]:
            next(numbers).set()
            return {run.bag: [batch]}

        for i, batch in enumerate(worker.prefetch(batches, keys, depth=depth)):
            assert announced[min(i + read_ahead, len(batches) - 1)].wait(30)
            run.step(batch)
        known = np.array(list(oracle.rows), np.int64)
        rows = np.stack([values for values, _ in oracle.rows.values()])
        return np.allclose(run.losses, expected, rtol=1e-3) and np.allclose(
            run.store.read("ads", known), rows, rtol=1e-2, atol=1e-3
        )


@pytest.mark.parametrize("depth", [0, 2, 12])
def test_rows_are_those_of_a_dict_under_constant_eviction(tmp_path: Path, depth: int) -> None:
    assert agrees_with_the_oracle(tmp_path, depth)


def test_and_the_same_check_breaks_a_version_without_pins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it did not, the test above would prove nothing about pins."""
    monkeypatch.setattr(CacheTier, "pin", lambda self, positions: None)
    monkeypatch.setattr(CacheTier, "unpin", lambda self, positions: None)
    # Twelve batches are more than the tier holds: the running one's rows are evicted under it.
    assert not agrees_with_the_oracle(tmp_path, 12, read_ahead=12)


# -- look-ahead ------------------------------------------------------------------------------------

AHEAD = pytest.mark.parametrize(("depth", "lookahead"), [(0, 6), (2, 6), (2, 40)])


@pytest.mark.parametrize("hbm", [None, "32KiB"])
def test_with_look_ahead_fewer_rows_are_read_and_results_stay(
    tmp_path: Path, hbm: str | None
) -> None:
    found = {}
    for lookahead in (2, 8):
        with Run(tmp_path / str(lookahead), ram="700KiB" if hbm else SMALL, hbm=hbm) as run:
            for batch in run.batches(make_batches(80), 2, lookahead):
                run.step(batch)
            run.assert_clean()
            found[lookahead] = (run.losses, run.store.digest()), run.tiers
    assert found[2][0] == found[8][0]
    assert found[8][1][0]["key_hits"] > found[2][1][0]["key_hits"]
    if hbm is None:
        assert found[8][1][-1]["rows_read"] < found[2][1][-1]["rows_read"]


def test_what_is_known_depends_on_batches_and_not_on_time(tmp_path: Path) -> None:
    """At one distance beyond the batch that is staged, no depth makes a difference."""
    found = []
    for depth in (0, 1, 3):
        with Run(tmp_path / str(depth)) as run:
            for batch in run.batches(make_batches(60), depth, depth + 5):
                run.step(batch)
            run.assert_clean()
            found.append((run.losses, run.tiers, run.store.digest()))
    assert found[0][1][0]["evicted"] > 500
    assert all(one == found[0] for one in found)


@pytest.mark.parametrize("lookahead", [0, 1, 6, 40])
def test_every_use_is_a_hit_a_miss_or_first_seen_exactly_once(
    tmp_path: Path, lookahead: int
) -> None:
    batches = make_batches(60)
    with Run(tmp_path) as run:
        for batch in run.batches(batches, 0, lookahead):
            run.step(batch)
        report = run.store.stats()["tables"]["ads"]
        top, ssd = report["tiers"]
        unique = [set(ids.tolist()) for ids, _ in batches]
        assert top["keys"] == sum(map(len, unique))
        assert top["accesses"] == sum(len(ids) for ids, _ in batches)
        assert ssd["keys"] == top["keys"] - top["key_hits"]
        assert ssd["accesses"] == top["accesses"] - top["access_hits"]
        assert report["first_seen"]["keys"] == ssd["keys"] - ssd["key_hits"]
        assert report["first_seen"]["keys"] == len(set().union(*unique))
        assert ssd["rows_read"] >= ssd["key_hits"] > 0


@AHEAD
@pytest.mark.parametrize("end", ["break", "exception", "loader", "all"])
def test_however_the_loop_ends_no_row_is_kept(
    run: Run, depth: int, lookahead: int, end: str
) -> None:
    def loader() -> Iterator[Batch]:
        yield from make_batches(12)
        if end == "loader":
            raise LoopError

    def loop() -> None:
        for i, batch in enumerate(run.batches(loader(), depth, lookahead)):
            with run.store.planner:
                assert run.store.stacks["ads"].top.check() == []
            run.step(batch)
            if i == 5 and end == "break":
                return
            if i == 5 and end == "exception":
                raise LoopError

    if end in ("exception", "loader"):
        with pytest.raises(LoopError):
            loop()
    else:
        loop()
    if end in ("loader", "all"):
        assert len(run.losses) == 12
    run.assert_clean()


def test_the_cache_has_its_memory_back_after_each_loop(tmp_path: Path) -> None:
    with Run(tmp_path, ram="4MiB") as run:
        top, budget = run.store.stacks["ads"].top, run.store.stacks["ads"].budget
        limit = top.limit
        for _ in range(3):
            for batch in run.batches(make_batches(10), 1, 8):
                run.step(batch)
                assert top.limit <= limit and budget.parts["look-ahead"] > 4 * limit
                assert budget.peak <= budget.total
            run.assert_clean()
            assert top.limit == limit


@pytest.mark.parametrize(("depth", "lookahead"), [(0, 1), (1, 16), (16, 17)])
def test_little_ram_shrinks_depth_and_look_ahead_before_a_batch_is_refused(
    tmp_path: Path, depth: int, lookahead: int
) -> None:
    def loop(path: Path, large: int, depth: int, lookahead: int) -> tuple[list[float], int]:
        rng = np.random.default_rng(0)
        # First small ones, so that look-ahead begins; then one that needs every position there is.
        sizes = [50] * 6 + [large, large // 2] + [50] * 6 + [large]
        ids = [torch.from_numpy(rng.choice(1100, size, replace=False)) for size in sizes]
        with Run(path) as run:
            for batch in run.batches(
                [(some, torch.tensor([0, 20])) for some in ids], depth, lookahead
            ):
                run.step(batch)
            run.assert_clean()
            return run.losses, run.store.digest()

    for large in range(1060, 0, -5):
        with suppress(WorkingSetError):
            expected = loop(tmp_path / f"plain{large}", large, 0, 0)
            break
    assert loop(tmp_path / "ahead", large, depth, lookahead) == expected


def test_rows_pinned_from_before_leave_the_loop_without_look_ahead(run: Run) -> None:
    run.backward(make_batches(1)[0])  # a gradient that waits
    for batch in run.batches(make_batches(5), 1, 4):
        assert run.store.stacks["ads"].hierarchy.ahead is None
        run.bag(*batch)
    run.sparse.zero_grad()
    run.assert_clean()


@AHEAD
def test_batches_that_were_not_announced_are_staged_between(
    run: Run, depth: int, lookahead: int
) -> None:
    other = make_batches(12, seed=9, most=60)
    for batch, more in zip(run.batches(make_batches(12), depth, lookahead), other, strict=True):
        (run.bag(*batch).square().mean() + run.bag(*more).square().mean()).backward()
        run.sparse.step()
        with run.store.planner:
            assert run.store.stacks["ads"].top.check() == []
    run.assert_clean()


def test_a_look_ahead_below_the_depth_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"lookahead.*3.*got 2"):
        worker.prefetch([], lambda batch: {}, depth=3, lookahead=2)


def test_stores_are_prefetched_side_by_side(tmp_path: Path) -> None:
    with Run(tmp_path / "a") as one, Run(tmp_path / "b") as other:
        pairs = zip(one.batches(make_batches(8), 2), other.batches(make_batches(8), 2), strict=True)
        for mine, its in pairs:
            one.step(mine)
            other.step(its)
        one.assert_clean()
        assert one.losses == other.losses


def test_a_store_may_be_checkpointed_and_written_inside_the_loop(tmp_path: Path) -> None:
    def work(store: Store, number: int) -> None:
        if number % 5 == 0:
            store.checkpoint(number)
        if number % 7 == 0:
            store.write("ads", np.array([10**6 + number]), np.ones((1, DIM)))

    found = []
    for depth in (0, 3):
        with Run(tmp_path / str(depth)) as run:
            for number, batch in enumerate(run.batches(make_batches(30), depth)):
                run.step(batch)
                work(run.store, number)
            run.assert_clean()
            found.append((run.losses, run.store.digest(), run.store.checkpoints))
    assert found[0] == found[1]


class Noted:
    """Told of each batch that is staged."""

    def __init__(self, note: Callable[[], None]) -> None:
        self._note = note

    def staged(self, requests: Any, unique: Any) -> None:
        self._note()

    def close(self) -> None:
        pass


@pytest.mark.parametrize(("depth", "staleness"), [(3, 0), (3, 1), (1, 4), (0, 2)])
def test_over_shards_no_batch_is_staged_before_its_rows_may_be_read(
    tmp_path: Path, depth: int, staleness: int
) -> None:
    """And each is entered before it is handed out: what came for it is in place."""
    with serving(tmp_path) as served:
        mode = "async" if staleness else "sync"
        with connect(served, [TABLE], mode=mode, staleness=staleness) as store:
            bag, sparse = worker.EmbeddingBag(store, "ads"), worker.SparseOptimizer(store)
            staged: list[int] = []
            store.observers.add(Noted(lambda: staged.append(store.steps_made)))
            batches = [(torch.arange(30), torch.arange(30))] * 12
            keys: Callable[[Batch], Any] = lambda batch: {bag: [batch]}  # noqa: E731
            for number, batch in enumerate(worker.prefetch(batches, keys, depth=depth)):
                assert not store._pending or staleness > 0
                assert all(not one.working_set.arrived for one in store.staged)
                assert len(staged) <= number + 1 + min(depth, staleness)
                bag(*batch).sum().backward()
                sparse.step()
            # Made when it was staged: all steps but those it may be ahead of.
            assert all(made >= n - min(depth, staleness) for n, made in enumerate(staged))
            assert len(staged) == 12
