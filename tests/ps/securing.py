"""A real gRPC server with every method of terrace.v1.Shard, and files of TLS to secure it with."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import trustme

from ps.bearer import Tokens
from ps.server.security import Guard, server_credentials
from ps.tls import ServerFiles
from ps.wire import terrace_pb2

SERVICE = terrace_pb2.DESCRIPTOR.services_by_name["Shard"]
METHODS = [f"/{SERVICE.full_name}/{method.name}" for method in SERVICE.methods]
TIMEOUT_SECONDS = 20.0
# Channels of one test do not share connections.
ALONE = [("grpc.use_local_subchannel_pool", 1)]
GOOD, OTHER, WRONG = "good-token-of-many-letters", "other-token-of-many-letters", "w" * 26


@dataclass
class Served:
    """What a server saw: its port, the methods that ran, the count of refused calls."""

    port: int = 0
    ran: list[str] = field(default_factory=list)
    refused: list[None] = field(default_factory=list)
    reports: list[str] = field(default_factory=list)

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"


class _Everything(grpc.GenericRpcHandler):
    """Answers every method of the service with what it was sent."""

    def __init__(self, served: Served) -> None:
        self._served = served

    def service(self, details: Any) -> Any:
        if details.method not in METHODS:
            return None

        def answer(request: bytes, _context: object) -> bytes:
            self._served.ran.append(details.method)
            return request

        return grpc.unary_unary_rpc_method_handler(answer)


@contextmanager
def serving(
    files: ServerFiles | None = None,
    token: Path | None = None,
    *,
    open_methods: tuple[str, ...] = (),
    threads: int = 2,
) -> Iterator[Served]:
    """A server with the files' TLS and token, or in plain with ``token``."""
    served = Served()
    secret = token if files is None else files.token
    guards = []
    if secret is not None:
        tokens = Tokens(secret, report=served.reports.append)
        guards = [
            Guard(tokens, refused=lambda: served.refused.append(None), open_methods=open_methods)
        ]
    with ThreadPoolExecutor(threads, "terrace-test") as pool:
        server = grpc.server(
            pool,
            interceptors=guards,
            options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 64 << 20)],
        )
        server.add_generic_rpc_handlers([_Everything(served)])
        if files is None:
            served.port = server.add_insecure_port("127.0.0.1:0")
        else:
            credentials = server_credentials(
                files.certificate, files.key, files.client_ca, report=served.reports.append
            )
            served.port = server.add_secure_port("127.0.0.1:0", credentials)
        server.start()
        try:
            yield served
        finally:
            server.stop(None).wait(TIMEOUT_SECONDS)


def call(channel: grpc.Channel, method: str, *metadata: tuple[str, str]) -> grpc.StatusCode:
    """How a call of the method ends."""
    try:
        sent = channel.unary_unary(method)(b"x", timeout=TIMEOUT_SECONDS, metadata=metadata)
    except grpc.RpcError as error:
        return error.code()
    assert sent == b"x"
    return grpc.StatusCode.OK


def stranger(channel: grpc.Channel, method: str) -> grpc.StatusCode:
    """How a call ends of which the message never comes."""
    never = threading.Event()

    def silent() -> Iterator[bytes]:
        never.wait(TIMEOUT_SECONDS)
        yield from ()

    try:
        channel.stream_unary(method)(silent(), timeout=TIMEOUT_SECONDS / 2)
    except grpc.RpcError as error:
        return error.code()
    finally:
        never.set()
    return grpc.StatusCode.OK


def write_token(path: Path, *tokens: str) -> Path:
    """Make, or replace, a token file."""
    beside = path.with_name(path.name + ".new")
    beside.write_text("".join(f"{token}\n" for token in tokens))
    beside.chmod(0o600)
    os.replace(beside, path)
    return path


def write_pair(
    folder: Path, name: str, ca: trustme.CA, *identities: str, expired: bool = False
) -> tuple[Path, Path]:
    """NAME.pem and NAME-key.pem, signed by the CA, for a server (or client) of that identity."""
    before = datetime.now(UTC) - timedelta(days=1)
    made = (
        ca.issue_cert(*identities, not_before=before - timedelta(days=1), not_after=before)
        if expired
        else ca.issue_cert(*identities)
    )
    certificate, key = folder / f"{name}.pem", folder / f"{name}-key.pem"
    certificate.write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
    key.write_bytes(made.private_key_pem.bytes())
    return certificate, key


def write_ca(path: Path, ca: trustme.CA) -> Path:
    path.write_bytes(ca.cert_pem.bytes())
    return path
