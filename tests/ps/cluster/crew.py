"""Workers of one store as processes of their own. `run` starts them and gives back what each found.

Gradients are integers and the rate is 1, so that sums are exact in any order: whatever the number
of workers, rows and pooled sums are those of one worker, to the bit.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

import ps
import worker
from ps.cluster.exchange import Exchange
from ps.cluster.opening import open_partitioned
from ps.cluster.partitioned import PartitionedStore
from ps.launch import Launch
from ps.partition import Partition
from ps.settings import Settings
from ps.tables import Tables
from storage.errors import DiskFullError, TerraceError
from tests import crew
from tests.crew import Ended
from worker.group import Group

DEADLINE_SECONDS = 60.0
TABLES = (
    ps.Table("ads", dim=4, optimizer=ps.SGD(lr=1.0), init=ps.Zeros()),
    ps.Table("users", dim=6, optimizer=ps.SGD(lr=1.0), init=ps.Constant(1.0)),
    ps.Table("idle", dim=2, optimizer=ps.SGD(lr=1.0), init=ps.Zeros()),
)
STEPS, EXAMPLES, KEYS = 14, 900, 9000
RAM = 1920 << 10
"""So little that rows leave for the SSD."""


def run(scenarios: str, world: int, folder: Path) -> list[Ended]:
    """Run scenarios (comma between) one after the other in ``world`` processes."""
    return crew.run("tests.ps.cluster.crew", scenarios, world, folder, seconds=2 * DEADLINE_SECONDS)


# -- the same batches for any number of workers ---------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """One worker's share. gradient: (bags, D) of each table's pooled sums, integers."""

    ids: torch.Tensor
    offsets: torch.Tensor
    gradient: torch.Tensor


def batches(rank: int = 0, world: int = 1, steps: int = STEPS) -> list[dict[str, Batch]]:
    """By table. Shares are uneven: the last worker has nothing in every third step."""
    rng, found = np.random.default_rng(5), []
    for step in range(steps):
        each: dict[str, Batch] = {}
        for table in TABLES[:2]:
            sizes = rng.integers(0, 4, EXAMPLES)
            total = int(sizes.sum())
            hot, cold = rng.zipf(1.3, total) % KEYS, rng.integers(0, KEYS, total)
            ids = np.where(rng.random(total) < 0.5, hot, cold).astype(np.int64)
            gradient = rng.integers(-3, 4, (EXAMPLES, table.dim)).astype(np.float32)
            edges = np.concatenate(([0], np.cumsum(sizes)))
            last = world - 1 if step % 3 == 0 and world > 1 else world
            first, end = (EXAMPLES * min(r, last) // last for r in (rank, rank + 1))
            each[table.name] = Batch(
                torch.from_numpy(ids[edges[first] : edges[end]]),
                torch.from_numpy(edges[first:end] - edges[first]),
                torch.from_numpy(gradient[first:end]),
            )
        found.append(each)
    return found


def train(
    store: Tables, shares: list[dict[str, Batch]], *, depth: int = 2, end: int = STEPS
) -> list[list[float]]:
    """Sums of the pooled rows, step by step: what all examples together saw."""
    bags = {table.name: worker.EmbeddingBag(store, table.name, mode="sum") for table in TABLES}
    sparse = worker.SparseOptimizer(store)

    def keys(share: dict[str, Batch]) -> Any:
        return {bags[name]: [(one.ids, one.offsets)] for name, one in share.items()}

    seen = []
    for number, share in enumerate(worker.prefetch(shares, keys, depth=depth)):
        if number == end:
            break
        seen.append([0.0] * len(TABLES))
        for i, (name, one) in enumerate(share.items()):
            out = bags[name](one.ids, one.offsets)
            seen[-1][i] = float(out.detach().double().sum())
            out.backward(one.gradient)
        sparse.step()
    return seen


def open_whole(path: Path, *, ram: int = RAM) -> ps.Store:
    """Of one worker."""
    store = ps.open(path, list(TABLES), ram=ram, threads=1, launch=Launch())
    assert isinstance(store, ps.Store)
    return store


def _open(folder: Path, name: str, *, ram: int = RAM) -> PartitionedStore:
    settings = Settings(ram=ram, threads=1)
    launch = Launch(dist.get_rank(), dist.get_world_size(), dist.get_rank(), "test/0")
    return open_partitioned(
        folder / name, TABLES, settings, launch, deadline_seconds=DEADLINE_SECONDS
    )


def _mine(store: PartitionedStore, steps: int = STEPS) -> list[dict[str, Batch]]:
    return batches(store.rank, store.world, steps)


# -- scenarios: what one worker does ---------------------------------------------------------------


def _steps(folder: Path) -> dict[str, Any]:
    """Rows and pooled sums; with the thread and without; and whose each row is."""
    found: dict[str, Any] = {}
    for depth in (2, 0):
        with _open(folder, f"steps-{depth}") as store:
            seen = train(store, _mine(store), depth=depth)
            found[str(depth)] = {"seen": seen, "digest": store.digest()}
            partition = Partition(store.world)
            for table in TABLES:
                for rows in store.own.scan(table.name):
                    assert partition.misplaced(rows.keys, store.rank) < 0
            found["rows"] = store.own.stored_rows
            found["evicted"] = store.own.stacks["ads"].top.stats.evicted
            found["workers"] = len(store.stats()["workers"])
    return found


def _calls(folder: Path) -> dict[str, Any]:
    """Each worker reads, writes and deletes keys of its own, more and fewer than the others."""
    with _open(folder, "calls") as store:
        rank, world = store.rank, store.world
        keys = np.arange(20000 * rank)
        store.write("ads", keys, np.full((len(keys), 4), float(rank)))
        found: dict[str, Any] = {}
        seen = store.read("ads", np.arange(rank, 20000 * (world - 1), 2))
        number = np.arange(rank, 20000 * (world - 1), 2)
        # Of what several wrote the highest rank's counts.
        found["read"] = bool((seen == float(world - 1)).all()) and len(seen) == len(number)
        store.delete("ads", np.array([1, 2]) if rank == 0 else np.array([3]))
        found["deleted"] = store.read("ads", np.arange(6))[:, 0].tolist()
        found["digest"] = store.digest()
        bag = worker.EmbeddingBag(store, "ads", mode="sum").eval()
        with torch.no_grad():
            ids = torch.arange(5, 5 + 70000 * rank)
            out = bag(ids, torch.arange(len(ids)))
        found["evaluated"] = [len(out), float(out.double().sum())]
        return found


def _checkpoints(folder: Path) -> dict[str, Any]:
    """Made and gone back to together; one that was not finished counts for nobody."""
    found: dict[str, Any] = {}
    state = {"weights": torch.arange(5.0), "cursor": 3}
    with _open(folder, "checkpoints") as store:
        shares = _mine(store)
        train(store, shares[:4])
        store.checkpoint(4, state if store.rank == 0 else {})
        found["at four"] = store.digest()
        store.checkpoint(4)  # nothing changed: nothing to do
        train(store, shares[4:8])
        found["twice"] = _error(lambda: store.checkpoint(4))
        store.checkpoint(8, {"cursor": 8})
        train(store, shares[8:10])
        if store.rank == 0:

            def full(*_: Any, **__: Any) -> None:
                raise DiskFullError("no room")

            store.own.checkpoint = full  # type: ignore[method-assign]
        found["full"] = _error(lambda: store.checkpoint(10))
        found["kept"] = store.checkpoints
        store.own.abandon()
        store.resources.close()
    with _open(folder, "checkpoints") as store:
        found["reopened"] = store.checkpoints
        step, back = store.resume()
        found["resumed"] = [step, back["cursor"]]
        train(store, shares[8:])
        found["end"] = store.digest()
    return found


def _loops(folder: Path) -> dict[str, Any]:
    """A loop that is left early, at all workers after the same batch; then another one."""
    with _open(folder, "loops") as store:
        shares = _mine(store)
        train(store, shares, end=5)
        train(store, shares[5:])
        return {"digest": store.digest()}


def _short(folder: Path) -> dict[str, Any]:
    """Too little room at one owner."""
    with _open(folder, "short", ram=16 << 20 if dist.get_rank() else RAM) as store:
        ids = torch.arange(20000)
        bag = worker.EmbeddingBag(store, "ads", mode="sum")
        error = _error(lambda: bag(ids, torch.arange(len(ids))))
        train(store, _mine(store))
        return {"error": error, "digest": store.digest()}


def _norm(folder: Path) -> dict[str, Any]:
    """The norm of a gradient that several workers have parts of, and a step that is clipped."""
    with _open(folder, "norm") as store:
        bag = worker.EmbeddingBag(store, "ads", mode="sum")
        sparse = worker.SparseOptimizer(store)
        # All workers use row 7, and one each that only they have; the last has nothing at all.
        ids = torch.tensor(
            [7, 100 + store.rank] if store.rank < store.world - 1 else [], dtype=torch.long
        )
        bag(ids, torch.arange(len(ids))).backward(torch.ones(len(ids), 4))
        norm = float(worker.clip_grad_norm_([], sparse, 1.0))
        sparse.step()
        return {"norm": norm, "row": store.read("ads", np.array([7]))[0].tolist()}


def _again(folder: Path) -> dict[str, Any]:
    """Rows that a step has changed are seen by a second use of the same batch."""
    with _open(folder, "again") as store:
        bag = worker.EmbeddingBag(store, "ads", mode="sum")
        sparse = worker.SparseOptimizer(store)
        ids, each = torch.tensor([1, 2, 3]), torch.arange(3)
        seen = []
        for _ in worker.prefetch([ids], lambda ids: {bag: [(ids, each)]}):
            for _ in range(3):
                out = bag(ids, each)
                seen.append(out.detach()[:, 0].tolist())
                out.backward(torch.ones(3, 4))
                sparse.step()
            store.write("ads", np.array([2]), np.full((1, 4), 50.0))
            seen.append(bag(ids, each).detach()[:, 0].tolist())
        return {"seen": seen}


def _missing(folder: Path) -> dict[str, Any]:
    """The last worker does not come before the others have given up, and says so by a file."""
    gone = folder / "gone"
    exchange = Exchange("missing", torch.device("cpu"), deadline_seconds=2.0)
    last = exchange.world - 1
    deadline = time.monotonic() + DEADLINE_SECONDS
    if exchange.rank == last:
        while len(list(folder.glob("gone-*"))) < last and time.monotonic() < deadline:
            time.sleep(0.01)
        return {}
    error = _error(lambda: print(exchange.most(1)))
    Path(f"{gone}-{exchange.rank}").touch()
    return {"error": error}


def _error(call: Callable[[], Any]) -> str:
    try:
        call()
    except TerraceError as error:
        return f"{type(error).__name__}: {error}"
    return ""


SCENARIOS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "steps": _steps, "calls": _calls, "checkpoints": _checkpoints, "loops": _loops,
    "short": _short, "norm": _norm, "again": _again, "missing": _missing,
}  # fmt: skip


def main(scenarios: str, world: int, folder: Path, rank: int) -> None:
    """One worker."""
    torch.set_num_threads(1)
    found = {}
    launch = Launch(rank, world, rank, "test/0")
    with Group(launch, meet=f"file://{folder}/meet", deadline_seconds=DEADLINE_SECONDS):
        for name in scenarios.split(","):
            found[name] = SCENARIOS[name](folder)
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
