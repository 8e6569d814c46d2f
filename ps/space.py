"""Space: what a store may still write, and what it does when that runs out.

Two things are always kept free: what a checkpoint takes (the dirty rows and the caller's state) and
what compaction needs to begin. When a batch would eat into them, the store first asks for a
checkpoint (``wants_checkpoint``), since that lets old blocks go; then frees what can be freed; then
gives up the older of two checkpoints, with a warning; then refuses, before anything has changed.
Reading goes on all the while, and so does freeing.

Threads: those that write; never with the planner's lock.
"""

from __future__ import annotations

import collections
import contextlib
import warnings
from collections.abc import Callable, Iterable, Mapping

from ps.checkpoint import Checkpoints
from ps.compactor import Compactor
from ps.stack import Stack
from storage.block import SEGMENT_BLOCKS
from storage.budget import show_size
from storage.errors import DiskFullError
from storage.log import BlockLog

_NEAR = 8
_OVERHEAD = 1.15
_STATE_BYTES = 1 << 16


class Space:
    """See the module's docstring. stacks: those of the store now."""

    def __init__(
        self,
        log: BlockLog,
        stacks: Callable[[], Mapping[str, Stack]],
        checkpoints: Checkpoints,
        compactor: Compactor,
    ) -> None:
        self.wants_checkpoint = False
        self._written_then = 0
        self._log = log
        self._stacks = stacks
        self._checkpoints = checkpoints
        self._compactor = compactor

    def prepare(self, rows: Iterable[tuple[Stack, int]], beside: int = 0) -> None:
        """Make sure that so many rows can be written to each of these stacks.

        beside: bytes that somebody else will write there. Raises: DiskFullError, before anything
        has changed.
        """
        need = self._bytes_of(rows) + beside
        left = self._log.room() - need
        if self._is_ample(need):
            return
        kept = self._reserved()
        # Asked for once, and again when there is something new that it would let go.
        since = self._written() - self._written_then
        self.wants_checkpoint = left < kept + _NEAR * need and _NEAR * since > self._log.used_bytes
        if left < kept:
            self._make_room(need + kept, f"{show_size(need)} beside {show_size(kept)} kept for one "
                            f"checkpoint and compaction")  # fmt: skip

    def has_ample(self, stack: Stack, rows: int) -> bool:
        """Whether writing so many rows is far from filling the disk."""
        return self._is_ample(self._bytes_of([(stack, rows)]))

    def prepare_checkpoint(self, state_bytes: int) -> None:
        """Make sure that a checkpoint fits. Raises: DiskFullError, before anything has changed."""
        self.wants_checkpoint = False
        self._written_then = self._written()
        if self._log.room() < 2 * self._most_reserved():
            # What is copied now will be in this checkpoint, so that old blocks can go after it.
            with contextlib.suppress(DiskFullError):
                collections.deque(self._compactor.compact(), maxlen=0)
        need = self._dirty() + int(_OVERHEAD * state_bytes) + _STATE_BYTES
        if self._log.room() < need:
            self._make_room(need, f"a checkpoint of {show_size(need)}")

    def spare(self) -> int:
        """Bytes that compaction may fill: a checkpoint would still fit beside them."""
        left = self._log.room()
        most = self._most_reserved()
        return left - (most if left > 2 * most else self._reserved())

    def report(self) -> dict[str, int | None]:
        """Bytes as JSON values: of the file, in use in it, and of the cap."""
        return {
            "file": self._log.file_bytes,
            "used": self._log.used_bytes,
            "total": self._log.disk_bytes,
        }

    # -- private --------------------------------------------------------------------------------

    def _is_ample(self, need: int) -> bool:
        return self._log.room() - need >= self._most_reserved() + _NEAR * need

    def _make_room(self, size: int, what: str) -> None:
        self._log.wait()
        while self._log.room() < size:
            if self._compactor.reclaim(self._log.room):
                self._log.wait()
            elif len(self._checkpoints.steps) > self._checkpoints.least:
                given_up = self._checkpoints.give_up_older()
                warnings.warn(
                    f"{self._log.path}: the disk is nearly full: gave up the checkpoint of step "
                    f"{given_up}, the older of two; give more --disk or free space",
                    ResourceWarning,
                    stacklevel=3,
                )
            else:
                raise self._full(what)

    def _full(self, what: str) -> DiskFullError:
        where = self._log.show_room(self._log.room())
        return DiskFullError(
            f"disk full: expected room for {what}, but {where}; nothing was changed and the last "
            f"checkpoint is good; make a checkpoint, free space or give more, then go on"
        )

    def _bytes_of(self, rows: Iterable[tuple[Stack, int]]) -> int:
        """Bytes that writing rows takes, a partly filled block each included."""
        return sum(stack.table.shape.disk_bytes(count) for stack, count in rows)

    def _reserved(self) -> int:
        """What is kept for a checkpoint and for compaction to begin."""
        return self._dirty() + self._to_begin()

    def _most_reserved(self) -> int:
        """A bound of `_reserved` that costs nothing to compute."""
        stacks = self._stacks().values()
        held = self._bytes_of((stack, sum(map(len, stack.caches))) for stack in stacks)
        return held + self._to_begin()

    def _to_begin(self) -> int:
        """What compaction needs to begin, and a checkpoint for the caller's state and counts."""
        stacks = self._stacks().values()
        segments = sum(2 * SEGMENT_BLOCKS * s.table.shape.pages * 4096 for s in stacks)
        counts = sum(s.table.admission.bytes_held for s in stacks if s.table.admission)
        return segments + int(_OVERHEAD * max(self._checkpoints.state_bytes, counts))

    def _dirty(self) -> int:
        """Bytes that writing all dirty rows takes now."""
        return self._bytes_of((stack, stack.dirty_rows) for stack in self._stacks().values())

    def _written(self) -> int:
        return sum(stack.ssd.stats.bytes_written for stack in self._stacks().values())
