"""Outbox: every change arrives once and in order, whatever happens to the shard or on the way."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ps.client.credentials import Credentials
from ps.client.identity import Identity
from ps.client.link import Link
from ps.client.outbox import Outbox
from ps.wire import terrace_pb2 as wire
from ps.wire.frame import Frame
from storage.errors import (
    LostError,
    RefusedError,
    ShardError,
    TerraceError,
    UnavailableError,
)
from tests.ps.client.shards import SECONDS, SUMS, Served, forwarding, serving, wait_until

KEY = np.array([7], np.uint64)


def describe() -> list[str]:
    return [json.dumps(SUMS.describe())]


@contextmanager
def sending(
    address: str,
    *,
    most_bytes: int = 1 << 20,
    seconds: float = SECONDS,
    incarnation: int = 1,
    **options: Any,
) -> Iterator[tuple[Link, Outbox]]:
    who = Identity("job", incarnation=incarnation)
    link = Link(
        address, (0, 1), who, describe(), Credentials().channel, timeout_seconds=seconds
    )  # fmt: skip
    outbox = Outbox(link, most_bytes=most_bytes, **options)
    try:
        link.open(0)
        yield link, outbox
    finally:
        link.close()
        outbox.close()


def push(value: float, *, keys: Any = KEY, clock: int = 0) -> Frame[Any]:
    request = wire.PushRequest(
        table="sums", rows=len(keys), step=1, lr=1.0, scale=1.0, clock=clock, keys=keys.tobytes()
    )
    return Frame(request, np.full((len(keys), 4), -value, np.float32))


def value(served: Served, key: int = 7) -> float:
    assert served.shard is not None
    return float(served.shard.store.read("sums", np.array([key]))[0, 0])


def applied(served: Served) -> int:
    assert served.shard is not None
    return served.shard.sessions.open(
        "job-0", 1, _token(served), rank=0, world=1, awaited=0
    ).applied


def _token(served: Served) -> int:
    assert served.shard is not None
    return served.shard.sessions._clients["job-0"].token


@pytest.mark.parametrize("durability", ["strict", "interval", "checkpoint"])
def test_changes_arrive_in_order_and_once(tmp_path: Path, durability: str) -> None:
    with serving(tmp_path, durability=durability) as (one,), sending(one.address) as (_, outbox):
        for number in range(50):
            outbox.put("Push", push(1.0))
            if number % 10 == 0:
                write = wire.WriteRequest(table="sums", rows=1, width=4, keys=KEY.tobytes())
                outbox.put("Write", Frame(write, np.full((1, 4), 1000.0 * number, np.float32)))
        outbox.flush()
        assert value(one) == 1000.0 * 40 + 9  # else one came before or after the write it should


def test_two_are_on_their_way_at_most(tmp_path: Path) -> None:
    with serving(tmp_path) as (one,), sending(one.address) as (_, outbox):
        assert one.shard is not None
        gate, reached = threading.Event(), threading.Event()

        def block() -> None:
            reached.set()
            assert gate.wait(SECONDS)

        thread = threading.Thread(target=lambda: one.shard and one.shard._own(block))
        thread.start()
        assert reached.wait(SECONDS)
        for _ in range(10):
            outbox.put("Push", push(1.0))
        wait_until(lambda: len(outbox._flying) == 2, "two on their way")
        assert outbox._next == 2
        gate.set()
        thread.join(SECONDS)
        outbox.flush()
        assert value(one) == 10


def test_what_is_kept_is_bounded_and_a_cut_makes_room(tmp_path: Path) -> None:
    keys = np.arange(100, dtype=np.uint64)
    most = 5 * len(push(1.0, keys=keys).pack())
    # No cut comes by itself, so only one that was asked for makes room.
    with (
        serving(tmp_path, interval=3000.0) as (one,),
        sending(one.address, most_bytes=most) as (_, outbox),
    ):
        for _ in range(40):
            outbox.put("Push", push(1.0, keys=keys))
            assert outbox.bytes <= most
        outbox.flush()
        assert value(one) == 40


def test_a_change_larger_than_the_bound_goes_alone(tmp_path: Path) -> None:
    keys = np.arange(1000, dtype=np.uint64)
    with (
        serving(tmp_path, interval=3000.0) as (one,),
        sending(one.address, most_bytes=100) as (_, outbox),
    ):
        for _ in range(3):
            outbox.put("Push", push(1.0, keys=keys))
        outbox.flush()
        assert value(one) == 3


def test_put_gives_up_where_nothing_moves(tmp_path: Path) -> None:
    with serving(tmp_path) as (one,), sending(one.address, most_bytes=1, seconds=0.5) as (_, box):
        one.deafen()
        box.put("Push", push(1.0))
        with pytest.raises(UnavailableError, match=r"shard 0 at 127.0.0.1"):
            box.put("Push", push(1.0))
        assert box.last == 1


@pytest.mark.parametrize("durability", ["strict", "interval"])
def test_a_shard_that_crashed_gets_again_what_it_lost(tmp_path: Path, durability: str) -> None:
    with (
        serving(tmp_path, durability=durability, interval=3000.0) as (one,),
        sending(one.address) as (link, outbox),
    ):
        for _ in range(3):
            for _ in range(20):
                outbox.put("Push", push(1.0))
            if not link.openings % 2:
                outbox.flush()
            one.crash()
            one.start()
        outbox.flush()
        assert value(one) == 60
        assert applied(one) == 60


def test_after_a_cut_only_what_came_later_is_sent_again(tmp_path: Path) -> None:
    with serving(tmp_path, interval=3000.0) as (one,), sending(one.address) as (_, outbox):
        for _ in range(5):
            outbox.put("Push", push(1.0))
        outbox.flush()
        assert one.shard is not None
        one.shard.store.cut()
        outbox.put("Push", push(1.0))  # its answer says that five are durable
        outbox.flush()
        assert [entry.sequence for entry in outbox._entries] == [6]
        one.crash()
        one.start()
        outbox.put("Push", push(1.0))
        outbox.flush()
        assert value(one) == 7


def test_a_crash_loses_what_nobody_keeps_and_that_is_said_until_the_life_ends(
    tmp_path: Path,
) -> None:
    with (
        serving(tmp_path, durability="checkpoint") as (one,),
        sending(one.address) as (link, outbox),
    ):
        for _ in range(5):
            outbox.put("Push", push(1.0))
        outbox.flush()
        one.crash()
        one.start()
        outbox.put("Push", push(1.0))
        for _ in range(2):
            with pytest.raises(LostError, match="go back to a checkpoint"):
                outbox.flush()
            with pytest.raises(LostError):
                outbox.put("Push", push(1.0))
        link.identity = link.identity.reborn(2)
        outbox.forget()
        link.open(link.openings)
        outbox.put("Push", push(1.0))
        outbox.flush()
        assert value(one) == 1


def test_a_lost_answer_is_no_second_change(tmp_path: Path) -> None:
    with (
        serving(tmp_path) as (one,),
        forwarding(one.port) as way,
        sending(way.address) as (_, outbox),
    ):
        for number in range(6):
            outbox.put("Push", push(1.0))
            outbox.flush()
            way.mute = True
            outbox.put("Push", push(1.0))
            wait_until(lambda n=number: applied(one) == 2 * n + 2, "the change")
            way.mute = False
            way.cut()
            outbox.flush()
        assert value(one) == 12


def test_the_last_change_counts_as_answered_when_its_answer_died_with_the_shard(
    tmp_path: Path,
) -> None:
    with (
        serving(tmp_path, durability="strict") as (one,),
        forwarding(one.port) as way,
        sending(way.address) as (_, outbox),
    ):
        way.mute = True
        outbox.put("Push", push(1.0))
        wait_until(lambda: applied(one) == 1, "the change")
        one.crash()
        one.start()
        way.mute = False
        way.cut()
        outbox.flush()
        assert value(one) == 1


def test_a_refused_change_is_raised_at_the_next_call(tmp_path: Path) -> None:
    with serving(tmp_path) as (one,), sending(one.address) as (_, outbox):
        bad = push(1.0)
        bad.message.table = "other"
        outbox.put("Push", bad)
        with pytest.raises(RefusedError, match=r"shard 0 at 127.0.0.1:\d+: table 'other'"):
            outbox.flush()
        with pytest.raises(RefusedError):
            outbox.put("Push", push(1.0))


def test_what_is_no_error_of_ours_does_not_end_the_thread_in_silence(tmp_path: Path) -> None:
    with serving(tmp_path) as (one,), sending(one.address) as (_, outbox):
        outbox.put("NoMethod", push(1.0))
        with pytest.raises(ShardError, match=r"shard 0 at .*KeyError"):
            outbox.flush()
        outbox.forget()
        assert outbox._thread.is_alive()


def test_a_new_life_hears_nothing_of_the_old_one(tmp_path: Path) -> None:
    """Answers, failures and durable sequences of changes that were on their way say nothing."""
    with (
        serving(tmp_path, interval=3000.0) as (one,),
        forwarding(one.port) as way,
        sending(way.address) as (link, outbox),
    ):
        for incarnation in range(2, 12):
            for _ in range(5):
                outbox.put("Push", push(1.0))
            if incarnation % 3 == 0:
                way.cut()
            link.identity = link.identity.reborn(incarnation)
            outbox.forget()
            link.open(link.openings)
            before = value(one)
            outbox.put("Push", push(100.0))
            outbox.flush()
            assert value(one) == before + 100
            assert outbox.last == 1 and outbox._durable <= 1


def test_a_cut_of_an_old_life_makes_nothing_durable_in_a_new_one(tmp_path: Path) -> None:
    with (
        serving(tmp_path, interval=3000.0) as (one,),
        forwarding(one.port) as way,
        sending(way.address) as (link, outbox),
    ):
        for _ in range(5):
            outbox.put("Push", push(1.0))
        outbox.flush()
        assert one.shard is not None
        session = one.shard.sessions.get("job-0", 1)
        way.passing.clear()
        with outbox._changed:
            outbox._most_bytes = 1
            outbox._changed.notify_all()
        wait_until(lambda: session.durable == 5, "the cut")
        link.identity = link.identity.reborn(2)
        outbox.forget()
        outbox._most_bytes = 1 << 20
        way.passing.set()
        link.open(link.openings)
        outbox.put("Push", push(1.0))
        outbox.flush()
        one.crash()
        one.start()
        outbox.put("Push", push(1.0))
        outbox.flush()
        assert value(one) == 7


@pytest.mark.parametrize("stuck", ["refused", "silent"])
def test_close_ends_whatever_is_stuck(tmp_path: Path, stuck: str) -> None:
    with serving(tmp_path) as (one,), forwarding(one.port) as way:
        with sending(way.address, seconds=SECONDS) as (_, outbox):
            if stuck == "silent":
                way.mute = True
            else:
                way.refusing = True
                way.cut()
            outbox.put("Push", push(1.0))
            wait_until(lambda: outbox._flying or outbox._patience, "an attempt")
        assert not outbox._thread.is_alive()


def test_a_puller_that_opens_the_session_leaves_nothing_out(tmp_path: Path) -> None:
    """The session is opened by another thread at any moment of the sending one."""
    with (
        serving(tmp_path, interval=3000.0, replay_seconds=SECONDS) as (one,),
        sending(one.address) as (link, outbox),
    ):
        over, failed = threading.Event(), []

        def reopen() -> None:
            while not over.is_set():
                try:
                    link.open(link.openings)
                except TerraceError as error:
                    failed.append(error)
                    return

        others = [threading.Thread(target=reopen) for _ in range(2)]
        for other in others:
            other.start()
        for number in range(300):
            outbox.put("Push", push(1.0))
            if number in (100, 200):
                one.crash()
                one.start()
        outbox.flush()
        over.set()
        for other in others:
            other.join(SECONDS)
        assert not failed
        assert value(one) == 300
        assert not outbox._flying


def test_skipped_rows_are_counted_once(tmp_path: Path) -> None:
    with serving(tmp_path, interval=3000.0) as (one,), sending(one.address) as (_, outbox):
        outbox.put("Push", push(float("nan")))
        outbox.flush()
        assert outbox.skipped == 1
        one.crash()
        one.start()
        outbox.put("Push", push(float("inf")))
        outbox.flush()
        assert outbox.skipped == 2


@pytest.mark.parametrize("durability", ["strict", "interval"])
def test_one_that_has_nothing_to_send_shows_up_at_a_shard_that_was_started_anew(
    tmp_path: Path, durability: str
) -> None:
    with (
        serving(tmp_path, durability=durability) as (served,),
        sending(served.address, quiet_seconds=0.02) as (link, outbox),
    ):
        outbox.put("Push", push(3))
        outbox.flush()
        served.crash()
        assert link.openings == 1
        served.start()
        assert served.shard is not None
        sessions = served.shard.sessions
        wait_until(lambda: sessions.open_count and not sessions.recovering, "the idle client")
        wait_until(lambda: link.openings == 2, "the end of the opening")
        assert value(served) == 3
