"""Relay: a gRPC server before another one that loses, doubles, delays and swallows calls.

gRPC itself sends nothing twice, so what a network may do to a request (have it arrive twice, late,
or after its sender gave up) is made here, where a call is whole. Bytes go through unread; metadata,
deadlines (which gRPC rounds up by a hundredth at each hop), errors and their details are passed on.
Unary calls only.

Which fault a call meets is drawn from a seeded generator when it comes: calls one after the other
meet the same faults in every run, those at once share out the same faults in the order they come.

Threads: "terrace-relay" has a thread for each call under way, "terrace-late" sends the late
duplicates. Methods may be called from any thread.
"""

from __future__ import annotations

import enum
import heapq
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import grpc

DEADLINE_SECONDS = 60.0
_MOST_CALLS, _MOST_LATE = 128, 1024
# A call without a deadline has one of a hundred years and more.
_ENDLESS_SECONDS = 1e8
_LARGEST_BYTES = 64 << 20
_OPTIONS = (
    ("grpc.so_reuseport", 0),
    ("grpc.enable_retries", 0),
    ("grpc.max_receive_message_length", _LARGEST_BYTES),
    ("grpc.max_send_message_length", _LARGEST_BYTES),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 500),
)


class Fault(enum.Enum):
    """What happens to a call."""

    NONE = "passed on"
    LOST_REQUEST = "UNAVAILABLE, the target never saw it"
    LOST_REPLY = "UNAVAILABLE, the target answered"
    TWICE = "passed on twice, the second answer given back"
    DELAY = "passed on after a while, others meanwhile"
    LATE = "passed on, and once more seconds after; that answer is thrown away"
    SILENCE = "never answered, the target never saw it"


@dataclass(order=True)
class _Late:
    """A duplicate that waits for its time; order: the earliest first."""

    due: float
    number: int
    method: str = field(compare=False)
    request: bytes = field(compare=False)
    metadata: list[tuple[str, str | bytes]] = field(compare=False)


class Relay(grpc.GenericRpcHandler):
    """See the module's docstring; serves from its making on.

    target: "host:port". chances: of each fault, 1 together at most; the rest is passed on. faulty:
    which methods ("/package.Service/Method") meet faults, all if it is not given. delay_seconds,
    late_seconds: drawn evenly between half and all of these. `Fault.LATE` keeps 1024 requests at
    most, and passes further ones on once.
    """

    def __init__(
        self,
        target: str,
        chances: Mapping[Fault, float],
        *,
        seed: int,
        faulty: Callable[[str], bool] = lambda method: True,
        delay_seconds: float = 0.1,
        late_seconds: float = 2.0,
    ) -> None:
        assert sum(chances.values()) <= 1 + 1e-9, f"expected chances of 1 at most, got {chances}"
        self._chances = dict(chances)
        self._faulty = faulty
        self._delay_seconds, self._late_seconds = delay_seconds, late_seconds
        self._random = random.Random(seed)
        self._counts: Counter[Fault] = Counter()
        self._changed = threading.Condition()
        self._late: list[_Late] = []
        self._sending = False
        self._hurried = False
        self._numbers = 0
        self._closing = threading.Event()
        self._channel = grpc.insecure_channel(target, options=_OPTIONS)
        self._pool = ThreadPoolExecutor(_MOST_CALLS, thread_name_prefix="terrace-relay")
        self._server = grpc.server(self._pool, [self], options=_OPTIONS)
        self._port = self._server.add_insecure_port("127.0.0.1:0")
        self._thread = threading.Thread(target=self._send_late, name="terrace-late", daemon=True)
        self._thread.start()
        self._server.start()

    def __enter__(self) -> Relay:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def address(self) -> str:
        """Where clients connect: "host:port"."""
        return f"127.0.0.1:{self._port}"

    @property
    def counts(self) -> Counter[Fault]:
        """How many calls met each fault, a copy."""
        with self._changed:
            return self._counts.copy()

    def change(self, chances: Mapping[Fault, float]) -> None:
        """Have other chances from now on: none at all to let a test end in peace."""
        with self._changed:
            self._chances = dict(chances)

    def send_late(self, seconds: float = DEADLINE_SECONDS) -> bool:
        """Send all late duplicates now; whether the target has answered them in time."""
        with self._changed:
            self._hurried = True
            self._changed.notify_all()
            done = self._changed.wait_for(lambda: not self._late and not self._sending, seconds)
            self._hurried = False
            return done

    def close(self) -> None:
        """Stop serving, drop what is late, join the threads. Twice is fine."""
        self._closing.set()
        with self._changed:
            self._late.clear()
            self._changed.notify_all()
        self._server.stop(None).wait(DEADLINE_SECONDS)
        self._channel.close()  # ends calls that are under way
        self._thread.join(DEADLINE_SECONDS)
        self._pool.shutdown()

    # -- private --------------------------------------------------------------------------------

    def service(self, call: Any) -> Any:
        """gRPC's way to ask for a method: there is every one."""
        method = call.method

        def relay(request: bytes, context: Any) -> bytes:
            return self._meet(method, request, context)

        return grpc.unary_unary_rpc_method_handler(relay)

    def _meet(self, method: str, request: bytes, context: Any) -> bytes:
        fault, share = self._draw(method)
        if fault is Fault.LOST_REQUEST:
            context.abort(grpc.StatusCode.UNAVAILABLE, "relay: the request was lost")
        if fault is Fault.SILENCE:
            self._be_silent(context)
        if fault is Fault.DELAY:
            self._closing.wait(share * self._delay_seconds)
        if fault is Fault.TWICE:
            self._pass(method, request, context)
        reply = self._pass(method, request, context)
        if fault is Fault.LATE:
            self._put_late(method, request, context, share)
        if fault is Fault.LOST_REPLY:
            context.abort(grpc.StatusCode.UNAVAILABLE, "relay: the reply was lost")
        return self._give_back(reply, context)

    def _draw(self, method: str) -> tuple[Fault, float]:
        """The fault that a call meets, and how much of the while that it takes."""
        with self._changed:
            number, share = self._random.random(), self._random.uniform(0.5, 1)
            drawn = Fault.NONE
            if self._faulty(method):
                for fault, chance in self._chances.items():
                    if number < chance:
                        drawn = fault
                        break
                    number -= chance
            self._counts[drawn] += 1
            return drawn, share

    def _be_silent(self, context: Any) -> None:
        over = threading.Event()
        if context.add_callback(over.set):
            over.wait()  # for the caller's deadline, or `close`, whose stop ends every call
        context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "relay: never answered")

    def _pass(self, method: str, request: bytes, context: Any) -> Any:
        """The target's answer, a call that has ended, well or not."""
        left = context.time_remaining()
        seconds = None if left is None or left > _ENDLESS_SECONDS else left
        return self._send(method, request, _passed_on(context), seconds)

    def _send(
        self,
        method: str,
        request: bytes,
        metadata: list[tuple[str, str | bytes]],
        seconds: float | None,
    ) -> Any:
        timeout = DEADLINE_SECONDS if seconds is None else seconds
        sent = self._channel.unary_unary(method).future(request, timeout=timeout, metadata=metadata)
        sent.exception()  # waits
        return sent

    def _give_back(self, reply: Any, context: Any) -> bytes:
        context.send_initial_metadata(reply.initial_metadata())
        context.set_trailing_metadata(reply.trailing_metadata())
        if reply.code() is not grpc.StatusCode.OK:
            context.abort(reply.code(), reply.details())
        return reply.result()

    # -- late duplicates ------------------------------------------------------------------------

    def _put_late(self, method: str, request: bytes, context: Any, share: float) -> None:
        with self._changed:
            if len(self._late) >= _MOST_LATE or self._closing.is_set():
                return
            self._numbers += 1
            due = time.monotonic() + share * self._late_seconds
            late = _Late(due, self._numbers, method, request, _passed_on(context))
            heapq.heappush(self._late, late)
            self._changed.notify_all()

    def _send_late(self) -> None:
        while (late := self._next_late()) is not None:
            try:
                self._send(late.method, late.request, late.metadata, None)
            except ValueError:  # the channel was closed
                return
            finally:
                with self._changed:
                    self._sending = False
                    self._changed.notify_all()

    def _next_late(self) -> _Late | None:
        """The next duplicate once it is due; None when the relay closes."""
        with self._changed:
            while not self._closing.is_set():
                wait = self._late[0].due - time.monotonic() if self._late else DEADLINE_SECONDS
                if self._late and (wait <= 0 or self._hurried):
                    self._sending = True
                    return heapq.heappop(self._late)
                self._changed.wait(wait)
            return None


def _passed_on(context: Any) -> list[tuple[str, str | bytes]]:
    """A call's metadata but what gRPC sets itself."""
    return [
        (key, value)
        for key, value in context.invocation_metadata()
        if key != "user-agent" and not key.startswith("grpc-")
    ]
