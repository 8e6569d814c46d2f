"""Credentials: where a token goes and where it never does, and what cannot be meant."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme

from ps.client.credentials import Credentials
from ps.tls import ServerFiles
from storage.errors import ConfigError
from tests.ps.securing import (
    ALONE,
    GOOD,
    METHODS,
    OTHER,
    TIMEOUT_SECONDS,
    call,
    serving,
    write_ca,
    write_pair,
    write_token,
)

OK, UNAUTHENTICATED = grpc.StatusCode.OK, grpc.StatusCode.UNAUTHENTICATED


def test_a_token_goes_over_loopback_in_plain(tmp_path: Path) -> None:
    token = write_token(tmp_path / "token", GOOD)
    with serving(token=token) as served:
        with Credentials(token=token).channel(served.target, ALONE) as on:
            assert {call(on, method) for method in METHODS} == {OK}
        with Credentials().channel(served.target, ALONE) as on:
            assert call(on, METHODS[0]) is UNAUTHENTICATED


def test_a_token_goes_over_a_unix_socket(tmp_path: Path) -> None:
    token = write_token(tmp_path / "token", GOOD)
    Credentials(token=token).channel(f"unix:{tmp_path}/socket").close()


@pytest.mark.parametrize(
    "target", ["10.0.0.5:7000", "ps-0:7000", "[::2]:7000", "localhost.example:1", "127.1:7000"]
)
def test_a_token_never_goes_to_another_host_in_plain(target: str, tmp_path: Path) -> None:
    token = write_token(tmp_path / "token", GOOD)
    with pytest.raises(ConfigError, match="expected TLS") as caught:
        Credentials(token=token).channel(target)
    assert GOOD not in str(caught.value) and target in str(caught.value)
    with Credentials().channel(target):  # nothing to lose
        pass


def test_a_token_in_plain_goes_to_no_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = write_token(tmp_path / "token", GOOD)
    with socket.create_server(("127.0.0.1", 0)) as proxy, serving(token=token) as served:
        for name in ("http_proxy", "grpc_proxy", "https_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        for name in ("no_proxy", "no_grpc_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        options = [*ALONE, ("grpc.enable_http_proxy", 1)]
        with Credentials(token=token).channel(served.target, options) as on:
            assert call(on, METHODS[0]) is OK
        proxy.setblocking(False)
        with pytest.raises(BlockingIOError):
            proxy.accept()


def test_a_changed_token_is_sent_from_the_next_call_on(tmp_path: Path) -> None:
    ours = write_token(tmp_path / "ours", GOOD)
    theirs = write_token(tmp_path / "theirs", GOOD)
    with serving(token=theirs) as served, Credentials(token=ours).channel(served.target) as on:
        seen = [call(on, METHODS[0])]
        write_token(theirs, OTHER)
        seen.append(call(on, METHODS[0]))
        write_token(ours, OTHER, GOOD)
        seen.append(call(on, METHODS[0]))
    assert seen == [OK, UNAUTHENTICATED, OK]


def test_a_token_file_that_is_gone_warns_and_the_token_stays(tmp_path: Path) -> None:
    ours, theirs = (write_token(tmp_path / name, GOOD) for name in ("ours", "theirs"))
    with serving(token=theirs) as served, Credentials(token=ours).channel(served.target) as on:
        ours.unlink()
        with pytest.warns(RuntimeWarning, match="ours.*stays in use"):
            assert call(on, METHODS[0]) is OK


@contextmanager
def showing() -> Iterator[tuple[str, list[Any]]]:
    """A server of the four kinds of method that keeps the authorization of each call."""
    seen: list[Any] = []

    def keep(request: Any, context: Any) -> Any:
        list(request) if not isinstance(request, bytes) else None
        found = context.invocation_metadata()
        seen.append([value for key, value in found if key == "authorization"])
        return b"x"

    def stream(request: Any, context: Any) -> Iterator[bytes]:
        yield keep(request, context)

    methods = {
        "UU": grpc.unary_unary_rpc_method_handler(keep),
        "US": grpc.unary_stream_rpc_method_handler(stream),
        "SU": grpc.stream_unary_rpc_method_handler(keep),
        "SS": grpc.stream_stream_rpc_method_handler(stream),
    }
    with ThreadPoolExecutor(2, "terrace-test") as pool:
        server = grpc.server(pool, options=[("grpc.so_reuseport", 0)])
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("t", methods)])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"127.0.0.1:{port}", seen
        finally:
            server.stop(None).wait(TIMEOUT_SECONDS)


def test_calls_of_every_kind_bring_the_token_once(tmp_path: Path) -> None:
    token, timeout = write_token(tmp_path / "token", GOOD), TIMEOUT_SECONDS
    with showing() as (target, seen), Credentials(token=token).channel(target, ALONE) as on:
        stale = [("authorization", "Bearer stale")]
        assert on.unary_unary("/t/UU")(b"x", timeout=timeout, metadata=stale) == b"x"
        assert on.unary_unary("/t/UU").future(b"x", timeout=timeout).result() == b"x"
        assert list(on.unary_stream("/t/US")(b"x", timeout=timeout)) == [b"x"]
        assert on.stream_unary("/t/SU")(iter([b"x"]), timeout=timeout) == b"x"
        assert list(on.stream_stream("/t/SS")(iter([b"x"]), timeout=timeout)) == [b"x"]
    assert seen == [[f"Bearer {GOOD}"]] * 5


def test_a_folder_of_tls_is_used_as_it_is_filled(tmp_path: Path) -> None:
    assert Credentials.in_folder(tmp_path) == Credentials(tmp_path / "ca.pem")
    with pytest.raises(ConfigError, match=r"ca\.pem: expected .* No such file"):
        Credentials.in_folder(tmp_path).channel("127.0.0.1:1")
    ca = trustme.CA()
    write_ca(tmp_path / "ca.pem", ca)
    write_pair(tmp_path, "server", ca, "ps-0")
    write_pair(tmp_path, "client", ca, "worker")
    write_token(tmp_path / "token", GOOD)
    found = Credentials.in_folder(tmp_path, name="ps-0")
    assert found == Credentials(*(tmp_path / f for f in ("ca.pem", "client.pem", "client-key.pem",
                                                         "token")), "ps-0")  # fmt: skip
    with serving(ServerFiles.in_folder(tmp_path)) as served:
        with found.channel(served.target, ALONE) as on:
            assert {call(on, method) for method in METHODS} == {OK}
        with Credentials.in_folder(tmp_path).channel(served.target, ALONE) as on:
            assert call(on, METHODS[0]) is grpc.StatusCode.UNAVAILABLE


def test_one_half_of_a_pair_is_refused(tmp_path: Path) -> None:
    for name in ("client.pem", "client-key.pem"):
        (tmp_path / name).touch()
        with pytest.raises(ConfigError, match=rf"{name}: expected a client's certificate and its"):
            Credentials.in_folder(tmp_path)
        (tmp_path / name).unlink()


def test_what_needs_a_ca_is_refused_without_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a CA"):
        Credentials(certificate=tmp_path / "c", key=tmp_path / "k")
    with pytest.raises(ConfigError, match="expected a CA"):
        Credentials(name="ps-0")


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    ca = trustme.CA()
    good = write_ca(tmp_path / "ca.pem", ca)
    certificate, _ = write_pair(tmp_path, "one", ca, "worker")
    _, key = write_pair(tmp_path, "two", ca, "worker")
    with pytest.raises(ConfigError, match=r"two-key\.pem: expected the key of"):
        Credentials(good, certificate, key).channel("127.0.0.1:1")
    os.truncate(good, 0)
    with pytest.raises(ConfigError, match=r"ca\.pem: expected certificates"):
        Credentials(good).channel("127.0.0.1:1")
    with pytest.raises(ConfigError, match="absent"):
        Credentials(token=tmp_path / "absent").channel("127.0.0.1:1")
