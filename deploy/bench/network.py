"""Measures pulls and pushes over gRPC beside bare calls that carry as many bytes.

Servers are processes of their own on this machine. Ours and bare take turns in rounds, and figures
are medians, since machines are noisy. A bare call has the same pieces and as many at once.

Threads: one; gRPC's own.
"""

from __future__ import annotations

import functools
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np

import ps
from deploy.bench.bare import PULL, PUSH
from deploy.bench.crowd import Crowd, Task
from deploy.served import Served
from ps.client.client import PIECE_BYTES, Client, Step
from ps.client.identity import Identity
from ps.client.link import OPTIONS
from storage.rows import Counts, Floats, Keys

_TABLE = "bench"
_WRITE = 1 << 16
_WARM_UP = 3
Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What to measure. folder: new. stored: rows at each shard, all in its RAM. rows: of one pull
    or push. shards: numbers of servers to try. tls: also with TLS on both sides. clients: how many
    processes ask at once where rows a second are counted, for how many ``seconds``; 1 is this one.
    """

    folder: Path
    stored: int
    rows: int
    dim: int
    rounds: int
    shards: Sequence[int]
    tls: Path | None = None
    clients: int = 1
    seconds: float = 2.0

    @property
    def ram(self) -> str:
        """A budget in which all rows have room."""
        return str(512 * 2**20 + int(1.6 * self.stored * (4 * self.dim + 64)))

    @property
    def size(self) -> int:
        """Bytes of the floats of one pull or push."""
        return 4 * self.rows * self.dim


def bench_network(plan: Plan, say: Say) -> dict[str, Any]:
    """All figures as JSON values: see ``terrace bench network --help``."""
    figures: dict[str, Any] = {"rows_per_s": {}, "push_rows_per_s": {}}
    for shards in plan.shards:
        say(f"{shards} shard{'s' if shards > 1 else ''}")
        with _serving(plan, shards, ps.Credentials(), ()) as client, _bare() as bare:
            seconds = _rounds(plan, client, bare)
            rates = {name: plan.rows / seconds[name] for name in ("pull", "push")}
            if plan.clients > 1:
                rates = _together(plan, client)
        figures["rows_per_s"][str(shards)] = rates["pull"]
        figures["push_rows_per_s"][str(shards)] = rates["push"]
        if shards == plan.shards[0]:
            figures |= _beside_bare(plan, seconds)
    if plan.tls is not None:
        say("mutual TLS")
        options = ("--tls", str(plan.tls))
        with _serving(plan, 1, ps.Credentials.in_folder(plan.tls), options) as client:
            seconds = _rounds(plan, client, None)
        for name in ("pull", "push"):
            figures[f"mtls_{name}_bytes_per_s"] = plan.size / seconds[name]
    return figures


def _together(plan: Plan, client: Client) -> dict[str, float]:
    """Rows a second of several clients."""
    addresses = ",".join(link.address for link in client.links)
    stored = plan.stored * len(client.links)
    task = Task(addresses, _TABLE, plan.dim, plan.rows, stored, plan.seconds)
    with Crowd(plan.clients, task) as crowd:
        return {name: crowd.rows_per_s(name) for name in ("pull", "push")}


def _beside_bare(plan: Plan, seconds: dict[str, float]) -> dict[str, float]:
    return {
        "pull_bytes_per_s": plan.size / seconds["pull"],
        "push_bytes_per_s": plan.size / seconds["push"],
        "bare_grpc_bytes_per_s": plan.size / seconds["bare_pull"],
        "bare_grpc_push_bytes_per_s": plan.size / seconds["bare_push"],
        "pull_fraction": seconds["bare_pull"] / seconds["pull"],
        "push_fraction": seconds["bare_push"] / seconds["push"],
    }


@contextmanager
def _serving(
    plan: Plan, shards: int, credentials: ps.Credentials, options: Sequence[str]
) -> Iterator[Client]:
    """A client of shards that hold the rows in RAM."""
    table = ps.Table(_TABLE, dim=plan.dim, optimizer=ps.RowWiseAdagrad())
    name = f"{shards}{'-tls' if options else ''}"
    more = ("--ram", plan.ram, "--durability", "checkpoint", *options)
    with ExitStack() as undo:
        served = undo.enter_context(Served(plan.folder / name, shards, more))
        client = Client(
            served.addresses.split(","), [table], Identity("bench"), credentials.channel
        )
        undo.callback(client.close)
        keys = _keys(shards * plan.stored)
        for start in range(0, len(keys), _WRITE):
            piece = keys[start : start + _WRITE]
            client.write(_TABLE, piece, np.full((len(piece), plan.dim), 0.5, np.float32))
        yield client


def _keys(count: int) -> Keys:
    return np.arange(count, dtype=np.uint64)


def _rounds(plan: Plan, client: Client, bare: grpc.Channel | None) -> dict[str, float]:
    """Seconds of each, medians of rounds."""
    rng = np.random.default_rng(7)
    stored = plan.stored * len(client.links)
    gradients = np.full((plan.rows, plan.dim), 1e-3, np.float32)
    uses = np.ones(plan.rows, np.int32)
    seconds: dict[str, list[float]] = {}
    for turn in range(-_WARM_UP, plan.rounds):
        keys = rng.choice(stored, plan.rows, replace=False).astype(np.uint64)

        step = Step(0.01, turn + _WARM_UP + 1, 1.0)
        calls: dict[str, Callable[[], None]] = {
            "pull": functools.partial(_pull, client, keys),
            "push": functools.partial(_push, client, keys, gradients, uses, step),
        }
        if bare is not None:
            calls |= {"bare_pull": _bare_pull(plan, bare), "bare_push": _bare_push(plan, bare)}
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if turn >= 0:
                seconds.setdefault(name, []).append(time.perf_counter() - began)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def _pull(client: Client, keys: Keys) -> None:
    for _ in client.pull(_TABLE, keys, least=0, own=0):
        pass


def _push(client: Client, keys: Keys, gradients: Floats, uses: Counts, step: Step) -> None:
    client.push(_TABLE, keys, gradients, uses, step)
    client.advance(step.step)
    client.flush()


def _sizes(plan: Plan) -> list[int]:
    """Bytes of the pieces that a client cuts one pull or push of one shard into."""
    rows = max(1, PIECE_BYTES // (4 * plan.dim + 16))
    return [4 * plan.dim * min(rows, plan.rows - at) for at in range(0, plan.rows, rows)]


def _bare_pull(plan: Plan, channel: grpc.Channel) -> Callable[[], None]:
    call = channel.unary_unary(PULL)

    def pull() -> None:
        for future in [call.future(str(size).encode(), timeout=60) for size in _sizes(plan)]:
            future.result()

    return pull


def _bare_push(plan: Plan, channel: grpc.Channel) -> Callable[[], None]:
    call = channel.unary_unary(PUSH)
    pieces = [bytes(size) for size in _sizes(plan)]

    def push() -> None:
        for future in [call.future(piece, timeout=60) for piece in pieces]:
            future.result()

    return push


@contextmanager
def _bare() -> Iterator[grpc.Channel]:
    """A channel to a server that does nothing."""
    command = [sys.executable, "-m", "deploy.bench.bare"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stdin is not None
        port = int(child.stdout.readline())
        with grpc.insecure_channel(f"127.0.0.1:{port}", OPTIONS) as channel:
            yield channel
        child.stdin.close()
