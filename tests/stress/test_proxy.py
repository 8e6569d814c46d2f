"""Proxy: each fault does what it says, to plain TCP and to gRPC."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import pytest

from tests.stress.counter import ECHO, HASTY, Counter, serving
from tests.stress.proxy import Proxy, Way

DEADLINE = 10.0


@contextmanager
def echoing() -> Iterator[tuple[str, int]]:
    """A TCP server that sends back all it gets: its address."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        ThreadPoolExecutor(8, thread_name_prefix="terrace-echo") as pool,
    ):

        def echo(connection: socket.socket) -> None:
            with connection:
                try:
                    while data := connection.recv(1 << 16):
                        connection.sendall(data)
                except ConnectionError:
                    pass

        def listen() -> None:
            try:
                while True:
                    pool.submit(echo, listener.accept()[0])
            except OSError:  # shut down below
                pass

        listening = threading.Thread(target=listen, name="terrace-echo-listen")
        listening.start()
        try:
            yield listener.getsockname()
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            listening.join(DEADLINE)


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with echoing() as address, Proxy(address) as made:
        yield made


@pytest.fixture
def counter() -> Counter:
    return Counter()


@pytest.fixture
def gate(counter: Counter) -> Iterator[Proxy]:
    """A proxy before a gRPC server."""
    with serving(counter) as port, Proxy(("127.0.0.1", port)) as made:
        yield made


@pytest.fixture
def channel(gate: Proxy) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel("{}:{}".format(*gate.address), options=HASTY) as made:
        yield made


def call(channel: grpc.Channel, request: bytes, seconds: float = DEADLINE) -> bytes:
    """Once: it fails as it fails."""
    return channel.unary_unary(ECHO)(request, timeout=seconds, wait_for_ready=True)


def reconnect(channel: grpc.Channel) -> None:
    """Call until one gets through: gRPC may put some more on a connection that was cut."""
    deadline = time.monotonic() + DEADLINE
    while True:
        try:
            assert call(channel, b"hello") == b"hello"
            return
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            assert time.monotonic() < deadline


def connect(proxy: Proxy) -> socket.socket:
    return socket.create_connection(proxy.address, timeout=DEADLINE)


def receive(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := connection.recv(size - len(data))):
        data += more
    return data


def talk(connection: socket.socket, data: bytes = b"hello") -> None:
    connection.sendall(data)
    assert receive(connection, len(data)) == data


def is_silent(connection: socket.socket, seconds: float = 0.2) -> bool:
    """Whether nothing comes and nothing ends."""
    connection.settimeout(seconds)
    try:
        connection.recv(1)
    except TimeoutError:
        return True
    finally:
        connection.settimeout(DEADLINE)
    return False


def test_bytes_pass_whole_and_ends_too(proxy: Proxy) -> None:
    data = os.urandom(3 << 20)
    with connect(proxy) as connection, ThreadPoolExecutor(1, "terrace-test") as pool:
        sent = pool.submit(connection.sendall, data)
        assert receive(connection, len(data)) == data
        sent.result(DEADLINE)
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""
    assert proxy.passed(Way.REQUEST) == proxy.passed(Way.REPLY) == len(data)
    assert (proxy.accepted, proxy.cuts) == (1, 0)


def test_cut_resets_all_connections_and_lets_new_ones_in(proxy: Proxy) -> None:
    with connect(proxy) as one, connect(proxy) as other:
        talk(one)
        talk(other)
        proxy.cut()
        for connection in (one, other):
            with pytest.raises(ConnectionResetError):
                connection.recv(1)
    assert proxy.cuts == 2
    with connect(proxy) as again:
        talk(again)


def test_refuse_turns_new_connections_away_and_leaves_old_ones(proxy: Proxy) -> None:
    with connect(proxy) as old:
        talk(old)
        proxy.refuse()
        with pytest.raises(ConnectionError), connect(proxy) as new:
            talk(new)
        talk(old)
        proxy.refuse(False)
        with connect(proxy) as new:
            talk(new)


def test_stall_holds_bytes_and_closes_nothing(proxy: Proxy) -> None:
    with connect(proxy) as connection:
        talk(connection)
        proxy.stall()
        before = proxy.passed(Way.REQUEST)
        connection.sendall(b"held")
        assert is_silent(connection)
        with connect(proxy) as new:  # the system lets it in, nobody answers
            new.sendall(b"held too")
            assert is_silent(new)
            assert proxy.passed(Way.REQUEST) == before
            proxy.resume()
            assert receive(connection, 4) == b"held"
            assert receive(new, 8) == b"held too"


def test_delay_comes_each_way_and_takes_no_throughput(proxy: Proxy) -> None:
    with connect(proxy) as connection:
        talk(connection)
        proxy.delay(0.1)
        begun = time.monotonic()
        talk(connection, bytes(1 << 20))  # 16 chunks and more
        assert 0.2 <= time.monotonic() - begun < 1.6
        proxy.delay(0.0)
        talk(connection)


def test_limit_slows_down(proxy: Proxy) -> None:
    with connect(proxy) as connection:
        talk(connection)
        proxy.limit(1 << 20)
        begun = time.monotonic()
        talk(connection, bytes(300 << 10))
        assert time.monotonic() - begun >= 0.28
        proxy.limit(None)
        talk(connection)


def test_cut_after_passes_exactly_so_many_bytes(proxy: Proxy) -> None:
    with connect(proxy) as connection:
        talk(connection)
        sprung = proxy.cut_after(7, Way.REPLY)
        connection.sendall(b"0123456789")
        received = b""
        with pytest.raises(ConnectionResetError):
            while True:
                received += connection.recv(1)
        assert received == b"0123456"
    assert sprung.wait(DEADLINE)
    with connect(proxy) as again:  # it happens once
        talk(again, b"0123456789")


def test_cut_after_counts_over_connections_and_waits_for_more(proxy: Proxy) -> None:
    with connect(proxy) as one, connect(proxy) as other:
        sprung = proxy.cut_after(10, Way.REQUEST)
        talk(one)
        talk(other)  # the ten are through, and nothing comes after them
        assert not sprung.is_set()
        with pytest.raises(ConnectionResetError):
            talk(one)
        assert sprung.is_set()
        talk(other)


def test_a_server_that_is_gone_is_a_reset_and_another_is_found(proxy: Proxy) -> None:
    with echoing() as gone:
        pass
    there, proxy.target = proxy.target, gone
    with pytest.raises(ConnectionError), connect(proxy) as connection:
        talk(connection)
    proxy.target = there
    with connect(proxy) as connection:
        talk(connection)


def test_close_resets_what_is_open_even_when_stalled() -> None:
    with echoing() as address:
        proxy = Proxy(address)
        with connect(proxy) as connection:
            talk(connection)
            proxy.stall()
            connection.sendall(b"held")
            proxy.close()
            proxy.close()
            with pytest.raises(ConnectionResetError):
                connection.recv(1)
        with pytest.raises(ConnectionRefusedError):
            connect(proxy)


# -- gRPC ----------------------------------------------------------------------------------------

LARGE = bytes(300_000)  # beyond the window, so that the server speaks before it has all


@pytest.mark.parametrize("request_bytes", [b"small", LARGE], ids=["small", "large"])
def test_a_reply_is_lost_after_the_request_was_through(
    gate: Proxy, counter: Counter, channel: grpc.Channel, request_bytes: bytes
) -> None:
    for times in range(1, 6):
        reconnect(channel)
        sprung = gate.cut_call_after(0, Way.REPLY)
        with pytest.raises(grpc.RpcError) as raised:
            call(channel, request_bytes)
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        assert sprung.is_set()
        assert counter.times(request_bytes) == times
    reconnect(channel)
    assert call(channel, request_bytes) == request_bytes


@pytest.mark.parametrize("size", [0, 100, 200_000])
def test_a_request_is_lost_before_the_server_has_it(
    gate: Proxy, counter: Counter, channel: grpc.Channel, size: int
) -> None:
    for _ in range(5):
        reconnect(channel)
        sprung = gate.cut_call_after(size, Way.REQUEST)
        with pytest.raises(grpc.RpcError) as raised:
            channel.unary_unary(ECHO)(LARGE, timeout=DEADLINE)
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        assert sprung.is_set()
        assert counter.times(LARGE) == 0
    reconnect(channel)
    assert call(channel, LARGE) == LARGE


def test_a_pulled_cable_is_a_deadline_and_heals(
    gate: Proxy, counter: Counter, channel: grpc.Channel
) -> None:
    assert call(channel, b"hello") == b"hello"
    gate.stall()
    with pytest.raises(grpc.RpcError) as raised:
        call(channel, b"lost", seconds=0.3)
    assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    gate.resume()
    assert call(channel, b"found") == b"found"


def test_a_shard_that_comes_back_elsewhere_is_found(
    gate: Proxy, counter: Counter, channel: grpc.Channel
) -> None:
    assert call(channel, b"hello") == b"hello"
    other = Counter()
    with serving(other) as port:
        gate.target = ("127.0.0.1", port)
        gate.cut()
        reconnect(channel)
        assert call(channel, b"again") == b"again"
        assert (counter.times(b"again"), other.times(b"again")) == (0, 1)
