"""Link: a worker's connection to one shard, which may be away for a while.

A call that fails for a reason that can pass is made again, with back-off and jitter, until its
deadline; names are resolved anew meanwhile, since a server that moves gets another address. A shard
that was started anew does not know the session: then it is opened again, once for all callers, and
the outbox repeats what the shard lacks. gRPC's own retries are off: it silently does not repeat
requests of more than 256 KiB, and must not repeat changes.

Threads: any.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import grpc

from ps.client.identity import Identity
from ps.partition import Partition
from ps.wire import terrace_pb2 as wire
from ps.wire.frame import Frame, unpacker
from ps.wire.status import ReopenError, error_of
from storage.errors import (
    ClosedError,
    DiskFullError,
    OverloadedError,
    RefusedError,
    ShardError,
    TerraceError,
    UnavailableError,
)

WIRE_VERSION = 1
MOST_MESSAGE_BYTES = 16 << 20

OPTIONS: Sequence[tuple[str, Any]] = (
    ("grpc.enable_retries", 0),
    ("grpc.max_receive_message_length", MOST_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MOST_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.dns_min_time_between_resolutions_ms", 1_000),
    ("grpc.use_local_subchannel_pool", 1),
)
ATTEMPT_SECONDS = 30.0
"""Of one attempt, unless its caller knows better."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 1.0
_SAY_SECONDS = 10.0
_LOG = logging.getLogger("terrace.client")
_SERVICE = wire.DESCRIPTOR.services_by_name["Shard"]
_PATHS = {method.name: f"/{_SERVICE.full_name}/{method.name}" for method in _SERVICE.methods}
_UNPACK: dict[str, Callable[[bytes], Frame[Any]]] = {
    method.name: unpacker(getattr(wire, method.output_type.name)) for method in _SERVICE.methods
}
PASSING = (UnavailableError, OverloadedError, ClosedError, DiskFullError, ReopenError)
"""Errors of a call that is worth making again."""

T = TypeVar("T")


class Patience:
    """How long, and how often, one thing is tried again. stop: set when nobody wants it any more.

    In the end the attempt that took longest is told of: the last one may have had no time to learn
    what it waits for. Threads: one.
    """

    def __init__(self, stop: threading.Event, deadline: float) -> None:
        self._stop = stop
        self._began = self._said = self._tried = time.monotonic()
        self._longest: tuple[float, TerraceError | None] = (-1.0, None)
        self._deadline = deadline
        self._pause = _FIRST_PAUSE

    @property
    def left(self) -> float:
        """Seconds to the deadline, never none at all."""
        return max(0.001, self._deadline - time.monotonic())

    def bear(self, error: TerraceError) -> None:
        """Wait before the next attempt. Raises: UnavailableError at the deadline."""
        now = time.monotonic()
        waited, took = now - self._began, now - self._tried
        if took >= self._longest[0]:
            self._longest = (took, error)
        if now >= self._deadline or self._stop.is_set():
            error = self._longest[1] or error
            if isinstance(error, DiskFullError):
                raise error
            raise UnavailableError(
                f"{error} (tried for {waited:.0f} s); is the server running, and can it be "
                f"reached from here?"
            ) from error
        if now - self._said >= _SAY_SECONDS:
            self._said = now
            _LOG.warning("%s (for %.0f s; gives up after %.0f)", error, waited, waited + self.left)
        if not isinstance(error, ReopenError):
            rest = getattr(error, "retry_seconds", 0.0)
            self._stop.wait(min(self.left, rest + random.uniform(0, self._pause)))
            self._pause = min(_LONGEST_PAUSE, 2 * self._pause)
        self._tried = time.monotonic()


class Link:
    """See the module's docstring. connect: makes a channel to ``address`` with options. place:
    which shard of how many. timeout_seconds: how long a shard that is away is waited for.

    reopened: called after each opening of the session with the reply, before anybody goes on; it
    may raise. awaited: says the highest sequence given to a change.
    """

    def __init__(
        self,
        address: str,
        place: tuple[int, int],
        identity: Identity,
        specs: Sequence[str],
        connect: Callable[[str, Sequence[tuple[str, Any]]], grpc.Channel],
        *,
        timeout_seconds: float,
    ) -> None:
        self.address = address
        self.name = f"shard {place[0]} at {address}"
        self.identity = identity
        self.timeout_seconds = timeout_seconds
        self.openings = 0
        self.reopened: Callable[[Any], None] = lambda reply: None
        self.awaited: Callable[[], int] = lambda: 0
        self.stop = threading.Event()
        self._place, self._specs = place, list(specs)
        self._partition = Partition(place[1])
        self._opening = threading.Lock()
        self._channel = connect(address, OPTIONS)
        self._stubs = {
            name: self._channel.unary_unary(path, request_serializer=None)
            for name, path in _PATHS.items()
        }

    # -- single calls ---------------------------------------------------------------------------

    def start(self, method: str, data: bytes, seconds: float | None = None) -> Any:
        """Begin one attempt: gRPC's future; `finish` gives the reply. Raises: ClosedError."""
        if seconds is None:
            seconds = min(ATTEMPT_SECONDS, self.timeout_seconds)
        try:
            return self._stubs[method].future(data, timeout=seconds)
        except ValueError as error:  # how gRPC says that the channel is closed
            raise ClosedError(f"{self.name}: the connection is closed ({error})") from error

    def finish(self, method: str, future: Any) -> Frame[Any]:
        """The reply of an attempt. Raises: what the shard said, or why none came."""
        try:
            data = future.result()
        except grpc.RpcError as error:
            raise error_of(self.name, error) from None
        except grpc.FutureCancelledError:
            raise UnavailableError(f"{self.name}: the call was given up") from None
        try:
            return _UNPACK[method](data)
        except RefusedError as error:
            raise ShardError(
                f"{self.name}: the answer to {method} cannot be read ({error}); is this a server "
                f"of Terrace, and of this version?"
            ) from error

    # -- calls that wait for a shard that is away -----------------------------------------------

    def call(
        self,
        method: str,
        data: bytes,
        *,
        deadline: float | None = None,
        attempt_seconds: float = ATTEMPT_SECONDS,
    ) -> Frame[Any]:
        """The reply; waits for a shard that is away. deadline: of time.monotonic.

        Raises: UnavailableError at the deadline, with what stood in the way last.
        """

        def attempt(left: float) -> Frame[Any]:
            seen = self.openings
            try:
                return self.finish(method, self.start(method, data, min(left, attempt_seconds)))
            except ReopenError:
                self.open(seen, deadline=time.monotonic() + left)
                raise

        return self.persist(attempt, deadline)

    def persist(self, attempt: Callable[[float], T], deadline: float | None = None) -> T:
        """What ``attempt`` gives, made until it works or the deadline passes.

        attempt: is given the seconds that are left. Raises: what it raises that cannot pass.
        """
        patience = self.patience(deadline)
        while True:
            try:
                return attempt(patience.left)
            except PASSING as error:
                patience.bear(error)

    def patience(self, deadline: float | None = None) -> Patience:
        """For one thing that is tried until the deadline; None is the link's timeout from now."""
        seconds = self.timeout_seconds
        return Patience(self.stop, time.monotonic() + seconds if deadline is None else deadline)

    def open(self, seen: int, *, deadline: float | None = None) -> None:
        """Open the session, unless somebody has since ``openings`` was ``seen``.

        Raises: FencedError; LostError; MismatchError; UnavailableError at the deadline.
        """
        if deadline is None:
            deadline = time.monotonic() + self.timeout_seconds
        if not self._opening.acquire(timeout=max(0.001, deadline - time.monotonic())):
            raise UnavailableError(f"{self.name}: another thread opens the session; waited for it")
        try:
            if self.openings != seen:
                return
            reply = self.ask(self.identity.incarnation, deadline=deadline)
            self.reopened(reply)
            self.openings += 1
        finally:
            self._opening.release()

    def ask(self, incarnation: int, *, deadline: float | None = None) -> Any:
        """The reply to an opening; with incarnation 0, what the shard knows of this client."""
        who = self.identity
        request = wire.OpenRequest(
            wire_version=WIRE_VERSION, token=who.token, rank=who.rank, world=who.world,
            tables=self._specs, partition_version=self._partition.version,
            shard=self._place[0], shards=self._place[1], last_sequence=self.awaited(),
        )  # fmt: skip
        request.session.client, request.session.incarnation = who.client, incarnation
        data = request.SerializeToString()

        def attempt(left: float) -> Any:
            seconds = min(left, ATTEMPT_SECONDS)
            return self.finish("Open", self.start("Open", data, seconds)).message

        return self.persist(attempt, deadline)

    def close(self) -> None:
        """Let go of the connection. Twice is fine."""
        self.stop.set()
        self._channel.close()
