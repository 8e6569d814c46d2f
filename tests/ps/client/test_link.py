"""Link: a shard that is away is waited for, and what cannot pass is said at once."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from ps.client import link as module
from ps.client.credentials import Credentials
from ps.client.identity import Identity
from ps.client.link import Link, Patience
from ps.wire import terrace_pb2 as wire
from ps.wire.status import ReopenError
from storage.errors import (
    ClosedError,
    DiskFullError,
    OverloadedError,
    RefusedError,
    ShardError,
    UnavailableError,
)
from tests.ps.client.shards import SECONDS, SUMS, forwarding, serving, wait_until
from tests.ps.client.test_outbox import describe


@contextmanager
def linked(address: str, *, seconds: float = SECONDS, incarnation: int = 1) -> Iterator[Link]:
    who = Identity("job", incarnation=incarnation)
    link = Link(
        address, (0, 1), who, describe(), Credentials().channel, timeout_seconds=seconds
    )  # fmt: skip
    try:
        yield link
    finally:
        link.close()


def pull(link: Link) -> bytes:
    request = wire.PullRequest(table=SUMS.name, session=link.identity.session)
    return request.SerializeToString()


def test_a_shard_that_comes_late_is_waited_for(tmp_path: Path) -> None:
    with serving(tmp_path) as (one,):
        one.deafen()
        with linked(one.address) as link, ThreadPoolExecutor(1) as threads:
            opening = threads.submit(link.open, 0)
            wait_until(lambda: link._opening.locked(), "the opening")
            one.listen()
            opening.result(SECONDS)
            assert link.openings == 1


def test_the_deadline_names_the_shard_and_what_to_do() -> None:
    with linked("127.0.0.1:1", seconds=0.3) as link:
        began = time.monotonic()
        with pytest.raises(UnavailableError) as caught:
            link.call("Pull", pull(link))
        assert 0.25 < time.monotonic() - began < 3
        said = str(caught.value)
        assert said.startswith("shard 0 at 127.0.0.1:1: ") and "is the server running" in said
        assert "\n" not in said


def test_pauses_grow_and_stay_below_their_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    class Stop(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout or 0.0)
            return False

    monkeypatch.setattr(module.random, "uniform", lambda low, high: high)
    patience = Patience(Stop(), time.monotonic() + 1000)
    for _ in range(10):
        patience.bear(UnavailableError("away"))
    assert waits[:3] == pytest.approx([0.02, 0.04, 0.08]) and waits[-1] == 1.0
    patience.bear(OverloadedError("busy", retry_seconds=5.0))
    assert waits[-1] == 6.0
    count = len(waits)
    patience.bear(ReopenError("anew"))
    assert len(waits) == count  # at once


def test_a_full_disk_is_still_one_at_the_deadline() -> None:
    patience = Patience(threading.Event(), time.monotonic() - 1)
    with pytest.raises(DiskFullError):
        patience.bear(DiskFullError("full"))


def test_long_waits_are_said(caplog: pytest.LogCaptureFixture) -> None:
    patience = Patience(threading.Event(), time.monotonic() + 100)
    patience._said -= 11
    with caplog.at_level(logging.WARNING, "terrace.client"):
        patience.bear(UnavailableError("shard 3 is away"))
        patience.bear(UnavailableError("shard 3 is away"))
    assert [record.getMessage()[:15] for record in caplog.records] == ["shard 3 is away"]


def test_the_session_is_opened_again_once_for_many_callers(tmp_path: Path) -> None:
    with serving(tmp_path) as (one,), linked(one.address) as link:
        link.open(0)
        one.crash()
        one.start()
        barrier = threading.Barrier(8)

        def call() -> None:
            barrier.wait(SECONDS)
            link.call("Pull", pull(link))

        with ThreadPoolExecutor(8) as threads:
            for future in [threads.submit(call) for _ in range(8)]:
                future.result(SECONDS)
        assert link.openings == 2


def test_an_old_failure_opens_no_session_that_somebody_opened_since(tmp_path: Path) -> None:
    with serving(tmp_path) as (one,), linked(one.address) as link:
        link.open(0)
        link.open(0)
        assert link.openings == 1


def test_what_happens_at_an_opening_stops_it(tmp_path: Path) -> None:
    with serving(tmp_path) as (one,), linked(one.address) as link:

        def refuse(reply: Any) -> None:
            raise RefusedError("no")

        link.reopened = refuse
        for _ in range(2):
            with pytest.raises(RefusedError):
                link.open(0)
        assert link.openings == 0 and not link._opening.locked()


def test_a_name_is_resolved(tmp_path: Path) -> None:
    with serving(tmp_path) as (one,), linked(f"localhost:{one.port}") as link:
        link.open(0)
        assert link.name == f"shard 0 at localhost:{one.port}"


def test_a_connection_that_was_cut_is_made_again(tmp_path: Path) -> None:
    with serving(tmp_path) as (one,), forwarding(one.port) as way, linked(way.address) as link:
        link.open(0)
        for _ in range(3):
            way.cut()
            link.call("Pull", pull(link))


class _Garbage(grpc.GenericRpcHandler):
    def service(self, details: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(lambda request, context: b"\xff garbage")


@contextmanager
def another_service(*handlers: Any) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(2), options=(("grpc.so_reuseport", 0),))
    server.add_generic_rpc_handlers(handlers)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait(SECONDS)


def test_an_answer_that_cannot_be_read_names_the_server_at_once() -> None:
    with (
        another_service(_Garbage()) as address,
        linked(address) as link,
        pytest.raises(ShardError, match=f"shard 0 at {address}: .*is this a server of Ter"),
    ):
        link.open(0)


def test_a_server_of_something_else_is_named_at_once() -> None:
    with (
        another_service() as address,
        linked(address) as link,
        pytest.raises(RefusedError, match=f"shard 0 at {address}: "),
    ):
        link.open(0)


def test_closing_ends_calls_that_wait_and_refuses_later_ones(tmp_path: Path) -> None:
    with serving(tmp_path) as (one,), forwarding(one.port) as way, linked(way.address) as link:
        link.open(0)
        way.mute = True
        with ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(link.call, "Pull", pull(link))
            wait_until(waiting.running, "the call")
            link.close()
            with pytest.raises((UnavailableError, ClosedError)):
                waiting.result(SECONDS)
        with pytest.raises((UnavailableError, ClosedError)):
            link.call("Pull", pull(link))
        link.close()
