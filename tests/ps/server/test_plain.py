"""PlainPort: real clients, and those who would wear it out."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ps.server.health import SHARD, Health, State
from ps.server.metrics import Metrics
from ps.server.plain import PlainPort
from storage.errors import ConfigError

DEADLINE = 10.0


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def health() -> Health:
    return Health()


@pytest.fixture
def plain(metrics: Metrics, health: Health) -> Iterator[PlainPort]:
    with PlainPort(metrics, health, grpc_port=0) as port:
        yield port


@pytest.fixture
def hasty(metrics: Metrics, health: Health) -> Iterator[PlainPort]:
    """A port that gives a client half a second."""
    with PlainPort(metrics, health, seconds=0.5) as port:
        yield port


def ask(port: PlainPort, path: str, method: str = "GET") -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port.port, timeout=DEADLINE)
    try:
        connection.request(method, path)
        reply = connection.getresponse()
        return reply.status, reply.read().decode()
    finally:
        connection.close()


def connect(port: PlainPort) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port.port), timeout=DEADLINE)


def rest(connection: socket.socket) -> bytes:
    """All that still comes."""
    pieces = []
    try:
        while piece := connection.recv(1 << 16):
            pieces.append(piece)
    except ConnectionError:
        pass
    return b"".join(pieces)


def test_metrics_are_served(plain: PlainPort, metrics: Metrics) -> None:
    metrics.pulled(0.1, rows=5, size=100)
    status, text = ask(plain, "/metrics")
    assert status == 200
    assert "terrace_rows_pulled_total 5.0" in text
    assert ask(plain, "/metrics?name=x")[0] == 200


@pytest.mark.parametrize("state", State)
def test_readiness_says_what_the_shard_does(plain: PlainPort, health: Health, state: State) -> None:
    health.change(state)
    expected = 200 if state is State.SERVING else 503
    assert ask(plain, "/readyz") == (expected, f"{state.value}\n")
    assert ask(plain, "/healthz") == (200, "alive\n")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/", 404), ("GET", "/metrics/", 404), ("POST", "/metrics", 405), ("HEAD", "/", 405)],
)
def test_what_is_not_offered_is_refused(
    plain: PlainPort, method: str, path: str, status: int
) -> None:
    assert ask(plain, path, method)[0] == status


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"\x16\x03\x01 hello\r\n\r\n", b"400"),
        (b"GET /healthz\r\n\r\n", b"400"),
        (b"GET /healthz SMTP/1.1\r\n\r\n", b"400"),
        (b"\r\n\r\n", b"400"),
        (b"GET /" + 9000 * b"a" + b" HTTP/1.1\r\n\r\n", b"431"),
        (b"GET /healthz HTTP/1.1\r\n" + 900 * b"x-y: 12345\r\n", b"431"),
    ],
)
def test_what_is_no_request_gets_one_line(
    plain: PlainPort, request_bytes: bytes, status: bytes
) -> None:
    with connect(plain) as connection:
        connection.sendall(request_bytes)
        assert rest(connection).startswith(b"HTTP/1.1 " + status)
    assert ask(plain, "/healthz")[0] == 200


@pytest.mark.parametrize("drips", [False, True])
def test_who_is_slow_to_ask_is_cut(hasty: PlainPort, drips: bool) -> None:
    begun = time.monotonic()
    with connect(hasty) as connection:
        connection.settimeout(0.05)
        ended = False
        while not ended and time.monotonic() < begun + DEADLINE:
            try:
                if drips:
                    connection.sendall(b"G")
                ended = connection.recv(1) == b""
            except TimeoutError:
                continue
            except ConnectionError:
                ended = True
        assert ended
    assert time.monotonic() - begun >= 0.4


def test_who_does_not_read_is_cut(hasty: PlainPort, metrics: Metrics) -> None:
    table = {"tiers": [], "ram_bytes": {"total": 1, "peak": 1}}
    metrics.watch(lambda: {"tables": {f"{i}-{'x' * 1000}": table for i in range(8000)}})
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(DEADLINE)
        connection.connect(("127.0.0.1", hasty.port))
        connection.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        deadline = time.monotonic() + DEADLINE
        while hasty._connections or not metrics._figures._up:
            assert time.monotonic() < deadline


def test_more_connections_than_fit_are_closed(plain: PlainPort) -> None:
    held = [connect(plain) for _ in range(32)]
    try:
        for connection in held:  # all of them were accepted once the last one is asked of
            connection.sendall(b"GET /healthz HTTP/1.1\r\n")
        deadline = time.monotonic() + DEADLINE
        while len(plain._connections) < 32:
            assert time.monotonic() < deadline
        with connect(plain) as one_more:
            assert rest(one_more) == b""
        held[0].sendall(b"\r\n")
        assert rest(held[0]).startswith(b"HTTP/1.1 200")
        while len(plain._connections) == 32:
            assert time.monotonic() < deadline
        assert ask(plain, "/healthz")[0] == 200
    finally:
        for connection in held:
            connection.close()


def test_health_is_answered_while_a_scrape_hangs(plain: PlainPort, metrics: Metrics) -> None:
    began, go_on = threading.Event(), threading.Event()

    def source() -> Mapping[str, Any]:
        began.set()
        assert go_on.wait(DEADLINE)
        return {"sessions": 1}

    metrics.watch(source)
    with ThreadPoolExecutor(4, thread_name_prefix="terrace-test") as pool:
        scrapes = [pool.submit(ask, plain, "/metrics") for _ in range(4)]
        try:
            assert began.wait(DEADLINE)
            assert ask(plain, "/healthz")[0] == 200
        finally:
            go_on.set()
        assert all("terrace_sessions 1.0" in scrape.result(DEADLINE)[1] for scrape in scrapes)


def test_grpc_health_is_told_on_its_own_port(plain: PlainPort, health: Health) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{plain.grpc_port}") as channel:
        client = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service=SHARD)
        for state, status in (
            (State.LOADING, health_pb2.HealthCheckResponse.NOT_SERVING),
            (State.SERVING, health_pb2.HealthCheckResponse.SERVING),
        ):
            health.change(state)
            assert client.Check(request, timeout=DEADLINE).status == status


def test_nobody_holds_the_grpc_port_by_watching(plain: PlainPort) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{plain.grpc_port}") as channel:
        client = health_pb2_grpc.HealthStub(channel)
        with pytest.raises(grpc.RpcError) as raised:
            next(client.Watch(health_pb2.HealthCheckRequest(), timeout=DEADLINE))
        assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_grpc_is_served_only_if_asked_for(hasty: PlainPort) -> None:
    assert hasty.grpc_port is None


@pytest.mark.parametrize("which", ["port", "grpc_port"])
def test_a_taken_port_is_refused_in_one_line(
    plain: PlainPort, metrics: Metrics, health: Health, which: str
) -> None:
    with pytest.raises(ConfigError, match=f"port {plain.port}, but") as raised:
        PlainPort(metrics, health, **{which: plain.port})
    assert "\n" not in str(raised.value)


def test_close_ends_what_is_open(metrics: Metrics, health: Health) -> None:
    port = PlainPort(metrics, health, seconds=1000.0)
    with connect(port) as connection:
        connection.sendall(b"GET")
        deadline = time.monotonic() + DEADLINE
        while not port._connections:
            assert time.monotonic() < deadline
        port.close()
        assert rest(connection) == b""
    with pytest.raises(OSError):
        connect(port)
    port.close()


def test_close_waits_for_a_scrape(metrics: Metrics, health: Health) -> None:
    began, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def source() -> Mapping[str, Any]:
        began.set()
        assert go_on.wait(DEADLINE)
        ended.set()
        return {}

    metrics.watch(source)
    port = PlainPort(metrics, health)
    with connect(port) as connection, ThreadPoolExecutor(1, "terrace-test") as pool:
        connection.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert began.wait(DEADLINE)
        closing = pool.submit(port.close)
        assert rest(connection) == b""  # cut at once
        go_on.set()
        closing.result(DEADLINE)
    assert ended.is_set()
