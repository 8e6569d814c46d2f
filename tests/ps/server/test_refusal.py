"""Refusal: early, cheap, with a hint; those who wait for others do not stand in their way."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest

from ps.server.calls import Calls
from ps.server.refusal import LEAST_CALLS, MOST_CALLS, Refusal
from ps.wire import terrace_pb2 as wire
from ps.wire.frame import Frame
from ps.wire.status import RETRY
from tests.ps.serving import KEYS, SECONDS, gradients, served_at, soon, wait_for


@pytest.mark.parametrize(
    ("most_bytes", "most_calls"),
    [(0, LEAST_CALLS), (128 << 20, 16), (1 << 40, MOST_CALLS)],
)
def test_bytes_say_how_many_calls(most_bytes: int, most_calls: int) -> None:
    calls = Calls(lambda: 0)
    refusal = Refusal(calls, most_bytes, lambda: 0.0, lambda: None)
    assert refusal.most_calls == most_calls
    with ExitStack() as under_way:
        for _ in range(most_calls):
            assert not refusal.due
            under_way.enter_context(calls.one())
        assert refusal.due
    assert not refusal.due


def test_a_refusal_needs_no_thread_and_no_message_and_says_when_to_come_again(
    tmp_path: Path,
) -> None:
    with served_at(tmp_path / "shard", most_bytes=LEAST_CALLS << 23) as served:
        session = served.open()
        entered, go = threading.Event(), threading.Event()

        def hold() -> None:
            entered.set()
            go.wait(SECONDS)

        holder = threading.Thread(
            target=served.shard.owner.run, args=(hold,), kwargs=dict(size=0, deadline=soon())
        )
        holder.start()
        try:
            assert entered.wait(SECONDS)
            pull = wire.PullRequest(session=session, table="ads", rows=len(KEYS))
            calls = [served.raw("Pull", Frame(pull, KEYS).pack()) for _ in range(LEAST_CALLS)]
            wait_for(lambda: served.shard.owner.queued == LEAST_CALLS)
            # Its message cannot be read, and is not.
            for method in ("Pull", "Push", "Write", "Delete"):
                error = served.raw(method, b"\xff").exception(SECONDS)
                assert isinstance(error, grpc.RpcError)
                assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                assert "calls are worked on" in error.details()
                assert int(dict(error.trailing_metadata())[RETRY]) >= 20
            assert served.code("Look", wire.LookRequest(what="tables")) != "RESOURCE_EXHAUSTED"
        finally:
            go.set()
            holder.join(SECONDS)
        assert all(call.exception(SECONDS) is None for call in calls)
        assert served.code("Pull", pull, KEYS) == "OK"


def test_pulls_that_wait_for_a_push_do_not_keep_it_out(tmp_path: Path) -> None:
    with served_at(tmp_path / "shard", most_bytes=LEAST_CALLS << 23) as served:
        session = served.open()
        pull = wire.PullRequest(session=session, table="ads", rows=len(KEYS), least_clock=1)
        calls = [served.raw("Pull", Frame(pull, KEYS).pack()) for _ in range(4 * LEAST_CALLS)]
        wait_for(lambda: served.shard.waiting == 4 * LEAST_CALLS)
        push = gradients(0, clock=1).frame(session, 1)
        assert served.code("Push", push.message, push.array) == "OK"
        assert all(call.exception(SECONDS) is None for call in calls)
