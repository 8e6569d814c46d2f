"""A cable that is cut, a server that stands still, a slow network: seen in time, in no result."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import ps
from deploy.command import run
from tests.stress.hosts import Host, Hosts
from tests.stress.proxy import Proxy
from tests.stress.server import REPOSITORY, Server
from tests.stress.trainee import ADS, Losses, alone, train

STEPS, DEADLINE_SECONDS = 40, 60.0


class Apprentice:
    """`tests.stress.trainee` on a host."""

    def __init__(self, host: Host, *words: str) -> None:
        self._process = host.start(
            sys.executable, "-m", "tests.stress.trainee", *words,
            cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )  # fmt: skip
        self._lines = self._hear()

    def goes_on(self) -> None:
        """It waits in the middle: no more."""
        self._process.stdin.write(b"\n")

    def is_silent(self, seconds: float) -> bool:
        """Whether it says nothing for so long; for when all it said has been heard."""
        return not select.select([self._process.stdout], [], [], seconds)[0]

    def says(self, *names: str) -> dict[str, Any]:
        """The next line that has one of these."""
        return next(line for line in self._lines if line.keys() & set(names))

    def _hear(self) -> Iterator[dict[str, Any]]:
        rest = b""
        while select.select([self._process.stdout], [], [], DEADLINE_SECONDS)[0]:
            more = self._process.stdout.read(1 << 16)
            *lines, rest = (rest + more).split(b"\n")
            yield from map(json.loads, lines)
            assert more, "it ended"
        raise AssertionError("it said nothing more")


def far_server(host: Host, folder: Path, undo: ExitStack) -> Server:
    """Encrypted, since it listens to others."""
    assert run(["certificate", str(folder / "tls"), "--hosts", host.address]) == 0
    return undo.enter_context(
        Server(
            folder, "--ram", "64MiB", "--tls", str(folder / "tls"), host=host.address,
            inside=host.inside,
        )
    )  # fmt: skip


@pytest.mark.parametrize(
    ("end", "noticed"),
    [
        ("server", False),
        pytest.param("server", True, marks=pytest.mark.stress),
        pytest.param("client", True, marks=pytest.mark.stress),
    ],
)
def test_training_goes_on_after_a_cut_of_the_cable(tmp_path: Path, end: str, noticed: bool) -> None:
    """end: whose; at its other end nothing says that the cable is cut."""
    expected = alone(tmp_path / "alone", STEPS)
    with ExitStack() as undo:
        hosts = undo.enter_context(Hosts())
        near, far = hosts
        server = far_server(far, tmp_path / "far", undo)
        trainee = Apprentice(near, server.address, str(STEPS), str(tmp_path / "far" / "tls"))
        trainee.says("half")
        cut = time.monotonic()
        (far if end == "server" else near).unplug()
        trainee.goes_on()
        if noticed:
            failed = trainee.says("failed", "warning")
            print(f"{end}'s end: noticed after {failed['at'] - cut:.1f} s: {failed}")
            assert failed["at"] - cut <= 16
            warned = trainee.says("warning")
            print(f"warned after {warned['at'] - cut:.1f} s: {warned}")
        else:
            assert trainee.is_silent(2.0)
        healed = time.monotonic()
        (far if end == "server" else near).plug()
        back = trainee.says("step")["at"] - healed
        print(f"cut for {healed - cut:.1f} s, the next step was done {back:.1f} s after")
        assert back <= 6
        ended = trainee.says("losses")
    assert (ended["losses"], ended["digest"]) == expected


def over(servers: str, steps: int, before: Callable[[int, Losses], None]) -> tuple[Losses, int]:
    with ps.connect(servers, [ADS], ram="8MiB", threads=1) as store:
        return train(store, steps, before)


@pytest.mark.parametrize(
    "seconds",
    [pytest.param(3.0, marks=pytest.mark.stress), pytest.param(30.0, marks=pytest.mark.stress)],
    ids=["3 s", "30 s"],
)
def test_training_goes_on_after_a_shard_stood_still(tmp_path: Path, seconds: float) -> None:
    expected = alone(tmp_path / "alone", STEPS)
    with ExitStack() as undo:
        servers = [
            undo.enter_context(Server(tmp_path / str(i), "--ram", "64MiB", shard=f"{i}/2"))
            for i in range(2)
        ]
        wakes = threading.Timer(seconds, servers[1].go_on)
        undo.callback(wakes.cancel)

        def pause(step: int, losses: Losses) -> None:
            if step == STEPS // 2:
                servers[1].pause()
                wakes.start()

        found = over(",".join(server.address for server in servers), STEPS, pause)
        wakes.join()
    assert found == expected


@pytest.mark.stress
def test_a_slow_network_is_not_seen_in_a_result(tmp_path: Path) -> None:
    expected = alone(tmp_path / "alone", STEPS)
    with (
        Server(tmp_path / "far", "--ram", "64MiB") as server,
        Proxy(("127.0.0.1", server.port)) as proxy,
    ):
        proxy.delay(0.05)
        proxy.limit(1 << 20)
        found = over("{}:{}".format(*proxy.address), STEPS, lambda step, losses: None)
    assert found == expected


@pytest.mark.stress
def test_lost_and_late_packets_are_not_seen_in_a_result(tmp_path: Path) -> None:
    """Skipped where the kernel has no netem."""
    expected = alone(tmp_path / "alone", STEPS)
    with ExitStack() as undo:
        hosts = undo.enter_context(Hosts())
        for host in hosts:
            host.disturb("delay", "50ms", "10ms", "loss", "1%")
        near, far = hosts
        server = far_server(far, tmp_path / "far", undo)
        trainee = Apprentice(near, server.address, str(STEPS), str(tmp_path / "far" / "tls"))
        trainee.goes_on()
        ended = trainee.says("losses")
    assert (ended["losses"], ended["digest"]) == expected
