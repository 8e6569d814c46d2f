"""Upkeep: what keeps a store durable and small beside the training: cuts, space, compaction.

Durability says when cuts are made beside checkpoints: "checkpoint", never; "interval", a second
after the first change that no cut has; "strict", at the end of everything that changes rows.

Threads: one lock is held while a step changes rows and while a cut is made, so that a cut falls
between steps. The order of locks is: steps, compaction, the planner's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from ps.checkpoint import COUNTS, KEPT, Checkpoints, Cut, Facts
from ps.compactor import Compactor
from ps.cutter import Cutter
from ps.doorkeeper import Doorkeeper
from ps.planner import Planner
from ps.settings import Settings
from ps.space import Space
from ps.stack import Stack
from ps.state import pack_state
from storage.errors import ConfigError
from storage.log import BlockLog
from storage.pages import page_damage


class Notes(Protocol):
    """What somebody else wants to have committed with every cut, in its transaction."""

    def facts(self) -> tuple[Facts, Callable[[], None]]:
        """The facts as of now, between steps; and what to call once they are durable."""
        ...


class Upkeep:
    """See the module's docstring; of one store. notes: committed with every cut."""

    def __init__(
        self, log: BlockLog, planner: Planner, checkpoints: Checkpoints, settings: Settings
    ) -> None:
        self.checkpoints = checkpoints
        self._log = log
        self._planner = planner
        self._strict = settings.durability == "strict"
        self._steps = threading.RLock()
        self.notes: Notes | None = None
        self._stacks: Mapping[str, Stack] = {}
        self.compactor = Compactor(
            planner,
            checkpoints.ends,
            lambda: self.space.spare(),
            bytes_per_second=settings.compact_bytes_per_second,
        )
        self.space = Space(log, lambda: self._stacks, checkpoints, self.compactor)
        self._cutter: Cutter | None = None
        self._prepared = False
        if settings.durability == "interval":
            self._cutter = Cutter(self.cut_rows, settings.interval_seconds)

    def watch(self, stacks: Mapping[str, Stack]) -> None:
        """These are the store's stacks from now on; nothing may be under way."""
        self._stacks = stacks
        self.compactor.watch({name: stack.ssd for name, stack in stacks.items()})

    def prepare(self, rows: Mapping[str, int]) -> None:
        """Make sure that the disk has room for so many rows of each table, while nothing is held.

        What a batch brings in pushes out as many rows at most, and cannot push out more than that.
        Raises: DiskFullError, before anything has changed.
        """
        self._planner.ensure_usable()
        if not self._prepared:
            self.space.prepare((self._stacks[name], count) for name, count in rows.items())

    @contextmanager
    def prepared(self, rows: Mapping[str, int], beside: int) -> Iterator[None]:
        """`prepare` for all that is done inside, where nothing is refused any more.

        Room that was enough at first may be less than what is asked for beside it later: the redo
        log takes some, and others write to the disk. beside: bytes of the redo log. For a store
        that one thread changes. Raises: DiskFullError, before anything has changed.
        """
        self._planner.ensure_usable()
        self.space.prepare(((self._stacks[name], n) for name, n in rows.items()), beside)
        self._prepared = True
        try:
            yield
        finally:
            self._prepared = False

    @contextmanager
    def stepping(self) -> Iterator[None]:
        """While rows change: no cut falls inside, and at the end durability is kept.

        Raises: DiskFullError at the end, also that of an earlier cut.
        """
        with self._steps:
            yield
            self.compactor.wake()
            self.compactor.keep_up()
            if self._strict:
                self.cut_rows()
            elif self._cutter is not None:
                self._cutter.changed()

    @contextmanager
    def standing_still(self) -> Iterator[None]:
        """No step, no cut and no compaction meanwhile."""
        with self._steps, self.compactor.paused():
            yield

    def cut(self) -> None:
        """Make everything up to now durable. Raises: DiskFullError; the last cut stands."""
        with self._steps:
            changed = any(doorkeeper.changed for doorkeeper in self._doorkeepers())
            self._cut(self._counts() if changed else None)

    def cut_rows(self) -> None:
        """`cut` without the doorkeepers' counts. Raises: DiskFullError; the last cut stands."""
        with self._steps:
            self._cut(None)

    def checkpoint(self, step: int, state: Mapping[str, Any], keep: int = KEPT) -> None:
        """A cut, with step and state. Raises: DiskFullError, before anything has changed."""
        if COUNTS in state:
            raise ConfigError(f"checkpoint: expected a state without the name {COUNTS!r}, got one")
        # Between steps, so that what follows finds the same counts.
        counts = self._counts()
        tree, tensors = pack_state({**state, COUNTS: counts} if counts else state)
        self.space.prepare_checkpoint(len(tree) + len(tensors))
        with self._steps, self._planner, self._planner.changing():
            self._flush()
            with self._noted() as notes:
                cut = self._cut_here()
                self.checkpoints.add(int(step), cut, tree, tensors, keep=keep, notes=notes)
            self._saved()
        self.compactor.wake()

    def check(self) -> list[str]:
        """What is broken, one line each; with the planner's lock, so that nobody writes."""
        self._log.wait()
        if broken := page_damage(self._log.path):
            return broken  # to read on could crash
        rows = [line for stack in self._stacks.values() for line in stack.hierarchy.check()]
        return self.checkpoints.check() + rows

    def close(self) -> None:
        """Stop and join the threads. Without locks: they may wait for one. Twice is fine."""
        self._planner.ensure_own()
        if self._cutter is not None:
            self._cutter.close()
        self.compactor.close()

    def _cut(self, counts: Mapping[str, Any] | None) -> None:
        with self._planner, self._planner.changing():
            self._flush()
            with self._noted() as notes:
                self.checkpoints.make_cut(self._cut_here(), counts, notes)
            if counts is not None:
                self._saved()
        self.compactor.wake()

    def go_back(self, step: int, cut: Cut) -> None:
        """Make a checkpoint's cut the last. In the planner's turn. Raises: DiskFullError."""
        with self._noted() as notes:
            self.checkpoints.go_back(step, cut, notes)

    @contextmanager
    def _noted(self) -> Iterator[Facts | None]:
        """What is to be committed with a cut; at the end it is."""
        if self.notes is None:
            yield None
            return
        facts, kept = self.notes.facts()
        yield facts
        kept()

    def _doorkeepers(self) -> list[Doorkeeper]:
        return [s.doorkeeper for s in self._stacks.values() if s.doorkeeper is not None]

    def _counts(self) -> dict[str, Any]:
        return {doorkeeper.table.name: doorkeeper.save() for doorkeeper in self._doorkeepers()}

    def _saved(self) -> None:
        for doorkeeper in self._doorkeepers():
            doorkeeper.changed = False

    def _flush(self) -> None:
        for stack in self._stacks.values():
            stack.hierarchy.flush()

    def _cut_here(self) -> Cut:
        return Cut(
            {name: stack.ssd.end for name, stack in self._stacks.items()},
            {name: stack.step for name, stack in self._stacks.items()},
        )
