"""Workers of one training as processes of their own, each with a store of its own.

`Crew.run` starts them and gives back what each wrote; run as a program, this is one of them. Rows
of the stores never change (their rate is 0) where losses are compared: what one worker does to a
row, the others' stores do not see.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ps
from ps.launch import Launch
from storage.errors import NonFiniteError, UnavailableError
from tests import crew
from tests.crew import Ended
from worker.data import open_dataset
from worker.data.dataset import Dataset
from worker.group import Group
from worker.recommender import PRESETS, Recommender
from worker.trainer import Progress, Schedule, Trainer

# 7 batches of 50 and one of 1: with two workers one has nothing there, with three two.
DATA = "synthetic:rows=300,examples=390,features=3,dense=2,bag=0-3,zipf=1.05"
SCHEDULE = Schedule(batch_size=50, epochs=2, checkpoint_every=0)
DEADLINE_SECONDS = 60.0
RATE = 1e5  # so large that a row is nothing beside its change, which then has every bit


def run(scenarios: str, world: int, folder: Path) -> list[Ended]:
    """Run scenarios (comma between) one after the other in ``world`` processes."""
    return crew.run("tests.worker.crew", scenarios, world, folder, seconds=DEADLINE_SECONDS)


def open_store(path: Path, lr: float = 0.0) -> ps.Store:
    """Rows begin as they do in every other of these stores."""
    table = ps.Table("t", dim=16, optimizer=ps.SGD(lr=lr), init=ps.Uniform(0.5))
    return ps.open(path, [table], ram="8MiB", threads=1)


def make_trainer(store: ps.Store, group: Group | None = None, **changes: Any) -> Trainer:
    """The same one at every worker, but for the layers' first values, which rank 0's replace."""
    dataset: Dataset = open_dataset(DATA)
    shape = PRESETS["small"].architecture(len(dataset.dense_names), len(dataset.feature_names))
    model = Recommender(store, "t", shape, seed=3 + (group.rank if group else 0))
    return Trainer(store, model, dataset, replace(SCHEDULE, **changes), group)


def figures(trainer: Trainer) -> dict[str, Any]:
    """All that a run has to say."""
    progress = trainer.progress
    return {
        "losses": progress.losses,
        "examples": progress.examples,
        "train": asdict(progress.metrics.figures),
        "layers": [p.detach().flatten().tolist() for p in trainer.model.parameters()],
    }


def gradients(trainer: Trainer, folder: Path) -> dict[str, Any]:
    """Of the first batch: the layers', and by how much a step of SGD moves rows."""
    store = trainer.store
    keys = torch.unique(next(trainer.dataset.train(50)).ids)
    before = store.read("t", keys)
    trainer.train()
    grads = [p.grad for p in trainer.model.parameters() if p.grad is not None]
    return {
        "layers": [grad.flatten().tolist() for grad in grads],
        "rows": ((before - store.read("t", keys)) / RATE).tolist(),
    }


# -- scenarios: what one worker does ---------------------------------------------------------------


def _calls(group: Group, folder: Path) -> dict[str, Any]:
    own = torch.arange(group.rank, dtype=torch.float32)
    joined, negative = group.gather(own, -own, most=group.world)
    return {
        "sum": group.sum(torch.tensor([1.5, group.rank])).tolist(),
        "any": group.any(group.rank == 1, False, True),
        "gather": [joined.tolist(), negative.tolist()],
    }


def _whole(group: Group, folder: Path) -> dict[str, Any]:
    with open_store(folder / "store") as store:
        trainer = make_trainer(store, group)
        trainer.train()
        test = trainer.evaluate()
        assert test is not None
        return {**figures(trainer), "test": asdict(test), "checkpoints": store.checkpoints}


def _gradients(group: Group, folder: Path) -> dict[str, Any]:
    with open_store(folder / "store", lr=RATE) as store:
        return gradients(make_trainer(store, group, steps=1), folder)


def _anchor(group: Group, folder: Path) -> dict[str, Any]:
    """One pass forward and back below the wrapped model, at the last worker without examples."""
    with open_store(folder / "store") as store:
        trainer = make_trainer(store, group)
        wrapped, batch = group.wrap(trainer.model), next(trainer.dataset.train(4))
        batch = batch if group.rank < group.world - 1 else batch.slice(2, 2)
        group.backward(wrapped(batch).sum())
        anchor = store.anchors["t"]
        found = {
            "parameter": any(parameter is anchor for parameter in wrapped.parameters()),
            "without": sum(parameter.grad is None for parameter in wrapped.parameters()),
            "grad": None if anchor.grad is None else float(anchor.grad),
            "records": [len(record.gradient) for record in store.waiting["t"]],
        }
        trainer.sparse.zero_grad()
        return found


def _resume(group: Group, folder: Path) -> dict[str, Any]:
    with open_store(folder.parent / "cut" / str(group.rank)) as store:
        trainer = make_trainer(store, group)
        return {"resumed": trainer.resume(), "losses": trainer.train().losses}


def _stop(group: Group, folder: Path) -> dict[str, Any]:
    """The last worker is told to stop in step 5; the second one wishes for a checkpoint in 3."""
    with open_store(folder / "store") as store:
        trainer = make_trainer(store, group)

        class Wishing(ps.Store):
            @property
            def wants_checkpoint(self) -> bool:
                return trainer.progress.step == 3

        def watch(progress: Progress) -> None:
            trainer.stop = progress.step == 5 and group.rank == group.world - 1

        if group.rank == 1:
            store.__class__ = Wishing
        step = trainer.train(watch).step
        return {"step": step, "stopped": trainer.stopped, "checkpoints": store.checkpoints}


def _nan(group: Group, folder: Path) -> dict[str, Any]:
    """At one worker alone a layer, or the gradient of rows, is not finite from step 4 on."""
    found: dict[str, Any] = {}
    for where in ("layer", "rows"):
        for on_nan in ("stop", "skip"):
            with open_store(folder / where / on_nan) as store:
                trainer = make_trainer(store, group, steps=5, on_nan=on_nan)
                watch = _poison(trainer, where) if group.rank == 1 else _nothing
                try:
                    trainer.train(watch)
                    error = ""
                except NonFiniteError as raised:
                    error = str(raised)
                found[f"{where} {on_nan}"] = {
                    "step": trainer.progress.step, "error": error,
                    "bad_steps": trainer.progress.bad_steps,
                    "skipped_rows": trainer.sparse.skipped_rows,
                }  # fmt: skip
    return found


def _nothing(progress: Progress) -> None: ...


def _poison(trainer: Trainer, where: str) -> Callable[[Progress], None]:
    def poison(progress: Progress) -> None:
        if progress.step != 3:
            return
        if where == "layer":
            trainer.model.dlrm.register_forward_hook(lambda module, given, out: out * np.nan)
        else:
            trainer.model.bag.register_forward_hook(
                lambda module, given, out: _InfiniteGradient.apply(out)
            )

    return poison


class _InfiniteGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor) -> torch.Tensor:
        return rows.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return torch.full_like(gradients[0], np.inf)


def _death(group: Group, folder: Path) -> dict[str, Any]:
    """Rank 1 ends in the middle, and says nothing."""
    with open_store(folder / "store") as store:
        trainer = make_trainer(store, group)

        def die(progress: Progress) -> None:
            if group.rank == 1 and progress.step == 3:
                sys.exit(9)

        trainer.train(die)
    return {}


def _lateness(group: Group, folder: Path) -> dict[str, Any]:
    """Rank 1 does not come before rank 0 has given up, and says so by a file."""
    gone = folder.parent / "gone"
    deadline = time.monotonic() + DEADLINE_SECONDS
    if group.rank == 1:
        while not gone.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        return {}
    try:
        group.any(True)
    except UnavailableError as error:
        print(error, file=sys.stderr)
    finally:
        gone.touch()
    return {}


SCENARIOS: dict[str, Callable[[Group, Path], dict[str, Any]]] = {
    "calls": _calls, "anchor": _anchor, "whole": _whole, "gradients": _gradients,
    "resume": _resume, "stop": _stop, "nan": _nan, "death": _death, "lateness": _lateness,
}  # fmt: skip


def main(scenarios: str, world: int, folder: Path, rank: int) -> None:
    """One worker."""
    torch.set_num_threads(1)
    found = {}
    for name in scenarios.split(","):
        own = folder / f"{name}-{rank}"
        own.mkdir()
        seconds = 2.0 if name == "lateness" else DEADLINE_SECONDS
        meet, launch = f"file://{folder}/meet-{name}", Launch(rank, world, rank, "test/0")
        with Group(launch, meet=meet, deadline_seconds=seconds) as group:
            found[name] = SCENARIOS[name](group, own)
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
