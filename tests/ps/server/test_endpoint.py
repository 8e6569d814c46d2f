"""Endpoint: one shard a port, limits that hold, an end that finishes what is under way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import ps
from ps.server.endpoint import THREADS, Endpoint
from ps.server.health import Health, State
from ps.server.metrics import Metrics
from ps.server.refusal import MOST_CALLS
from ps.server.service import MOST_MESSAGE_BYTES
from ps.wire import terrace_pb2 as wire
from ps.wire.frame import Frame
from storage.errors import ConfigError, RefusedError
from tests.ps.serving import ADS, KEYS, SECONDS, Served, gradients, served_at, soon, wait_for

WIDE = replace(ADS, name="wide", dim=1000, rows=4000, optimizer=ps.SGD(lr=1.0))
# Asks for much, says so, and reads nothing more: stopped like one that hangs.
STUCK = """
import os, signal, sys
import grpc
port, data, count = int(sys.argv[1]), bytes.fromhex(sys.argv[2]), int(sys.argv[3])
options = [("grpc.http2.lookahead_bytes", 65536), ("grpc.http2.bdp_probe", 0),
           ("grpc.max_receive_message_length", 64 << 20)]
channel = grpc.insecure_channel(f"127.0.0.1:{port}", options)
grpc.channel_ready_future(channel).result(20)
pull = channel.unary_unary("/terrace.v1.Shard/Pull")
calls = [pull.future(data, timeout=60) for _ in range(count)]
os.kill(os.getpid(), signal.SIGSTOP)
"""


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with served_at(tmp_path / "shard") as served:
        yield served


def ask(session: wire.Session, keys: Any = KEYS, table: str = "ads", **more: Any) -> Any:
    return wire.PullRequest(session=session, table=table, rows=len(keys), **more)


@contextmanager
def owner_held(served: Served) -> Iterator[threading.Event]:
    """The owner is busy until the event is set."""
    entered, go = threading.Event(), threading.Event()

    def hold() -> None:
        entered.set()
        go.wait(SECONDS)

    with ThreadPoolExecutor(1, "terrace-test") as pool:
        pool.submit(served.shard.owner.run, hold, size=0, deadline=soon())
        assert entered.wait(SECONDS)
        try:
            yield go
        finally:
            go.set()


def test_two_shards_never_share_a_port(served: Served) -> None:
    for address in (f"127.0.0.1:{served.endpoint.port}", "203.0.113.7:0", "nowhere.invalid:1"):
        with pytest.raises(ConfigError, match="--listen") as caught:
            Endpoint(served.shard, address, metrics=Metrics(), health=Health())
        assert "\n" not in str(caught.value)
    assert served.open()


def test_a_message_above_the_limit_is_refused(served: Served) -> None:
    served.open()
    with pytest.raises(RefusedError, match="larger"):
        served.call("Look", wire.LookRequest(what="x" * MOST_MESSAGE_BYTES))
    assert served.endpoint.flight.held == 0
    assert served.code("Look", wire.LookRequest(what="stats")) == "OK"


@pytest.mark.parametrize("reflection", [True, False])
def test_tools_may_ask_for_methods_only_if_that_is_wanted(tmp_path: Path, reflection: bool) -> None:
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    with served_at(tmp_path / "shard", reflection=reflection) as served:
        stub = reflection_pb2_grpc.ServerReflectionStub(served.channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        if reflection:
            (reply,) = stub.ServerReflectionInfo(iter([request]), timeout=SECONDS)
            names = [service.name for service in reply.list_services_response.service]
            assert "terrace.v1.Shard" in names
        else:
            with pytest.raises(grpc.RpcError) as caught:
                list(stub.ServerReflectionInfo(iter([request]), timeout=SECONDS))
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_health_is_told_on_the_same_port(served: Served) -> None:
    stub = health_pb2_grpc.HealthStub(served.channel)

    def status(service: str = "") -> int:
        request = health_pb2.HealthCheckRequest(service=service)
        return int(stub.Check(request, timeout=SECONDS).status)

    well = health_pb2.HealthCheckResponse.SERVING
    assert status() == status("terrace.v1.Shard/writes") == well
    served.health.change(State.DISK_FULL)
    assert status() == well
    assert status("terrace.v1.Shard/writes") != well
    served.health.change(State.DRAINING)
    assert status() != well


def test_more_calls_than_can_be_worked_on_are_refused_at_once(tmp_path: Path) -> None:
    with served_at(tmp_path / "shard", most_bytes=1 << 30) as served:
        data = Frame(ask(served.open()), KEYS).pack()
        with owner_held(served) as go:
            calls = [served.raw("Pull", data) for _ in range(256)]
            refused = threading.Semaphore(0)
            for call in calls:
                call.add_done_callback(lambda _: refused.release())
            # While nothing is done all those that are too many have their answer.
            for _ in range(256 - 2 * THREADS - 8):
                assert refused.acquire(timeout=SECONDS)
            go.set()
            codes = [call.exception().code().name if call.exception() else "OK" for call in calls]
    assert set(codes) == {"OK", "RESOURCE_EXHAUSTED"}
    assert codes.count("OK") >= MOST_CALLS
    wait_for(lambda: served.endpoint.flight.held == 0)


def test_messages_beyond_the_bound_are_refused_and_may_come_again(tmp_path: Path) -> None:
    with served_at(tmp_path / "shard", ram=64 << 20, most_bytes=23 << 20) as served:
        session = served.open(tables=[WIDE])
        keys = np.arange(1000, dtype=np.uint64)
        data = Frame(ask(session, keys, "wide"), keys).pack()
        with owner_held(served) as go:
            calls = [served.raw("Pull", data) for _ in range(20)]
            wait_for(lambda: sum(call.done() for call in calls) >= 18)
            assert served.endpoint.flight.held <= 17 << 20
            go.set()
            errors = [call.exception() for call in calls]
        assert sum(error is None for error in errors) == 2
        for error in errors:
            if error is not None:
                assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                assert "terrace-retry-ms" in dict(error.trailing_metadata())
        wait_for(lambda: served.endpoint.flight.held == 0)
        assert served.call("Pull", ask(session, keys, "wide"), keys).size == 4_000_000


@contextmanager
def stuck(served: Served, data: bytes, count: int) -> Iterator[None]:
    """A client that has sent ``count`` messages and reads no more: answers wait for it.

    It may stop before what it sends has left it, if others have the processor; then another comes.
    """
    flight, command = served.endpoint.flight, [sys.executable, "-c", STUCK]

    def waits(seconds: float = 2.0) -> bool:
        """Whether answers do; the calls beyond the bound were told to come again."""
        deadline, pause = time.monotonic() + seconds, threading.Event()
        while served.shard.owner.queued or flight.held <= flight.most_bytes / 2:
            if time.monotonic() > deadline:
                return False
            pause.wait(0.001)
        return True

    for _ in range(10):
        with subprocess.Popen([*command, str(served.endpoint.port), data.hex(), str(count)]) as one:
            try:
                process = psutil.Process(one.pid)
                wait_for(lambda process=process: process.status() == psutil.STATUS_STOPPED)  # type: ignore[misc]
                if waits():
                    yield
                    return
            finally:
                os.kill(one.pid, signal.SIGKILL)
    raise AssertionError("no client's answers had to wait")


def test_a_client_that_does_not_read_costs_no_more_than_the_bound(tmp_path: Path) -> None:
    bound, count = 32 << 20, 60
    with served_at(tmp_path / "shard", ram=64 << 20, most_bytes=bound) as served:
        session = served.open(tables=[WIDE])
        keys = np.arange(1000, dtype=np.uint64)
        served.call("Pull", ask(session, keys, "wide"), keys)
        data = Frame(ask(session, keys, "wide"), keys).pack()
        before = psutil.Process().memory_info().rss
        with stuck(served, data, count):
            for _ in range(20):
                assert served.endpoint.flight.held <= bound
                assert psutil.Process().memory_info().rss - before < 1.6 * bound
                # Others are answered, or told when to come again.
                assert served.code("Look", wire.LookRequest(what="tables")) == "OK"
        wait_for(lambda: served.endpoint.flight.held == 0)
        assert served.call("Pull", ask(session, keys, "wide"), keys).size == 4_000_000


def test_stopping_finishes_what_is_under_way_and_lets_nobody_in(served: Served) -> None:
    session, some = served.open(), gradients(0)
    push = Frame(some.frame(session, 1).message, some.values).pack()
    waits = Frame(ask(session, least_clock=9), KEYS).pack()
    with owner_held(served) as go, ThreadPoolExecutor(1, "terrace-test") as pool:
        pushed, waiting = served.raw("Push", push), served.raw("Pull", waits)
        wait_for(lambda: served.shard.owner.queued == 1 and served.shard.sessions._waiting == 1)
        served.shard.drain()
        assert waiting.exception().code() is grpc.StatusCode.UNAVAILABLE
        assert "being stopped" in waiting.details()
        stopping = pool.submit(served.endpoint.stop, SECONDS)
        wait_for(
            lambda: (
                served.raw("Look", b"", 1.0).exception() is not None
                and served.raw("Look", b"", 1.0).exception().code() is grpc.StatusCode.UNAVAILABLE
            )
        )
        assert not pushed.done()
        go.set()
        stopping.result(SECONDS)
    assert pushed.exception() is None
    assert served.shard.sessions.get("train-0", 1).applied == 1


def test_stopping_ends_after_its_grace_what_does_not_finish(served: Served) -> None:
    session = served.open()
    with owner_held(served) as go:
        pulled = served.raw("Pull", Frame(ask(session), KEYS).pack())
        wait_for(lambda: served.shard.owner.queued == 1)
        with ThreadPoolExecutor(1, "terrace-test") as pool:
            stopping = pool.submit(served.endpoint.stop, 0.05)
            assert pulled.exception().code() in (
                grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED,
            )  # fmt: skip
            go.set()
            stopping.result(SECONDS)
