"""Hosts: two machines and a cable between them, as network namespaces with a veth pair.

Each host is held by a small process that waits for the end of its input. A namespace without a
process is no more, and its end of the cable with it: so all is gone when this process is, however
it ended, and there is nothing by name that a later run would have to sweep. The outer machine's
own interfaces are not touched.

A host's processes end with it: `close` kills and awaits those that were started here; if this
process was killed, the holder kills what is left in its namespace.

Needs root (CAP_NET_ADMIN, CAP_SYS_ADMIN) and the programs ip, unshare and nsenter; `Hosts` skips
the test with the reason where it lacks them. Threads: one owner.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

import psutil
import pytest

DEADLINE_SECONDS = 20.0
_PROGRAMS = ("ip", "unshare", "nsenter", "sh")
# Says that it is there, waits for the end of its input, then kills what else is in its namespace.
# Its argument is the namespace it comes from, where it must kill nothing: it ends at once if it
# cannot tell that it is in another one.
HOLD = """me=$(readlink /proc/$$/ns/net)
[ -n "$me" ] && [ -n "$1" ] && [ "$me" != "$1" ] || { echo "in no new namespace" >&2; exit 1; }
echo; cat
for process in /proc/[0-9]*; do
    pid=${process#/proc/}
    [ "$pid" != $$ ] && [ "$(readlink $process/ns/net)" = "$me" ] && kill -9 "$pid"
done 2>/dev/null
exit 0
"""
_CABLE = "cable"


class Host:
    """One machine: ``address`` is its own on the cable. Made by `Hosts`."""

    def __init__(self, name: str, address: str) -> None:
        self.name = name
        self.address = address
        self._started: list[subprocess.Popen[Any]] = []
        self._holder = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", HOLD, "hold", os.readlink("/proc/self/ns/net")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the tests, this ends after them
        )  # fmt: skip
        # It says so once it is in its namespace; where it may not have one, it ends.
        if self._holder.stdout.readline() != b"\n":
            _, why = self._holder.communicate(timeout=DEADLINE_SECONDS)
            pytest.skip(f"no network namespaces: {why.decode().strip()}")

    @property
    def pid(self) -> int:
        """Of a process that is on this host."""
        return self._holder.pid

    def run(self, *words: str, **more: Any) -> subprocess.CompletedProcess[str]:
        """Run a command to its end on this host; check=False lets it fail."""
        settings = {"capture_output": True, "text": True, "check": True}
        settings["timeout"] = DEADLINE_SECONDS
        return subprocess.run(self.inside(words), **{**settings, **more})

    def start(self, *words: str, **more: Any) -> subprocess.Popen[Any]:
        """Start a command on this host; its pid is the command's own. Killed at `close`.

        It is on this host when this returns (or has ended already).
        """
        started = subprocess.Popen(self.inside(words), **more)
        self._started.append(started)
        deadline = time.monotonic() + DEADLINE_SECONDS
        while started.returncode is None and namespace_of(started.pid) != namespace_of(self.pid):
            assert time.monotonic() < deadline, f"{words[0]} did not get to host {self.name}"
            with contextlib.suppress(subprocess.TimeoutExpired):
                started.wait(0.001)
        return started

    def inside(self, words: Sequence[str]) -> list[str]:
        """The words that run these words on this host, for who starts processes his own way."""
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net", "--", *words]

    def unplug(self) -> None:
        """Set this end of the cable down: nothing passes; the other host sees no signal."""
        self.run("ip", "link", "set", _CABLE, "down")

    def plug(self) -> None:
        """Set it up again."""
        self.run("ip", "link", "set", _CABLE, "up")

    def disturb(self, *netem: str) -> None:
        """Delay, lose, double, reorder what this host sends: ("delay", "50ms", "loss", "1%").

        Nothing given ends it. Skips where the kernel has no netem.
        """
        if not netem:
            self.run("tc", "qdisc", "del", "dev", _CABLE, "root", check=False)
            return
        words = ("tc", "qdisc", "replace", "dev", _CABLE, "root", "netem", *netem)
        if shutil.which("tc") is None:
            pytest.skip("no netem: there is no program tc")
        done = self.run(*words, check=False)
        if done.returncode and "unknown" in done.stderr:
            pytest.skip(f"no netem in this kernel: {done.stderr.strip()}")
        assert done.returncode == 0, f"{' '.join(words)}: {done.stderr.strip()}"

    def close(self) -> None:
        """Kill what was started here, and let the namespace go. Twice is fine."""
        for started in self._started:
            started.kill()
        for started in self._started:
            started.wait(DEADLINE_SECONDS)
            for pipe in (started.stdin, started.stdout, started.stderr):
                if pipe is not None:
                    with contextlib.suppress(OSError):  # what it never read
                        pipe.close()
        self._started.clear()
        if self._holder.stdin.closed:
            return
        self._holder.communicate(timeout=DEADLINE_SECONDS)


class Hosts:
    """Two hosts and the cable between them: ``left`` is 10.77.network.1, ``right`` ends in .2.

    What runs outside of them does not reach them. Skips the test where it is not permitted.
    """

    def __init__(self, network: int = 0) -> None:
        lacking = [program for program in _PROGRAMS if shutil.which(program) is None]
        if lacking:
            pytest.skip(f"no network namespaces: there is no program {lacking[0]}")
        if os.geteuid() != 0:
            pytest.skip("no network namespaces: only root may make them")
        with contextlib.ExitStack() as undo:
            self.left = Host("left", f"10.77.{network}.1")
            undo.callback(self.left.close)
            self.right = Host("right", f"10.77.{network}.2")
            undo.callback(self.right.close)
            self._connect()
            self._resources = undo.pop_all()

    def __enter__(self) -> Hosts:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[Host]:
        return iter((self.left, self.right))

    def cut(self) -> None:
        """Cut the cable: no byte passes, no connection is closed. `heal` mends it."""
        self.right.unplug()

    def heal(self) -> None:
        """Mend the cable."""
        self.right.plug()

    def close(self) -> None:
        """Kill the hosts' processes and let the hosts go. Twice is fine."""
        self._resources.close()

    def _connect(self) -> None:
        words = ["ip", "link", "add", _CABLE, "type", "veth", "peer", "name", _CABLE]
        made = self.left.run(*words, "netns", str(self.right.pid), check=False)
        if made.returncode:
            pytest.skip(f"no cable between network namespaces: {made.stderr.strip()}")
        for host in self:
            host.run("ip", "link", "set", "lo", "up")
            host.run("ip", "address", "add", f"{host.address}/24", "dev", _CABLE)
            host.plug()


def netem_available() -> bool:
    """Whether this kernel can delay and lose packets, and we may have it do so.

    Asked in a namespace of its own; skips where there are none.
    """
    if shutil.which("tc") is None:
        return False
    with Hosts() as hosts:
        words = ("tc", "qdisc", "add", "dev", _CABLE, "root", "netem", "delay", "1ms")
        return hosts.left.run(*words, check=False).returncode == 0


def namespace_of(pid: int) -> str | None:
    """The network namespace that a process is in; None when the process is gone.

    Another one may have this name once it is gone itself: an open `/proc/PID/ns/net` keeps it.
    """
    try:
        return os.readlink(f"/proc/{pid}/ns/net")
    except OSError:
        return None


def processes_on(namespace: str) -> list[int]:
    """Processes in a network namespace as `namespace_of` names it."""
    return [pid for pid in psutil.pids() if namespace_of(pid) == namespace]
