"""Shrink: compaction of a store that nobody uses, to the smallest file, with no deleted byte left.

All that the present or a kept checkpoint can reach goes into a new log beside the old one, which
then takes its place in one rename: a crash leaves the old store or the new one, whole. What it
leaves behind is removed when the store is opened next. Rows get other blocks, so the log is another
one to a backup.

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
from storage.log import BlockLog
from storage.reachable import Reachable
from storage.rewrite import Rewrite

_DATA, _LMDB_LOCK = "data.mdb", "lock.mdb"

Progress = Callable[[int, int], None]
"""Called with the blocks done and all of them."""


@dataclass(frozen=True)
class ShrinkReport:
    """What was done. bytes_before, bytes_after: of the file. rows: versions kept, by table."""

    bytes_before: int
    bytes_after: int
    rows: dict[str, int]


def shrink(path: str | Path, progress: Progress = lambda done, total: None) -> ShrinkReport:
    """Rewrite a store's file with what is reachable. RAM: 16 bytes a row, and 30 MiB.

    Raises: LockedError when a process has the store open; CorruptError when something reachable is
    damaged; DiskFullError when old and new do not fit beside each other. The store is as before
    then.
    """
    with closing(StoreDirectory(path, None)) as directory:
        folder, beside = directory.path, directory.path / BESIDE
        try:
            report = _rewrite(directory, beside, progress)
            (folder / _LMDB_LOCK).unlink(missing_ok=True)
            os.replace(beside / _DATA, folder / _DATA)
            sync_folder(folder)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    return report


def _rewrite(directory: StoreDirectory, beside: Path, progress: Progress) -> ShrinkReport:
    """Make the new log in the folder ``beside``."""
    tables = {table.name: table.shape for table in directory.tables}
    with closing(BlockLog(directory.path, list(tables))) as old:
        checkpoints = Checkpoints(old)
        old.truncate_to(checkpoints.cut.blocks)
        ends = {name: checkpoints.ends(name) for name in tables}
        reachable = {
            name: Reachable(old, name, shape.place_bits, ends[name])
            for name, shape in tables.items()
        }
        done, total = 0, sum(found.segments.blocks for found in reachable.values())

        def advance(count: int) -> None:
            nonlocal done
            done += count
            progress(done, total)

        beside.mkdir()
        with closing(BlockLog(beside, list(tables))) as new:
            needed = sum(s.disk_bytes(reachable[name].rows) for name, s in tables.items())
            new.ensure_room(needed + checkpoints.state_bytes * len(checkpoints.steps))
            moved = {
                name: Rewrite(old, new, name, shape).run(reachable[name], ends[name], advance)
                for name, shape in tables.items()
            }
            checkpoints.copy(new, moved)
            rows = {name: found.rows for name, found in reachable.items()}
            return ShrinkReport(old.file_bytes, new.file_bytes, rows)
