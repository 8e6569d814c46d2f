"""Real shards in this process, behind real gRPC on ports of the system's choice, that can go away
and come back on the same port; and a forwarder of TCP that loses what it is told to lose.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

import ps
from ps.client.client import Client
from ps.client.credentials import Credentials
from ps.client.identity import Identity
from ps.client.remote import RemoteStore
from ps.server.endpoint import Endpoint
from ps.server.health import Health, State
from ps.server.metrics import Metrics
from ps.server.place import Place
from ps.settings import Settings
from ps.shard import Shard

SECONDS = 20.0
"""Nothing here takes so long unless it hangs."""

SUMS = ps.Table("sums", dim=4, optimizer=ps.SGD(lr=1.0), init=ps.Zeros())
"""Its rows say exactly which integer gradients are in."""


class Served:
    """One shard and its endpoint. boot: how often it was started."""

    def __init__(self, folder: Path, place: Place, settings: Settings, **options: Any) -> None:
        self.folder, self.place, self.settings, self.options = folder, place, settings, options
        self.port = 0
        self.shard: Shard | None = None
        self.endpoint: Endpoint | None = None
        self.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Serve, on the port it had before if it had one."""
        self.shard = Shard(self.folder, self.place, self.settings, **self.options)
        self.listen()

    def listen(self) -> None:
        """Let clients in, on the port it had before if it had one."""
        health = Health()
        assert self.shard is not None
        self.endpoint = Endpoint(
            self.shard, f"127.0.0.1:{self.port}", metrics=Metrics(), health=health
        )
        self.port = self.endpoint.port
        health.change(State.SERVING)

    def deafen(self) -> None:
        """Let nobody in any more; the shard stays as it is."""
        assert self.endpoint is not None
        self.endpoint.stop(0)
        self.endpoint = None

    def crash(self) -> None:
        """Stop without a cut, as a kill would."""
        assert self.shard is not None
        self.shard.drain()
        if self.endpoint is not None:
            self.deafen()
        self.shard.owner.close(drain=False)
        if self.shard._store is not None:
            self.shard._store.abandon()
        if self.shard._redo is not None:
            self.shard._redo.close()
        self.shard = None

    def stop(self) -> None:
        if self.shard is not None:
            self.shard.drain()
            if self.endpoint is not None:
                self.deafen()
            self.shard.close()
            self.shard = None


@contextmanager
def serving(
    folder: Path,
    count: int = 1,
    *,
    ram: int = 8 << 20,
    durability: str = "interval",
    interval: float = 0.2,
    **options: Any,
) -> Iterator[list[Served]]:
    """So many shards of one cluster."""
    settings = Settings(ram=ram, durability=durability, interval_seconds=interval)
    served: list[Served] = []
    try:
        for i in range(count):
            served.append(Served(folder / f"s{i}", Place(i, count), settings, **options))
        yield served
    finally:
        for one in served:
            one.stop()


def addresses(served: Sequence[Served]) -> str:
    return ",".join(one.address for one in served)


def connect(
    served: Sequence[Served], tables: Sequence[ps.Table] = (SUMS,), **options: Any
) -> RemoteStore:
    """A worker; alone unless it says otherwise."""
    options = {"ram": "1MiB", "threads": 1, "timeout_seconds": SECONDS, **options}
    options.setdefault("launch", ps.Launch())
    store = ps.connect(addresses(served), list(tables), **options)
    assert isinstance(store, RemoteStore)
    return store


def make_client(
    served: Sequence[Served], tables: Sequence[ps.Table] = (SUMS,), **options: Any
) -> Client:
    who = Identity(options.pop("job", "job"), options.pop("rank", 0), options.pop("world", 1))
    options = {"timeout_seconds": SECONDS, **options}
    listed = [one.address for one in served]
    return Client(listed, tables, who, Credentials().channel, **options)


def keys_of(*numbers: int) -> Any:
    return np.array(numbers, np.uint64)


def wait_until(ready: Callable[[], Any], what: str, seconds: float = SECONDS) -> None:
    """Poll what has no event to wait for; fails after the deadline."""
    deadline, pause = time.monotonic() + seconds, threading.Event()
    while not ready():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
        pause.wait(0.002)


class Forwarder:
    """Passes TCP on to a port. mute: loses all answers; passing: cleared, answers wait;
    refusing: no new connections.

    `cut` ends all connections that there are.
    """

    def __init__(self, port: int) -> None:
        self.to = port
        self.mute = self.refusing = False
        self.passing = threading.Event()
        self.passing.set()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._start(self._accept)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def cut(self) -> None:
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for one in pair:
                with suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.refusing = True
        self.passing.set()
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._threads[0].join(SECONDS)
        self.cut()
        for thread in self._threads:
            thread.join(SECONDS)

    def _start(self, target: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=target, args=args, name="terrace-forward", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
            except OSError:
                return
            try:
                if self.refusing:
                    raise OSError
                far = socket.create_connection(("127.0.0.1", self.to))
            except OSError:
                near.close()
                continue
            with self._lock:
                self._pairs.append((near, far))
            self._start(self._pass, near, far, False)
            self._start(self._pass, far, near, True)

    def _pass(self, source: socket.socket, target: socket.socket, answers: bool) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                if answers:
                    self.passing.wait(SECONDS)
                if not (answers and self.mute):
                    target.sendall(data)
        for one in (source, target):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        source.close()


@contextmanager
def forwarding(port: int) -> Iterator[Forwarder]:
    forwarder = Forwarder(port)
    try:
        yield forwarder
    finally:
        forwarder.close()
