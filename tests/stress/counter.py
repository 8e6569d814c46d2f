"""Counter: a small gRPC service to make faults in front of: it gives back what it is sent.

It knows no protobuf: requests and replies are bytes.
"""

from __future__ import annotations

import threading
from collections import Counter as Tally
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc

DEADLINE_SECONDS = 10.0
ECHO, REFUSE = "/terrace.test.Counter/Echo", "/terrace.test.Counter/Refuse"
# Back at once, so that a test need not wait for gRPC's patience.
HASTY = (
    ("grpc.initial_reconnect_backoff_ms", 20),
    ("grpc.min_reconnect_backoff_ms", 20),
    ("grpc.max_reconnect_backoff_ms", 100),
    ("grpc.enable_retries", 0),
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.max_send_message_length", 64 << 20),
)


class Counter(grpc.GenericRpcHandler):
    """Echoes a request, or refuses it; counts how often each came, and remembers the last call."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._calls: Tally[bytes] = Tally()
        self.metadata: dict[str, str | bytes] = {}
        self.seconds_left = 0.0

    def service(self, call: Any) -> Any:
        """gRPC's way to ask for a method."""
        methods = {ECHO: self._echo, REFUSE: self._refuse}
        method = methods.get(call.method)
        return None if method is None else grpc.unary_unary_rpc_method_handler(method)

    def times(self, request: bytes) -> int:
        """How often this request came."""
        with self._changed:
            return self._calls[request]

    def await_times(self, request: bytes, times: int) -> bool:
        """Whether it came so often, within a deadline."""
        with self._changed:
            return self._changed.wait_for(
                lambda: self._calls[request] >= times, timeout=DEADLINE_SECONDS
            )

    def _echo(self, request: bytes, context: Any) -> bytes:
        self._count(request, context)
        context.set_trailing_metadata((("x-times", str(self.times(request))),))
        return request

    def _refuse(self, request: bytes, context: Any) -> bytes:
        self._count(request, context)
        context.set_trailing_metadata((("x-hint-bin", b"\x00\xff"),))
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too much")

    def _count(self, request: bytes, context: Any) -> None:
        with self._changed:
            self._calls[request] += 1
            self.metadata = dict(context.invocation_metadata())
            self.seconds_left = context.time_remaining()
            self._changed.notify_all()


@contextmanager
def serving(counter: Counter, port: int = 0) -> Iterator[int]:
    """A server of the counter: its port."""
    with ThreadPoolExecutor(16, thread_name_prefix="terrace-counter") as pool:
        server = grpc.server(pool, [counter], options=[*HASTY, ("grpc.so_reuseport", 0)])
        bound = server.add_insecure_port(f"127.0.0.1:{port}")
        server.start()
        try:
            yield bound
        finally:
            assert server.stop(0).wait(DEADLINE_SECONDS)
