"""Milestones: a shard's share of the checkpoints of all shards.

All prepare one, then shard 0 commits it with the caller's state and the marker; only a step that
shard 0 has counts (see `ps.client.marker`). Every call may come again, when its answer was lost.

Threads: any; rows and checkpoints are the owner's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ps.checkpoint import KEPT
from ps.server.parcel import Parcel
from ps.server.session import Session
from ps.server.sessions import Sessions
from ps.state import pack_state, unpack_state
from ps.store import Store
from storage.errors import CorruptError, RefusedError

_MOST_STEP = 2**63
Own = Callable[[Callable[[], Any]], Any]


class Milestones:
    """See the module's docstring. store, sessions: of the shard now. own: has work done by the
    owner's thread, and gives back what it gave.
    """

    def __init__(
        self, store: Callable[[], Store], sessions: Callable[[], Sessions], own: Own
    ) -> None:
        self._store, self._sessions, self._own = store, sessions, own
        self._parcel = Parcel()
        self._state: dict[int, tuple[str, bytes]] = {}
        self._made: float | None = None

    @property
    def age_seconds(self) -> float | None:
        """Since the newest one was made by this process, None where none was."""
        return None if self._made is None else time.monotonic() - self._made

    def take_state(
        self, session: Session, step: int, *, offset: int, size: int, piece: bytes
    ) -> None:
        """A piece of the tensors of a checkpoint's state. Raises: RefusedError out of order."""
        _check_step(step)
        key = (session.client, session.incarnation, step)
        if offset and step in self._store().checkpoints[-1:] and not self._parcel.is_of(key):
            return  # the last piece again: the checkpoint is made
        self._parcel.take(key, offset, size, piece)

    def prepare(
        self, session: Session, step: int, *, tree: str, size: int, marker: bool, committed: int
    ) -> None:
        """Make a checkpoint. marker: it counts from now on; else once shard 0 has one of its step.

        committed: the newest step that counts, -1 for none; what was prepared after it and never
        counted is discarded. Done already, it is not done again, unless it counted before.
        """
        _check_step(step)
        store = self._store()
        key = (session.client, session.incarnation, step)

        def make() -> None:
            if step in store.checkpoints[-1:] and step != committed:
                self._parcel.clear()
                return
            state = _unpack(tree, self._parcel.whole(key, size)) if tree else {}
            if not marker:
                store.discard_checkpoints(committed)
            store.checkpoint(step, state, keep=KEPT if marker else KEPT + 1)
            self._made = time.monotonic()
            # Not before: the last piece may come again while this is done.
            self._parcel.clear()
            self._state = {}

        self._own(make)

    def commit(self, step: int) -> None:
        """The marker of this step is made: of three checkpoints the oldest may go."""
        store = self._store()
        self._ensure_checkpoint(step)
        self._own(lambda: store.keep_checkpoints(KEPT))

    def rewind(self, step: int) -> None:
        """Go back to the checkpoint of this step; who may come and who may not stays as it is."""
        store = self._store()

        def back() -> None:
            self._ensure_checkpoint(step)
            # First, so that the cut which makes the checkpoint the last one has them so.
            self._sessions().reset_clocks()
            store.resume(step)

        self._own(back)

    def state(self, step: int) -> tuple[str, bytes]:
        """The caller's state of a checkpoint: JSON and tensors, as `ps.state.pack_state` gives."""
        self._ensure_checkpoint(step)
        found = self._state.get(step)
        if found is None:
            found = pack_state(self._own(lambda: self._store().state_of(step)))
            self._state = {step: found}
        return found

    def _ensure_checkpoint(self, step: int) -> None:
        if step not in (kept := self._store().checkpoints):
            raise RefusedError(f"expected the step of a checkpoint, one of {kept}, got step {step}")


def _check_step(step: int) -> None:
    if step >= _MOST_STEP:
        raise RefusedError(f"step: expected one below 2**63, got {step}")


def _unpack(tree: str, tensors: bytes) -> dict[str, Any]:
    """The state that a client packed. Raises: RefusedError."""
    try:
        return unpack_state(tree, tensors)
    except CorruptError as error:
        raise RefusedError(f"prepare: {error}") from error
