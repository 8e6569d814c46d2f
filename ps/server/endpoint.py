"""Endpoint: a shard on a port of its own: gRPC with its limits, health, and perhaps reflection.

Limits: messages of 16 MiB, so many calls and so many bytes at once, connections that are looked
after (a peer that is gone is noticed in 15 s). What would go beyond is refused at once.
`grpc.so_reuseport` is off: with it two shards could share a port without an error.

Threads: gRPC's. `stop` from any thread that is not one of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from ps.server.calls import Calls
from ps.server.flight import Flight
from ps.server.health import Health
from ps.server.metrics import Metrics
from ps.server.refusal import Refusal
from ps.server.service import MOST_MESSAGE_BYTES, Service
from ps.shard import Shard
from storage.errors import ConfigError, OverloadedError

THREADS = 96
"""More than can wait for others, so that those others get in."""

OPTIONS = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", MOST_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MOST_MESSAGE_BYTES),
    ("grpc.max_metadata_size", 16 << 10),
    ("grpc.max_concurrent_streams", 256),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # Clients look after their connections too, every 10 s.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
)


class Endpoint:
    """See the module's docstring. address: "host:port", port 0 for one of the system's choice,
    which ``port`` then says. credentials: None for none. interceptors: who may call. most_bytes: of
    messages that are held at once.

    Raises: ConfigError when the address cannot be had.
    """

    def __init__(
        self,
        shard: Shard,
        address: str,
        *,
        metrics: Metrics,
        health: Health,
        credentials: grpc.ServerCredentials | None = None,
        interceptors: Sequence[Any] = (),
        reflection: bool = False,
        most_bytes: int = 256 << 20,
    ) -> None:
        self.flight = Flight(most_bytes)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="terrace-serve")
        calls = Calls(lambda: shard.waiting)
        self._server = grpc.server(
            self._threads, interceptors=interceptors, options=OPTIONS,
            maximum_concurrent_rpcs=2 * THREADS,
        )  # fmt: skip
        refusal = Refusal(
            calls, most_bytes, lambda: shard.owner.service_seconds,
            lambda: metrics.refused(OverloadedError.__name__),
        )  # fmt: skip
        service = Service(shard, metrics, health, self.flight, calls, refusal)
        self._server.add_generic_rpc_handlers((service,))
        health.add_checks_to(self._server)
        if reflection:
            _reflect(self._server)
        try:
            if credentials is None:
                self.port = self._server.add_insecure_port(address)
            else:
                self.port = self._server.add_secure_port(address, credentials)
        except RuntimeError as error:
            self._threads.shutdown()
            raise ConfigError(
                f"--listen {address}: expected an address of this machine and a free port "
                f"({error}); choose another"
            ) from error
        self._server.start()

    def stop(self, grace_seconds: float) -> None:
        """Let no call in any more; end those that are under way after so many seconds. Joins."""
        self._server.stop(grace_seconds).wait(grace_seconds + 10)
        self._threads.shutdown()


def _reflect(server: grpc.Server) -> None:
    """Let tools ask which methods there are. Raises: ConfigError."""
    try:
        from grpc_reflection.v1alpha import reflection
    except ImportError as error:
        raise ConfigError(
            "--reflection: expected the package grpcio-reflection; pip install "
            "'terrace-ps[reflection]'"
        ) from error
    from ps.wire.terrace_pb2 import DESCRIPTOR

    names = (DESCRIPTOR.services_by_name["Shard"].full_name, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
