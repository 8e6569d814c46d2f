"""Opening: the store of several workers: a folder with one store for each of them.

Worker r of N has ``r-of-N``. Another number of workers is refused: the rows would be at other
owners.

Threads: the one that opens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch.distributed as dist

from ps.cluster.exchange import DEADLINE_SECONDS, Exchange
from ps.cluster.partitioned import PartitionedStore
from ps.cluster.peers import join
from ps.directory import is_store
from ps.launch import Launch
from ps.server.place import Place
from ps.settings import Settings
from ps.store import Store
from ps.table import Table
from storage.errors import ConfigError, MismatchError

_FOLDER = re.compile(r"(\d+)-of-(\d+)")


def open_partitioned(
    path: str | Path,
    tables: Sequence[Table] | None,
    settings: Settings,
    launch: Launch,
    *,
    deadline_seconds: float = DEADLINE_SECONDS,
) -> PartitionedStore:
    """The store of all workers of ``launch``, at this one. Collective.

    torch.distributed is used as it is, or else set up as torchrun says. Raises: ConfigError;
    MismatchError; what opening a `Store` raises, at all workers when it does at one;
    UnavailableError.
    """
    folder = Path(path)
    if settings.durability != "checkpoint":
        raise ConfigError(
            f"durability: expected 'checkpoint' with several workers, got "
            f"{settings.durability!r}: they can go back together to checkpoints only"
        )
    with ExitStack() as undo:
        if not dist.is_initialized():
            join(launch, settings.device, deadline_seconds=deadline_seconds)
            undo.callback(dist.destroy_process_group)
        trains, stages = (
            Exchange(name, settings.device, deadline_seconds=deadline_seconds)
            for name in ("train", "stage")
        )
        undo.callback(trains.close)
        undo.callback(stages.close)
        opened: list[Store] = []

        def open_own() -> None:
            check_layout(folder, launch.world)
            own = Store(folder / f"{launch.rank}-of-{launch.world}", tables, settings)
            undo.callback(own.abandon)
            opened.append(own)
            Place(launch.rank, launch.world).claim(own)

        trains.all("open", open_own)
        (own,) = opened
        described = json.dumps([table.describe() for table in own.tables.values()]).encode()
        if any(word != described for word in trains.words(described)):
            raise MismatchError(f"{folder}: expected the same tables at all workers")
        store = PartitionedStore(own, trains, stages)
        store.resources = undo.pop_all()
        return store


def check_layout(folder: Path, world: int) -> None:
    """Raises: ConfigError where the folder has the rows of another number of workers."""
    found = 1 if is_store(folder) else worlds(folder)
    if found not in (0, world):
        raise ConfigError(
            f"{folder}: has the rows of {found} worker{'s' if found > 1 else ''}, expected "
            f"{world}; start {found}, or give another folder for {world}"
        )


def worlds(folder: Path) -> int:
    """Of how many workers there are stores in the folder, 0 where there is none."""
    names = (_FOLDER.fullmatch(child.name) for child in sorted(folder.glob("*-of-*")))
    return max((int(name[2]) for name in names if name and is_store(folder / name[0])), default=0)
