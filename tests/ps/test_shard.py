"""Shard: as an embedded store that was given the same changes, each once, through deaths."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ps
from storage.errors import (
    ClosedError,
    DiskFullError,
    FencedError,
    MismatchError,
    RefusedError,
    StoreError,
    UnavailableError,
    WorkingSetError,
)
from tests.ps.serving import (
    ADS,
    TABLES,
    USERS,
    Gradients,
    apply,
    delete,
    enter,
    expected_digest,
    gradients,
    kill,
    pull,
    push,
    shard_at,
    some_pushes,
    soon,
    stop,
    wait_for,
    write,
)

OPTIMIZERS = [
    ps.SGD(lr=0.5), ps.Adagrad(lr=0.1), ps.RowWiseAdagrad(lr=0.1), ps.Adam(lr=0.01),
    ps.RowWiseAdam(lr=0.01), ps.FTRL(lr=0.1),
]  # fmt: skip
SMALL = 1600 << 10
"""RAM in which one push of `MANY` rows is applied in several pieces."""
MANY = 6000

WIDE, FILLING = replace(ADS, name="wide", dim=64), 3000
"""A table and rows of one push that fill a disk sooner than the index fills the RAM."""


# -- against an embedded store --------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda each: each.name)
def test_the_same_pushes_give_the_same_rows_as_an_embedded_store(
    tmp_path: Path, optimizer: ps.Optimizer
) -> None:
    tables = (replace(ADS, optimizer=optimizer), USERS)
    pushes = [gradients(seed, tables[seed % 2], scale=0.25, lr=0.05) for seed in range(20)]
    keys = np.arange(300, dtype=np.uint64)
    with ps.open(tmp_path / "oracle", tables, ram="64MiB", threads=1) as oracle:
        for some in pushes:
            apply(oracle, some)
        with shard_at(tmp_path / "shard") as shard:
            session = enter(shard, tables=tables)
            for sequence, some in enumerate(pushes, 1):
                assert push(shard, session, sequence, some) == 0
            for table in tables:
                answer = pull(shard, session, table.name, keys)
                assert np.array_equal(answer.values, oracle.read(table.name, keys))
            assert shard.digest() == oracle.digest()
            assert shard.check() == []


@pytest.mark.parametrize(
    "admission", [ps.ExactCount(times=3), ps.CountMin(times=2), ps.Probability(0.5)],
    ids=lambda each: each.kind,
)  # fmt: skip
def test_admission_counts_the_uses_that_clients_tell(
    tmp_path: Path, admission: ps.Admission
) -> None:
    table = replace(ADS, admission=admission)
    pushes = [gradients(seed, table) for seed in range(20)]
    expected = expected_digest(tmp_path / "oracle", pushes, [table])
    with shard_at(tmp_path / "shard") as shard:
        session = enter(shard, tables=[table])
        for sequence, some in enumerate(pushes, 1):
            push(shard, session, sequence, some)
        assert shard.digest() == expected
        rows = shard.stats()["tables"]["ads"]["tiers"][-1]["rows"]
        assert 0 < rows < 200  # some keys have earned a row, others have not


def test_rows_that_are_not_finite_are_left_out_and_counted(tmp_path: Path) -> None:
    some = gradients(0)
    some.values[3, 1], some.values[9, 0] = np.nan, np.inf
    expected = expected_digest(tmp_path / "oracle", [some])
    with shard_at(tmp_path / "shard") as shard:
        session = enter(shard)
        assert push(shard, session, 1, some) == 2
        assert push(shard, session, 1, some) == 2  # the same answer when it is repeated
        assert push(shard, session, 2, replace(some, scale=1e300)) == 40
        assert shard.digest() == expected


def test_little_ram_changes_and_reads_in_pieces(tmp_path: Path) -> None:
    pushes = [gradients(seed, ADS, rows=MANY, among=2 * MANY) for seed in range(6)]
    keys = np.arange(2 * MANY, dtype=np.uint64)
    with ps.open(tmp_path / "oracle", TABLES, ram="64MiB", threads=1) as oracle:
        for some in pushes:
            apply(oracle, some)
        with shard_at(tmp_path / "shard", ram=SMALL) as shard:
            session = enter(shard)
            for sequence, some in enumerate(pushes, 1):
                push(shard, session, sequence, some)
            assert shard.store.stacks["ads"].top.limit < MANY  # or it shows nothing
            assert shard.store.stacks["ads"].top.pinned == 0
            assert np.array_equal(
                pull(shard, session, "ads", keys).values, oracle.read("ads", keys)
            )
            assert np.array_equal(
                shard.peek("ads", keys, deadline=soon()).values, oracle.read("ads", keys)
            )
            assert shard.digest() == oracle.digest()
            assert shard.check() == []


def test_whole_rows_come_with_state_steps_and_what_is_missing(tmp_path: Path) -> None:
    some = gradients(4)
    asked = np.concatenate((some.keys, np.arange(900, 910, dtype=np.uint64)))
    with ps.open(tmp_path / "oracle", TABLES, ram="64MiB", threads=1) as oracle:
        apply(oracle, some)
        rows = next(iter(oracle.rows("ads")))
        order = np.argsort(rows.keys)
        with shard_at(tmp_path / "shard") as shard:
            session = enter(shard)
            push(shard, session, 1, some)
            answer = pull(shard, session, "ads", asked, whole=True)
            assert answer.missing.tolist() == [False] * 40 + [True] * 10
            at = np.argsort(some.keys)
            assert np.array_equal(answer.values[:40][at], rows.values[order])
            assert np.array_equal(answer.steps[:40][at], rows.steps[order])


def test_written_and_deleted_rows_are_those_of_an_embedded_store(tmp_path: Path) -> None:
    keys, rng = np.arange(50, dtype=np.uint64), np.random.default_rng(1)
    embeddings = rng.random((50, ADS.dim), np.float32)
    whole = rng.random((50, ADS.width), np.float32)
    plain = rng.random((50, USERS.dim), np.float32)
    steps = np.full(50, 9, np.uint32)
    with ps.open(tmp_path / "oracle", TABLES, ram="64MiB", threads=1) as oracle:
        apply(oracle, gradients(0))
        oracle.write("ads", keys, embeddings)
        oracle.write("users", keys, plain)
        oracle.delete("ads", keys[:7])
        with shard_at(tmp_path / "shard") as shard:
            session = enter(shard)
            push(shard, session, 1, gradients(0))
            write(shard, session, 2, "ads", keys, embeddings)
            write(shard, session, 3, "users", keys, plain)
            delete(shard, session, 4, "ads", keys[:7])
            assert shard.digest() == oracle.digest()
            write(shard, session, 5, "ads", keys + 1000, whole, steps)
            answer = pull(shard, session, "ads", keys + 1000, whole=True)
            assert np.array_equal(answer.values, whole)
            assert np.array_equal(answer.steps, steps)
            # Rows without state are as wide as their embeddings: the steps say what is meant.
            write(shard, session, 6, "users", keys + 1000, plain, steps)
            assert np.array_equal(
                pull(shard, session, "users", keys + 1000, whole=True).steps, steps
            )


def test_peeking_inserts_counts_and_moves_nothing(tmp_path: Path) -> None:
    keys = np.arange(300, dtype=np.uint64)
    with shard_at(tmp_path / "shard") as shard:
        session = enter(shard)
        push(shard, session, 1, gradients(0))
        shard.digest()
        before = (shard.stats(), shard.digest())
        seen = shard.peek("ads", keys, deadline=soon())
        assert shard.stats() == before[0]
        assert shard.digest() == before[1]
        assert np.array_equal(seen.values, pull(shard, session, "ads", keys).values)


# -- exactly once ---------------------------------------------------------------------------------


def test_each_change_is_applied_once_however_often_it_comes(tmp_path: Path) -> None:
    pushes = some_pushes(6)
    expected = expected_digest(tmp_path / "oracle", pushes)
    with shard_at(tmp_path / "shard") as shard:
        session = enter(shard)
        for sequence, some in enumerate(pushes, 1):
            for _ in range(3):
                push(shard, session, sequence, some)
            push(shard, session, 1, pushes[0])
        assert session.applied == 6
        assert shard.digest() == expected
        with pytest.raises(RefusedError, match="sequence"):
            push(shard, session, 0, pushes[0])


def test_a_change_waits_for_the_one_before_it(tmp_path: Path) -> None:
    with shard_at(tmp_path / "shard") as shard:
        session, before = enter(shard), shard.digest() if shard.loaded else 0
        with pytest.raises(UnavailableError, match="change 2 of train-0 came, but not 1"):
            push(shard, session, 2, gradients(1), deadline=soon(0.01))
        assert shard.digest() == before


def test_changes_in_any_order_from_many_threads_are_applied_in_theirs(tmp_path: Path) -> None:
    pushes = some_pushes(30)
    expected = expected_digest(tmp_path / "oracle", pushes)
    order = np.random.default_rng(5).permutation(np.tile(np.arange(30), 2))
    with shard_at(tmp_path / "shard") as shard, ThreadPoolExecutor(60, "terrace-test") as pool:
        session = enter(shard)
        calls = [pool.submit(push, shard, session, int(i) + 1, pushes[i]) for i in order]
        for call in calls:
            call.result(30)
        assert session.applied == 30
        assert shard.digest() == expected


def test_two_clients_count_for_themselves(tmp_path: Path) -> None:
    pushes = [gradients(seed) for seed in range(20)]  # integers: the order does not show ...
    sgd = [replace(ADS, optimizer=ps.SGD(lr=1.0), init=ps.Zeros())]
    plain = [replace(some, lr=1.0) for some in pushes]
    expected = expected_digest(tmp_path / "oracle", [replace(p, step=1) for p in plain], sgd)
    with shard_at(tmp_path / "shard") as shard, ThreadPoolExecutor(2, "terrace-test") as pool:
        ours = [enter(shard, f"train-{r}", rank=r, world=2, tables=sgd) for r in range(2)]

        def work(rank: int) -> None:
            for sequence, some in enumerate(plain[rank::2], 1):
                push(shard, ours[rank], sequence, replace(some, step=1))

        list(pool.map(work, range(2), timeout=30))
        assert [session.applied for session in ours] == [10, 10]
        assert shard.digest() == expected


def test_an_older_process_is_shut_out_even_with_a_change_in_the_queue(tmp_path: Path) -> None:
    entered, go = threading.Event(), threading.Event()
    with shard_at(tmp_path / "shard") as shard, ThreadPoolExecutor(3, "terrace-test") as pool:
        old = enter(shard)
        push(shard, old, 1, gradients(0))
        digest = shard.digest()

        def hold() -> None:
            entered.set()
            assert go.wait(20)

        held = pool.submit(lambda: shard.owner.run(hold, size=0, deadline=soon()))
        assert entered.wait(20)
        late = pool.submit(push, shard, old, 2, gradients(1))
        wait_for(lambda: shard.owner.queued == 1)
        opening = pool.submit(enter, shard, incarnation=2, token=9)
        wait_for(lambda: old.fenced)
        go.set()
        held.result(20)
        assert opening.result(20).applied == 0
        with pytest.raises(FencedError):
            late.result(20)
        with pytest.raises(FencedError):
            push(shard, old, 2, gradients(1))
        with pytest.raises(FencedError):
            enter(shard, incarnation=1)
        with pytest.raises(FencedError):  # another process that drew the same number
            enter(shard, incarnation=2, token=10)
        assert shard.digest() == digest


def test_a_change_that_was_let_in_before_a_newer_process_and_a_cut_is_shut_out(
    tmp_path: Path,
) -> None:
    """Or the redo log would hold a change of which no cut says where it belongs."""
    with shard_at(tmp_path / "shard", "strict") as shard:
        old = enter(shard)
        push(shard, old, 1, gradients(0))
        has_turn, asked = shard.sessions.has_turn, []

        def has_turn_slowly(session: Any, sequence: int) -> bool:
            found = has_turn(session, sequence)
            asked.append(found)
            if len(asked) == 1:
                # Between two instructions of the owner others have their turn.
                shard.sessions.open("train-0", 2, 9, rank=0, world=1, awaited=0)
                with ThreadPoolExecutor(1, "terrace-test") as pool:
                    pool.submit(shard.store.cut).result(20)
            return found

        shard.sessions.has_turn = has_turn_slowly  # type: ignore[method-assign]
        with pytest.raises(FencedError):
            push(shard, old, 2, gradients(1))
        kill(shard)
    with shard_at(tmp_path / "shard", "strict") as shard:
        assert shard.digest() == expected_digest(tmp_path / "oracle", [gradients(0)])


# -- deaths ---------------------------------------------------------------------------------------


def test_a_process_that_was_replaced_stays_out_after_a_death(tmp_path: Path) -> None:
    with shard_at(tmp_path / "shard", "interval") as shard:
        enter(shard)
        enter(shard, incarnation=2)
        kill(shard)
    with shard_at(tmp_path / "shard", "interval") as shard, pytest.raises(FencedError):
        enter(shard, incarnation=1)


def test_a_process_that_asks_again_is_let_in_once_that_is_durable(tmp_path: Path) -> None:
    with shard_at(tmp_path / "shard", "interval") as shard:
        enter(shard)
        commit = shard.store.commit

        def refuse(facts: Any) -> None:
            raise DiskFullError("no room")

        shard.store.commit = refuse  # type: ignore[method-assign]
        with pytest.raises(DiskFullError):
            enter(shard, incarnation=2)
        shard.store.commit = commit  # type: ignore[method-assign]
        enter(shard, incarnation=2)
        kill(shard)
    with shard_at(tmp_path / "shard", "interval") as shard, pytest.raises(FencedError):
        enter(shard, incarnation=1)


def test_who_does_not_repeat_in_time_is_shut_out_for_good(tmp_path: Path) -> None:
    with shard_at(tmp_path / "shard", "interval") as shard:
        late, here = (enter(shard, f"train-{r}", rank=r, world=2) for r in range(2))
        push(shard, here, 1, gradients(0))
        push(shard, late, 1, gradients(1))
        shard.store.cut()
        kill(shard)
    with shard_at(tmp_path / "shard", "interval", replay_seconds=0.05) as shard:
        here = enter(shard, "train-1", rank=1, world=2)
        pull(shard, here, "ads", gradients(0).keys)
        kill(shard)
    with shard_at(tmp_path / "shard", "interval") as shard, pytest.raises(FencedError):
        enter(shard, "train-0", rank=0, world=2)


def test_a_store_that_stopped_keeps_its_redo_log(tmp_path: Path) -> None:
    """Its last cut has not all, and closing makes none."""
    with shard_at(tmp_path / "shard", "strict") as shard:
        session = enter(shard)
        push(shard, session, 1, gradients(0))
        push(shard, session, 2, gradients(1))
        stop(shard)
        assert shard.failure is not None
        with pytest.raises(StoreError):
            push(shard, session, 3, gradients(2))
    with shard_at(tmp_path / "shard", "strict") as shard:
        pushes = [gradients(0), gradients(1)]
        assert enter(shard).applied == 2
        assert shard.digest() == expected_digest(tmp_path / "oracle", pushes)


def test_a_redo_log_that_cannot_be_written_stops_the_shard(tmp_path: Path) -> None:
    with shard_at(tmp_path / "shard", "strict") as shard:
        session = enter(shard)
        assert shard._redo is not None

        def fail(parts: Any) -> int:
            raise StoreError("the device is gone")

        shard._redo.append = fail  # type: ignore[method-assign]
        with pytest.raises(StoreError, match="gone"):
            push(shard, session, 1, gradients(0))
        assert shard.failure is not None
        assert session.applied == 0


def test_a_change_that_is_cut_in_two_stops_the_store(tmp_path: Path) -> None:
    """What was applied of it must not be applied again, nor become durable."""
    some = gradients(0, ADS, rows=MANY, among=MANY)
    with shard_at(tmp_path / "shard", "interval", ram=SMALL) as shard:
        session = enter(shard)
        staged = shard.store.stage_asked
        calls: list[None] = []

        def stage_once(asked: Any) -> Any:
            calls.append(None)
            if len(calls) == 2:
                raise DiskFullError("no room for the second piece")
            return staged(asked)

        shard.store.stage_asked = stage_once  # type: ignore[method-assign]
        with pytest.raises(RuntimeError):
            push(shard, session, 1, some)
        assert shard.failure is not None
        with pytest.raises(StoreError):
            push(shard, session, 1, some)
        assert session.applied == 0
    with shard_at(tmp_path / "shard", "interval", ram=SMALL) as shard:
        push(shard, enter(shard), 1, some)
        assert shard.digest() == expected_digest(tmp_path / "oracle", [some])


def test_an_error_while_rows_change_or_are_read_does_not_keep_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever keeps the error keeps what it came through; the shard still ends at once."""
    kept: list[BaseException] = []

    def fail(*args: Any, **more: Any) -> int:
        raise MemoryError

    with shard_at(tmp_path / "shard") as shard:
        session, keys = enter(shard), gradients(0).keys
        push(shard, session, 1, gradients(0))
        monkeypatch.setattr("storage.array.FloatArray.embeddings_at", fail)
        with pytest.raises(MemoryError) as caught:
            pull(shard, session, "ads", keys)
        kept.append(caught.value)
        assert shard.store.check() == []  # from another thread than the owner's
        monkeypatch.setattr("ps.server.change.apply_condensed", fail)
        with pytest.raises(MemoryError) as caught:
            push(shard, session, 2, gradients(0))
        kept.append(caught.value)
        assert shard.failure is caught.value


def test_what_fails_before_anything_changed_stops_nothing(tmp_path: Path) -> None:
    with shard_at(tmp_path / "shard", "interval") as shard:
        session = enter(shard)
        staged = shard.store.stage_asked

        def refuse(asked: Any) -> Any:
            raise DiskFullError("no room")

        shard.store.stage_asked = refuse  # type: ignore[method-assign]
        with pytest.raises(DiskFullError):
            push(shard, session, 1, gradients(0))
        shard.store.stage_asked = staged  # type: ignore[method-assign]
        assert shard.failure is None
        push(shard, session, 1, gradients(0))
        assert shard.digest() == expected_digest(tmp_path / "oracle", [gradients(0)])


# -- whose folder it is ---------------------------------------------------------------------------


def test_tables_are_those_of_the_first_client_but_for_the_learning_rate(tmp_path: Path) -> None:
    with shard_at(tmp_path / "shard") as shard:
        with pytest.raises(RefusedError, match="no tables yet"):
            shard.stats()
        enter(shard)
        with pytest.raises(MismatchError, match="dim"):
            enter(shard, tables=[replace(ADS, dim=5), USERS])
        with pytest.raises(MismatchError, match="tables"):
            enter(shard, tables=[ADS])
        enter(shard, tables=[replace(ADS, optimizer=ps.Adagrad(lr=0.7)), USERS])


def test_two_clients_that_make_the_store_at_once_agree(tmp_path: Path) -> None:
    with shard_at(tmp_path / "shard") as shard, ThreadPoolExecutor(8, "terrace-test") as pool:
        ready = threading.Barrier(8)

        def come(rank: int) -> Any:
            ready.wait(20)
            return enter(shard, f"train-{rank}", rank=rank, world=8)

        sessions = list(pool.map(come, range(8), timeout=30))
        assert shard.sessions.open_count == 8
        assert all(shard.sessions.get(s.client, 1) is s for s in sessions)


def test_a_name_that_cannot_be_makes_no_tables(tmp_path: Path) -> None:
    with shard_at(tmp_path / "shard") as shard:
        with pytest.raises(RefusedError, match="client"):
            enter(shard, "no such name!")
        assert not shard.loaded


# -- full disks -----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*gave up the checkpoint:ResourceWarning")
@pytest.mark.parametrize("durability", ["strict", "interval"])
def test_a_full_store_refuses_changes_reads_on_and_recovers(
    tmp_path: Path, durability: str
) -> None:
    """In pieces near the end of the disk: no change is cut in two."""
    sizes, pushed = {"ram": 4 << 20, "disk": 24 << 20}, 0
    with shard_at(tmp_path / "shard", durability, **sizes) as shard:
        session = enter(shard, tables=[WIDE])
        with pytest.raises(DiskFullError, match="nothing was changed"):
            for sequence in range(1, 200):
                push(shard, session, sequence, filling(sequence))
                pushed = sequence
        assert pushed > 5
        assert shard.store.stacks["wide"].top.limit < 4 * FILLING  # or it shows nothing
        assert shard.failure is None
        assert session.applied == pushed
        digest = shard.digest()
        with pytest.raises(DiskFullError):
            push(shard, session, pushed + 1, filling(pushed + 1))
        assert shard.digest() == digest
        pull(shard, session, "wide", filling(1).keys)
        for sequence in range(1, pushed):
            delete(shard, session, pushed + sequence, "wide", filling(sequence).keys)
        shard.cut(session, closing=False)
        push(shard, session, 2 * pushed, filling(1))
        kill(shard)
    with shard_at(tmp_path / "shard", durability, **sizes) as shard:
        assert shard.check() == []


@pytest.mark.parametrize("durability", ["strict", "interval"])
def test_an_index_that_fills_the_ram_refuses_before_anything_changed(
    tmp_path: Path, durability: str
) -> None:
    """A change in pieces is not cut in two, nor logged: the next life would meet it again."""
    with shard_at(tmp_path / "shard", durability, ram=SMALL) as shard:
        session, applied = enter(shard), 0
        with pytest.raises(WorkingSetError):
            for sequence in range(1, 100):
                keys = np.arange(MANY * sequence, MANY * (sequence + 1), dtype=np.uint64)
                push(shard, session, sequence, Gradients("ads", keys, np.ones((MANY, 4), "f4")))
                applied = sequence
        assert shard.failure is None
        assert session.applied == applied > 2
        digest = shard.digest()
        pull(shard, session, "ads", np.arange(10, dtype=np.uint64))
        shard.cut(session, closing=False)
        kill(shard)
    with shard_at(tmp_path / "shard", durability, ram=2 * SMALL) as shard:
        assert shard.digest() == digest


def filling(sequence: int) -> Gradients:
    keys = np.arange(sequence * FILLING, (sequence + 1) * FILLING, dtype=np.uint64)
    return Gradients("wide", keys, np.ones((FILLING, WIDE.dim), np.float32))


def test_a_full_redo_log_refuses_before_anything_changed(tmp_path: Path) -> None:
    with shard_at(tmp_path / "shard", "strict") as shard:
        session = enter(shard)
        push(shard, session, 1, gradients(0))
        digest, redo = shard.digest(), shard._redo
        assert redo is not None
        append = redo.append

        def refuse(parts: Any) -> int:
            raise DiskFullError("no room")

        redo.append = refuse  # type: ignore[method-assign]
        with pytest.raises(DiskFullError):
            push(shard, session, 2, gradients(1))
        assert shard.digest() == digest
        pull(shard, session, "ads", gradients(0).keys)
        assert shard.failure is None
        redo.append = append  # type: ignore[method-assign]
        push(shard, session, 2, gradients(1))
        kill(shard)
    with shard_at(tmp_path / "shard", "strict") as shard:
        pushes = [gradients(0), gradients(1)]
        assert shard.digest() == expected_digest(tmp_path / "oracle", pushes)


# -- beside others --------------------------------------------------------------------------------


def test_a_reader_waits_for_the_slowest_worker_and_names_it(tmp_path: Path) -> None:
    with shard_at(tmp_path / "shard") as shard, ThreadPoolExecutor(1, "terrace-test") as pool:
        fast, slow = (enter(shard, f"train-{r}", rank=r, world=2) for r in range(2))
        push(shard, fast, 1, replace(gradients(0), clock=3))
        with pytest.raises(UnavailableError, match="step 2 of train-1 at 0"):
            pull(shard, fast, "ads", gradients(0).keys, least=2, deadline=soon(0.01))
        waiting = pool.submit(pull, shard, fast, "ads", gradients(0).keys, least=2)
        nothing = Gradients("", np.zeros(0, np.uint64), np.zeros((0, 1), np.float32), clock=2)
        push(shard, slow, 1, nothing)
        assert waiting.result(20).clock == 2


def test_figures_digests_and_checks_go_on_while_clients_push(tmp_path: Path) -> None:
    stop_at = time.monotonic() + 1.0
    with (
        shard_at(tmp_path / "shard", "strict", ram=SMALL, interval_seconds=0.005) as shard,
        ThreadPoolExecutor(5, "terrace-test") as pool,
    ):
        session, done = enter(shard), [0]

        def pushing() -> None:
            while time.monotonic() < stop_at:
                push(shard, session, done[0] + 1, gradients(done[0], rows=500, among=9000))
                done[0] += 1

        def looking(look: Any) -> None:
            while time.monotonic() < stop_at:
                assert look() is not None

        looks = [shard.figures, shard.stats, shard.digest, lambda: shard.check() == [] or None]
        calls = [pool.submit(pushing), *(pool.submit(looking, look) for look in looks)]
        for call in calls:
            call.result(60)
        pushes = [gradients(n, rows=500, among=9000) for n in range(done[0])]
        kill(shard)
    with shard_at(tmp_path / "shard", "strict", ram=SMALL) as shard:
        assert shard.digest() == expected_digest(tmp_path / "oracle", pushes)


def test_closing_while_clients_push_keeps_what_was_answered(tmp_path: Path) -> None:
    with (
        shard_at(tmp_path / "shard", "strict") as shard,
        ThreadPoolExecutor(4, "terrace-test") as pool,
    ):
        sessions = [enter(shard, f"train-{r}", rank=r, world=4) for r in range(4)]
        answered, begun = [0] * 4, threading.Barrier(5)

        def pushing(rank: int) -> None:
            begun.wait(20)
            with pytest.raises((ClosedError, UnavailableError)):
                for sequence in range(1, 100_000):
                    push(shard, sessions[rank], sequence, gradients(sequence))
                    answered[rank] = sequence

        calls = [pool.submit(pushing, rank) for rank in range(4)]
        begun.wait(20)
        wait_for(lambda: min(answered) > 2)
        shard.close()
        for call in calls:
            call.result(20)
    with shard_at(tmp_path / "shard", "strict") as shard:
        for rank in range(4):
            applied = enter(shard, f"train-{rank}", rank=rank, world=4).applied
            assert answered[rank] <= applied <= answered[rank] + 1


def test_draining_ends_what_waits_for_others(tmp_path: Path) -> None:
    with shard_at(tmp_path / "shard") as shard, ThreadPoolExecutor(2, "terrace-test") as pool:
        session = enter(shard)
        waiting = pool.submit(pull, shard, session, "ads", gradients(0).keys, least=5)
        early = pool.submit(push, shard, session, 3, gradients(0))
        shard.drain()
        for call in (waiting, early):
            with pytest.raises(UnavailableError, match="being stopped"):
                call.result(20)
