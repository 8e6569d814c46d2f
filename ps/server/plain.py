"""PlainPort: what a shard tells without asking who it is: metrics and health, no data.

HTTP/1.1, one request a connection, GET only: `/metrics` for Prometheus, `/healthz` (200 while the
process answers), `/readyz` (200, or 503 and one word: loading, disk-full, draining). On a second
port, if asked for, grpc.health.v1 without Watch.

Anyone may connect, so all is bounded: 32 connections (one more is closed at once), 8 KiB of
request, 5 seconds from the first byte to the last, whatever the client does meanwhile. One loop
serves them, and what may have to wait for the shard (a scrape) runs on one other thread, so that
health is answered even while a scrape hangs.

Threads: "terrace-metrics" runs the loop, "terrace-scrape" the scrapes, "terrace-health" gRPC's
calls; `close` joins them all.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from types import TracebackType
from typing import Any

import grpc

from ps.server.health import Health, State
from ps.server.metrics import CONTENT_TYPE, Metrics
from storage.errors import ConfigError

_MOST_CONNECTIONS = 32
_MOST_HEAD_BYTES = 8192
_PLAIN_TEXT = "text/plain; charset=utf-8"
_CLOSE_SECONDS = 10.0
_REASONS = {
    200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed",
    431: "Request Header Fields Too Large", 503: "Service Unavailable",
}  # fmt: skip
_GRPC_OPTIONS = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", 4096),
    ("grpc.max_metadata_size", 8192),
    ("grpc.max_connection_idle_ms", 60_000),
    ("grpc.max_concurrent_streams", 8),
)


class PlainPort:
    """See the module's docstring; serves from its making on.

    port, grpc_port: 0 lets the system choose; grpc_port None: no gRPC. seconds: what a client has
    for one request. Raises: ConfigError when a port cannot be had.
    """

    def __init__(
        self,
        metrics: Metrics,
        health: Health,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        grpc_port: int | None = None,
        seconds: float = 5.0,
    ) -> None:
        self._metrics = metrics
        self._health = health
        self._seconds = seconds
        self._connections: set[asyncio.Task[None]] = set()
        self._scrapes = ThreadPoolExecutor(1, thread_name_prefix="terrace-scrape")
        self._loop = asyncio.new_event_loop()
        self._grpc: Any = None
        self._closed = False
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="terrace-metrics", daemon=True
        )
        self._thread.start()
        self._server: asyncio.Server | None = None
        try:
            self._server = self._await(self._listen(host, port))
            self._port: int = self._server.sockets[0].getsockname()[1]
            self._grpc_port = None if grpc_port is None else self._serve_grpc(host, grpc_port)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> PlainPort:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def port(self) -> int:
        """The port of HTTP."""
        return self._port

    @property
    def grpc_port(self) -> int | None:
        """The port of grpc.health.v1, None if it was not asked for."""
        return self._grpc_port

    def close(self) -> None:
        """Stop serving, join the threads. Twice is fine.

        A scrape under way is waited for, 10 seconds at most.
        """
        if self._closed:
            return
        self._closed = True
        if self._grpc is not None:
            self._grpc[0].stop(None).wait(_CLOSE_SECONDS)
            self._grpc[1].shutdown()
        self._await(self._end())
        # Done when the scrape under way is: the thread has nothing else to do then.
        rests = wait([self._scrapes.submit(int)], _CLOSE_SECONDS).done
        self._scrapes.shutdown(wait=bool(rests), cancel_futures=True)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CLOSE_SECONDS)
        self._loop.close()

    # -- private --------------------------------------------------------------------------------

    def _await(self, what: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(_CLOSE_SECONDS)

    async def _listen(self, host: str, port: int) -> asyncio.Server:
        try:
            return await asyncio.start_server(
                self._connected, host, port, limit=_MOST_HEAD_BYTES, backlog=_MOST_CONNECTIONS
            )
        except (OSError, OverflowError) as error:
            raise _taken("metrics", host, port, str(error)) from error

    def _serve_grpc(self, host: str, port: int) -> int:
        pool = ThreadPoolExecutor(2, thread_name_prefix="terrace-health")
        server = grpc.server(pool, options=_GRPC_OPTIONS, maximum_concurrent_rpcs=16)
        self._grpc = server, pool
        self._health.add_checks_to(server)
        where = f"[{host}]" if ":" in host else host
        try:
            bound = int(server.add_insecure_port(f"{where}:{port}"))
        except RuntimeError as error:
            raise _taken("health", host, port, str(error)) from error
        server.start()
        return bound

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None or len(self._connections) >= _MOST_CONNECTIONS:
            writer.transport.abort()
            return
        self._connections.add(task)
        try:
            async with asyncio.timeout(self._seconds):
                writer.write(await self._answer(reader))
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (TimeoutError, OSError, EOFError, asyncio.CancelledError):
            pass  # it was too slow, or left, or the port closes
        finally:
            self._connections.discard(task)
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader) -> bytes:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            return _reply(431, "expected a request of at most 8 KiB\n")
        words = head.partition(b"\r\n")[0].split(b" ")
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
            return _reply(400, "expected a request of HTTP/1.1\n")
        if words[0] != b"GET":
            return _reply(405, "expected GET\n", more="Allow: GET\r\n")
        match words[1].partition(b"?")[0]:
            case b"/metrics":
                body = await self._loop.run_in_executor(self._scrapes, self._metrics.expose)
                return _reply(200, body, content=CONTENT_TYPE)
            case b"/healthz":
                return _reply(200, "alive\n")
            case b"/readyz":
                state = self._health.state
                return _reply(200 if state is State.SERVING else 503, f"{state.value}\n")
        return _reply(404, "expected /metrics, /healthz or /readyz\n")

    async def _end(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._connections:
            task.cancel()
        if self._connections:
            await asyncio.wait(self._connections)


def _reply(code: int, body: str | bytes, *, content: str = _PLAIN_TEXT, more: str = "") -> bytes:
    raw = body.encode() if isinstance(body, str) else body
    return (
        f"HTTP/1.1 {code} {_REASONS[code]}\r\nContent-Type: {content}\r\n"
        f"Content-Length: {len(raw)}\r\nConnection: close\r\n{more}\r\n"
    ).encode() + raw


def _taken(what: str, host: str, port: int, why: str) -> ConfigError:
    why = why.splitlines()[0] if why else "no reason given"
    return ConfigError(
        f"{what}: expected to listen on {host}, port {port}, but {why}; name another, or 0 to let "
        f"the system choose"
    )
