"""Commits: checkpoints of all workers' stores at once, made and gone back to together.

All but worker 0 prepare one, then worker 0 commits its own with the caller's state: that is the
marker. Only what worker 0 has counts: after a crash in between, the checkpoint before does, at all.

Threads: the one that trains.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ps.checkpoint import KEPT
from ps.cluster.exchange import Exchange
from ps.state import pack_state, unpack_state
from ps.store import Store
from storage.errors import ConfigError, StoreError


class Commits:
    """See the module's docstring. own: this worker's store. step: of the newest that counts, -1
    for none.
    """

    def __init__(self, own: Store, exchange: Exchange) -> None:
        self._own, self._exchange = own, exchange
        self._leads = exchange.rank == 0
        own.never_fewer_checkpoints(1 if self._leads else 2)
        (self.step,) = exchange.most(own.checkpoints[-1] if self._leads and own.checkpoints else -1)
        if not self._leads:
            own.discard_checkpoints(self.step)  # prepared, and never counted

    def make(self, step: int, state: Mapping[str, Any]) -> None:
        """One checkpoint of all workers, with the state of worker 0. Collective.

        Where it fails, every worker raises; the one before stands. Raises: ConfigError for a step
        that is not after the last one's; DiskFullError; StoreError.
        """
        if step <= self.step:
            raise ConfigError(
                f"checkpoint: expected a step after {self.step}, that of the last checkpoint, as "
                f"rows have changed since; got {step}"
            )
        own = self._own

        def prepare() -> None:
            if not self._leads:
                own.discard_checkpoints(self.step)  # prepared, and never counted
                own.checkpoint(step, {}, keep=KEPT + 1)

        def commit() -> None:
            if self._leads:
                own.checkpoint(step, state, keep=KEPT)

        self._exchange.all("prepare", prepare)
        self._exchange.all("commit", commit)
        self.step = step
        if not self._leads:
            own.keep_checkpoints(KEPT)

    def go_back(self) -> tuple[int, dict[str, Any]]:
        """All stores back to the newest checkpoint that counts: its step, and worker 0's state.

        Collective. Raises: StoreError, at all workers, where there is none, or one of them cannot.
        """
        own = self._own
        newest = own.checkpoints[-1] if self._leads and own.checkpoints else -1
        (step,) = self._exchange.most(newest)
        if step < 0:
            raise StoreError(
                f"{own.path}: expected a checkpoint to resume from, found none; start without "
                f"resuming"
            )
        found: list[dict[str, Any]] = []
        self._exchange.all("resume", lambda: found.append(own.resume(step)[1]))
        tree, tensors = pack_state(found[0]) if self._leads else ("", b"")
        tree = self._exchange.word_of_first(tree.encode()).decode()
        tensors = self._exchange.word_of_first(tensors)
        self.step = step
        return step, found[0] if self._leads else unpack_state(tree, tensors)
