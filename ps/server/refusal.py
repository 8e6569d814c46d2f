"""Refusal: more calls than a shard can work on are refused where they come in.

A refusal has to cost much less than an answer, or a shard that is asked for too much does nothing
but refuse. So it is given before the call's message is read and before a thread is woken for it.

Threads: gRPC's own, the one that hands out all calls: nothing here may wait.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import grpc

from ps.server.calls import Calls
from ps.wire.status import status_of
from storage.errors import OverloadedError

_CALL_BYTES = 8 << 20
"""Two copies of an answer, as clients cut their pulls."""

LEAST_CALLS, MOST_CALLS = 8, 48
"""Worked on at once, however many bytes there may be: more only wait, and for longer."""

_LEAST_REST_SECONDS = 0.02


class Refusal:
    """See the module's docstring. calls: those that are worked on. most_bytes: of messages that may
    be held at once. service_seconds: says how long one takes. refused: is told of each.
    """

    def __init__(
        self,
        calls: Calls,
        most_bytes: int,
        service_seconds: Callable[[], float],
        refused: Callable[[], None],
    ) -> None:
        self.most_calls = min(MOST_CALLS, max(LEAST_CALLS, most_bytes // _CALL_BYTES))
        self._calls = calls
        self._service_seconds = service_seconds
        self._refused = refused
        # Where gRPC looks for the pool that a method runs in; else it is the server's, which works.
        self.experimental_thread_pool = _AtOnce(1)
        # As the method of a stream, so that no message has to come first.
        self.handler = grpc.stream_unary_rpc_method_handler(self)

    @property
    def due(self) -> bool:
        """Whether one call more would be too much."""
        return self._calls.busy >= self.most_calls

    def __call__(self, _messages: object, context: grpc.ServicerContext) -> bytes:
        """Refuse one call, as a method of gRPC. (It would print what is raised in its thread.)"""
        busy = self._calls.busy
        seconds = max(_LEAST_REST_SECONDS, busy * self._service_seconds())
        code, details, trailing = status_of(
            OverloadedError(
                f"{busy} calls are worked on, expected fewer than {self.most_calls}; try again in "
                f"{seconds:.3f} s",
                retry_seconds=seconds,
            )
        )
        self._refused()
        context.set_code(code)
        context.set_details(details)
        context.set_trailing_metadata(trailing)
        return b""


class _AtOnce(ThreadPoolExecutor):
    """Runs what it is given in the caller's thread, and has none of its own."""

    def submit(self, call: Callable[..., Any], /, *args: Any, **named: Any) -> Future[Any]:
        """Over when it returns. Raises: what the call raises."""
        future: Future[Any] = Future()
        future.set_result(call(*args, **named))
        return future
