"""Owner: one after the other, in order, never too much, and never for somebody who has left."""

from __future__ import annotations

import gc
import math
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ps.server import owner as module
from ps.server.owner import Owner
from storage.errors import ClosedError, OverloadedError, StoreError, UnavailableError

DEADLINE = 30.0
# More than anything takes here.
NEVER = math.inf


def until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"


class Call(threading.Thread):
    """A call of `run` in a thread of its own: its result or what it raised."""

    def __init__(
        self,
        owner: Owner,
        work: Callable[[], Any] = lambda: None,
        *,
        size: int = 1,
        seconds: float = NEVER,
    ) -> None:
        super().__init__()
        self.owner, self.work, self.size = owner, work, size
        self.deadline = time.monotonic() + seconds
        self.result: Any = None
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.result = self.owner.run(self.work, size=self.size, deadline=self.deadline)
        except BaseException as error:
            self.error = error

    def end(self) -> BaseException | None:
        self.join(DEADLINE)
        assert not self.is_alive()
        return self.error


class Gate:
    """Work that goes on until it is let."""

    def __init__(self, owner: Owner, *, seconds: float = NEVER) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.call = Call(owner, self.work, seconds=seconds)
        assert self.begun.wait(DEADLINE)

    def work(self) -> str:
        self.begun.set()
        assert self.go_on.wait(DEADLINE)
        return "opened"

    def open(self) -> None:
        self.go_on.set()
        assert self.call.end() is None and self.call.result == "opened"


@pytest.fixture
def owner() -> Iterator[Owner]:
    owner = Owner(most_bytes=100, most_items=4)
    yield owner
    owner.close()


def test_work_is_done_in_the_owners_thread_and_its_result_given_back(owner: Owner) -> None:
    done = owner.run(lambda: threading.current_thread().name, size=1, deadline=NEVER)
    assert done == "terrace-owner"
    named = Owner(most_bytes=1, name="terrace-other")
    done = named.run(lambda: threading.current_thread().name, size=1, deadline=NEVER)
    named.close()
    assert done == "terrace-other"


def test_what_work_raises_is_raised_in_the_caller_and_the_thread_goes_on(owner: Owner) -> None:
    for error in (KeyError("mine"), SystemExit(3), KeyboardInterrupt()):

        def work(error: BaseException = error) -> None:
            raise error

        with pytest.raises(type(error)) as raised:
            owner.run(work, size=1, deadline=NEVER)
        assert raised.value is error
    assert owner.run(lambda: 7, size=1, deadline=NEVER) == 7


def test_work_is_done_in_the_order_in_which_it_came(owner: Owner) -> None:
    gate, order = Gate(owner), []
    calls = []
    for number in range(4):
        calls.append(Call(owner, lambda number=number: order.append(number)))
        until(lambda: owner.queued == len(calls))
    assert order == [] and owner.queued_bytes == 4
    gate.open()
    assert [call.end() for call in calls] == [None] * 4
    assert order == [0, 1, 2, 3]
    assert owner.queued == owner.queued_bytes == owner.refused == owner.dropped == 0


def test_only_one_piece_is_worked_on_at_a_time() -> None:
    owner, at_work, most = Owner(most_bytes=1 << 20), 0, 0

    def work() -> None:
        nonlocal at_work, most
        at_work += 1
        most = max(most, at_work)
        time.perf_counter()
        at_work -= 1

    def calls() -> None:
        for _ in range(300):
            owner.run(work, size=1, deadline=NEVER)

    threads = [threading.Thread(target=calls) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    owner.close()
    assert most == 1


def test_too_many_pieces_are_refused_at_once_with_a_time_to_try_again(owner: Owner) -> None:
    gate = Gate(owner)
    calls = [Call(owner) for _ in range(4)]
    until(lambda: owner.queued == 4)
    with pytest.raises(OverloadedError, match="4 of 4 pieces and 4 of 100 bytes wait") as raised:
        owner.run(lambda: None, size=1, deadline=NEVER)
    # Nothing is known of how long work takes.
    assert raised.value.retry_seconds == 0.1
    assert owner.refused == 1
    gate.open()
    assert [call.end() for call in calls] == [None] * 4
    gate = Gate(owner)
    calls = [Call(owner) for _ in range(4)]
    until(lambda: owner.queued == 4)
    with pytest.raises(OverloadedError) as raised:
        owner.run(lambda: None, size=1, deadline=NEVER)
    assert raised.value.retry_seconds == max(0.001, 4 * owner.service_seconds)
    gate.open()
    assert [call.end() for call in calls] == [None] * 4


def test_too_many_bytes_are_refused_and_what_is_too_large_goes_alone(owner: Owner) -> None:
    gate = Gate(owner)
    calls = [Call(owner, size=60)]
    until(lambda: owner.queued == 1)
    with pytest.raises(OverloadedError, match="expected room for 41 bytes"):
        owner.run(lambda: None, size=41, deadline=NEVER)
    calls.append(Call(owner, size=40))
    until(lambda: owner.queued == 2)
    gate.open()
    assert [call.end() for call in calls] == [None] * 2
    gate = Gate(owner)
    large = Call(owner, size=1000)
    until(lambda: owner.queued_bytes == 1000)
    with pytest.raises(OverloadedError):
        owner.run(lambda: None, size=0, deadline=NEVER)
    gate.open()
    assert large.end() is None
    assert owner.refused == 2


def test_the_bytes_of_what_is_worked_on_wait_no_more(owner: Owner) -> None:
    seen = owner.run(lambda: (owner.queued, owner.queued_bytes), size=100, deadline=NEVER)
    assert seen == (0, 0)


def test_a_caller_whose_deadline_passes_leaves_and_its_work_is_not_begun(owner: Owner) -> None:
    gate, done = Gate(owner), []
    late = Call(owner, lambda: done.append("late"), size=60, seconds=0.01)
    error = late.end()
    assert isinstance(error, UnavailableError)
    assert "terrace-owner: the deadline passed before its turn" in str(error)
    # It takes no room any more, though the owner has not looked at it.
    assert (owner.queued, owner.queued_bytes, owner.dropped) == (0, 0, 1)
    soon = Call(owner, lambda: done.append("soon"), size=100)
    until(lambda: owner.queued == 1)
    gate.open()
    assert soon.end() is None
    assert done == ["soon"]


def test_work_whose_deadline_has_passed_is_not_begun(owner: Owner) -> None:
    with pytest.raises(UnavailableError, match="before its turn"):
        owner.run(lambda: pytest.fail("begun"), size=1, deadline=time.monotonic())
    assert (owner.dropped, owner.queued_bytes) == (1, 0)


def test_work_whose_deadline_passed_is_dropped_by_the_owner_too(
    owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The caller sleeps on, as on a busy machine; the owner sees the deadline first.
    gate = Gate(owner)
    deadline = time.monotonic() + 1e6
    monkeypatch.setattr(owner, "_leave", lambda piece: pytest.fail("the caller woke first"))
    call = Call(owner, lambda: pytest.fail("begun"), seconds=1e6)
    until(lambda: owner.queued == 1)
    monotonic = time.monotonic
    with monkeypatch.context() as patched:
        patched.setattr(module.time, "monotonic", lambda: max(monotonic(), deadline + 1e6))
        gate.go_on.set()
        error = call.end()
    gate.open()
    assert isinstance(error, UnavailableError) and "before its turn" in str(error)
    assert (owner.queued, owner.queued_bytes, owner.dropped) == (0, 0, 1)


def test_a_caller_leaves_work_that_takes_too_long_and_is_told_that_it_may_be_done(
    owner: Owner,
) -> None:
    # On a busy machine the shorter deadlines may pass before its turn.
    for seconds in (0.02, 0.2, 2.0, 20.0):
        begun, go_on = threading.Event(), threading.Event()

        def work(begun: threading.Event = begun, go_on: threading.Event = go_on) -> None:
            begun.set()
            assert go_on.wait(DEADLINE)

        dropped, error = owner.dropped, Call(owner, work, seconds=seconds).end()
        go_on.set()
        if begun.is_set():
            break
    assert isinstance(error, UnavailableError) and "may have been done" in str(error)
    assert owner.dropped == dropped
    assert owner.run(lambda: 7, size=1, deadline=NEVER) == 7


def test_figures_tell_what_the_thread_did(owner: Owner) -> None:
    assert owner.busy_seconds == owner.service_seconds == 0
    began = time.perf_counter()
    gate = Gate(owner)
    gate.open()
    assert 0 < owner.service_seconds == owner.busy_seconds < time.perf_counter() - began
    first = owner.service_seconds
    for _ in range(200):
        owner.run(lambda: None, size=1, deadline=NEVER)
    # The mean has forgotten the first; the sum has not.
    assert owner.service_seconds < first < owner.busy_seconds


def test_closing_finishes_what_waits(owner: Owner) -> None:
    gate = Gate(owner)
    calls = [Call(owner, lambda: "done") for _ in range(3)]
    until(lambda: owner.queued == 3)
    closing = threading.Thread(target=owner.close)
    closing.start()
    until(lambda: owner._closing)
    with pytest.raises(ClosedError, match=r"after close\(\)"):
        owner.run(lambda: None, size=1, deadline=NEVER)
    gate.open()
    assert [(call.end(), call.result) for call in calls] == [(None, "done")] * 3
    closing.join(DEADLINE)
    owner.close()
    with pytest.raises(ClosedError):
        owner.run(lambda: None, size=1, deadline=NEVER)


def test_closing_without_draining_fails_what_waits_and_ends_what_has_begun(owner: Owner) -> None:
    gate = Gate(owner)
    calls = [Call(owner, lambda: pytest.fail("begun")) for _ in range(3)]
    until(lambda: owner.queued == 3)
    closing = threading.Thread(target=owner.close, kwargs={"drain": False})
    closing.start()
    assert all(isinstance(call.end(), ClosedError) for call in calls)
    assert owner.queued == owner.queued_bytes == 0
    gate.open()
    closing.join(DEADLINE)
    assert not closing.is_alive()


def test_work_that_does_not_end_is_named_when_closing(
    owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(owner)
    with monkeypatch.context() as patched:
        patched.setattr(module, "DEADLINE_SECONDS", 0.01)
        with pytest.raises(StoreError, match="terrace-owner: expected its work to end within"):
            owner.close()
    gate.open()


def test_the_owner_does_not_wait_for_itself(owner: Owner) -> None:
    with pytest.raises(AssertionError, match="wait for itself"):
        owner.run(lambda: owner.run(lambda: None, size=1, deadline=NEVER), size=1, deadline=NEVER)
    with pytest.raises(AssertionError, match="wait for itself"):
        owner.run(owner.close, size=1, deadline=NEVER)


class Large:
    """What a push holds."""


@pytest.mark.parametrize("fails", [False, True])
def test_what_was_done_is_held_by_nobody(owner: Owner, fails: bool) -> None:
    gone = threading.Event()

    def call() -> None:
        large = Large()
        weakref.finalize(large, gone.set)

        def work() -> int:
            assert isinstance(large, Large)
            return 1 // (not fails)

        try:
            owner.run(work, size=1, deadline=NEVER)
        except ZeroDivisionError:
            assert fails

    gc.disable()
    try:
        call()
        # The thread has a statement to go after the caller has its answer.
        assert gone.wait(DEADLINE)
    finally:
        gc.enable()


def test_callers_that_come_and_leave_at_any_time_get_one_answer_each() -> None:
    owner, threads, each = Owner(most_bytes=40, most_items=6), 12, 200
    done, answers = [], []

    def calls(name: int) -> None:
        for number in range(each):
            mine = (name, number)
            try:
                owner.run(
                    lambda mine=mine: done.append(mine),
                    size=1 + number % 20,
                    deadline=time.monotonic() + number % 5 * 1e-4,
                )
                answers.append((mine, "done"))
            except OverloadedError:
                answers.append((mine, "refused"))
            except UnavailableError as error:
                answers.append((mine, "late" if "before its turn" in str(error) else "unsure"))

    workers = [threading.Thread(target=calls, args=(name,)) for name in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(DEADLINE)
    owner.close()
    assert owner.queued == owner.queued_bytes == 0
    assert len(answers) == threads * each == len(dict(answers))
    by_answer = {
        word: {mine for mine, answer in answers if answer == word}
        for word in ("done", "refused", "late", "unsure")
    }
    assert len(done) == len(set(done))
    assert set(done) == by_answer["done"] | by_answer["unsure"]
    assert owner.refused == len(by_answer["refused"])
    assert owner.dropped == len(by_answer["late"])
    assert len(by_answer["done"]) > 0
