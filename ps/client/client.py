"""Client: all shards of a cluster as one: requests are cut by shard, sent at once, and joined.

A working set is cut by bucket, each share into pieces of at most 4 MiB, and the pieces of all
shards are on their way together: while one is gathered another is carried. Changes go through an
`Outbox` for each shard.

Threads: any, but for changes, which come from one thread at a time.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from threading import RLock
from typing import Any, TypeVar

import numpy as np

from ps.client.identity import Identity
from ps.client.link import ATTEMPT_SECONDS, Link
from ps.client.outbox import Outbox
from ps.partition import Partition
from ps.table import Table
from ps.wire import terrace_pb2 as wire
from ps.wire.frame import Frame, array_of
from ps.wire.status import ReopenError
from storage.errors import ConfigError, FencedError, StoreError, UnavailableError
from storage.rows import Counts, Floats, Keys, Positions

PIECE_BYTES = 4 << 20
"""Of one request or answer; two are then on their way in what one message may have."""

_PIECES_ON_THE_WAY = 4
SLOW_SECONDS = 600.0
"""Of one attempt at what has a shard write much."""

_STATS_SECONDS = 3.0
_TRIES = 8
T = TypeVar("T")


Indices = Positions | slice
"""(n,) int64, or a slice where they are in a row, so that nothing is copied."""


@dataclass(frozen=True)
class Pulled:
    """A piece of a pull. indices: which of the keys. values: (n, D) float32, a view. clock: of the
    slowest worker.
    """

    indices: Indices
    values: Floats
    clock: int


@dataclass(frozen=True)
class Step:
    """What an optimizer step says beside gradients; see `Tables.apply`."""

    lr: float
    step: int
    scale: float


class Client:
    """See the module's docstring. addresses: of the shards, in order. connect: makes a channel.

    timeout_seconds: how long a shard that is away is waited for. push_bytes: of changes that are
    kept until they are applied and durable, all shards together.

    rows: on all shards, as they were when this worker came in. broken: what interrupted a change,
    so that some shards have a part of it; None while all is whole. Only `open` mends that.

    Raises: MismatchError; RefusedError; UnavailableError.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        tables: Sequence[Table],
        identity: Identity,
        connect: Callable[..., Any],
        *,
        timeout_seconds: float = 600.0,
        push_bytes: int = 256 << 20,
    ) -> None:
        if not addresses or len(set(addresses)) != len(addresses):
            raise ConfigError(f"servers: expected one or more, each once, got {list(addresses)}")
        self.identity = identity
        self.tables = {table.name: table for table in tables}
        self.partition = Partition(len(addresses))
        specs = [json.dumps(table.describe()) for table in tables]
        self.links = [
            Link(
                address, (shard, len(addresses)), identity, specs, connect,
                timeout_seconds=timeout_seconds,
            )
            for shard, address in enumerate(addresses)
        ]  # fmt: skip
        self._threads = ThreadPoolExecutor(len(addresses), thread_name_prefix="terrace-link")
        most = max(1, push_bytes // len(addresses))
        self.outboxes = [Outbox(link, most_bytes=most) for link in self.links]
        self._held: dict[int, tuple[str, Frame[Any]]] = {}
        self._order = RLock()  # a reader in another thread may `flush` meanwhile
        self.broken: str | None = None
        self.rows = 0
        try:
            self.open()
        except BaseException:
            self.close()
            raise

    # -- sessions -------------------------------------------------------------------------------

    def open(self) -> None:
        """Enter all shards as a new incarnation, above all that any of them knows."""
        for _ in range(_TRIES):
            known = self.each(lambda shard: self.links[shard].ask(0).incarnation)
            self.identity = self.identity.reborn(1 + max(known))
            self.broken = None
            self._held.clear()
            for link, outbox in zip(self.links, self.outboxes, strict=True):
                link.identity = self.identity
                outbox.forget()
            try:
                self.each(lambda shard: self.links[shard].open(self.links[shard].openings))
            except FencedError:
                continue  # another process was faster
            told = self.each(lambda shard: self.links[shard].ask(0))
            self.rows = sum(int(reply.rows) for reply in told)
            return
        raise FencedError(
            f"client {self.identity.client!r}: other processes of this name keep coming in; give "
            f"each job a name of its own"
        )

    def each(self, call: Callable[[int], T]) -> list[T]:
        """What ``call`` gives for each shard, all at once. Raises: the first error, at once."""
        futures = [self._threads.submit(call, shard) for shard in range(len(self.links))]
        wait(futures, return_when=FIRST_EXCEPTION)
        failed = [future for future in futures if future.done() and future.exception()]
        if failed and isinstance(failed[0].exception(), FencedError):
            wait(futures)  # this goes on with another identity
        return [future.result() for future in failed or futures]

    def call(self, shard: int, method: str, frame: Frame[Any], **options: Any) -> Frame[Any]:
        """One call to a shard, waiting for it if it is away; the session is set here."""
        if hasattr(frame.message, "session"):
            frame.message.session.CopyFrom(self.identity.session)
        return self.links[shard].call(method, frame.pack(), **options)

    # -- pulls ----------------------------------------------------------------------------------

    def pull(self, table: str, keys: Keys, *, least: int, own: int) -> Iterator[Pulled]:
        """Embeddings with all changes of the first ``least`` steps of every worker, in pieces.

        keys: (U,) uint64, unique. own: steps that this worker has made.
        """
        return self._pull(table, keys, dict(least_clock=least, own_clock=own))

    def peek(self, table: str, keys: Keys) -> Iterator[Pulled]:
        """Embeddings as they are now; nothing is inserted, counted or moved at the shards."""
        return self._pull(table, keys, dict(peek=True))

    def _pull(self, table: str, keys: Keys, fields: Mapping[str, Any]) -> Iterator[Pulled]:
        dim = self.tables[table].dim
        waiting = deque(self._pieces(keys, 4 * dim))
        on_the_way: deque[tuple[int, Indices, int, bytes, tuple[int, Any]]] = deque()
        while waiting or on_the_way:
            while waiting and len(on_the_way) < _PIECES_ON_THE_WAY * len(self.links):
                shard, indices = waiting.popleft()
                some = keys[indices]
                request = wire.PullRequest(table=table, rows=len(some), **fields)
                request.session.CopyFrom(self.identity.session)
                data = Frame(request, some).pack()
                link = self.links[shard]
                begun = (link.openings, link.start("Pull", data))
                on_the_way.append((shard, indices, len(some), data, begun))
            shard, indices, count, data, begun = on_the_way.popleft()
            reply = self._pulled(shard, data, begun)
            values = array_of(reply.array, np.float32, count, dim, name="rows")
            yield Pulled(indices, values, int(reply.message.clock))

    def _pulled(self, shard: int, data: bytes, begun: tuple[int, Any]) -> Frame[Any]:
        """The answer to a pull that is on its way, or to another attempt. begun: the link's
        openings before it, and gRPC's future."""
        link, first = self.links[shard], [begun]

        def attempt(left: float) -> Frame[Any]:
            seconds = min(left, ATTEMPT_SECONDS)
            seen, future = (
                first.pop() if first else (link.openings, link.start("Pull", data, seconds))
            )
            try:
                return link.finish("Pull", future)
            except ReopenError:
                link.open(seen, deadline=time.monotonic() + left)
                raise

        return link.persist(attempt)

    def _pieces(self, keys: Keys, row_bytes: int) -> list[tuple[int, Indices]]:
        """Shards and indices of keys, piece by piece, those of all shards in turn."""
        most = max(1, PIECE_BYTES // (row_bytes + 16))
        if len(self.links) == 1:
            return [(0, slice(at, at + most)) for at in range(0, len(keys), most)]
        shares = [
            [(shard, share[start : start + most]) for start in range(0, len(share), most)]
            for shard, share in enumerate(self.partition.split(keys))
        ]
        longest = max(map(len, shares))
        return [s[turn] for turn in range(longest) for s in shares if turn < len(s)]

    # -- changes --------------------------------------------------------------------------------

    def push(self, table: str, keys: Keys, gradients: Floats, uses: Counts, step: Step) -> None:
        """Gradients of unique rows, applied at the shards. They count with the next `advance`.

        keys: (U,) uint64. gradients: (U, D) float32. uses: (U,) int32.
        """
        spec = self.tables[table]
        with self._changing():
            for shard, indices in self._pieces(keys, 4 * spec.dim):
                some = keys[indices]
                request = wire.PushRequest(
                    table=table, rows=len(some), step=step.step, lr=step.lr, scale=step.scale,
                    keys=some.tobytes(),
                )  # fmt: skip
                if spec.admission is not None:
                    request.uses = uses[indices].astype(np.int32).tobytes()
                self._hold(shard, "Push", Frame(request, gradients[indices]))

    def advance(self, clock: int) -> None:
        """This worker has made ``clock`` steps: the last of their changes tells each shard."""
        with self._changing():
            for shard in range(len(self.links)):
                if shard not in self._held:
                    self._hold(shard, "Push", Frame(wire.PushRequest(scale=1.0)))
                self._held[shard][1].message.clock = clock
                self._let_go(shard)

    def write(self, table: str, keys: Keys, values: Floats) -> None:
        """Set embeddings of unique keys, optimizer state anew. values: (U, D) float32."""
        dim = self.tables[table].dim
        with self._changing():
            for shard, indices in self._pieces(keys, 4 * dim):
                some = keys[indices]
                request = wire.WriteRequest(
                    table=table, rows=len(some), width=dim, keys=some.tobytes()
                )
                self._put(shard, "Write", Frame(request, values[indices]))
        self.flush()

    def delete(self, table: str, keys: Keys) -> None:
        """Forget rows of unique keys for good."""
        with self._changing():
            for shard, indices in self._pieces(keys, 8):
                some = keys[indices]
                request = wire.DeleteRequest(table=table, rows=len(some))
                self._put(shard, "Delete", Frame(request, some))
        self.flush()

    def flush(self) -> None:
        """Return when all shards have applied all changes of this worker."""
        with self._changing():
            for shard in range(len(self.links)):
                self._let_go(shard)
        for outbox in self.outboxes:
            outbox.flush()

    def cut(self, *, closing: bool = False) -> None:
        """Have all shards make everything up to now durable."""
        self.flush()
        self.each(
            lambda shard: self.call(
                shard, "Cut", Frame(wire.CutRequest(closing=closing)), attempt_seconds=SLOW_SECONDS
            )
        )

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Of one change, from here on whole or not at all: an error inside breaks it for good."""
        with self._order:
            if self.broken is not None:
                raise StoreError(
                    f"{self.links[0].name}: a change was interrupted ({self.broken}), so shards "
                    f"may have a part of it; go back to a checkpoint, in every worker (resume())"
                )
            try:
                yield
            except BaseException as error:
                # Not the error: its traceback would keep the step's rows in use.
                self.broken = str(error) or type(error).__name__
                raise

    def _hold(self, shard: int, method: str, frame: Frame[Any]) -> None:
        """Keep the newest change back, so that it can tell the clock; send the one before."""
        self._let_go(shard)
        self._held[shard] = (method, frame)

    def _let_go(self, shard: int) -> None:
        held = self._held.pop(shard, None)
        if held is not None:
            self.outboxes[shard].put(*held)

    def _put(self, shard: int, method: str, frame: Frame[Any]) -> None:
        self._let_go(shard)
        self.outboxes[shard].put(method, frame)

    # -- figures and the end --------------------------------------------------------------------

    def look(self, what: str) -> list[Any]:
        """What each shard says: "stats", "digest" or "check"."""
        return self.each(lambda shard: self._look(shard, what))

    def stats(self) -> list[dict[str, Any]]:
        """What each shard says of itself, or of one that is away, why: waits for none."""

        def ask(shard: int) -> dict[str, Any]:
            try:
                found: dict[str, Any] = self._look(shard, "stats", seconds=_STATS_SECONDS)
                return found
            except UnavailableError as error:
                return {"shard": shard, "away": str(error)}

        return self.each(ask)

    def _look(self, shard: int, what: str, seconds: float | None = None) -> Any:
        deadline = None if seconds is None else time.monotonic() + seconds
        reply = self.call(
            shard, "Look", Frame(wire.LookRequest(what=what)),
            attempt_seconds=SLOW_SECONDS, deadline=deadline,
        )  # fmt: skip
        return json.loads(reply.message.text)

    @property
    def wants_checkpoint(self) -> bool:
        """Some shard's disk is nearly full."""
        return any(outbox.wants_checkpoint for outbox in self.outboxes)

    def close(self) -> None:
        """Let go of threads and connections; what was not flushed is lost. Twice is fine."""
        for link in self.links:
            link.close()  # first: it ends all calls that somebody waits for
        for outbox in self.outboxes:
            outbox.close()
        self._threads.shutdown()
