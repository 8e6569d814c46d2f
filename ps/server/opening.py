"""Opening: a shard's store as it was when the last change was answered.

The store shows its last cut; sessions are as far as they were then, and who may come is as it was
last. Where there is a redo log, what the cut lacks is applied again, in the same order.

Threads: one, before anybody is let in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ps.checkpoint import FENCES_FACT, REDO_FACT, SESSIONS_FACT
from ps.partition import Partition
from ps.server.change import Owned, read_record
from ps.server.place import Place
from ps.server.redo import Redo
from ps.server.sessions import Sessions
from ps.settings import Settings
from ps.store import Store
from ps.table import Table


@dataclass(frozen=True)
class Opened:
    """What belongs together. redo: None where there is no redo log."""

    store: Store
    sessions: Sessions
    redo: Redo | None

    def abandon(self) -> None:
        """Let go of all, without a cut."""
        if self.redo is not None:
            self.redo.close()
        self.store.abandon()


def open_shard(
    path: Path,
    tables: Sequence[Table] | None,
    settings: Settings,
    place: Place,
    *,
    strict: bool,
    replays: bool,
    replay_seconds: float,
) -> Opened:
    """Open a folder, or make it for ``tables``. strict: begin a redo log where there is none.

    replays, replay_seconds: see `Sessions`. Raises: as `ps.open`; MismatchError for the folder of
    another shard; CorruptError.
    """
    store, redo = Store(path, tables, settings), None
    try:
        place.claim(store)
        sessions = Sessions(
            store.fact(SESSIONS_FACT), store.fact(FENCES_FACT),
            replays=replays, replay_seconds=replay_seconds,
        )  # fmt: skip
        if strict or Redo.found(path):
            redo = Redo(path, first=int(store.fact(REDO_FACT) or 0))
            _replay(
                store, sessions, redo, Owned(store.tables, Partition(place.shards), place.shard)
            )
        return Opened(store, sessions, redo)
    except BaseException:
        if redo is not None:
            redo.close()
        store.abandon()
        raise


def _replay(store: Store, sessions: Sessions, redo: Redo, owned: Owned) -> None:
    """Apply what the last cut lacks, in the order in which it was applied before."""
    for record in redo.replay():
        frame, change = read_record(record, owned)
        told, sequence = frame.message.session, frame.message.sequence
        if sessions.replay(told.client, told.incarnation, sequence, change.clock):
            with store.stepping():
                change.apply(store)
