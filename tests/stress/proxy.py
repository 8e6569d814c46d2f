"""Proxy: a TCP proxy that makes the faults of a network, when it is told to.

What it can do to connections: cut them with a reset, now or after so many bytes; turn new ones
away; hold all bytes while nothing is closed (a pulled cable); delay and slow them down. It cannot
double a request, since gRPC sends nothing twice on a connection: see `tests.stress.relay`.

To lose a request: `cut_call_after(0, Way.REQUEST)`. To lose a reply, with the request through and
whole: `cut_call_after(0, Way.REPLY)`. These two look at HTTP/2 frames, so plain gRPC only; through
TLS use `cut_after`, which counts all bytes (settings, window updates and pings too).

After a cut, gRPC may put the next call on the dead connection too (4 of 60 calls that followed at
once): it fails as UNAVAILABLE without having left, on no fault of this proxy.

Threads: "terrace-proxy" runs the loop; methods may be called from any other, and what they say
holds when they return.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import TypeVar

from tests.stress.frames import Frames

DEADLINE_SECONDS = 10.0
_CHUNK_BYTES, _MOST_CHUNKS = 1 << 16, 64
_SLICE_SECONDS = 0.02
_RESET = struct.pack("ii", 1, 0)  # linger for no time: close() sends a reset

T = TypeVar("T")
Address = tuple[str, int]


class Way(enum.Enum):
    """Where bytes go."""

    REQUEST = "client to server"
    REPLY = "server to client"


@dataclass
class _Trap:
    """Cuts the connection whose bytes come after ``left`` more; calls: those of calls count."""

    left: int
    calls: bool
    sprung: threading.Event = field(default_factory=threading.Event)


@dataclass
class _Lane:
    """What holds for one way of all connections."""

    trap: _Trap | None = None
    bytes_per_second: float | None = None
    free_at: float = 0.0
    passed: int = 0


class _CutError(Exception):
    """This connection ends with a reset."""


class Proxy:
    """See the module's docstring. Listens from its making on; ``address`` is where.

    target: where connections go; it may be set to another address at any time, for new connections
    (a shard that came back on another port). Up to 4 MiB each way of a connection are on their way.
    """

    def __init__(self, target: Address) -> None:
        self.target = target
        self._lanes = {way: _Lane() for way in Way}
        self._delay = 0.0
        self._refuses = False
        self._accepted = self._cuts = 0
        self._connections: set[asyncio.Task[None]] = set()
        self._closed = False
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._listener.setblocking(False)
        self._address: Address = self._listener.getsockname()
        self._loop = asyncio.new_event_loop()
        self._flows = asyncio.Event()
        self._flows.set()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="terrace-proxy", daemon=True
        )
        self._thread.start()
        self._listening = self._do(lambda: self._loop.create_task(self._listen()))

    def __enter__(self) -> Proxy:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def address(self) -> Address:
        """Where clients connect: host and port."""
        return self._address

    @property
    def accepted(self) -> int:
        """Connections that clients made, refused ones too."""
        return self._accepted

    @property
    def cuts(self) -> int:
        """Connections that ended with a reset, whoever wanted it."""
        return self._cuts

    def passed(self, way: Way) -> int:
        """Bytes that went through."""
        return self._lanes[way].passed

    # -- faults ---------------------------------------------------------------------------------

    def cut(self) -> None:
        """Reset all connections, both ends of each; new ones are let in."""
        asyncio.run_coroutine_threadsafe(self._end_all(), self._loop).result(DEADLINE_SECONDS)

    def refuse(self, refuses: bool = True) -> None:
        """Reset new connections as they come, or let them in again."""
        self._do(lambda: setattr(self, "_refuses", refuses))

    def stall(self) -> None:
        """Hold all bytes and ends, while nothing is closed: nobody can tell from a slow network."""
        self._do(self._flows.clear)

    def resume(self) -> None:
        """Let what was held go on, in order."""
        self._do(self._flows.set)

    def delay(self, seconds: float) -> None:
        """Bytes that come from now on arrive so much later, each way."""
        self._do(lambda: setattr(self, "_delay", seconds))

    def limit(self, bytes_per_second: float | None, *, way: Way | None = None) -> None:
        """Let so many bytes through, one way or each, of all connections together; None: all."""

        def set_limit() -> None:
            for lane in [self._lanes[way]] if way else self._lanes.values():
                lane.bytes_per_second, lane.free_at = bytes_per_second, 0.0

        self._do(set_limit)

    def cut_after(self, size: int, way: Way) -> threading.Event:
        """Cut the connection that has more to send once so many bytes went this way from now on.

        Exactly so many pass, unless the receiver has no room for them. It happens once: the event
        is set then. A later call takes its place.
        """
        return self._arm(_Trap(size, calls=False), way)

    def cut_call_after(self, size: int, way: Way) -> threading.Event:
        """`cut_after`, counting only bytes of gRPC calls: 0 cuts at the next request or reply."""
        return self._arm(_Trap(size, calls=True), way)

    def close(self) -> None:
        """Reset all connections, let go of the port, join the thread. Twice is fine."""
        if self._closed:
            return
        self._closed = True
        ending = asyncio.run_coroutine_threadsafe(self._end_listening(), self._loop)
        ending.result(DEADLINE_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(DEADLINE_SECONDS)
        self._loop.close()

    # -- private --------------------------------------------------------------------------------

    def _do(self, what: Callable[[], T]) -> T:
        async def done() -> T:
            return what()

        return asyncio.run_coroutine_threadsafe(done(), self._loop).result(DEADLINE_SECONDS)

    def _arm(self, trap: _Trap, way: Way) -> threading.Event:
        self._do(lambda: setattr(self._lanes[way], "trap", trap))
        return trap.sprung

    async def _end_all(self) -> None:
        connections = list(self._connections)
        for connection in connections:
            connection.cancel()
        if connections:
            await asyncio.wait(connections)

    async def _end_listening(self) -> None:
        self._listening.cancel()
        await asyncio.wait([self._listening])
        self._listener.close()
        await self._end_all()

    async def _listen(self) -> None:
        while True:
            client, _ = await self._loop.sock_accept(self._listener)
            self._accepted += 1
            if self._refuses:
                _reset(client)
                self._cuts += 1
                continue
            task = self._loop.create_task(self._serve(client))
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)

    async def _serve(self, client: socket.socket) -> None:
        """One connection, until both ends have ended it or one was cut."""
        server = socket.socket()
        server.setblocking(False)
        try:
            await self._flows.wait()
            await self._loop.sock_connect(server, self.target)
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(client, server, Way.REQUEST))
                group.create_task(self._pump(server, client, Way.REPLY))
        except* (_CutError, OSError, asyncio.CancelledError):
            self._cuts += 1
            _reset(client)
            _reset(server)
        finally:
            client.close()
            server.close()

    async def _pump(self, source: socket.socket, sink: socket.socket, way: Way) -> None:
        """Read one end and write the other, apart, so that a delay takes no throughput."""
        chunks: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_MOST_CHUNKS)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._write(chunks, sink, way))
            data = b"-"
            while data:
                await self._flows.wait()
                data = await self._loop.sock_recv(source, _CHUNK_BYTES)
                await chunks.put((self._loop.time() + self._delay, data))

    async def _write(
        self, chunks: asyncio.Queue[tuple[float, bytes]], sink: socket.socket, way: Way
    ) -> None:
        frames = Frames(from_client=way is Way.REQUEST)
        while True:
            due, data = await chunks.get()
            await asyncio.sleep(due - self._loop.time())
            await self._flows.wait()
            if not data:
                with contextlib.suppress(OSError):  # it may have gone already
                    sink.shutdown(socket.SHUT_WR)
                return
            lane, stretches = self._lanes[way], frames.feed(data)
            if lane.trap is None or not lane.trap.calls:
                stretches = [(len(data), False)]  # in one piece: twice as many sends else
            for size, is_call in stretches:
                await self._pass(data[:size], sink, lane, is_call)
                data = data[size:]

    async def _pass(self, data: bytes, sink: socket.socket, lane: _Lane, is_call: bool) -> None:
        while data:
            rate = lane.bytes_per_second
            size = len(data) if rate is None else max(1, int(rate * _SLICE_SECONDS))
            piece, data = data[:size], data[size:]
            await self._flows.wait()
            if rate is not None:
                begin = max(lane.free_at, self._loop.time())
                lane.free_at = begin + len(piece) / rate
                await asyncio.sleep(lane.free_at - self._loop.time())
            trap = lane.trap
            if trap is not None and (is_call or not trap.calls):
                if len(piece) > trap.left:
                    lane.trap = None
                    lane.passed += trap.left
                    await self._loop.sock_sendall(sink, piece[: trap.left])
                    trap.sprung.set()
                    raise _CutError
                trap.left -= len(piece)
            await self._loop.sock_sendall(sink, piece)
            lane.passed += len(piece)


def _reset(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    connection.close()
