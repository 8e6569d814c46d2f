"""Every push is applied once: none lost, none doubled, whatever befalls calls, connections, shards.

What clients push are whole numbers, so a row that is not the sum of all pushes tells.
"""

from __future__ import annotations

import itertools
import json
import select
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storage.errors import FencedError, LostError
from tests.stress.adder import Adder, Hasty
from tests.stress.proxy import Proxy, Way
from tests.stress.relay import Fault, Relay
from tests.stress.server import REPOSITORY, Server

CLIENTS, CHECK_EVERY, DEADLINE_SECONDS = 3, 25, 60.0
CHANCES = {
    Fault.LOST_REQUEST: 0.05, Fault.LOST_REPLY: 0.05, Fault.TWICE: 0.05, Fault.DELAY: 0.05,
    Fault.LATE: 0.045, Fault.SILENCE: 0.005,
}  # fmt: skip


class Way2Shard:
    """The way from clients to a shard: a proxy, a relay, and a proxy again."""

    def __init__(self, server: Server, undo: ExitStack, chances: dict[Fault, float]) -> None:
        self.server = server
        self.back = undo.enter_context(Proxy(("127.0.0.1", server.port)))
        host, port = self.back.address
        self.relay = undo.enter_context(
            Relay(f"{host}:{port}", chances, seed=5, faulty=lambda name: name.endswith("/Push"))
        )
        host, port_text = self.relay.address.split(":")
        self.front = undo.enter_context(Proxy((host, int(port_text))))
        self.address = "{}:{}".format(*self.front.address)


class Progress:
    """Counts what all clients pushed, and wakes who waits for a number. Threads: any."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._count = self._gone = 0

    def add(self) -> None:
        with self._changed:
            self._count += 1
            self._changed.notify_all()

    def leave(self) -> None:
        with self._changed:
            self._gone += 1
            self._changed.notify_all()

    def reaches(self, count: int) -> bool:
        """Wait: whether as many were pushed; False when all clients are gone before that."""
        with self._changed:
            self._changed.wait_for(lambda: self._count >= count or self._gone == CLIENTS)
            return self._count >= count


def add_all(adder: Adder, pushes: int, progress: Progress) -> None:
    try:
        for number in range(1, pushes + 1):
            adder.push()
            progress.add()
            if number % CHECK_EVERY == 0:
                adder.check_own()
        adder.check_own()
    finally:
        progress.leave()


def kill_between_apply_and_reply(way: Way2Shard) -> None:
    """The reply is on its way, so the change is applied, and nobody will ever see the reply."""
    assert way.back.cut_call_after(0, Way.REPLY).wait(DEADLINE_SECONDS)
    way.server.kill()
    way.server.start()


def kill_at_once(way: Way2Shard) -> None:
    way.server.kill()
    way.server.start()


TROUBLES: tuple[Callable[[Way2Shard], Any], ...] = (
    kill_between_apply_and_reply,
    lambda way: way.front.cut(),
    lambda way: way.front.cut_call_after(0, Way.REPLY).wait(DEADLINE_SECONDS),
    kill_at_once,
    lambda way: way.back.cut(),
    lambda way: way.front.cut_call_after(100, Way.REQUEST).wait(DEADLINE_SECONDS),
)


@pytest.mark.parametrize(
    "durability", ["strict", pytest.param("interval", marks=pytest.mark.stress)]
)
@pytest.mark.parametrize(
    ("pushes", "troubles"),
    [(300, 4), pytest.param(10_000, 120, marks=pytest.mark.stress)],
    ids=["few", "many"],
)
def test_no_push_is_lost_or_doubled(
    tmp_path: Path, durability: str, pushes: int, troubles: int
) -> None:
    progress = Progress()
    with ExitStack() as undo:
        server = undo.enter_context(
            Server(tmp_path, "--durability", durability, "--ram", "64MiB", "--interval", "0.5")
        )
        way = Way2Shard(server, undo, CHANCES)
        adders = [
            undo.enter_context(Adder(way.address, rank, CLIENTS, connect=Hasty(2.0)))
            for rank in range(CLIENTS)
        ]
        threads = undo.enter_context(ThreadPoolExecutor(CLIENTS))
        each = -(-pushes // CLIENTS)
        ends = [threads.submit(add_all, adder, each, progress) for adder in adders]
        trouble = itertools.cycle(TROUBLES)
        for number in range(1, troubles + 1):
            if progress.reaches(number * pushes // (troubles + 1)):
                next(trouble)(way)
        for end in ends:
            end.result()
        assert way.relay.send_late()
        shown = adders[0].shown()
        expected = sum(adder.total for adder in adders)
        faults = way.relay.counts
    wrong = np.flatnonzero((shown != expected).any(axis=1))
    assert not len(wrong), f"{len(wrong)} rows are wrong, row {wrong[0]}: {shown - expected}"
    assert sum(faults.values()) - faults[Fault.NONE] >= 0.15 * pushes, faults
    assert server.starts > troubles // 3
    print(f"{durability}: {each * CLIENTS} pushes, {server.starts - 1} kills, {dict(faults)}")


def test_in_checkpoint_durability_a_kill_is_told_and_the_checkpoint_counts(tmp_path: Path) -> None:
    with ExitStack() as undo:
        server = undo.enter_context(
            Server(tmp_path, "--durability", "checkpoint", "--ram", "64MiB")
        )
        adders = [undo.enter_context(Adder(server.address, rank, 2)) for rank in range(2)]
        threads = undo.enter_context(ThreadPoolExecutor(2))

        def both(call: Callable[[Adder], Any]) -> list[Any]:
            return [future.result() for future in [threads.submit(call, one) for one in adders]]

        def push(adder: Adder) -> None:
            for _ in range(20):
                adder.push()
            adder.client.flush()

        def push_and_lose(adder: Adder) -> None:
            with pytest.raises(LostError):
                push(adder)

        both(push)
        both(lambda adder: adder.marker.checkpoint(20, {"at": 20}))
        kept = [adder.total.copy() for adder in adders]
        both(push)
        server.kill()
        server.start()
        both(push_and_lose)
        assert both(lambda adder: adder.marker.resume()) == [(20, {"at": 20})] * 2
        assert np.array_equal(adders[1].shown(), sum(kept))
        for adder, total in zip(adders, kept, strict=True):
            adder.total = total
        both(push)
        assert np.array_equal(adders[0].shown(), sum(adder.total for adder in adders))


class Zombie:
    """Another process that pushes as a worker of this name."""

    def __init__(self, address: str, job: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.stress.adder", address, job],
            cwd=REPOSITORY, stdout=subprocess.PIPE, bufsize=0,
        )  # fmt: skip

    def __enter__(self) -> Zombie:
        return self

    def __exit__(self, *error: Any) -> None:
        self.process.kill()
        self.process.communicate(timeout=DEADLINE_SECONDS)

    def lines(self) -> Iterator[dict[str, Any]]:
        """What it says, until it ends."""
        rest = b""
        while select.select([self.process.stdout], [], [], DEADLINE_SECONDS)[0]:
            more = self.process.stdout.read(1 << 16)
            *lines, rest = (rest + more).split(b"\n")
            yield from map(json.loads, lines)
            if not more:
                return
        raise AssertionError("it said nothing more")

    def has_pushed(self, least: int) -> None:
        """Wait until so many pushes were answered."""
        assert any(line.get("pushed", 0) >= least for line in self.lines())


FEW = {("strict", "at once")}
WAKES = [
    pytest.param(durability, after, marks=() if (durability, after) in FEW else pytest.mark.stress)
    for durability in ("strict", "interval", "checkpoint")
    for after in ("at once", "a rewind", "a kill")
]


@pytest.mark.parametrize(("durability", "after"), WAKES)
def test_of_two_processes_of_one_name_only_the_newer_counts(
    tmp_path: Path, durability: str, after: str
) -> None:
    """The older one is stopped (SIGSTOP) in the middle of pushing, and wakes up later."""
    with ExitStack() as undo:
        server = undo.enter_context(Server(tmp_path, "--durability", durability, "--ram", "64MiB"))
        zombie = undo.enter_context(Zombie(server.address, "twice"))
        zombie.has_pushed(20)
        zombie.process.send_signal(19)
        newer = undo.enter_context(Adder(server.address, job="twice"))
        newer.marker.checkpoint(1, {})
        before = newer.shown()
        assert before.any()
        for _ in range(10):
            newer.push()
        newer.client.flush()
        if after == "a rewind":
            newer.marker.resume()
            newer.total[:] = 0
        if after == "a kill":
            if durability == "checkpoint":
                newer.marker.checkpoint(2, {})
            server.kill()
            server.start()
        zombie.process.send_signal(18)
        *_, last = zombie.lines()
        assert last == {"error": "FencedError"}
        newer.push()
        newer.client.flush()
        assert np.array_equal(newer.shown(), before + newer.total)


@pytest.mark.parametrize(
    "durability", [pytest.param(one, marks=pytest.mark.stress) for one in ("interval", "strict")]
)
def test_pushes_that_a_cable_held_back_are_refused_when_they_arrive(
    tmp_path: Path, durability: str
) -> None:
    with ExitStack() as undo:
        server = undo.enter_context(Server(tmp_path, "--durability", durability, "--ram", "64MiB"))
        proxy = undo.enter_context(Proxy(("127.0.0.1", server.port)))
        older = undo.enter_context(Adder("{}:{}".format(*proxy.address), job="cable"))
        for _ in range(10):
            older.push()
        older.client.flush()
        proxy.stall()
        for _ in range(10):
            older.push()
        newer = undo.enter_context(Adder(server.address, job="cable"))
        newer.client.cut()  # who is replaced repeats nothing: "interval" may lose his last
        before = newer.shown()
        newer.push()
        newer.client.flush()
        server.kill()
        server.start()
        proxy.resume()
        with pytest.raises(FencedError):
            older.client.flush()
        newer.push()
        newer.client.flush()
        assert np.array_equal(newer.shown(), before + newer.total)
        assert before.any()
