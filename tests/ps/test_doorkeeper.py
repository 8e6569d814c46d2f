"""Doorkeeper: what it decides, against a dict; and in a store, who gets a row and what is kept."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ps
import worker
from ps.admission import Admission
from ps.backup import back_up
from ps.doorkeeper import Doorkeeper, bytes_held
from ps.record import condensed
from ps.salvage import diagnose
from ps.shrink import repair, shrink
from ps.state import pack_state, unpack_state
from ps.store import Store
from ps.table import Table
from ps.transfer import export_store, import_store
from storage.errors import ConfigError, CorruptError
from storage.log import BlockLog

KINDS = [ps.CountMin(3, decay=4), ps.ExactCount(3, decay=4), ps.Probability(0.3)]
any_kind = pytest.mark.parametrize("admission", KINDS, ids=lambda kind: kind.kind)
DIM = 3


def ads(admission: Admission | None, **more: Any) -> Table:
    options = {"optimizer": ps.SGD(lr=1.0), "init": ps.Uniform(0.1), **more}
    return Table("ads", dim=DIM, admission=admission, **options)


def step(store: Store, ids: Sequence[int], *, uses: int = 1) -> None:
    """One training step of these ids, each in a bag of its own, with a gradient of 1."""
    bag, sparse = worker.EmbeddingBag(store, "ads"), worker.SparseOptimizer(store)
    sparse.param_groups[0]["steps"] = store.stacks["ads"].step
    for _ in range(uses):
        bag(torch.tensor(ids).view(-1, 1)).sum().backward()
    sparse.step()
    store.settle()


def fresh(store: Store, ids: Sequence[int]) -> Any:
    return store.tables["ads"].fresh(np.array(ids, np.uint64))[:, :DIM]


def rows_of(store: Store) -> dict[int, list[float]]:
    """Embeddings of all rows there are, by key: writes what is dirty to the log and reads it."""
    return {
        int(key): values[:DIM].tolist()
        for rows in store.scan("ads")
        for key, values in zip(rows.keys, rows.values, strict=True)
    }


def told(store: Store) -> dict[str, Any]:
    report: dict[str, Any] = store.stats()["tables"]["ads"]["admission"]
    return report


# -- alone ---------------------------------------------------------------------------------------

batches = st.lists(st.dictionaries(st.integers(0, 30), st.integers(1, 3)), max_size=25)


@pytest.mark.parametrize("kind", [ps.CountMin, ps.ExactCount])
@given(batches=batches, times=st.integers(1, 5), decay=st.sampled_from([None, 1, 3]))
def test_a_key_gets_in_when_it_came_often_enough(
    kind: Callable[..., Admission], batches: list, times: int, decay: int | None
) -> None:
    doorkeeper = Doorkeeper(ads(kind(times, decay=decay)))
    counts: Counter[int] = Counter()
    inside: set[int] = set()
    for number, batch in enumerate(batches, start=1):
        if decay is not None and number % decay == 0:
            counts = Counter({key: count // 2 for key, count in counts.items()})
        new = {key: uses for key, uses in batch.items() if key not in inside}
        counts.update(new)
        keys = np.array(list(new), np.uint64)
        uses = np.array(list(new.values()), np.int32)
        # A shard is asked about a step piece by piece.
        pieces = [slice(0, len(keys) // 2), slice(len(keys) // 2, None)]
        admitted = np.concatenate(
            [doorkeeper.admits(keys[piece], uses[piece], number) for piece in pieces]
        )
        assert admitted.tolist() == [counts[key] >= times for key in new]
        inside.update(key for key in new if counts[key] >= times)
    report = doorkeeper.report()
    assert report["keys_admitted"] == len(inside)


def test_chance_lets_in_after_as_many_uses_as_it_says() -> None:
    doorkeeper = Doorkeeper(ads(ps.Probability(0.25)))
    waiting, waited = np.arange(4000, dtype=np.uint64), 0
    for step in range(1, 61):
        waited += len(waiting)
        admitted = doorkeeper.admits(waiting, np.ones(len(waiting), np.int32), step)
        waiting = waiting[~admitted]
    assert waited / 4000 == pytest.approx(4, rel=0.05)


@any_kind
def test_what_it_knows_is_saved_whole(admission: Admission) -> None:
    one, other = Doorkeeper(ads(admission)), Doorkeeper(ads(admission))
    rng = np.random.default_rng(0)

    def batch() -> tuple[Any, Any]:
        keys = rng.choice(500, 80, replace=False).astype(np.uint64)
        return keys, rng.integers(1, 3, 80).astype(np.int32)

    for step in range(1, 8):
        one.admits(*batch(), step)
    saved = unpack_state(*pack_state({"x": one.save()}))["x"]
    one_more = batch()
    expected = one.admits(*one_more, 8)
    other.restore(saved)
    assert np.array_equal(other.admits(*one_more, 8), expected)
    for step in range(9, 14):
        following = batch()
        assert np.array_equal(one.admits(*following, step), other.admits(*following, step))


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "luck"},
        {"steps": "x"},
        {"counts": {}},
        {"counts": {"cells": torch.zeros(3)}},
        {"counts": {"cells": 3}},
        {"counts": 3},
    ],
    ids=repr,
)
def test_what_was_not_saved_by_one_is_corrupt(change: dict[str, Any]) -> None:
    doorkeeper = Doorkeeper(ads(ps.CountMin(2)))
    saved = unpack_state(*pack_state(doorkeeper.save()))
    with pytest.raises(CorruptError, match="'ads'"):
        doorkeeper.restore({**saved, **change})


# -- in a store ----------------------------------------------------------------------------------


@pytest.mark.parametrize("hbm", [None, "64KiB"])
@pytest.mark.parametrize("kind", [ps.CountMin, ps.ExactCount])
def test_a_key_has_a_row_from_the_step_on_that_admits_it(
    tmp_path: Path, kind: Callable[..., Admission], hbm: str | None
) -> None:
    with ps.open(tmp_path, [ads(kind(3))], ram="12MiB", hbm=hbm, threads=1) as store:
        step(store, [1, 2, 2, 5])
        step(store, [1, 2, 6])
        assert rows_of(store).keys() == {2}  # its third use, and with it a gradient of 1
        assert np.allclose(store.read("ads", np.array([2])), fresh(store, [2]) - 1)
        assert np.array_equal(store.read("ads", np.array([1, 5])), fresh(store, [1, 5]))
        step(store, [1, 2, 1])
        assert rows_of(store).keys() == {1, 2}
        assert np.allclose(store.read("ads", np.array([1])), fresh(store, [1]) - 2)
        assert told(store)["keys_refused"] == 3 + 2 and told(store)["keys_admitted"] == 2
        assert told(store)["gradients_dropped"] == 4 + 2
        assert store.check() == []


@pytest.mark.parametrize("how", ["sum", "two records", "max", "clipped", "accumulated"])
def test_every_way_of_recording_counts_and_drops_alike(tmp_path: Path, how: str) -> None:
    """Uses are counted one by one, however the gradients reach the step."""
    mode = "max" if how == "max" else "sum"
    with ps.open(tmp_path, [ads(ps.ExactCount(3))], ram="12MiB", threads=1) as store:
        bag, sparse = worker.EmbeddingBag(store, "ads", mode=mode), worker.SparseOptimizer(store)

        def use(ids: list[int]) -> None:
            bag(torch.tensor(ids).view(-1, 1)).sum().backward()

        if how in ("sum", "max"):
            use([1, 1, 2, 3, 1])
        elif how == "accumulated":
            use([1, 1])
            use([2, 3, 1])
        else:
            first, second = torch.tensor([[1], [1]]), torch.tensor([[2], [3], [1]])
            (bag(first).sum() + bag(second).sum()).backward()
        if how == "clipped":
            assert worker.clip_grad_norm_([], sparse, 1e9) == pytest.approx(DIM**0.5 * 11**0.5)
        sparse.step()
        assert rows_of(store).keys() == {1}
        assert np.allclose(store.read("ads", np.array([1])), fresh(store, [1]) - 3)
        assert told(store)["gradients_dropped"] == 2


def test_tensor_operations_drop_what_kernels_drop(tmp_path: Path) -> None:
    """The path of other devices, on CPU tensors."""
    digests = []
    for where in ("host", "device"):
        table = ads(ps.ExactCount(2), optimizer=ps.Adagrad(lr=0.1))
        with ps.open(tmp_path / where, [table], ram="12MiB", hbm="64KiB", threads=1) as store:
            if where == "device":
                store.stacks["ads"].top.array.host = None  # type: ignore[union-attr]
            for number in range(6):
                step(store, [7 * number % 5, number, number, 3 * number % 7], uses=1 + number % 2)
            digests.append((store.digest(), told(store)))
    assert digests[0] == digests[1]


@any_kind
def test_evaluation_never_counts(tmp_path: Path, admission: Admission) -> None:
    with ps.open(tmp_path, [ads(admission)], ram="12MiB", threads=1) as store:
        bag = worker.EmbeddingBag(store, "ads").eval()
        for _ in range(5):
            assert torch.equal(
                bag(torch.arange(9).view(-1, 1)), torch.from_numpy(fresh(store, range(9)))
            )
            store.read("ads", np.arange(9))
        bag.train()
        bag(torch.arange(9).view(-1, 1))  # a forward pass without a step
        store.settle()
        assert not store.stacks["ads"].doorkeeper.changed  # type: ignore[union-attr]
        assert told(store)["keys_refused"] == told(store)["keys_admitted"] == 0
        assert rows_of(store) == {}


def test_a_key_that_is_refused_never_reaches_the_ssd(tmp_path: Path) -> None:
    """With a top tier of little more than a batch: what leaves is not written."""
    rng, counts, table = np.random.default_rng(0), Counter[int](), ads(ps.ExactCount(3))
    ram = (900 << 10) + bytes_held(table)
    with ps.open(tmp_path, [table], ram=ram, threads=1) as store:
        for _ in range(150):
            ids = np.where(
                rng.random(400) < 0.5, rng.zipf(1.5, 400) % 500, rng.integers(0, 10**6, 400)
            )
            counts.update(ids.tolist())
            step(store, ids.tolist())
        top, ssd = store.stacks["ads"].top, store.stacks["ads"].ssd
        assert top.stats.evicted > 20_000
        rows = rows_of(store)
        assert rows.keys() == {key for key, count in counts.items() if count >= 3}
        assert len(rows) <= ssd.stats.rows_written < 0.05 * len(counts)
        assert store.check() == []


def test_a_key_without_a_row_leaves_the_cache_first(tmp_path: Path) -> None:
    table = ads(ps.ExactCount(2, bytes=1 << 16))
    with ps.open(tmp_path, [table], ram="1MiB", threads=1) as store:
        top = store.stacks["ads"].top
        known = list(range(1000))
        step(store, [*known, *known])
        for start in range(10_000, 10_000 + 4 * top.limit, 500):
            step(store, list(range(start, start + 500)))
        assert (top.place(np.array(known, np.uint64)) >= 0).all()
        assert told(store)["keys_admitted"] == 1000


def test_a_key_without_a_row_takes_no_place_in_the_middle_tier(tmp_path: Path) -> None:
    table = ads(ps.ExactCount(2, bytes=1 << 16))
    with ps.open(tmp_path, [table], ram="4MiB", hbm="6KiB", threads=1) as store:
        top, ram = store.stacks["ads"].caches
        for start in range(0, 6000, 400):
            step(store, [*range(start, start + 400), *range(start, start + 50)])
        assert top.stats.evicted > 3000
        keys = ram.keys_at(ram.occupied())
        assert len(keys) > 0 and (keys % np.uint64(400) < 50).all()
        assert store.check() == []


@any_kind
def test_rows_that_are_written_are_there(tmp_path: Path, admission: Admission) -> None:
    """Whatever was counted, before the first step and while a batch is in flight too."""
    with ps.open(tmp_path, [ads(admission)], ram="12MiB", threads=1) as store:
        store.write("ads", np.array([1]), np.ones((1, DIM)))
        store.cut()
        working_set = store.stage({"ads": [np.array([1, 2], np.uint64)]})
        store.write("ads", np.array([2]), np.ones((1, DIM)))
        store.checkpoint(0)
        hold = working_set.hold()
        step(store, [1, 2])
        hold.drop()
        assert (store.read("ads", np.array([1, 2])) == 0).all()
    with ps.open(tmp_path, None, ram="12MiB", threads=1) as store:
        step(store, [1, 2])
        assert (store.read("ads", np.array([1, 2])) == -1).all()


def test_imported_rows_are_there(tmp_path: Path) -> None:
    with ps.open(tmp_path / "a", [ads(None)], ram="12MiB") as store:
        store.write("ads", np.arange(50), np.ones((50, DIM)))
        export_store(store, tmp_path / "out")
    with ps.open(tmp_path / "b", [ads(ps.CountMin(9))], ram="12MiB", threads=1) as store:
        import_store(tmp_path / "out", store)
        step(store, [7, 70])
        assert store.read("ads", np.array([7])).tolist() == [[0.0] * DIM]
        digest = store.digest()
        export_store(store, tmp_path / "again")
    import_store(tmp_path / "again", tmp_path / "c")
    with ps.open(tmp_path / "c", None, ram="12MiB") as store:
        assert store.tables["ads"].admission == ps.CountMin(9)
        assert store.digest() == digest


@pytest.mark.parametrize("expire", [False, True])
def test_deleted_and_expired_keys_start_anew(tmp_path: Path, expire: bool) -> None:
    with ps.open(tmp_path, [ads(ps.ExactCount(2))], ram="12MiB", threads=1) as store:
        step(store, [1, 1, 2])
        if expire:
            step(store, [5])
            step(store, [5])
            assert store.expire(1) == 1
        else:
            store.delete("ads", np.array([1, 2]))
        assert 1 not in rows_of(store)
        step(store, [1, 2])
        rows = rows_of(store)
        assert 1 not in rows and (2 in rows) == expire  # expiry is of rows, and 2 had none
        step(store, [1, 2])
        assert rows_of(store).keys() >= {1, 2}
        assert np.allclose(store.read("ads", np.array([1])), fresh(store, [1]) - 1)


# -- what lasts ----------------------------------------------------------------------------------


def steps_of(count: int) -> list[list[int]]:
    rng = np.random.default_rng(4)
    return [rng.integers(0, 250, 60).tolist() for _ in range(count)]


def train(store: Store, first: int, last: int) -> None:
    """The steps ``first`` to below ``last``; the optimizer's own count goes on."""
    bag, sparse = worker.EmbeddingBag(store, "ads"), worker.SparseOptimizer(store)
    sparse.param_groups[0]["steps"] = first
    for ids in steps_of(last)[first:]:
        bag(torch.tensor(ids).view(-1, 1)).square().sum().backward()
        sparse.step()
        store.settle()


def killed(path: Path, table: Table, durability: str) -> None:
    """A process that makes a checkpoint, goes on, and is killed."""
    with ps.open(path, [table], ram="12MiB", threads=1, durability=durability) as store:
        train(store, 0, 10)
        store.checkpoint(10, {"mine": 1})
        train(store, 10, 15)
        os.kill(os.getpid(), signal.SIGKILL)


@any_kind
@pytest.mark.parametrize("durability", ["checkpoint", "strict"])
def test_a_run_that_was_killed_and_resumes_equals_an_undisturbed_one(
    tmp_path: Path, admission: Admission, durability: str
) -> None:
    table = ads(admission, optimizer=ps.Adagrad(lr=0.1))
    with ps.open(tmp_path / "whole", [table], ram="12MiB", threads=1) as store:
        train(store, 0, 25)
        expected = store.digest(), rows_of(store).keys()
    process = multiprocessing.get_context("spawn").Process(
        target=killed, args=(tmp_path / "killed", table, durability)
    )
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    with ps.open(tmp_path / "killed", [table], ram="12MiB", threads=1) as store:
        assert store.resume() == (10, {"mine": 1})
        train(store, 10, 25)
        assert (store.digest(), rows_of(store).keys()) == expected


def test_close_and_cut_keep_the_counts(tmp_path: Path) -> None:
    table = ads(ps.ExactCount(3))
    with ps.open(tmp_path, [table], ram="12MiB", threads=1) as store:
        step(store, [1])
        store.checkpoint(1)
        step(store, [1, 2])
    with ps.open(tmp_path, [table], ram="12MiB", threads=1) as store:
        step(store, [2])
        store.cut()
        step(store, [2])
        store.abandon()
    with ps.open(tmp_path, [table], ram="12MiB", threads=1) as store:
        step(store, [1, 2])
        assert rows_of(store).keys() == {1, 2}
        assert store.resume() == (1, {})
        step(store, [1])
        assert rows_of(store).keys() == set()
        step(store, [1])
        assert rows_of(store).keys() == {1}
        store.abandon()
    with ps.open(tmp_path, [table], ram="12MiB", threads=1) as store:
        step(store, [1])  # going back made the checkpoint's counts the newest
        assert rows_of(store).keys() == set()


def test_the_counts_of_a_checkpoint_are_newer_than_those_of_a_cut_before(tmp_path: Path) -> None:
    with ps.open(tmp_path, [ads(ps.ExactCount(3))], ram="12MiB", threads=1) as store:
        step(store, [1])
        store.cut()
        step(store, [1])
        store.checkpoint(2)
        store.abandon()
    with ps.open(tmp_path, None, ram="12MiB", threads=1) as store:
        step(store, [1])
        assert rows_of(store).keys() == {1}


def test_rewriting_and_backup_keep_the_counts(tmp_path: Path) -> None:
    table = ads(ps.ExactCount(3))
    with ps.open(tmp_path / "a", [table], ram="12MiB", threads=1) as store:
        step(store, [1])
        store.checkpoint(1)
        step(store, [1, 2])
    back_up(tmp_path / "a", tmp_path / "b")
    shrink(tmp_path / "a")
    for name, rows in (("a", {1}), ("b", set())):
        with ps.open(tmp_path / name, None, ram="12MiB", threads=1) as store:
            step(store, [1])
            assert rows_of(store).keys() == rows
    back_up(tmp_path / "a", tmp_path / "c")


@pytest.mark.parametrize("fact", ["counts", "state/000000000000/000000"])
def test_damaged_counts_are_named_and_start_anew(tmp_path: Path, fact: str) -> None:
    table = ads(ps.ExactCount(2))
    with ps.open(tmp_path, [table], ram="12MiB", threads=1) as store:
        step(store, [1])
        store.checkpoint(1)
        step(store, [1, 2])
    with closing(BlockLog(tmp_path, ["ads"])) as log, log.transaction(write=True) as txn:
        value = bytearray(txn.get(fact.encode(), db=log._facts))
        value[-1] ^= 1
        txn.put(fact.encode(), bytes(value), db=log._facts)
    assert any(fact in line for line in diagnose(tmp_path).broken)
    if fact == "counts":
        with pytest.raises(CorruptError, match="counts"):
            ps.open(tmp_path, [table], ram="12MiB")
    else:
        with pytest.warns(RuntimeWarning, match="start anew"):
            store = ps.open(tmp_path, [table], ram="12MiB", threads=1)
        with store:
            assert any("counts of keys" in line for line in store.check())
            store.abandon()
    repair(tmp_path)
    assert diagnose(tmp_path).broken == []
    with ps.open(tmp_path, [table], ram="12MiB", threads=1) as store:
        assert store.check() == []
        step(store, [1, 2])  # a row by now, and a count of the checkpoint's
        assert rows_of(store).keys() == {1}


def test_what_is_staged_but_not_used_is_not_counted(tmp_path: Path) -> None:
    with ps.open(tmp_path, [ads(ps.ExactCount(2))], ram="12MiB", threads=1) as store:
        bag, sparse = worker.EmbeddingBag(store, "ads"), worker.SparseOptimizer(store)
        calls = [torch.tensor([[1], [2]]), torch.tensor([[2], [3]])]
        for batch in worker.prefetch([calls] * 2, keys=lambda calls: {bag: calls}, depth=1):
            bag(batch[0]).sum().backward()
            sparse.step()
        assert rows_of(store).keys() == {1, 2}
        report = told(store)
        assert (report["keys_refused"], report["keys_admitted"]) == (2, 2)


def test_a_name_of_the_callers_is_never_taken_for_counts(tmp_path: Path) -> None:
    with ps.open(tmp_path, [ads(None)], ram="12MiB") as store:
        with pytest.raises(ConfigError, match="__counts__"):
            store.checkpoint(1, {"__counts__": 1})
        store.checkpoint(1, {"mine": 1})
        assert store.resume() == (1, {"mine": 1})


# -- bytes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [ps.CountMin, ps.ExactCount])
def test_counts_are_part_of_the_budget(tmp_path: Path, kind: Callable[..., Admission]) -> None:
    small, large = ads(kind(2, bytes=1 << 16)), ads(kind(2, bytes=1 << 20))
    limits = {}
    for table in (ads(None), small, large):
        with ps.open(tmp_path / str(bytes_held(table)), [table], ram="8MiB", threads=1) as store:
            budget = store.stacks["ads"].budget
            assert budget.parts.get("admission", 0) == bytes_held(table)
            limits[bytes_held(table)] = store.stacks["ads"].top.limit
            for ids in steps_of(10):
                step(store, ids)
                assert budget.used <= budget.peak <= budget.total
    assert limits[0] > limits[4 << 16] > limits[4 << 20]
    with pytest.raises(ConfigError, match="--ram") as caught:
        ps.open(tmp_path / "no", [ads(kind(2, bytes=4 << 20))], ram="8MiB")
    size = str(caught.value).rpartition("at least ")[2].replace(" ", "")
    ps.open(tmp_path / "no", [ads(kind(2, bytes=4 << 20))], ram=size).close()


def test_condensed_records_keep_how_often_rows_were_used(tmp_path: Path) -> None:
    with ps.open(tmp_path, [ads(ps.ExactCount(9))], ram="12MiB", threads=1) as store:
        bag = worker.EmbeddingBag(store, "ads")
        for ids in ([4, 4, 5], [5, 4, 6]):
            bag(torch.tensor(ids).view(-1, 1)).sum().backward()
        records = store.waiting["ads"]
        once = condensed(DIM, records, store.pool)
        keys = store.stacks["ads"].top.keys_at(once.positions).tolist()
        assert dict(zip(keys, once.uses.tolist(), strict=True)) == {4: 3, 5: 2, 6: 1}
        again = condensed(DIM, [once, *records], store.pool)
        assert sorted(again.uses.tolist()) == [2, 4, 6]
        for record in (once, again, *records):
            record.drop()
        store.waiting.clear()
