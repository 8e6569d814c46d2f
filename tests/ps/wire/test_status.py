"""Status: an error of a shard is the same at its client; what gRPC says is one of ours too."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
import hypothesis
import pytest
from hypothesis import strategies as st

from ps.wire.status import (
    CODES,
    MOST_DETAILS,
    NEEDED,
    RETRY,
    ReopenError,
    error_of,
    status_of,
    unlisted,
)
from storage import errors
from storage.errors import (
    MismatchError,
    OverloadedError,
    RefusedError,
    ShardError,
    StoreError,
    TerraceError,
    UnavailableError,
    WorkingSetError,
)

DEADLINE = 20.0
LARGEST = 1 << 16
OPTIONS = [("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", LARGEST)]


class Server(grpc.GenericRpcHandler):
    """One method, /test/Call, that does what ``answer`` does."""

    def __init__(self, *, most_calls: int | None = None) -> None:
        self.answer: Callable[[bytes, grpc.ServicerContext], bytes] = lambda data, context: data
        pool = futures.ThreadPoolExecutor(2)
        self._server = grpc.server(
            pool, [self], options=OPTIONS, maximum_concurrent_rpcs=most_calls
        )
        port = self._server.add_insecure_port("127.0.0.1:0")
        self._pool = pool
        self._server.start()
        self.address = f"127.0.0.1:{port}"
        self.channel = grpc.insecure_channel(self.address)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        if handler_call_details.method != "/test/Call":
            return None
        return grpc.unary_unary_rpc_method_handler(lambda data, ctx: self.answer(data, ctx))

    def call(self, data: bytes = b"", *, method: str = "Call", seconds: float = DEADLINE) -> bytes:
        """Raises: what the call's failure is for a client of shard ps-0."""
        try:
            answer: bytes = self.channel.unary_unary(f"/test/{method}")(data, timeout=seconds)
            return answer
        except grpc.RpcError as error:
            raise error_of("ps-0:7000", error) from error

    def raising(self, error: TerraceError) -> TerraceError:
        """What a client gets of an error that a handler tells of."""

        def answer(data: bytes, context: grpc.ServicerContext) -> bytes:
            code, details, trailing = status_of(error)
            context.set_trailing_metadata(trailing)
            context.abort(code, details)
            raise AssertionError

        self.answer = answer
        with pytest.raises(TerraceError) as caught:
            self.call()
        return caught.value

    def stop(self) -> None:
        self._server.stop(None).wait(DEADLINE)

    def close(self) -> None:
        self.channel.close()
        self.stop()
        self._pool.shutdown()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


def make(kind: type[TerraceError], message: str) -> TerraceError:
    if issubclass(kind, WorkingSetError):
        return kind(message, needed_bytes=3 << 40)
    if issubclass(kind, OverloadedError):
        return kind(message, retry_seconds=0.29)
    return kind(message)


def test_every_error_has_a_status(monkeypatch: pytest.MonkeyPatch) -> None:
    assert unlisted() == []
    monkeypatch.setattr(errors, "NewError", type("NewError", (StoreError,), {}), raising=False)
    assert unlisted() == ["NewError"]


@pytest.mark.parametrize("kind", CODES, ids=lambda kind: kind.__name__)
def test_an_error_is_the_same_at_the_client(server: Server, kind: type[TerraceError]) -> None:
    found = server.raising(make(kind, "rows have width 24, expected 32"))
    assert type(found) is kind
    assert str(found) == "ps-0:7000: rows have width 24, expected 32"
    if isinstance(found, OverloadedError):
        assert found.retry_seconds == 0.29
    if isinstance(found, WorkingSetError):
        assert found.needed_bytes == 3 << 40


def test_an_error_that_is_not_listed_is_told_as_its_parent(server: Server) -> None:
    class OddError(MismatchError):
        pass

    assert type(server.raising(OddError("odd"))) is MismatchError


def test_what_has_several_lines_arrives_in_one(server: Server) -> None:
    found = server.raising(StoreError("one\n  two\r\n\tthree\n"))
    assert str(found) == "ps-0:7000: one two three"


@hypothesis.settings(max_examples=40)
@hypothesis.given(st.text(st.characters(), max_size=60))
def test_any_message_arrives(server: Server, text: str) -> None:
    found = server.raising(ReopenError(text))
    assert type(found) is ReopenError
    if text.isprintable() and (line := " ".join(text.split())):
        assert str(found) == f"ps-0:7000: {line}"


@pytest.mark.parametrize("letter", ["x", "\u00e9", "\u6f22", "\U0001f600", "\udcff", "\n"])
def test_a_message_of_any_length_arrives_shortened(server: Server, letter: str) -> None:
    found = server.raising(UnavailableError("waited for " + 30_000 * letter))
    assert type(found) is UnavailableError
    assert "waited for" in str(found)
    assert len(str(found).encode()) < MOST_DETAILS + 50


@hypothesis.given(st.floats(0, 1e6))
def test_the_time_to_try_again_is_told_to_the_millisecond(seconds: float) -> None:
    trailing = dict(status_of(OverloadedError("busy", retry_seconds=seconds))[2])
    assert abs(int(trailing[RETRY]) / 1000 - seconds) <= 0.00051


@pytest.mark.parametrize("number", ["", "-5", "x", "1e3", " 7", 4400 * "9"])
def test_a_number_that_cannot_be_meant_is_the_usual_one(server: Server, number: str) -> None:
    def answer(data: bytes, context: grpc.ServicerContext) -> bytes:
        kind = data.decode()
        key = RETRY if kind == "OverloadedError" else NEEDED
        context.set_trailing_metadata([("terrace-error", kind), (key, number), ("x-bin", b"\x00")])
        context.abort(grpc.StatusCode.INTERNAL, "lies")
        raise AssertionError

    server.answer = answer
    with pytest.raises(OverloadedError, match="lies") as busy:
        server.call(b"OverloadedError")
    assert busy.value.retry_seconds == 0.1
    with pytest.raises(WorkingSetError) as large:
        server.call(b"WorkingSetError")
    assert large.value.needed_bytes == 0
    with pytest.raises(ShardError, match="ps-0:7000: lies") as unknown:
        server.call(b"SystemExit")
    assert type(unknown.value) is ShardError


@pytest.mark.parametrize("code", [c for c in grpc.StatusCode if c is not grpc.StatusCode.OK])
def test_a_status_of_others_is_an_error_of_a_shard(server: Server, code: grpc.StatusCode) -> None:
    server.answer = lambda data, context: context.abort(code, "")
    with pytest.raises(ShardError, match=f"^ps-0:7000: {code.name}$"):
        server.call()


def test_a_handler_that_fails_is_an_error_of_the_shard(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.answer = lambda data, context: bytes(1 // len(data))
    with pytest.raises(ShardError) as caught:
        server.call()
    assert type(caught.value) is ShardError


def test_a_method_there_is_not_is_refused(server: Server) -> None:
    with pytest.raises(RefusedError, match="ps-0:7000: "):
        server.call(method="Other")


def test_a_message_that_is_too_long_is_refused_on_either_side(server: Server) -> None:
    with pytest.raises(RefusedError, match="larger than max"):
        server.call(bytes(LARGEST + 1))
    server.answer = lambda data, context: bytes(5 << 20)  # 4 MiB is what a channel takes
    with pytest.raises(RefusedError, match="larger than max"):
        server.call()


def test_a_shard_with_a_name_of_ill_omen_refuses_what_is_too_long(server: Server) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        server.channel.unary_unary("/test/Call")(bytes(LARGEST + 1), timeout=DEADLINE)
    assert type(error_of("concurrent:7000", caught.value)) is RefusedError


def test_more_calls_than_the_server_takes_at_once_are_an_overload() -> None:
    server = Server(most_calls=1)
    inside, done = threading.Event(), threading.Event()

    def answer(data: bytes, context: grpc.ServicerContext) -> bytes:
        inside.set()
        done.wait(DEADLINE)
        return data

    server.answer = answer
    first = server.channel.unary_unary("/test/Call").future(b"first", timeout=DEADLINE)
    try:
        assert inside.wait(DEADLINE)
        with pytest.raises(OverloadedError) as caught:
            server.call()
        assert caught.value.retry_seconds == 0.1
        done.set()
        assert first.result(DEADLINE) == b"first"
    finally:
        done.set()
        server.close()


def test_a_deadline_that_passes_is_a_shard_that_is_away(server: Server) -> None:
    done = threading.Event()
    server.answer = lambda data, context: b"x" * done.wait(DEADLINE)
    try:
        with pytest.raises(UnavailableError, match="ps-0:7000: Deadline"):
            server.call(seconds=0.05)
    finally:
        done.set()


def test_a_server_that_stopped_is_away() -> None:
    server = Server()
    try:
        assert server.call(b"here") == b"here"
        server.stop()
        with pytest.raises(UnavailableError, match="ps-0:7000: "):
            server.call(seconds=5)
    finally:
        server.close()
