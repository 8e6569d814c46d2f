"""Service: every method over real gRPC, and every message that cannot be meant."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

import ps
from ps.server.health import State
from ps.server.place import Place
from ps.server.service import MOST_MESSAGE_BYTES
from ps.state import pack_state, unpack_state
from ps.wire import terrace_pb2 as wire
from storage.errors import (
    DiskFullError,
    FencedError,
    MismatchError,
    RefusedError,
    UnavailableError,
)
from tests.ps.serving import (
    ADS,
    TABLES,
    USERS,
    Served,
    belonging,
    expected_digest,
    gradients,
    opening,
    served_at,
    stop,
)

KEYS = np.arange(10, 20, dtype=np.uint64)
WIDE = replace(ADS, name="wide", dim=8000, rows=4000, optimizer=ps.SGD(lr=1.0))


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with served_at(tmp_path / "shard", "strict") as served:
        yield served


def look(served: Served, what: str, **more: Any) -> Any:
    return json.loads(served.call("Look", wire.LookRequest(what=what, **more)).message.text)


def ask(session: wire.Session, table: str = "ads", keys: Any = KEYS, **more: Any) -> Any:
    return wire.PullRequest(session=session, table=table, rows=len(keys), **more)


# -- what good clients do -------------------------------------------------------------------------


def test_opening_tells_what_a_client_has_to_know(served: Served) -> None:
    nothing = served.call("Open", opening(served.shard, incarnation=0, tables=())).message
    assert (nothing.opened, nothing.incarnation, nothing.marker) == (False, 0, 0)
    assert not served.shard.loaded
    first = served.call("Open", opening(served.shard, incarnation=4)).message
    assert (first.opened, first.incarnation, first.applied, first.keeps) == (True, 4, 0, True)
    assert first.boot == served.shard.boot
    session = wire.Session(client="train-0", incarnation=4)
    served.call("Push", gradients(0).frame(session, 1).message, gradients(0).values)
    served.call("Prepare", wire.PrepareRequest(session=session, step=0, last=True, marker=True))
    again = served.call("Open", opening(served.shard, incarnation=4)).message
    assert (again.applied, again.marker, again.rows) == (1, 1, 40)
    with pytest.raises(FencedError):
        served.open(incarnation=3)
    assert served.call("Open", opening(served.shard, incarnation=0)).message.incarnation == 4


def test_pushes_pulls_writes_and_deletes_do_what_they_say(tmp_path: Path, served: Served) -> None:
    session, some = served.open(), gradients(0)
    reply = served.call("Push", some.frame(session, 1).message, some.values).message
    assert (reply.applied, reply.durable, reply.skipped, reply.boot) == (1, 1, 0, served.shard.boot)
    assert look(served, "digest") == expected_digest(tmp_path / "oracle", [some])
    told = ask(session, keys=some.keys)
    pulled = served.call("Pull", told, some.keys)
    values = np.frombuffer(pulled.array, np.float32).reshape(40, ADS.dim)
    assert (pulled.message.rows, pulled.message.width) == (40, ADS.dim)
    whole = served.call("Pull", ask(session, keys=some.keys, whole=True), some.keys)
    rows = np.frombuffer(whole.array, np.float32).reshape(40, ADS.width)
    assert np.array_equal(rows[:, : ADS.dim], values)
    assert np.frombuffer(whole.message.steps, np.uint32).tolist() == [1] * 40
    assert whole.message.missing == bytes(40)
    peeked = served.call("Pull", ask(session, keys=some.keys, peek=True), some.keys)
    assert bytes(peeked.array) == bytes(pulled.array)
    ones = np.ones((10, ADS.dim), np.float32)
    write = wire.WriteRequest(
        session=session, sequence=2, table="ads", rows=10, width=ADS.dim, keys=KEYS.tobytes()
    )
    assert served.call("Write", write, ones).message.applied == 2
    assert bytes(served.call("Pull", ask(session), KEYS).array) == ones.tobytes()
    delete = wire.DeleteRequest(session=session, sequence=3, table="ads", rows=10)
    assert served.call("Delete", delete, KEYS).message.applied == 3
    missing = served.call("Pull", ask(session, whole=True), KEYS).message.missing
    assert missing == b"\1" * 10
    empty = served.call("Pull", ask(session, keys=[]))
    assert (empty.message.rows, empty.size) == (0, 0)
    assert served.call("Cut", wire.CutRequest(session=session, closing=True)).message.durable == 3
    assert served.shard.sessions.open_count == 0


def test_a_checkpoint_with_state_in_pieces_is_read_back_in_pieces(served: Served) -> None:
    session = served.open()
    state = {"w": np.arange(3 << 20, dtype=np.float32), "n": 3}
    tree, tensors = pack_state(state)
    size = 5 << 20
    starts = range(0, len(tensors), size)
    for _ in range(2):  # all of it again: done already
        for start in starts:
            request = wire.PrepareRequest(
                session=session, step=7, offset=start, size=len(tensors), marker=True, tree=tree,
                last=start == starts[-1],
            )  # fmt: skip
            for _ in range(2):  # each piece twice, as when an answer was lost
                served.call("Prepare", request, tensors[start : start + size])
        assert served.shard.store.checkpoints == [7]
    found = b""
    while True:
        reply = served.call("Look", wire.LookRequest(what="state", step=7, offset=len(found)))
        found += bytes(reply.array)
        if len(found) == reply.message.size:
            break
        assert reply.size
    back = unpack_state(reply.message.text, found)
    assert back["n"] == 3
    assert np.array_equal(back["w"].numpy(), state["w"])
    assert served.call("Commit", wire.CommitRequest(session=session, step=7)).message.step == 7
    assert served.call("Rewind", wire.RewindRequest(session=session, step=7)).message.step == 7


def test_looks_change_nothing_and_need_no_session(served: Served) -> None:
    assert served.code("Look", wire.LookRequest(what="stats")) == "INVALID_ARGUMENT"  # no tables
    served.open()
    assert look(served, "check") == []
    assert look(served, "stats")["sessions"] == 1
    assert [table["name"] for table in look(served, "tables")] == ["ads", "users"]
    with pytest.raises(RefusedError, match="expected stats, digest"):
        look(served, "x" * 100_000)


def test_workers_meet_and_hear_rank_0(served: Served) -> None:
    sessions = [served.open(f"train-{rank}", rank=rank, world=2) for rank in range(2)]

    def meet(rank: int) -> bytes:
        request = wire.MeetRequest(session=sessions[rank], round="r", number=1)
        return bytes(served.call("Meet", request, b"word %d" % rank).array)

    with ThreadPoolExecutor(2, "terrace-test") as pool:
        assert list(pool.map(meet, range(2), timeout=20)) == [b"word 0"] * 2


def test_requests_are_counted(served: Served) -> None:
    session, some = served.open(), gradients(0)
    some.values[3] = np.nan
    reply = served.call("Push", some.frame(session, 1).message, some.values).message
    assert reply.skipped == 1
    served.call("Pull", ask(session, own_clock=3), KEYS)
    served.code("Pull", ask(session, table="none"), KEYS)
    text = served.metrics.expose().decode()
    for line in (
        "terrace_rows_pushed_total 39.0", "terrace_rows_skipped_total 1.0",
        "terrace_rows_pulled_total 10.0",
        'terrace_requests_refused_total{reason="RefusedError"} 1.0',
        "terrace_staleness_steps_sum 3.0",
    ):  # fmt: skip
        assert line in text


def test_a_push_that_comes_again_with_fewer_rows_is_answered_all_the_same(served: Served) -> None:
    session, some = served.open(), gradients(0)
    some.values[0, 0] = np.nan
    assert served.call("Push", some.frame(session, 1).message, some.values).message.skipped == 1
    again = wire.PushRequest(session=session, sequence=1)
    assert served.call("Push", again).message.skipped == 1


# -- what nobody may do ---------------------------------------------------------------------------

SESSION = wire.Session(client="train-0", incarnation=5)


def old() -> wire.Session:
    return wire.Session(client="train-0", incarnation=4)


def unknown() -> wire.Session:
    return wire.Session(client="nobody-1", incarnation=1)


FAILED, INVALID, ABORTED = "FAILED_PRECONDITION", "INVALID_ARGUMENT", "ABORTED"
REFUSED: dict[str, tuple[str, Callable[[], Any], Any, str]] = {
    "pull of an old process": ("Pull", lambda: ask(old()), KEYS, ABORTED),
    "pull of a newer process": (
        "Pull", lambda: ask(wire.Session(client="train-0", incarnation=6)), KEYS, FAILED),
    "pull of nobody": ("Pull", lambda: ask(unknown()), KEYS, FAILED),
    "pull without a session": ("Pull", lambda: wire.PullRequest(rows=10), KEYS, INVALID),
    "a name with spaces": (
        "Pull", lambda: ask(wire.Session(client="a b", incarnation=1)), KEYS, INVALID),
    "a long name": (
        "Pull", lambda: ask(wire.Session(client="x" * 100_000, incarnation=1)), KEYS, INVALID),
    "an unknown table": ("Pull", lambda: ask(SESSION, "none"), KEYS, INVALID),
    "a long table": ("Pull", lambda: ask(SESSION, "\u20ac" * 100_000), KEYS, INVALID),
    "keys cut short": ("Pull", lambda: ask(SESSION), KEYS.tobytes()[:-1], INVALID),
    "no keys": ("Pull", lambda: ask(SESSION), b"", INVALID),
    "a repeated key": ("Pull", lambda: ask(SESSION), np.repeat(KEYS[:5], 2), INVALID),
    "a key beyond the table": ("Pull", lambda: ask(SESSION, "users"), KEYS + 4990, INVALID),
    "more rows than an answer takes": (
        "Pull", lambda: ask(SESSION, "wide", range(1000)), np.arange(1000), INVALID),
    "a huge declared size": (
        "Pull", lambda: wire.PullRequest(session=SESSION, table="ads", rows=2**32 - 1), KEYS,
        INVALID),
    "sequence 0": ("Push", lambda: gradients(0).frame(SESSION, 0).message,
                   gradients(0).values, INVALID),
    "push of an old process": ("Push", lambda: gradients(0).frame(old(), 1).message,
                               gradients(0).values, ABORTED),
    "delete of nobody": ("Delete", lambda: wire.DeleteRequest(session=unknown()), b"", FAILED),
    "write of nothing": ("Write", lambda: wire.WriteRequest(session=SESSION), b"", INVALID),
    "cut of an old process": ("Cut", lambda: wire.CutRequest(session=old()), b"", ABORTED),
    "a long word": ("Meet", lambda: wire.MeetRequest(session=SESSION, number=1),
                    bytes(100_000), INVALID),
    "a commit of nothing": ("Commit", lambda: wire.CommitRequest(session=SESSION, step=3), b"",
                            INVALID),
    "a rewind to nothing": ("Rewind", lambda: wire.RewindRequest(session=SESSION, step=3), b"",
                            INVALID),
    "a rewind by an old process": ("Rewind", lambda: wire.RewindRequest(session=old()), b"",
                                   ABORTED),
    "state of nothing": ("Look", lambda: wire.LookRequest(what="state", step=9), b"", INVALID),
    "state out of order": (
        "Prepare", lambda: wire.PrepareRequest(session=SESSION, size=10, offset=5), b"123",
        INVALID),
    "state that is too large": (
        "Prepare", lambda: wire.PrepareRequest(session=SESSION, size=2**63), b"123", INVALID),
    "state that is lacking": (
        "Prepare", lambda: wire.PrepareRequest(
            session=SESSION, size=10, tree="{}", last=True, step=4), b"123", INVALID),
    "state that is none": (
        "Prepare", lambda: wire.PrepareRequest(session=SESSION, tree="[", last=True), b"",
        INVALID),
    "a step without end": (
        "Prepare", lambda: wire.PrepareRequest(session=SESSION, step=2**64 - 1, last=True), b"",
        INVALID),
}  # fmt: skip


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Served]:
    """A shard with tables, rows and a session 5 of train-0; refused requests leave it so."""
    with served_at(tmp_path / "shard", "interval", ram=64 << 20) as served:
        session = served.open(incarnation=5, tables=(*TABLES, WIDE))
        served.call("Push", gradients(0).frame(session, 1).message, gradients(0).values)
        yield served


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_meant_is_refused_and_changes_nothing(full: Served, case: str) -> None:
    method, message, array, code = REFUSED[case]
    before = look(full, "digest")
    assert full.code(method, message(), array) == code
    assert look(full, "digest") == before
    assert full.shard.sessions.get("train-0", 5).applied == 1
    assert full.shard.store.checkpoints == []


def spec(**more: Any) -> str:
    return json.dumps({**ADS.describe(), **more})


OPENINGS: dict[str, tuple[dict[str, Any], str]] = {
    "another wire": ({"wire_version": 2}, FAILED),
    "another number of shards": ({"shards": 2}, FAILED),
    "another shard": ({"shard": 1}, FAILED),
    "another partition": ({"partition_version": 1}, FAILED),
    "a bad name": ({"session": wire.Session(client="a/b", incarnation=9)}, INVALID),
    "no name": ({"session": wire.Session(incarnation=9)}, INVALID),
    "a rank beyond the world": ({"rank": 2, "world": 2}, INVALID),
    "no world": ({"world": 0}, INVALID),
    "a world without end": ({"world": 2**32 - 1}, INVALID),
    "no tables": ({"tables": ()}, INVALID),
    "too many tables": ({"tables": ["{}"] * 2000}, INVALID),
    "a long table": ({"tables": [spec(name="x" * 60_000)]}, INVALID),
    "too long a table": ({"tables": [spec(name="x" * 70_000)]}, INVALID),
    "no JSON": ({"tables": ["{"]}, INVALID),
    "a deep table": ({"tables": ["[" * 60_000]}, INVALID),
    "a list": ({"tables": ["[]"]}, INVALID),
    "half a row": ({"tables": [spec(dim=4.5)]}, INVALID),
    "a row of yes": ({"tables": [spec(dim=True)]}, INVALID),
    "rows without end": ({"tables": [spec(dim=2**40)]}, INVALID),
    "half a key": ({"tables": [spec(rows=4.5)]}, INVALID),
    "a word of a seed": ({"tables": [spec(seed="1")]}, INVALID),
    "half a seed": ({"tables": [spec(seed=0.5)]}, INVALID),
    "no optimizer": ({"tables": [spec(optimizer=None)]}, INVALID),
    "a list of optimizers": ({"tables": [spec(optimizer={"name": []})]}, INVALID),
    "a bad rate": ({"tables": [spec(optimizer={"name": "sgd", "lr": -1.0})]}, INVALID),
    "a bad type": ({"tables": [spec(dtype=["float32"])]}, INVALID),
    "a bad start": ({"tables": [spec(init={"kind": "uniform", "scale": float("nan")})]}, INVALID),
    "bad counts": ({"tables": [spec(admission={"kind": "exact", "times": 0.5})]}, INVALID),
    "a table twice": ({"tables": [spec(), spec()]}, INVALID),
    "tables that do not fit": ({"tables": [spec(name=f"t{i}") for i in range(1000)]}, INVALID),
}


@pytest.mark.parametrize("case", OPENINGS)
def test_an_opening_that_cannot_be_meant_makes_no_store(tmp_path: Path, case: str) -> None:
    more, code = OPENINGS[case]
    with served_at(tmp_path / "shard") as served:
        assert served.code("Open", opening(served.shard, **more)) == code
        if case not in ("a rank beyond the world", "no world", "a world without end"):
            assert not served.shard.loaded
        served.open()  # a good one still gets in


def test_other_tables_than_the_store_has_are_a_mismatch(full: Served) -> None:
    with pytest.raises(MismatchError, match="tables"):
        full.open(client="other-0")
    with pytest.raises(MismatchError, match="dim 4"):
        full.open(client="other-0", tables=(replace(ADS, dim=5), USERS, WIDE))


def test_keys_of_another_shard_are_refused(tmp_path: Path) -> None:
    with served_at(tmp_path / "shard", place=Place(1, 2)) as served:
        session, keys = served.open(), belonging(0, 2, 10)
        assert served.code("Pull", ask(session), keys) == INVALID
        assert served.code("Pull", ask(session), belonging(1, 2, 10)) == "OK"


@pytest.mark.parametrize(
    "data", [b"\xff" * 50, b"\x0a", b"\x7a\xff\xff\xff\xff\x7f", b"\x18\x01" * 3000, b"\x0b\x0c"],
    ids=["noise", "cut short", "a huge array", "many fields", "groups"],
)  # fmt: skip
@pytest.mark.parametrize("method", ["Open", "Pull", "Push", "Prepare", "Look"])
def test_bytes_that_are_no_message_are_refused(full: Served, method: str, data: bytes) -> None:
    error = full.raw(method, data).exception()
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_method_that_there_is_not_is_said_so(full: Served) -> None:
    call = full.channel.unary_unary("/terrace.v1.Shard/Destroy")
    with pytest.raises(grpc.RpcError) as caught:
        call(b"", timeout=20)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_change_that_is_early_waits_as_long_as_its_call(full: Served) -> None:
    session, some = SESSION, gradients(1)
    with pytest.raises(UnavailableError, match=r"(?i)deadline|not 8"):
        full.call("Push", some.frame(session, 9).message, some.values, seconds=0.1)


def test_what_is_not_ours_is_internal_and_logged_without_the_message(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    session = served.open()

    def fail(*ignored: Any, **more: Any) -> None:
        raise ZeroDivisionError("a secret path")

    served.shard.pull = fail  # type: ignore[method-assign]
    call = served.raw("Pull", b"")
    assert call.exception().code() is grpc.StatusCode.INVALID_ARGUMENT
    assert served.code("Pull", ask(session), KEYS) == "INTERNAL"
    assert "ZeroDivisionError" in caplog.text


def test_a_full_disk_is_told_to_health_until_a_change_goes_through(served: Served) -> None:
    session, some = served.open(), gradients(0)
    prepared = served.shard.store.prepared

    def refuse(rows: Any, beside: int) -> Any:
        raise DiskFullError("no room")

    served.shard.store.prepared = refuse  # type: ignore[method-assign]
    with pytest.raises(DiskFullError):
        served.call("Push", some.frame(session, 1).message, some.values)
    assert served.health.state is State.DISK_FULL
    served.call("Pull", ask(session), KEYS)
    served.shard.store.prepared = prepared  # type: ignore[method-assign]
    served.call("Push", some.frame(session, 1).message, some.values)
    assert served.health.state is State.SERVING


def test_a_store_that_stopped_answers_no_more(served: Served) -> None:
    session = served.open()
    stop(served.shard)
    assert served.code("Pull", ask(session), KEYS) == "INTERNAL"
    assert served.code("Look", wire.LookRequest(what="stats")) == "INTERNAL"


def test_answers_are_as_long_as_messages_may_be(full: Served) -> None:
    most = (MOST_MESSAGE_BYTES - 4096) // (4 * WIDE.dim)
    keys = np.arange(most, dtype=np.uint64)
    reply = full.call("Pull", ask(SESSION, "wide", keys), keys)
    assert reply.size == 4 * most * WIDE.dim
    more = np.arange(most + 1, dtype=np.uint64)
    assert full.code("Pull", ask(SESSION, "wide", more), more) == INVALID
