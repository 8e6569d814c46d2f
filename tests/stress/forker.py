"""Forker: a process that has everything imported and compiled, and forks one that can be killed.

To start Python and torch takes two seconds, a fork some milliseconds. The program reads a line of
JSON for each life, forks, and writes lines of JSON: what the fork acknowledges, and how it ended.
It has no threads when it forks: those of the store it tried first are joined.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.stress.work import Life, live, warm

DEADLINE_SECONDS = 60.0
Said = dict[str, Any]


class Forker:
    """The parent's end. Threads: one owner."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.stress.forker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
            cwd=Path(__file__).resolve().parents[2],
        )  # fmt: skip
        self._rest = b""

    def __enter__(self) -> Forker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._process as process:  # waits for it, and closes its pipes
            process.kill() if kind else process.stdin.close()

    def begin(self, path: Path, life: Life) -> int:
        """Fork a process that lives on the store: its id."""
        order = json.dumps({"path": str(path), "life": asdict(life)})
        self._process.stdin.write(order.encode() + b"\n")
        return int(self.hear()["pid"])

    def hear(self, seconds: float | None = None) -> Said | None:
        """What is said next; None when nothing is said for so many seconds."""
        deadline = time.monotonic() + (DEADLINE_SECONDS if seconds is None else seconds)
        while b"\n" not in self._rest:
            left = max(0.0, deadline - time.monotonic())
            if not select.select([self._process.stdout], [], [], left)[0]:
                assert seconds is not None, f"nothing was said for {DEADLINE_SECONDS} s"
                return None
            more = self._process.stdout.read(1 << 16)
            assert more, "the forker ended"
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\n")
        return json.loads(line)

    def hear_end(self) -> tuple[list[Said], int]:
        """What was said until the process ended, and its exit code: -9 when it was killed."""
        heard = []
        while "code" not in (said := self.hear()):
            heard.append(said)
        return heard, said["code"]


def say(**what: Any) -> None:
    """One line, in one piece."""
    os.write(sys.stdout.fileno(), json.dumps(what).encode() + b"\n")


def _fork(path: str, life: Life) -> None:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            say(pid=os.getpid())
            live(path, life, lambda what, step, more: say(what=what, step=step, **more))
            code = 0
        except BaseException:  # the edge of a process
            traceback.print_exc()
        finally:
            os._exit(code)
    say(code=os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def main() -> None:
    """Fork for each line of standard input, one after the other."""
    with tempfile.TemporaryDirectory() as folder:
        warm(Path(folder))
    for line in sys.stdin:
        order = json.loads(line)
        _fork(order["path"], Life(**order["life"]))


if __name__ == "__main__":
    main()
