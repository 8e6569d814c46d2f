"""Service: the methods of terrace.v1.Shard: reads messages, asks the shard, writes answers.

Nothing in a message is trusted; what cannot be meant is INVALID_ARGUMENT in one line and changes
nothing. Errors become statuses in `ps.wire.status`.

Threads: gRPC's own; each call has a deadline, the client's or `LONGEST_SECONDS`.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np

from ps.server.calls import Calls
from ps.server.change import KINDS, record_of
from ps.server.flight import Flight
from ps.server.health import Health, State
from ps.server.metrics import Metrics
from ps.server.refusal import Refusal
from ps.server.session import Session
from ps.shard import Shard
from ps.table import Table, table_from
from ps.wire import terrace_pb2 as wire
from ps.wire.frame import Frame, reserve, unpacker
from ps.wire.status import status_of
from storage.errors import (
    DiskFullError,
    MismatchError,
    OverloadedError,
    RefusedError,
    ShardError,
    TerraceError,
)
from storage.rows import Floats, Keys

WIRE_VERSION = 1
"""Of protos/ps/wire/terrace.proto."""

LONGEST_SECONDS = 600.0
MOST_MESSAGE_BYTES = 16 << 20
"""Of a request and of an answer; clients cut their working sets into smaller pieces."""

_MEET_SECONDS = 5.0
# Of an answer that is on its way: ours, and gRPC's own.
_COPIES = 2
_MARGIN_SECONDS = 0.5
_MOST_TABLES, _MOST_SPEC = 1024, 1 << 16
_PIECE = 4 << 20
_MOST_DETAILS = 1000
_LOG = logging.getLogger("terrace.server")
_DESCRIPTOR = wire.DESCRIPTOR.services_by_name["Shard"]
_BULKY = {f"/{_DESCRIPTOR.full_name}/{name}" for name in ("Pull", "Push", "Write", "Delete")}
Handler = Callable[[Frame[Any], grpc.ServicerContext], Frame[Any]]


class Service(grpc.GenericRpcHandler):  # type: ignore[misc]
    """See the module's docstring. flight: bounds the bytes of messages that are held. calls: counts
    those that are worked on. refusal: of what is too much.
    """

    def __init__(
        self,
        shard: Shard,
        metrics: Metrics,
        health: Health,
        flight: Flight,
        calls: Calls,
        refusal: Refusal,
    ) -> None:
        self._shard = shard
        self._metrics = metrics
        self._health = health
        self._flight = flight
        self._calls = calls
        self._refusal = refusal
        self._methods: dict[str, Any] = {}
        for method in _DESCRIPTOR.methods:
            kind = getattr(wire, method.input_type.name)
            call = self._guarded(unpacker(kind), getattr(self, f"_{method.name.lower()}"))
            self._methods[f"/{_DESCRIPTOR.full_name}/{method.name}"] = (
                grpc.unary_unary_rpc_method_handler(call)
            )

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """The handler of a method, None for one that there is not."""
        method = handler_call_details.method
        if method in _BULKY:
            if self._refusal.due:
                return self._refusal.handler
            self._calls.expect()
        return self._methods.get(method)

    # -- what all methods have in common --------------------------------------------------------

    def _guarded(self, unpack: Callable[[bytes], Frame[Any]], handle: Handler) -> Any:
        """The method as gRPC calls it: bytes to bytes."""

        def call(data: bytes, context: grpc.ServicerContext) -> bytes:
            try:
                with self._calls.one():
                    self._hold(len(data), context)
                    return handle(unpack(data), context).pack()
            except TerraceError as error:
                failure = error
            except Exception as error:  # the edge: what is not ours becomes INTERNAL
                _LOG.exception("a request failed")
                kind = type(error).__name__
                failure = ShardError(f"the shard failed ({kind}); its log says more")
            self._fail(failure, context)
            raise AssertionError("abort raises")

        return call

    def _fail(self, error: TerraceError, context: grpc.ServicerContext) -> None:
        self._metrics.refused(type(error).__name__)
        if isinstance(error, DiskFullError):
            self._health.change(State.DISK_FULL)
        code, details, trailing = status_of(error)
        context.set_trailing_metadata(trailing)
        # Details travel as metadata, of which clients take 8 KiB.
        context.abort(code, details[:_MOST_DETAILS])

    def _hold(self, size: int, context: grpc.ServicerContext) -> None:
        """Count bytes until the call is over, its answer taken. Raises: OverloadedError."""
        peer = context.peer()
        self._flight.take(size, peer)
        if not context.add_callback(lambda: self._flight.give(size, peer)):
            self._flight.give(size, peer)

    def _session(self, message: Any) -> Session:
        told = message.session
        return self._shard.sessions.get(told.client, told.incarnation)

    # -- the methods ----------------------------------------------------------------------------

    def _open(self, frame: Frame[Any], context: grpc.ServicerContext) -> Frame[Any]:
        told, shard = frame.message, self._shard
        _ensure_same(told, shard)
        client, incarnation = told.session.client, told.session.incarnation
        reply = wire.OpenReply(boot=shard.boot, keeps=shard.keeps)
        if incarnation:
            session = shard.open(
                client, incarnation, told.token, rank=told.rank, world=told.world,
                awaited=told.last_sequence, tables=_tables(told.tables),
            )  # fmt: skip
            reply.opened, reply.applied = True, session.applied
        elif told.tables:
            shard.ensure_tables(_tables(told.tables))
        reply.incarnation = shard.sessions.known(client)
        if shard.loaded:
            reply.rows = shard.store.stored_rows
        if shard.loaded and shard.store.checkpoints:
            reply.marker = 1 + shard.store.checkpoints[-1]
        return Frame(reply)

    def _pull(self, frame: Frame[Any], context: grpc.ServicerContext) -> Frame[Any]:
        began = time.perf_counter()
        told, shard = frame.message, self._shard
        session = self._session(told)
        owned = shard.owned
        table = owned.table(told.table)
        keys = owned.keys(table, frame.array, told.rows)
        width = table.width if told.whole else table.dim
        size = 4 * told.rows * (width + told.whole)
        if size > MOST_MESSAGE_BYTES - 4096:
            raise RefusedError(
                f"pull: expected rows of {MOST_MESSAGE_BYTES} bytes at most in one request, got "
                f"{size}; cut the working set into pieces"
            )
        self._hold(_COPIES * size, context)
        reply = self._read(told, session, keys, _deadline(context))
        seconds = time.perf_counter() - began
        self._metrics.pulled(seconds, rows=told.rows, size=size)
        return reply

    def _read(self, told: Any, session: Session, keys: Keys, deadline: float) -> Frame[Any]:
        """The answer to a pull. Embeddings are written where they will be sent from."""
        shard = self._shard
        if told.peek:
            values = shard.peek(told.table, keys, deadline=deadline).values
            return Frame(self._pulled(told, 0, values.shape[1]), values)
        dim = shard.store.tables[told.table].dim
        frames: list[Frame[Any]] = []

        def room(clock: int) -> Floats:
            frames.append(reserve(self._pulled(told, clock, dim), np.float32, told.rows, dim))
            return np.asarray(frames[0].array)

        answer = shard.pull(
            session, told.table, keys, least=told.least_clock, whole=told.whole,
            deadline=deadline, room=room,
        )  # fmt: skip
        self._metrics.observed(max(0, told.own_clock - answer.clock))
        if frames:
            return frames[0]
        reply = self._pulled(told, answer.clock, answer.values.shape[1])
        reply.steps = answer.steps.astype("<u4").tobytes()
        reply.missing = answer.missing.astype(np.uint8).tobytes()
        return Frame(reply, answer.values)

    def _pulled(self, told: Any, clock: int, width: int) -> Any:
        return wire.PullReply(clock=clock, rows=told.rows, width=width, boot=self._shard.boot)

    def _push(self, frame: Frame[Any], context: grpc.ServicerContext) -> Frame[Any]:
        began = time.perf_counter()
        reply = self._change("Push", frame, context)
        told = frame.message
        seconds, skipped = time.perf_counter() - began, reply.message.skipped
        # One that comes again may say less than the one that was applied.
        self._metrics.pushed(
            seconds, rows=max(0, told.rows - skipped), size=len(frame.raw), skipped=skipped
        )
        return reply

    def _write(self, frame: Frame[Any], context: grpc.ServicerContext) -> Frame[Any]:
        return self._change("Write", frame, context)

    def _delete(self, frame: Frame[Any], context: grpc.ServicerContext) -> Frame[Any]:
        return self._change("Delete", frame, context)

    def _change(self, kind: str, frame: Frame[Any], context: grpc.ServicerContext) -> Frame[Any]:
        session = self._session(frame.message)
        change = KINDS[kind][1](frame, self._shard.owned)
        skipped = self._shard.change(
            session, frame.message.sequence, change, record_of(kind, frame),
            deadline=_deadline(context),
        )  # fmt: skip
        if self._health.state is State.DISK_FULL:
            self._health.change(State.SERVING)
        return self._changed(session, skipped)

    def _cut(self, frame: Frame[Any], context: grpc.ServicerContext) -> Frame[Any]:
        session = self._session(frame.message)
        self._shard.cut(session, closing=frame.message.closing)
        return self._changed(session, 0)

    def _changed(self, session: Session, skipped: int) -> Frame[Any]:
        shard = self._shard
        reply = wire.ChangeReply(
            applied=session.applied, durable=session.durable, skipped=skipped, boot=shard.boot
        )
        reply.wants_checkpoint = shard.store.wants_checkpoint
        return Frame(reply)

    def _meet(self, frame: Frame[Any], context: grpc.ServicerContext) -> Frame[Any]:
        told, session = frame.message, self._session(frame.message)
        word = self._shard.meetings.meet(
            session.job, told.round[:256], rank=session.rank, world=session.world,
            number=told.number, word=bytes(frame.array),
            deadline=min(_deadline(context), time.monotonic() + _MEET_SECONDS),
        )  # fmt: skip
        return Frame(wire.MeetReply(), word)

    def _prepare(self, frame: Frame[Any], context: grpc.ServicerContext) -> Frame[Any]:
        told, session = frame.message, self._session(frame.message)
        if told.size:
            self._shard.milestones.take_state(
                session, told.step, offset=told.offset, size=told.size, piece=bytes(frame.array)
            )
        if told.last:
            self._shard.milestones.prepare(
                session, told.step, tree=told.tree, size=told.size, marker=told.marker,
                committed=told.committed - 1,
            )  # fmt: skip
        return Frame(wire.CheckpointReply(boot=self._shard.boot, step=told.step))

    def _commit(self, frame: Frame[Any], context: grpc.ServicerContext) -> Frame[Any]:
        self._session(frame.message)
        self._shard.milestones.commit(frame.message.step)
        return Frame(wire.CheckpointReply(boot=self._shard.boot, step=frame.message.step))

    def _rewind(self, frame: Frame[Any], context: grpc.ServicerContext) -> Frame[Any]:
        self._session(frame.message)
        self._shard.milestones.rewind(frame.message.step)
        return Frame(wire.CheckpointReply(boot=self._shard.boot, step=frame.message.step))

    def _look(self, frame: Frame[Any], context: grpc.ServicerContext) -> Frame[Any]:
        told, shard = frame.message, self._shard
        if told.what == "stats":
            return Frame(wire.LookReply(text=json.dumps(shard.stats())))
        if told.what == "digest":
            return Frame(wire.LookReply(text=json.dumps(shard.digest())))
        if told.what == "check":
            return Frame(wire.LookReply(text=json.dumps(shard.check())))
        if told.what == "tables":
            tables = [table.describe() for table in shard.store.tables.values()]
            return Frame(wire.LookReply(text=json.dumps(tables)))
        if told.what == "state":
            tree, tensors = shard.milestones.state(told.step)
            piece = tensors[told.offset : told.offset + _PIECE]
            self._hold(_COPIES * len(piece), context)
            return Frame(wire.LookReply(text=tree, size=len(tensors)), piece)
        if told.what == "session":
            self._session(told)
            return Frame(wire.LookReply())
        raise RefusedError(
            f"look: expected stats, digest, check, tables, state or session, got {told.what[:40]!r}"
        )


def _ensure_same(told: Any, shard: Shard) -> None:
    """Raises: MismatchError where client and shard would not understand each other."""
    place = shard.place
    pairs = {
        "wire version": (told.wire_version, WIRE_VERSION),
        "number of shards": (told.shards, place.shards),
        "shard": (told.shard, place.shard),
        "version of the partition": (told.partition_version, shard.partition.version),
    }
    for name, (theirs, ours) in pairs.items():
        if theirs != ours:
            raise MismatchError(
                f"open: expected {name} {ours} of this server, got {theirs}; list all servers, in "
                f"the order of their shards, and use one version of Terrace"
            )


def _tables(specs: Any) -> list[Table]:
    """Tables from their descriptions. Raises: RefusedError; ConfigError."""
    if not 1 <= len(specs) <= _MOST_TABLES or max(map(len, specs)) > _MOST_SPEC:
        raise RefusedError(f"open: expected 1 to {_MOST_TABLES} tables of {_MOST_SPEC} bytes each")
    try:
        return [_table(json.loads(spec)) for spec in specs]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, TerraceError):
            raise
        raise RefusedError(f"open: a table's description cannot be read ({error})") from error


def _table(description: Any) -> Table:
    table = table_from(description)
    whole = {"dim": table.dim, "seed": table.seed, "rows": table.rows or 1}
    for name, value in whole.items():
        # A float or a bool would be found wanting only when rows are made.
        if type(value) is not int:
            raise RefusedError(f"open: {name}: expected a whole number, got {value!r:.40}")
    return table


def _deadline(context: grpc.ServicerContext) -> float:
    """The call's, as time.monotonic has it. Raises: OverloadedError when it has passed."""
    left: float | None = context.time_remaining()
    if left is not None and left <= 0:
        raise OverloadedError("the deadline passed before the request had its turn")
    if left is None:
        return time.monotonic() + LONGEST_SECONDS
    # A little before the client gives up, so that it hears what was waited for.
    return time.monotonic() + min(LONGEST_SECONDS, left - min(_MARGIN_SECONDS, left / 8))
