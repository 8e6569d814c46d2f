"""Shrink: compaction of a store that nobody uses, to the smallest file, with no deleted byte left.

All that the present or a kept checkpoint can reach goes into a new log beside the old one, which
then takes its place in one rename: a crash leaves the old store or the new one, whole. What it
leaves behind is removed when the store is opened next. Rows get other blocks, so the log is another
one to a backup. The same, but for what is damaged, repairs a store (`ps.salvage`).

Threads: one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from ps.checkpoint import Checkpoints
from ps.directory import BESIDE, StoreDirectory, sync_folder
from ps.salvage import damaged_facts, mend_facts
from storage.errors import CorruptError
from storage.log import BlockLog
from storage.losses import Losses
from storage.pages import page_damage
from storage.reachable import Reachable
from storage.rewrite import Rewrite

_DATA, _LMDB_LOCK = "data.mdb", "lock.mdb"

_DAMAGED = "data.damaged.mdb"

Progress = Callable[[int, int], None]
"""Called with the rows done and all of them."""


@dataclass(frozen=True)
class ShrinkReport:
    """What was done. bytes_before, bytes_after: of the file. rows: versions kept, by table.

    lost: a line for each thing that could not be kept.
    """

    bytes_before: int
    bytes_after: int
    rows: dict[str, int]
    lost: list[str]


def shrink(path: str | Path, progress: Progress = lambda done, total: None) -> ShrinkReport:
    """Rewrite a store's file with what is reachable. RAM: 16 bytes a row, and 30 MiB.

    Raises: LockedError when a process has the store open; CorruptError when something reachable is
    damaged; DiskFullError when old and new do not fit beside each other. The store is as before
    then.
    """
    return _replace(path, progress, repair=False)


def repair(path: str | Path, progress: Progress = lambda done, total: None) -> ShrinkReport:
    """Rewrite a store's file with what is reachable and whole; the damaged file stays beside it.

    As ``data.damaged.mdb``: remove it once you are content. Raises: as `shrink`, but CorruptError
    only when the file itself is none of LMDB's any more.
    """
    return _replace(path, progress, repair=True)


def _replace(path: str | Path, progress: Progress, *, repair: bool) -> ShrinkReport:
    with closing(StoreDirectory(path, None)) as directory:
        folder, beside = directory.path, directory.path / BESIDE
        if broken := page_damage(folder):
            raise CorruptError(broken[0])
        try:
            report = _rewrite(directory, beside, progress, repair=repair)
            (folder / _LMDB_LOCK).unlink(missing_ok=True)
            if repair:
                (folder / _DAMAGED).unlink(missing_ok=True)
                os.link(folder / _DATA, folder / _DAMAGED)
            os.replace(beside / _DATA, folder / _DATA)
            sync_folder(folder)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    return report


def _rewrite(
    directory: StoreDirectory, beside: Path, progress: Progress, *, repair: bool
) -> ShrinkReport:
    """Make the new log in the folder ``beside``."""
    tables = {table.name: table.shape for table in directory.tables}
    losses = {name: Losses(name) if repair else None for name in tables}
    with closing(BlockLog(directory.path, list(tables))) as old:
        lost = damaged_facts(old) if repair else []
        checkpoints = mend_facts(old) if repair else Checkpoints(old)
        old.truncate_to(checkpoints.cut.blocks)
        ends = {name: checkpoints.ends(name) for name in tables}
        reachable = {
            name: Reachable(old, name, shape.place_bits, ends[name], losses[name])
            for name, shape in tables.items()
        }
        done, total = 0, sum(found.rows for found in reachable.values())

        def advance(count: int) -> None:
            nonlocal done
            done += count
            progress(done, total)

        beside.mkdir()
        with closing(BlockLog(beside, list(tables))) as new:
            needed = sum(s.disk_bytes(reachable[name].rows) for name, s in tables.items())
            new.ensure_room(needed + checkpoints.state_bytes * len(checkpoints.steps))
            moved = {
                name: Rewrite(old, new, name, shape).run(
                    reachable[name], ends[name], advance, losses[name]
                )
                for name, shape in tables.items()
            }
            checkpoints.copy(new, moved)
            rows = {
                name: found.rows - (losses[name] or Losses(name)).rows
                for name, found in reachable.items()
            }
            lost += [line for found in losses.values() if found for line in found.lines()]
            return ShrinkReport(old.file_bytes, new.file_bytes, rows, lost)
