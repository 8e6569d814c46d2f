"""Marker: checkpoints of all shards at once, made and gone back to by all workers together.

All shards but the first prepare, then shard 0 commits the state and the marker in one transaction.
Only the marker counts: after a crash in between, the checkpoint before does, on every shard.

Workers meet before and after. Those that go back have meetings of their own, since one may be there
because a checkpoint failed in which another still waits.

Threads: the one that trains.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from ps.client.client import PIECE_BYTES, SLOW_SECONDS, Client
from ps.state import pack_state, unpack_state
from ps.wire import terrace_pb2 as wire
from ps.wire.frame import Frame
from storage.errors import RefusedError, StoreError, TerraceError

_TRIES = 4
_MOST_SAID = 1000
_RESUMING = "/resume"


class Marker:
    """See the module's docstring; of ``client``, which is open. step: of the newest checkpoint that
    counts, -1 for none. Raises: UnavailableError.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._meetings = 0
        self.step = self._newest()

    def checkpoint(self, step: int, state: Mapping[str, Any]) -> None:
        """One checkpoint of all shards, with the state of rank 0; in every worker.

        Where it failed, every worker raises. Raises: DiskFullError; UnavailableError; StoreError.
        """
        self._client.flush()
        self._meet()
        failure = self._lead(step, state) if self._client.identity.rank == 0 else None
        if failure is not None:
            with suppress(TerraceError):  # shard 0 may be what is away; the others wait in vain
                self._meet(str(failure).encode()[:_MOST_SAID])
            raise failure
        if said := self._meet():
            why = said.decode(errors="replace")
            raise StoreError(f"checkpoint {step}: worker 0 could not make it: {why}")
        self.step = step

    def resume(self) -> tuple[int, dict[str, Any]]:
        """All shards back to the newest marker, in every worker: its step and rank 0's state.

        This process gets a new incarnation, so nothing that is on its way counts. Raises:
        StoreError when there is no checkpoint.
        """
        client = self._client
        client.open()
        self._meetings, self.step = 0, self._newest()
        self._meet(of=_RESUMING)
        if client.identity.rank == 0 and self.step >= 0:
            step = self.step
            client.each(lambda shard: self._call(shard, "Rewind", wire.RewindRequest(step=step)))
        self._meet(of=_RESUMING)
        # Asked again: this worker may have seen the marker before a last one was committed.
        self._meetings, self.step = 0, self._newest()
        if self.step < 0:
            raise StoreError(
                f"{client.links[0].name}: expected a checkpoint to resume from, found none; start "
                f"without resuming"
            )
        return self.step, self._state(self.step)

    # -- private --------------------------------------------------------------------------------

    def _newest(self) -> int:
        return int(self._client.links[0].ask(0).marker) - 1

    def _call(self, shard: int, method: str, message: Any, array: bytes = b"") -> Frame[Any]:
        frame = Frame(message, array)
        return self._client.call(shard, method, frame, attempt_seconds=SLOW_SECONDS)

    def _meet(self, word: bytes = b"", of: str = "") -> bytes:
        """Wait for all workers of the job: what rank 0 said. of: what they meet for.

        Raises: UnavailableError, naming who has not come.
        """
        self._meetings += 1
        who = self._client.identity
        if who.world == 1:
            return word
        request = wire.MeetRequest(round=who.round + of, number=self._meetings)
        return bytes(self._client.call(0, "Meet", Frame(request, word)).array)

    def _lead(self, step: int, state: Mapping[str, Any]) -> TerraceError | None:
        """Make the checkpoint: why not, if it could not be made."""
        client = self._client

        def prepare(shard: int) -> None:
            if shard:
                request = wire.PrepareRequest(step=step, last=True, committed=self.step + 1)
                self._call(shard, "Prepare", request)

        def commit(shard: int) -> None:
            if shard:
                self._call(shard, "Commit", wire.CommitRequest(step=step))

        try:
            tree, tensors = pack_state(state)
            client.each(prepare)
            self._mark(step, tree, tensors)
            client.each(commit)
        except TerraceError as error:
            return error
        return None

    def _mark(self, step: int, tree: str, tensors: bytes) -> None:
        """Bring the state to shard 0, which commits it with the marker."""
        for left in reversed(range(_TRIES)):
            try:
                for offset in range(0, max(1, len(tensors)), PIECE_BYTES):
                    self._bring(step, tree, tensors, offset)
                return
            except RefusedError:
                # Shard 0 was started anew between two pieces, or the answer to the last was lost.
                if not left or len(tensors) <= PIECE_BYTES:
                    raise

    def _bring(self, step: int, tree: str, tensors: bytes, offset: int) -> None:
        last = offset + PIECE_BYTES >= len(tensors)
        request = wire.PrepareRequest(
            step=step, offset=offset, size=len(tensors), last=last, marker=True,
            tree=tree if last else "", committed=self.step + 1,
        )  # fmt: skip
        self._call(0, "Prepare", request, tensors[offset : offset + PIECE_BYTES])

    def _state(self, step: int) -> dict[str, Any]:
        pieces: list[bytes] = []
        have = 0
        while True:
            request = wire.LookRequest(what="state", step=step, offset=have)
            reply = self._call(0, "Look", request)
            pieces.append(bytes(reply.array))
            have += len(pieces[-1])
            if have >= reply.message.size:
                return unpack_state(reply.message.text, b"".join(pieces))
