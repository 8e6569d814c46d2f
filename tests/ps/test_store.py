"""Store: against a dict of rows, through crashes, refusals and full disks."""

from __future__ import annotations

import contextlib
import copy
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import ps
from ps.checkpoint import FENCES_FACT, SESSIONS_FACT
from ps.digest import rows_digest
from ps.store import Store
from storage.errors import (
    ClosedError,
    ConfigError,
    CorruptError,
    DiskFullError,
    KeyRangeError,
    LockedError,
    MismatchError,
    StoreError,
    WorkingSetError,
)
from storage.rows import Rows
from tests.storage.digesting import digest

ADS = ps.Table("ads", dim=3, optimizer=ps.Adagrad(lr=0.1), init=ps.Uniform(0.5))
USERS = ps.Table("users", dim=2, optimizer=ps.SGD(lr=0.1), rows=500, init=ps.Constant(1.0))
ROOT = Path(ps.__file__).parent.parent
Model = dict[str, dict[int, np.ndarray]]


def one_line(error: BaseException) -> str:
    assert "\n" not in str(error)
    return str(error)


def digest_of(model: Model) -> int:
    """What `Store.digest` must be when the tables hold these rows."""
    total = 0
    for table, rows in model.items():
        if rows:
            held = Rows.empty(len(rows), len(next(iter(rows.values()))))
            held.keys[:] = list(rows)
            held.values[:] = list(rows.values())
            total += rows_digest(table, held)
    return total % 2**64


def train(store: Store, table: str, keys: np.ndarray, amount: float) -> None:
    """What a step does to the tiers: stage, change the rows where they are, let go."""
    working_set = store.stage({table: [keys]})
    hold, part = working_set.hold(), working_set.parts[table]
    top = store.stacks[table].top
    embeddings, state = top.array.host
    embeddings[part.positions] += np.float32(amount)
    state[part.positions] += np.float32(1)
    top.steps[part.positions], top.dirty[part.positions] = 1, 1
    hold.drop()
    store.settle()


class Notebook:
    """Notes of a number, which is ``kept`` once the cut with it is durable."""

    def __init__(self, number: int = 0) -> None:
        self.number = self.kept = number

    def facts(self) -> tuple[dict[str, bytes | None], Callable[[], None]]:
        number = self.number

        def kept() -> None:
            self.kept = number

        return {SESSIONS_FACT: b"%d" % number}, kept


class StoreMachine(RuleBasedStateMachine):
    """Tiers of a few hundred rows against a dict; keys are few enough to meet again."""

    def __init__(self) -> None:
        super().__init__()
        self.path = Path(tempfile.mkdtemp())
        self.model: Model = {"ads": {}, "users": {}}
        self.kept: list[tuple[int, Model]] = []
        self.step = self.fences = 0
        self.notebook = Notebook()

    @initialize(hbm=st.sampled_from([None, "24KiB"]), ram=st.sampled_from(["1400KiB", "8MiB"]))
    def start(self, hbm: str | None, ram: str) -> None:
        self.budgets = {"ram": ram, "hbm": hbm}
        self.cut = copy.deepcopy(self.model)
        self.open()

    def open(self) -> None:
        self.store = ps.open(self.path, [ADS, USERS], threads=1, **self.budgets)
        self.notebook = Notebook(int(self.store.fact(SESSIONS_FACT) or b"0"))
        self.store.note(self.notebook)

    def teardown(self) -> None:
        try:
            if hasattr(self, "store"):
                with self.store:
                    assert self.store.check() == []
                    assert self.store.digest() == digest_of(self.model)
        finally:
            shutil.rmtree(self.path)

    def fresh(self, table: str, keys: np.ndarray) -> np.ndarray:
        return self.store.tables[table].fresh(keys.astype(np.uint64))

    def row(self, table: str, key: int) -> np.ndarray:
        known = self.model[table].get(key)
        return self.fresh(table, np.array([key]))[0] if known is None else known

    keys = st.tuples(st.integers(0, 499), st.integers(1, 200)).map(
        lambda at: np.random.default_rng(at[0]).integers(0, 500, at[1])
    )
    tables = st.sampled_from(["ads", "users"])

    @rule(table=tables, keys=keys, seed=st.integers(0, 99))
    def write(self, table: str, keys: np.ndarray, seed: int) -> None:
        spec = self.store.tables[table]
        values = np.random.default_rng(seed).normal(size=(len(keys), spec.dim)).astype(np.float32)
        self.store.write(table, keys, values)
        state = np.full(spec.state_width, spec.optimizer.initial_state, np.float32)
        for key, value in zip(keys.tolist(), values, strict=True):
            self.model[table][key] = np.concatenate((value, state))

    @rule(table=tables, keys=keys)
    def put(self, table: str, keys: np.ndarray) -> None:
        unique = np.unique(keys).astype(np.uint64)
        rows = Rows.empty(len(unique), self.store.tables[table].width)
        rows.keys[:], rows.dirty[:] = unique, True
        rows.values[:] = unique[:, None] + np.arange(rows.values.shape[1])
        self.store.put(table, rows)
        self.model[table] |= dict(zip(unique.tolist(), rows.values.copy(), strict=True))

    @rule(table=tables, keys=keys, amount=st.integers(-3, 3))
    def train(self, table: str, keys: np.ndarray, amount: int) -> None:
        dim = self.store.tables[table].dim
        train(self.store, table, keys.astype(np.uint64), amount)
        for key in set(keys.tolist()):
            row = self.row(table, key).copy()
            row[:dim] += np.float32(amount)
            row[dim:] += np.float32(1)
            self.model[table][key] = row

    @rule(table=tables, keys=keys)
    def delete(self, table: str, keys: np.ndarray) -> None:
        self.store.delete(table, keys)
        for key in keys.tolist():
            for model in (self.model, self.cut, *(model for _, model in self.kept)):
                model[table].pop(key, None)

    @rule(table=tables, steps=st.integers(0, 3))
    def expire(self, table: str, steps: int) -> None:
        """Rows that no step changed lately: what the records say, since `put` sets any step."""
        now = self.store.stacks[table].step
        old = [
            int(key)
            for rows in self.store.rows(table)
            for key, step in zip(rows.keys, rows.steps, strict=True)
            if step < now - steps
        ]
        assert self.store.expire(steps, table) == len(old)
        for key in old:
            for model in (self.model, self.cut, *(model for _, model in self.kept)):
                model[table].pop(key, None)

    @rule()
    def note(self) -> None:
        self.notebook.number += 1

    @rule()
    def fence(self) -> None:
        self.fences += 1
        self.store.commit({FENCES_FACT: b"%d" % self.fences})

    @rule()
    def make_a_cut(self) -> None:
        self.store.cut()
        assert self.notebook.kept == self.notebook.number
        self.cut = copy.deepcopy(self.model)

    @rule(keep=st.sampled_from([2, 2, 3, 1]))
    def checkpoint(self, keep: int) -> None:
        self.step += 1
        self.store.checkpoint(self.step, {"step": self.step}, keep=keep)
        assert self.notebook.kept == self.notebook.number
        self.cut = copy.deepcopy(self.model)
        self.kept = [*self.kept, (self.step, copy.deepcopy(self.model))][-keep:]

    @rule(keep=st.integers(0, 3))
    def keep_checkpoints(self, keep: int) -> None:
        self.store.keep_checkpoints(keep)
        self.kept = self.kept[len(self.kept) - min(keep, len(self.kept)) :]

    @rule(data=st.data())
    def resume(self, data: st.DataObject) -> None:
        if not self.kept:
            with pytest.raises(StoreError, match="expected a checkpoint"):
                self.store.resume()
            return
        at = data.draw(st.integers(-len(self.kept), -1))
        step, model = self.kept[at]
        assert self.store.resume(None if at == -1 else step) == (step, {"step": step})
        assert self.notebook.kept == self.notebook.number
        self.kept = self.kept[: len(self.kept) + at + 1]
        self.model, self.cut = copy.deepcopy(model), copy.deepcopy(model)

    @rule()
    def close_and_open(self) -> None:
        number = self.notebook.number
        self.store.close()
        self.cut = copy.deepcopy(self.model)
        self.open()
        assert self.notebook.number == number

    @rule()
    def crash_and_open(self) -> None:
        kept = self.notebook.kept
        self.store.abandon()
        self.model = copy.deepcopy(self.cut)
        self.open()
        assert self.notebook.number == kept

    @rule(table=tables, keys=keys)
    def read(self, table: str, keys: np.ndarray) -> None:
        dim = self.store.tables[table].dim
        expected = np.stack([self.row(table, key)[:dim] for key in keys.tolist()])
        assert np.array_equal(self.store.read(table, keys), expected)

    @rule()
    def digest(self) -> None:
        assert self.store.digest() == digest_of(self.model)

    @invariant()
    def nothing_is_pinned_and_checkpoints_are_known(self) -> None:
        if hasattr(self, "store"):
            self.store.settle()
            assert all(stack.top.pinned == 0 for stack in self.store.stacks.values())
            assert self.store.checkpoints == [step for step, _ in self.kept]
            assert int(self.store.fact(FENCES_FACT) or b"0") == self.fences


StoreMachine.TestCase.settings = hypothesis.settings(
    max_examples=20,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
TestStoreIsADict = StoreMachine.TestCase


CRASHER = """
import os, signal, sys
import numpy as np
import ps
store = ps.open(sys.argv[1], None, ram="1400KiB", threads=1)
rng = np.random.default_rng(0)
step = store.checkpoints[-1]
while True:
    for _ in range(20):
        keys = rng.integers(0, 3000, 500)
        store.write("ads", keys, np.full((500, 3), step + 1))
    step += 1
    store.checkpoint(step, {"at": step})
    print(step, flush=True)
"""


def test_after_kill_9_the_store_opens_at_a_whole_cut(tmp_path: Path) -> None:
    with ps.open(tmp_path, [ADS], ram="2MiB") as store:
        store.write("ads", np.arange(3000), np.zeros((3000, 3)))
        store.checkpoint(0)
    for _ in range(2):
        with subprocess.Popen(
            [sys.executable, "-c", CRASHER, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT
        ) as writer:
            assert writer.stdout is not None
            acknowledged = [int(writer.stdout.readline()) for _ in range(3)][-1]
            os.kill(writer.pid, signal.SIGKILL)
        with ps.open(tmp_path, [ADS], ram="2MiB") as store:
            newest = store.checkpoints[-1]
            assert acknowledged <= newest
            # Every row of the cut is there, and none of what came after it.
            values = store.read("ads", np.arange(3000))
            assert values.max() == newest
            assert store.check() == []
            digest = store.digest()
            assert store.resume() == (newest, {"at": newest})
            assert store.digest() == digest


def test_the_last_of_a_key_given_twice_counts(tmp_path: Path) -> None:
    with ps.open(tmp_path, [ADS], ram="2MiB") as store:
        store.write("ads", np.array([5, 6, 5, 7]), np.arange(12.0).reshape(4, 3))
        assert store.read("ads", np.array([5, 6, 7])).tolist() == [
            [6, 7, 8],
            [3, 4, 5],
            [9, 10, 11],
        ]


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.uint8])
@pytest.mark.parametrize("values", [torch.bfloat16, torch.float64, torch.float32])
def test_keys_and_embeddings_of_any_plain_dtype_are_taken(
    tmp_path: Path, dtype: torch.dtype, values: torch.dtype
) -> None:
    with ps.open(tmp_path, [ADS], ram="2MiB") as store:
        store.write("ads", torch.tensor([7], dtype=dtype), torch.ones((1, 3), dtype=values))
        assert store.read("ads", torch.tensor([7], dtype=dtype)).tolist() == [[1, 1, 1]]


def test_writing_resets_the_optimizer_state(tmp_path: Path) -> None:
    with ps.open(tmp_path, [ADS], ram="2MiB") as store:
        train(store, "ads", np.arange(5, dtype=np.uint64), 1.0)
        store.write("ads", np.array([3]), np.full((1, 3), 7.0))
        rows = {int(key): row for part in store.rows("ads")
                for key, row in zip(part.keys, part.values.tolist(), strict=True)}  # fmt: skip
        assert rows[3] == [7, 7, 7, 0, 0, 0]
        assert rows[2][3:] == [1, 1, 1]


def test_every_64_bit_pattern_is_a_key(tmp_path: Path) -> None:
    keys = np.array([0, 1, -1, -(2**63), 2**63 - 1])
    with ps.open(tmp_path, [ADS], ram="2MiB") as store:
        store.write("ads", keys, np.arange(15.0).reshape(5, 3))
    with ps.open(tmp_path, None, ram="2MiB") as store:
        assert store.read("ads", keys).tolist() == np.arange(15.0).reshape(5, 3).tolist()
        store.delete("ads", keys[2:3].astype(np.uint64))
        assert sum(len(rows) for rows in store.rows("ads")) == 4


def test_wrong_arguments_are_refused_and_nothing_changes(tmp_path: Path) -> None:
    with ps.open(tmp_path, [ADS, USERS], ram="4MiB") as store:
        store.write("users", np.array([499]), np.ones((1, 2)))
        before = store.digest()
        one = np.ones((1, 2), np.float32)
        for key in (500, -1):
            for action in (
                lambda k=key: store.read("users", np.array([k])),
                lambda k=key: store.write("users", np.array([k]), one),
                lambda k=key: store.delete("users", np.array([k])),
                lambda k=key: store.stage({"users": [np.array([k]).astype(np.uint64)]}),
            ):
                with pytest.raises(KeyRangeError, match=str(key)) as caught:
                    action()
                one_line(caught.value)
        with pytest.raises(ConfigError, match=r"expected embeddings of shape \(1, 2\)"):
            store.write("users", np.array([1]), np.ones((2, 2)))
        with pytest.raises(ConfigError, match="integer"):
            store.read("users", np.array([1.5]))
        for unknown in (
            lambda: store.read("none", np.array([1])),
            lambda: store.put("none", Rows.empty(0, 2)),
            lambda: next(store.rows("none")),
        ):
            with pytest.raises(ConfigError, match="'none'"):
                unknown()
        assert store.digest() == before


def test_reading_changes_nothing(tmp_path: Path) -> None:
    with ps.open(tmp_path, [ADS], ram="800KiB", hbm="8KiB") as store:
        rng = np.random.default_rng(0)
        for _ in range(8):
            train(store, "ads", rng.integers(0, 4000, 150).astype(np.uint64), 1.0)
        store.settle()
        content = store.digest()
        before = [digest(cache) for cache in store.stacks["ads"].caches], store.stats()
        store.read("ads", np.arange(10_000))
        assert ([digest(cache) for cache in store.stacks["ads"].caches], store.stats()) == before
        assert store.digest() == content


def test_two_checkpoints_are_kept_with_their_state(tmp_path: Path) -> None:
    with ps.open(tmp_path, [ADS], ram="2MiB") as store:
        for step in (3, 6, 9):
            store.write("ads", np.array([1]), np.full((1, 3), step))
            store.checkpoint(step, {"w": torch.full((2,), step), "cursor": {"batch": step}})
        store.write("ads", np.array([1, 2]), np.full((2, 3), 100))
        assert store.checkpoints == store.stats()["checkpoints"] == [6, 9]
        assert store.digest() != 0  # what came after is in the log too
        step, state = store.resume()
        assert (step, state["w"].tolist(), state["cursor"]) == (9, [9, 9], {"batch": 9})
        assert store.read("ads", np.array([1])).tolist() == [[9, 9, 9]]
        assert sum(len(rows) for rows in store.rows("ads")) == 1


def test_going_back_further_discards_what_came_after(tmp_path: Path) -> None:
    with ps.open(tmp_path, [ADS], ram="2MiB") as store:
        for step in (3, 6, 9):
            store.write("ads", np.array([1]), np.full((1, 3), step))
            store.checkpoint(step, {"step": step}, keep=3)
        with pytest.raises(StoreError, match="checkpoint of step 7 to resume from") as caught:
            store.resume(7)
        one_line(caught.value)
        assert store.checkpoints == [3, 6, 9]
        assert store.resume(6) == (6, {"step": 6})
        assert store.checkpoints == [3, 6]
        assert store.read("ads", np.array([1])).tolist() == [[6, 6, 6]]
        with pytest.raises(StoreError, match="of step 9"):
            store.resume(9)
        store.write("ads", np.array([1]), np.full((1, 3), 90))
        store.abandon()
    with ps.open(tmp_path, [ADS], ram="2MiB") as store:
        assert store.read("ads", np.array([1])).tolist() == [[6, 6, 6]]
        assert store.resume(3)[0] == 3
        assert store.check() == []


def test_who_is_shut_out_stays_so_when_the_tables_go_back(tmp_path: Path) -> None:
    with ps.open(tmp_path, [ADS], ram="2MiB") as store:
        store.note(notebook := Notebook(1))
        store.checkpoint(1)
        store.commit({FENCES_FACT: b"all"})
        notebook.number = 2
        store.resume()
        store.commit({"other": b"x"})
        store.commit({"other": None})
        store.abandon()
        with pytest.raises(ClosedError):
            store.commit({FENCES_FACT: b"none"})
        with pytest.raises(ClosedError):
            store.fact(FENCES_FACT)
    with ps.open(tmp_path, [ADS], ram="2MiB") as store:
        facts = [store.fact(name) for name in (FENCES_FACT, SESSIONS_FACT, "other")]
        assert facts == [b"all", b"2", None]


@pytest.mark.parametrize("way", ["cut", "cut by itself", "checkpoint", "resume", "close"])
def test_notes_that_could_not_be_committed_are_not_taken_for_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    durability = "strict" if way == "cut by itself" else "checkpoint"
    with ps.open(tmp_path, [ADS], ram="2MiB", durability=durability) as store:
        store.checkpoint(1)
        store.note(notebook := Notebook())
        notebook.number = 5
        ways: dict[str, Callable[[], Any]] = {
            "cut": store.cut,
            "cut by itself": lambda: store.write("ads", np.array([1]), np.ones((1, 3))),
            "checkpoint": lambda: store.checkpoint(2),
            "resume": store.resume,
            "close": store.close,
        }

        def full(*given: Any) -> None:
            raise DiskFullError("no room")

        with monkeypatch.context() as patch:
            patch.setattr(store._log, "put_facts", full)
            with pytest.raises(DiskFullError):
                ways[way]()
        assert notebook.kept == 0
        if way != "close":
            assert store.checkpoints == [1]
            ways[way]()
            assert notebook.kept == 5


def test_closing_makes_a_cut_and_opening_shows_it_without_resuming(tmp_path: Path) -> None:
    with ps.open(tmp_path, [ADS], ram="2MiB") as store:
        store.checkpoint(1)
        store.write("ads", np.array([1]), np.ones((1, 3)))
        digest = store.digest()
    with ps.open(tmp_path, None, ram="2MiB") as store:
        assert store.digest() == digest
        assert store.resume() == (1, {})
        assert store.digest() == 0
    with ps.open(tmp_path, None, ram="2MiB") as store:
        assert store.digest() == 0


def test_what_cannot_be_stored_in_a_checkpoint_is_refused_by_its_path(tmp_path: Path) -> None:
    with ps.open(tmp_path, [ADS], ram="2MiB") as store:
        with pytest.raises(ConfigError, match=r"state\.model"):
            store.checkpoint(1, {"model": torch.nn.Linear(2, 2)})
        assert store.checkpoints == []


def test_a_batch_in_flight_bars_resume_and_deletion_of_its_rows(tmp_path: Path) -> None:
    with ps.open(tmp_path, [ADS], ram="2MiB") as store:
        store.checkpoint(1)
        hold = store.stage({"ads": [np.array([1, 2], np.uint64)]}).hold()
        with pytest.raises(StoreError, match="in flight") as caught:
            store.resume()
        one_line(caught.value)
        with pytest.raises(StoreError, match="in flight"):
            store.delete("ads", np.array([2, 3]))
        store.delete("ads", np.array([3, 4]))
        hold.drop()
        store.delete("ads", np.array([2, 3]))
        assert store.resume() == (1, {})


@pytest.mark.parametrize("field", [{"dim": 4}, {"seed": 9}, {"dtype": "int8"}, {"rows": 7}])
def test_another_table_is_refused(tmp_path: Path, field: dict[str, Any]) -> None:
    ps.open(tmp_path, [ADS], ram="2MiB").close()
    with pytest.raises(MismatchError, match=next(iter(field))) as caught:
        ps.open(tmp_path, [replace(ADS, **field)], ram="2MiB")
    one_line(caught.value)
    ps.open(tmp_path, [replace(ADS, optimizer=ps.Adagrad(lr=7.0))], ram="2MiB").close()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"ram": "8GBs"}, "ram: expected bytes such as"),
        ({"ram": "0"}, "ram: expected more than 0"),
        ({"hbm": "lots"}, "hbm: expected bytes"),
        ({"disk": "-1"}, "disk: expected bytes"),
        ({"device": "cud"}, "device: expected"),
        ({"device": "meta"}, "device: expected"),
        ({"durability": "never"}, "durability: expected"),
        ({"threads": 0}, "threads: expected 1 or more"),
        ({"policy": "random?"}, "policy"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(
    tmp_path: Path, arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        ps.open(tmp_path, [ADS], **arguments)
    one_line(caught.value)
    assert not (tmp_path / "terrace.json").exists()


def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = ps.open(tmp_path, [ADS], ram="2MiB")
    store.close()
    store.close()
    store.abandon()
    for action in (
        lambda: store.read("ads", np.array([1])),
        lambda: store.write("ads", np.array([1]), np.ones((1, 3))),
        lambda: store.delete("ads", np.array([1])),
        lambda: store.stage({"ads": [np.array([1], np.uint64)]}),
        lambda: store.checkpoint(1),
        lambda: store.resume(),
        lambda: store.stats(),
        lambda: store.digest(),
        lambda: store.check(),
        lambda: store.settle(),
    ):
        with pytest.raises(ClosedError, match="closed"):
            action()
    store.end_prefetch()


def test_a_second_opening_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    with ps.open(tmp_path, [ADS], ram="2MiB") as store:
        with pytest.raises(LockedError, match=str(os.getpid())):
            ps.open(tmp_path, [ADS], ram="2MiB")
        store.write("ads", np.array([1]), np.ones((1, 3)))
    ps.open(tmp_path, [ADS], ram="2MiB").close()


def test_a_forked_child_is_refused_even_while_a_thread_holds_the_store(tmp_path: Path) -> None:
    with ps.open(tmp_path, [ADS], ram="2MiB") as store:
        holding, done = threading.Event(), threading.Event()

        def hold() -> None:
            with store.planner:
                holding.set()
                done.wait(30)

        thread = threading.Thread(target=hold)
        thread.start()
        holding.wait(30)
        child = os.fork()
        if child == 0:
            refused = 0
            for action in (lambda: store.read("ads", np.array([1])), store.close):
                try:
                    action()
                except StoreError as error:
                    refused += "fork" in str(error)
            os._exit(0 if refused == 2 else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        done.set()
        thread.join(30)
        store.write("ads", np.array([1]), np.ones((1, 3)))
        assert store.read("ads", np.array([1])).tolist() == [[1, 1, 1]]


def test_a_store_does_not_travel_to_another_process(tmp_path: Path) -> None:
    with ps.open(tmp_path, [ADS], ram="2MiB") as store:
        for copying in (pickle.dumps, copy.deepcopy):
            with pytest.raises(ConfigError, match="cannot be copied"):
                copying(store)


def test_a_working_set_too_large_changes_nothing_and_names_what_would_do(tmp_path: Path) -> None:
    keys = np.arange(30_000, dtype=np.uint64)
    with ps.open(tmp_path, [ADS, USERS], ram="1400KiB") as store:
        store.write("ads", np.arange(10), np.ones((10, 3)))
        before = store.digest()
        with pytest.raises(WorkingSetError) as caught:
            store.stage({"users": [np.arange(5, dtype=np.uint64)], "ads": [keys]})
        one_line(caught.value)
        store.settle()
        assert all(stack.top.pinned == 0 for stack in store.stacks.values())
        assert store.digest() == before
    with ps.open(tmp_path / "one", [ADS], ram=caught.value.needed_bytes) as store:
        assert len(store.stage({"ads": [keys]}).parts["ads"].positions) == len(keys)


def fill_the_disk(store: ps.Store, rng: np.random.Generator, *, every: int) -> dict[int, int]:
    """Train on new rows until the store refuses: digests by step of the checkpoints made."""
    digests: dict[int, int] = {}
    with pytest.raises(DiskFullError) as caught:
        for step in range(1, 999):
            train(store, "ads", rng.integers(0, 50_000, 1000).astype(np.uint64), 1.0)
            if step % every == 0:
                store.checkpoint(step, {"step": step})
                digests[step] = store.digest()
    one_line(caught.value)
    return digests


@pytest.mark.filterwarnings("ignore:.*gave up the checkpoint:ResourceWarning")
def test_a_full_disk_is_refused_and_training_goes_on_when_there_is_room(tmp_path: Path) -> None:
    wide = ps.Table("ads", dim=64, optimizer=ps.Adagrad(lr=0.1))
    rng = np.random.default_rng(0)
    with ps.open(tmp_path, [wide], ram="3MiB", disk="12MiB") as store:
        digests = fill_the_disk(store, rng, every=4)
        assert digests
        assert (tmp_path / "data.mdb").stat().st_size <= 12 << 20
        before = store.digest()
        for _ in range(3):  # nothing was changed, reading goes on, and freeing is possible
            with pytest.raises(DiskFullError):
                train(store, "ads", np.arange(10**6, 10**6 + 1000, dtype=np.uint64), 1.0)
            store.read("ads", np.arange(1000))
            assert store.digest() == before
        store.delete("ads", np.arange(40_000))
        newest = max(digests)
        store.checkpoint(newest + 1, {"step": newest + 1})
        store.checkpoint(newest + 2, {"step": newest + 2})
        train(store, "ads", rng.integers(0, 50_000, 1000).astype(np.uint64), 1.0)
        assert store.check() == []
    with ps.open(tmp_path, None, ram="3MiB", disk="12MiB") as store:
        assert store.resume()[0] == newest + 2
        assert store.check() == []


def test_near_the_cap_the_store_asks_for_a_checkpoint_then_gives_up_the_older(
    tmp_path: Path,
) -> None:
    wide = ps.Table("ads", dim=64, optimizer=ps.Adagrad(lr=0.1))
    asked = 0
    rng = np.random.default_rng(0)
    with ps.open(tmp_path, [wide], ram="3MiB", disk="24MiB") as store:
        for step in (1, 2):
            train(store, "ads", rng.integers(0, 9000, 1000).astype(np.uint64), 1.0)
            store.checkpoint(step)
        with (
            pytest.warns(ResourceWarning, match="gave up the checkpoint of step 1"),
            contextlib.suppress(DiskFullError),  # it may not have been enough
        ):
            while len(store.checkpoints) == 2:
                train(store, "ads", rng.integers(0, 2**40, 1000).astype(np.uint64), 1.0)
                asked += store.wants_checkpoint
        assert asked
        assert store.checkpoints == [2]
        store.delete("ads", np.concatenate([rows.keys for rows in store.rows("ads")]))
        store.checkpoint(3)
        assert not store.wants_checkpoint


def flip(file: Path, pattern: bytes) -> None:
    """Flip a bit of every copy of ``pattern`` in a file, pages no longer in use included."""
    content, at = bytearray(file.read_bytes()), -1
    while (at := content.find(pattern, at + 1)) >= 0:
        content[at] ^= 1
    file.write_bytes(content)


def test_a_damaged_block_is_named_and_the_rest_stays_usable(tmp_path: Path) -> None:
    keys = np.arange(5000)
    values = np.full((5000, 3), 0.5, np.float32)
    values[77] = 1234.5
    with ps.open(tmp_path, [ADS], ram="2MiB") as store:
        store.write("ads", keys, values)
        store.checkpoint(1)
    flip(tmp_path / "data.mdb", values[77].tobytes())
    with ps.open(tmp_path, [ADS], ram="2MiB") as store:
        assert len(store.check()) == 1
        with pytest.raises(CorruptError, match=r"'ads'.*rows") as caught:
            store.read("ads", keys)
        one_line(caught.value)
        with pytest.raises(CorruptError):
            store.stage({"ads": [keys.astype(np.uint64)]})
        # Nothing stays pinned, and rows of other blocks can be used.
        store.settle()
        assert store.stacks["ads"].top.pinned == 0
        sound = 0
        for start in range(0, 5000, 100):
            try:
                piece = slice(start, start + 100)
                assert np.array_equal(store.read("ads", keys[piece]), values[piece])
                sound += 1
            except CorruptError:
                continue
        assert 40 < sound < 50


def test_an_interrupt_in_the_middle_of_a_change_is_never_made_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(rows: Rows) -> None:
        raise KeyboardInterrupt

    with ps.open(tmp_path, [ADS], ram="800KiB") as store:
        train(store, "ads", np.arange(500, dtype=np.uint64), 1.0)
        store.checkpoint(1)
        digest = store.digest()
        monkeypatch.setattr(store.stacks["ads"].ssd, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            for start in range(0, 100_000, 500):
                train(store, "ads", np.arange(start, start + 500, dtype=np.uint64), 1.0)
        with pytest.raises(StoreError, match="KeyboardInterrupt"):
            store.read("ads", np.array([1]))
    with ps.open(tmp_path, [ADS], ram="2MiB") as store:
        assert store.digest() == digest


def test_rows_may_be_left_unread(tmp_path: Path) -> None:
    with ps.open(tmp_path, [ADS], ram="2MiB") as store:
        store.write("ads", np.arange(1000), np.ones((1000, 3)))
        pieces = store.rows("ads")
        next(pieces)
        answered = threading.Thread(target=lambda: store.read("ads", np.array([1])))
        answered.start()
        answered.join(30)
        assert not answered.is_alive()
        pieces.close()
