"""Backup: the newest checkpoint of a store in another store, of which the next one adds the rest.

The destination is a store of its own at every moment: it opens, and resumes what the last finished
backup brought, until the next one commits. Blocks above that one's ends go first, in bounded
transactions, and do not count; then one synced transaction shows the new checkpoint with its state,
and every row that the source has deleted since; then what the source has freed is removed. Whatever
ends it between two of these leaves what the next run can go on from.

What the destination has of the same log already is known by name, and not read: see `ps.lineage`,
which is exact, costs 30 bytes an opening, and holds for a restored backup that training went on in,
too. Checksums of blocks would do as well, but are in the blocks: to compare them means to read all
of both stores, and the directory does not have them. Blocks that lie above the last backup are
nobody's by name (a killed run's, or those of somebody who opened the destination and crashed): they
are compared byte by byte. What was freed is found by the directories of both, 3 % of the blocks.

A destination that somebody changed is not written over: its last cut, its tombstones and its
newest checkpoint must be those of the last backup. Opening it to look is fine.

Threads: one, and those of the two logs.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from ps.checkpoint import Checkpoints, Cut
from ps.directory import StoreDirectory, check_vacant
from storage.block import BlockShape
from storage.errors import ConfigError, MismatchError, StoreError
from storage.log import BlockLog
from storage.replica import Replica

Progress = Callable[[int, int], None]
"""Called with the blocks done and all of them."""

_FACT = "backup"
_BATCH_BYTES = 8 << 20
_LEAST_BYTES = 1 << 16


@dataclass(frozen=True)
class BackupReport:
    """What was done. step: of the checkpoint. bytes_written: of blocks and the caller's state."""

    step: int
    blocks_copied: int
    bytes_written: int
    blocks_removed: int
    seconds: float


def back_up(
    source: str | Path,
    destination: str | Path,
    progress: Progress = lambda done, total: None,
    *,
    batch_bytes: int = _BATCH_BYTES,
) -> BackupReport:
    """Copy the newest checkpoint of a store to another folder: see the module's docstring.

    destination: a new or empty folder, or one that an earlier backup of this store is in. Only the
    source's lineage is written, if it has none. RAM: twice ``batch_bytes``, or two segments, and
    a part of the caller's state (16 MiB); the last transaction holds the keys deleted since.

    Raises: LockedError when a process has one of them open; StoreError without a checkpoint, or
    when the destination is another store or was changed; MismatchError when it has another store's
    tables or log; CorruptError when a block is damaged; DiskFullError. The destination shows what
    it did before.
    """
    started = time.monotonic()
    target = Path(destination)
    if target.resolve() == Path(source).resolve():
        raise ConfigError(f"{target}: expected another folder than the store's own; choose one")
    with ExitStack() as stack:
        directory = stack.enter_context(closing(StoreDirectory(source, None)))
        tables = {table.name: table.shape for table in directory.tables}
        log = stack.enter_context(closing(BlockLog(directory.path, list(tables))))
        checkpoints = Checkpoints(log)
        if not checkpoints.number:
            raise StoreError(
                f"{directory.path}: expected a checkpoint to back up, found none; make one first"
            )
        check_vacant(target)
        stack.enter_context(closing(StoreDirectory(target, directory.tables)))
        copy = stack.enter_context(closing(BlockLog(target, list(tables))))
        replicas = {
            name: Replica(log, copy, name, shape, batch_bytes=batch_bytes)
            for name, shape in tables.items()
        }
        backup = _Backup(log, checkpoints, copy, replicas)
        copied = backup.copy_blocks(tables, progress)
        backup.commit()
        removed = backup.trim()
    size = sum(count * tables[name].bytes for name, count in copied.items())
    return BackupReport(
        step=checkpoints.steps[-1],
        blocks_copied=sum(copied.values()),
        bytes_written=size + checkpoints.state_bytes,
        blocks_removed=removed,
        seconds=time.monotonic() - started,
    )


class _Backup:
    """One run, from the newest of ``checkpoints``. Raises: StoreError; MismatchError."""

    def __init__(
        self,
        log: BlockLog,
        checkpoints: Checkpoints,
        copy: BlockLog,
        replicas: Mapping[str, Replica],
    ) -> None:
        self._log, self._copy = log, copy
        self._checkpoints, self._there = checkpoints, Checkpoints(copy)
        self._replicas = replicas
        self._check_untouched()
        self._check_lineage()

    def copy_blocks(self, shapes: Mapping[str, BlockShape], progress: Progress) -> dict[str, int]:
        """Bring what the copy lacks, where it does not count yet: how many blocks of each table.

        Raises: CorruptError; DiskFullError.
        """
        if not self._checkpoints.lineage.token(self._checkpoints.number):
            self._log.commit(self._checkpoints.lineage.facts_with(self._checkpoints.number))
        if self._copy.fact(_FACT) is None:
            self._copy.commit({_FACT: _note(0, {})})
        done, begins, counts = 0, {}, {}
        for name, replica in self._replicas.items():
            end = self._ends.get(name, 0)
            begins[name] = replica.resume(self._there.newest_cut.blocks.get(name, 0), end)
            counts[name] = replica.count(begins[name], end)
        total = sum(counts.values())
        self._ensure_room(sum(shapes[n].disk_bytes(counts[n] * shapes[n].rows) for n in counts))
        for name, replica in self._replicas.items():
            for blocks in replica.extend(begins[name], self._ends.get(name, 0)):
                done += blocks
                progress(done, total)
        return counts

    def commit(self) -> None:
        """Show the new checkpoint, and it alone, in one synced transaction. Raises: DiskFullError;
        CorruptError."""
        self._checkpoints.copy_state(self._copy)
        facts = self._checkpoints.newest_facts(self._copy)
        facts[_FACT] = _note(self._checkpoints.number, self._tombstones_of(self._log))
        with self._copy.transaction(write=True) as txn:
            for replica in self._replicas.values():
                replica.bury(txn)
            self._copy.put_facts(txn, facts)

    def trim(self) -> int:
        """Remove what the source has freed: how many blocks."""
        return sum(
            sum(replica.trim(self._ends.get(name, 0))) for name, replica in self._replicas.items()
        )

    # -- private --------------------------------------------------------------------------------

    @property
    def _ends(self) -> Mapping[str, int]:
        return self._checkpoints.newest_cut.blocks

    def _ensure_room(self, block_bytes: int) -> None:
        deleted = sum(replica.tombstone_bytes() for replica in self._replicas.values())
        least = _LEAST_BYTES * len(self._replicas)
        self._copy.ensure_room(
            block_bytes + 2 * deleted + int(1.1 * self._checkpoints.state_bytes) + least
        )

    def _check_untouched(self) -> None:
        note, there = self._copy.fact(_FACT), self._there
        if note is None:
            if there.number or there.cut != Cut({}, {}):
                raise StoreError(
                    f"{self._copy.path}: expected a backup, found a store that is none; choose "
                    f"another folder"
                )
            return
        said = json.loads(note)
        number, tombstones = said["checkpoint"], said["tombstones"]
        if (
            number != there.number
            or any(
                tombstones.get(n, 0) != end for n, end in self._tombstones_of(self._copy).items()
            )
            or not all(self._is_at_checkpoint(name) for name in self._replicas)
        ):
            raise StoreError(
                f"{self._copy.path}: expected the backup as it was made, but it was used as a "
                f"store since; choose another folder"
            )

    def _is_at_checkpoint(self, table: str) -> bool:
        """Whether the copy's last cut is that of its checkpoint, or what opening makes of that:
        numbers that a tombstone takes count as used."""
        cut, checkpoint = self._there.cut, self._there.newest_cut
        end = checkpoint.blocks.get(table, 0)
        return (
            cut.steps.get(table, 0) == checkpoint.steps.get(table, 0)
            and cut.blocks.get(table, 0) in (end, max(end, self._copy.tombstones[table].end))
        )  # fmt: skip

    def _check_lineage(self) -> None:
        number = self._there.number
        token = self._there.lineage.token(number)
        known = token and number <= self._checkpoints.number
        same = known and token == self._checkpoints.lineage.token(number)
        if (number and not same) or not all(r.continues() for r in self._replicas.values()):
            raise MismatchError(
                f"{self._copy.path}: expected an earlier backup of {self._log.path}, found one of "
                f"another store, or of what this one was before it was compacted or went back "
                f"to an older copy; choose another folder"
            )

    @staticmethod
    def _tombstones_of(log: BlockLog) -> dict[str, int]:
        """By table, one more than the number of the newest tombstone."""
        return {name: tombstones.span[1] for name, tombstones in log.tombstones.items()}


def _note(checkpoint: int, tombstones: Mapping[str, int]) -> bytes:
    return json.dumps({"checkpoint": checkpoint, "tombstones": dict(tombstones)}).encode()
