"""Hosts: what passes between them, what does not, and that nothing of them is left."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.stress.hosts import HOLD, Host, Hosts, namespace_of, netem_available, processes_on

DEADLINE = 30.0
PORT = 7000
ECHO = f"""
import socket
listener = socket.create_server(("0.0.0.0", {PORT}))
print("ready", flush=True)
connection = listener.accept()[0]
while data := connection.recv(1 << 16):
    connection.sendall(data)
"""
# Sends each line of its input, and says what comes back.
TALK = f"""
import socket, sys, threading
connection = socket.create_connection((sys.argv[1], {PORT}), timeout=20)
connection.settimeout(None)
def hear():
    for line in connection.makefile():
        print(line, end="", flush=True)
threading.Thread(target=hear, daemon=True).start()
print("ready", flush=True)
for line in sys.stdin:
    connection.sendall(line.encode())
"""


class Talker:
    """A program on a host, and what it says line by line."""

    def __init__(self, host: Host, program: str, *words: str) -> None:
        self.process = host.start(
            sys.executable, "-c", program, *words,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        )  # fmt: skip
        self.said: queue.Queue[str] = queue.Queue(100)
        self._thread = threading.Thread(target=self._listen, name="terrace-talker")
        self._thread.start()

    def _listen(self) -> None:
        for line in self.process.stdout:
            self.said.put(line.strip(), timeout=DEADLINE)

    def say(self, line: str) -> None:
        self.process.stdin.write(f"{line}\n")

    def hears(self, line: str, seconds: float = DEADLINE) -> bool:
        try:
            return self.said.get(timeout=seconds) == line
        except queue.Empty:
            return False

    def end(self) -> None:
        self.process.kill()
        self._thread.join(DEADLINE)


@contextmanager
def talking(hosts: Hosts) -> Iterator[Talker]:
    """A client on the left of an echo on the right."""
    made: list[Talker] = []
    try:
        made.append(Talker(hosts.right, ECHO))
        assert made[0].hears("ready")
        made.append(Talker(hosts.left, TALK, hosts.right.address))
        assert made[1].hears("ready")
        yield made[1]
    finally:
        for each in made:
            each.end()


def test_no_byte_passes_while_the_cable_is_cut_and_then_they_do() -> None:
    with Hosts() as hosts, talking(hosts) as client:
        client.say("hello")
        assert client.hears("hello")
        hosts.cut()
        client.say("held")
        assert not client.hears("held", 1.0)
        assert client.process.poll() is None
        hosts.heal()
        assert client.hears("held")
        client.say("again")
        assert client.hears("again")


def test_either_end_can_be_unplugged() -> None:
    with Hosts(network=9) as hosts, talking(hosts) as client:
        for host in hosts:
            client.say("hello")
            assert client.hears("hello")
            host.unplug()
            client.say("held")
            assert not client.hears("held", 0.5)
            host.plug()
            assert client.hears("held")


def test_hosts_are_apart_from_the_machine_and_from_each_other() -> None:
    before = os.listdir("/sys/class/net")
    with Hosts() as one, Hosts() as other:
        pids = [os.getpid(), *(host.pid for host in (*one, *other))]
        assert len({namespace_of(pid) for pid in pids}) == 5
        for host in (*one, *other):
            assert host.address in host.run("ip", "address").stdout
        assert os.listdir("/sys/class/net") == before


def test_a_started_process_has_its_own_pid_and_ends_with_its_host() -> None:
    with Hosts() as hosts:
        process = hosts.left.start("sleep", "1000")
        deadline = time.monotonic() + DEADLINE
        while Path(f"/proc/{process.pid}/comm").read_text() != "sleep\n":
            assert time.monotonic() < deadline
    assert process.returncode == -signal.SIGKILL


@contextmanager
def kept(pid: int) -> Iterator[str]:
    """The name of a process's namespace, which no other one gets meanwhile."""
    with open(f"/proc/{pid}/ns/net", "rb"):
        yield namespace_of(pid)


@pytest.mark.parametrize("outer", ["own", ""])
def test_a_holder_that_is_not_apart_kills_nothing(outer: str) -> None:
    with Hosts() as hosts:
        bystander = hosts.left.start("sleep", "1000")
        namespace = namespace_of(hosts.left.pid) if outer else ""
        held = hosts.left.run("sh", "-c", HOLD, "hold", namespace, check=False, input="")
        assert (held.returncode, held.stdout) == (1, "")
        assert bystander.poll() is None


KILLED = """
import os, sys
from tests.stress.hosts import Hosts
hosts = Hosts()
started = hosts.right.start("sleep", "1000")
print(*(host.pid for host in hosts), started.pid, flush=True)
sys.stdin.read()
"""


def test_nothing_is_left_when_a_run_is_killed() -> None:
    with Hosts():  # or skips
        pass
    run: subprocess.Popen[Any]
    with subprocess.Popen(
        [sys.executable, "-c", KILLED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        cwd=Path(__file__).resolve().parents[2],
    ) as run:  # fmt: skip
        left, right, started = map(int, run.stdout.readline().split())
        with kept(left) as one, kept(right) as other:
            assert started in processes_on(other)
            run.kill()
            deadline = time.monotonic() + DEADLINE
            while processes_on(one) or processes_on(other):
                assert time.monotonic() < deadline


def test_what_a_test_leaves_by_an_error_is_gone() -> None:
    with contextlib.ExitStack() as keeping:
        with pytest.raises(ZeroDivisionError), Hosts() as hosts:
            namespaces = [keeping.enter_context(kept(host.pid)) for host in hosts]
            started = hosts.left.start("sleep", "1000")
            assert started.pid in processes_on(namespaces[0])
            raise ZeroDivisionError
        assert not any(processes_on(namespace) for namespace in namespaces)


def test_netem_delays_where_the_kernel_has_it() -> None:
    if not netem_available():
        pytest.skip("no netem in this kernel: delay and loss are the proxy's")
    with Hosts() as hosts, talking(hosts) as client:
        hosts.left.disturb("delay", "200ms")
        begun = time.monotonic()
        client.say("hello")
        assert client.hears("hello")
        assert time.monotonic() - begun >= 0.2
        hosts.left.disturb()


def test_disturbing_without_netem_skips_with_the_reason() -> None:
    if netem_available():
        pytest.skip("this kernel has netem")
    with Hosts() as hosts, pytest.raises(pytest.skip.Exception, match="no netem"):
        hosts.left.disturb("delay", "200ms")
