"""A shard in this process, with or without a port; what a client would send it; and an oracle."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch

import ps
from ps.partition import Partition
from ps.record import Record
from ps.server.change import KINDS, record_of
from ps.server.endpoint import Endpoint
from ps.server.health import Health, State
from ps.server.metrics import Metrics
from ps.server.place import Place
from ps.server.session import Session
from ps.settings import Settings
from ps.shard import Shard
from ps.store import Store
from ps.wire import terrace_pb2 as wire
from ps.wire.frame import Frame, unpacker
from ps.wire.status import error_of
from ps.workingset import Asked

ADS = ps.Table("ads", dim=4, optimizer=ps.Adagrad(lr=0.1), init=ps.Uniform(0.5))
USERS = ps.Table("users", dim=3, optimizer=ps.SGD(lr=0.1), rows=5000, init=ps.Constant(1.0))
TABLES = (ADS, USERS)
ALONE = Place(0, 1)
RAM, SECONDS = 4 << 20, 20.0
SERVICE = wire.DESCRIPTOR.services_by_name["Shard"]
KEYS = np.arange(10, 20, dtype=np.uint64)
ROOT = Path(__file__).resolve().parents[2]
_INPUTS = {method.name: getattr(wire, method.input_type.name) for method in SERVICE.methods}
_OUTPUTS = {method.name: getattr(wire, method.output_type.name) for method in SERVICE.methods}


def soon(seconds: float = SECONDS) -> float:
    """A deadline that a sound shard never comes to."""
    return time.monotonic() + seconds


def wait_for(ready: Callable[[], object], seconds: float = SECONDS) -> None:
    """Let others go on until it is so."""
    deadline, nothing = soon(seconds), threading.Event()
    while not ready():
        assert time.monotonic() < deadline, "waited too long"
        nothing.wait(0.001)


def settings(durability: str = "checkpoint", **more: Any) -> Settings:
    """Cuts are made by hand in tests: the interval is long."""
    plain = {"ram": RAM, "threads": 1, "interval_seconds": 3000.0}
    return Settings(durability=durability, **plain | more)  # type: ignore[arg-type]


@contextmanager
def shard_at(
    path: Path, durability: str = "checkpoint", *, place: Place = ALONE,
    replay_seconds: float = 120.0, **more: Any,
) -> Iterator[Shard]:  # fmt: skip
    """A shard; closed at the end unless it was killed."""
    shard = Shard(path, place, settings(durability, **more), replay_seconds=replay_seconds)
    try:
        yield shard
    finally:
        shard.close()


def kill(shard: Shard) -> None:
    """Let go of a shard's files as its death would: without a cut, nothing that waits is done."""
    shard.drain()
    shard.owner.close(drain=False)
    if shard._store is not None:
        shard._store.abandon()
    if shard._redo is not None:
        shard._redo.close()
    shard._store = shard._redo = None


def stop(shard: Any) -> None:
    """Have the store fail in the middle of a change, as a broken device would."""
    with pytest.raises(ZeroDivisionError), shard.store.planner.changing():
        raise ZeroDivisionError


def enter(
    shard: Shard, client: str = "train-0", incarnation: int = 1, **more: Any
) -> Session:  # fmt: skip
    """Open a session; tables=, rank=, world=, awaited= and token= as given."""
    plain: dict[str, Any] = {"rank": 0, "world": 1, "awaited": 0, "tables": TABLES, "token": 7}
    given = plain | more
    return shard.open(client, incarnation, given.pop("token"), **given)


@dataclass(frozen=True)
class Gradients:
    """One push. keys: (U,) uint64; values: (U, D) float32; uses: (U,) int32, None where all keys
    have a row.
    """

    table: str
    keys: np.ndarray
    values: np.ndarray
    lr: float = 0.1
    step: int = 1
    scale: float = 1.0
    clock: int = 0
    uses: np.ndarray | None = None

    def frame(self, session: Session | wire.Session, sequence: int) -> Frame[Any]:
        """As it comes from the wire."""
        request = wire.PushRequest(
            session=told(session), sequence=sequence, table=self.table, rows=len(self.keys),
            step=self.step, lr=self.lr, scale=self.scale, clock=self.clock,
            keys=self.keys.tobytes(), uses=b"" if self.uses is None else self.uses.tobytes(),
        )  # fmt: skip
        return Frame(request, self.values)


def told(session: Session | wire.Session) -> wire.Session:
    """How a message names a session."""
    if isinstance(session, wire.Session):
        return session
    return wire.Session(client=session.client, incarnation=session.incarnation)


def gradients(
    seed: int, table: ps.Table = ADS, rows: int = 40, among: int = 200, **more: Any
) -> Gradients:
    """Some rows' gradients, integers so that sums are exact."""
    rng = np.random.default_rng(seed)
    keys = rng.choice(among, rows, replace=False).astype(np.uint64)
    values = rng.integers(-4, 5, (rows, table.dim)).astype(np.float32)
    uses = rng.integers(1, 4, rows).astype(np.int32) if table.admission else None
    return Gradients(table.name, keys, values, step=seed + 1, uses=uses, **more)


def send(
    shard: Shard, session: Session, sequence: int, kind: str, frame: Frame[Any],
    deadline: float | None = None,
) -> int:  # fmt: skip
    """A change as the service makes it of the bytes that came: rows left out."""
    unpack, read = KINDS[kind]
    came = unpack(frame.pack())
    return shard.change(
        session, sequence, read(came, shard.owned), record_of(kind, came),
        deadline=deadline or soon(),
    )  # fmt: skip


def push(
    shard: Shard, session: Session, sequence: int, some: Gradients, deadline: float | None = None
) -> int:
    """Rows left out."""
    return send(shard, session, sequence, "Push", some.frame(session, sequence), deadline)


def write(
    shard: Shard, session: Session, sequence: int, table: str, keys: np.ndarray,
    values: np.ndarray, steps: np.ndarray | None = None,
) -> None:  # fmt: skip
    """Whole rows, or embeddings."""
    request = wire.WriteRequest(
        session=told(session), sequence=sequence, table=table, rows=len(keys),
        width=values.shape[1], keys=keys.tobytes(), steps=b"" if steps is None else steps.tobytes(),
    )  # fmt: skip
    send(shard, session, sequence, "Write", Frame(request, values))


def delete(
    shard: Shard, session: Session, sequence: int, table: str, keys: np.ndarray
) -> None:  # fmt: skip
    """Rows forgotten."""
    request = wire.DeleteRequest(
        session=told(session), sequence=sequence, table=table, rows=len(keys)
    )
    send(shard, session, sequence, "Delete", Frame(request, keys))


def pull(shard: Shard, session: Session, table: str, keys: np.ndarray, **more: Any) -> Any:
    """An answer; least=, whole= and deadline= as given."""
    plain: dict[str, Any] = {"least": 0, "whole": False, "deadline": soon()}
    return shard.pull(session, table, keys, **plain | more)


def apply(store: Store, some: Gradients) -> int:
    """The same step in an embedded store, by the kernel that training uses: rows left out."""
    uses = np.ones(len(some.keys), np.int32) if some.uses is None else some.uses
    working_set = store.stage_asked({some.table: Asked(some.keys, uses, ())})
    each = np.arange(len(some.keys), dtype=np.int32)
    record = Record(
        working_set.parts[some.table].positions, each, each, np.empty(0, np.float32),
        torch.from_numpy(some.values.copy()), None, (working_set.hold(),),
        bool(np.isfinite(some.values).all()), uses,
    )  # fmt: skip
    with store.stepping():
        skipped = store.apply(some.table, [record], lr=some.lr, step=some.step, scale=some.scale)
    record.drop()
    store.settle()
    return skipped


def expected_digest(folder: Path, pushes: Any, tables: Any = TABLES) -> int:
    """Of an embedded store after the same pushes in the same order."""
    with ps.open(folder, tables, ram="64MiB", threads=1) as store:
        for some in pushes:
            apply(store, some)
        return store.digest()


def belonging(shard: int, shards: int, count: int) -> np.ndarray:
    """The first ``count`` keys of a shard of several: (count,) uint64."""
    keys = np.arange(64 * count * shards, dtype=np.uint64)
    split = list(Partition(shards).split(keys))
    return np.sort(keys[split[shard]])[:count]


# -- over a port ----------------------------------------------------------------------------------


@dataclass
class Served:
    """A shard on a port of this process. channel: to it."""

    shard: Shard
    endpoint: Endpoint
    metrics: Metrics
    health: Health
    channel: grpc.Channel

    def raw(self, method: str, data: bytes, seconds: float = SECONDS) -> Any:
        """A call's future."""
        path = f"/{SERVICE.full_name}/{method}"
        return self.channel.unary_unary(path).future(data, timeout=seconds)

    def call(
        self, method: str, message: Any, array: Any = b"", seconds: float = SECONDS
    ) -> Frame[Any]:
        """The answer. Raises: what the shard raised."""
        try:
            answer = self.raw(method, Frame(message, array).pack(), seconds).result()
        except grpc.RpcError as error:
            raise error_of("shard", error) from error
        return unpacker(_OUTPUTS[method])(answer)

    def code(self, method: str, message: Any, array: Any = b"") -> str:
        """The name of the status that a call ends with; its details are one short line."""
        call = self.raw(method, Frame(message, array).pack())
        error = call.exception()
        if error is None:
            return "OK"
        details = call.details()
        assert details and "\n" not in details and len(details) < 2048, details
        return str(call.code().name)

    def open(self, client: str = "train-0", incarnation: int = 1, **more: Any) -> wire.Session:
        """Open a session over the wire."""
        self.call("Open", opening(self.shard, client, incarnation, **more))
        return wire.Session(client=client, incarnation=incarnation)


def opening(
    of: Shard, client: str = "train-0", incarnation: int = 1, *, tables: Any = TABLES,
    **more: Any,
) -> wire.OpenRequest:  # fmt: skip
    """A good `OpenRequest`, but for what is given."""
    specs = [one if isinstance(one, str) else json.dumps(one.describe()) for one in tables]
    plain: dict[str, Any] = {
        "wire_version": 1, "token": 7, "rank": 0, "world": 1, "tables": specs,
        "partition_version": of.partition.version, "shard": of.place.shard,
        "shards": of.place.shards,
        "session": wire.Session(client=client, incarnation=incarnation),
    }  # fmt: skip
    return wire.OpenRequest(**plain | more)


@contextmanager
def served_at(
    path: Path, durability: str = "checkpoint", *, most_bytes: int = 64 << 20,
    reflection: bool = False, **more: Any,
) -> Iterator[Served]:  # fmt: skip
    """A shard on a port of the system's choice, and a channel to it."""
    with shard_at(path, durability, **more) as shard:
        metrics, health = Metrics(), Health()
        endpoint = Endpoint(
            shard, "127.0.0.1:0", metrics=metrics, health=health, reflection=reflection,
            most_bytes=most_bytes,
        )  # fmt: skip
        options = [
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_send_message_length", 64 << 20),
            ("grpc.max_receive_message_length", 64 << 20),
            ("grpc.enable_retries", 0),
        ]
        channel = grpc.insecure_channel(f"127.0.0.1:{endpoint.port}", options=options)
        health.change(State.SERVING)
        try:
            yield Served(shard, endpoint, metrics, health, channel)
        finally:
            channel.close()
            shard.drain()
            endpoint.stop(SECONDS)


def some_pushes(count: int, start: int = 0) -> list[Gradients]:
    """Gradients for both tables, the same each time."""
    return [gradients(seed, USERS if seed % 3 == 2 else ADS) for seed in range(start, count)]


def redo_files(folder: Path) -> list[str]:
    """Files of the redo log in a folder."""
    return sorted(file.name for file in folder.glob("redo-*"))
