"""Child: its lines get its name, its end is told, and nothing of it is left."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable

import psutil
import pytest

from deploy.child import Child

SECONDS = 20.0


class Heard:
    """What was said, and an event for a certain line."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, bool]] = []
        self._changed = threading.Condition()

    def __call__(self, line: str, on_stderr: bool) -> None:
        with self._changed:
            self.lines.append((line, on_stderr))
            self._changed.notify_all()

    def wait(self, ready: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(ready, SECONDS), self.lines


def python(code: str) -> list[str]:
    return [sys.executable, "-u", "-c", code]


@pytest.mark.parametrize("name", ["server 3", ""])
def test_each_line_has_the_name_before_it(name: str) -> None:
    heard = Heard()
    code = "import os, sys; print('one'); print(os.environ['MORE'], file=sys.stderr); sys.exit(7)"
    child = Child(name, python(code), heard, {"MORE": "two"})
    assert child.wait(SECONDS) == 7 == child.code
    before = f"{name}: " if name else ""
    assert sorted(heard.lines) == sorted([(before + "one", False), (before + "two", True)])
    child.terminate()
    child.kill()  # both fine after the end


def test_it_is_asked_to_end_and_then_killed_with_all_that_it_started() -> None:
    heard = Heard()
    code = (
        "import signal, subprocess, sys\n"
        "signal.signal(signal.SIGTERM, lambda *_: print('not yet'))\n"
        "other = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'],\n"
        "    start_new_session=True)\n"
        "print(other.pid)\n"
        "while True: signal.pause()\n"
    )
    child = Child("stubborn", python(code), heard)
    heard.wait(lambda: bool(heard.lines))
    other = psutil.Process(int(heard.lines[0][0].removeprefix("stubborn: ")))
    assert os.getsid(child.pid) != os.getsid(0)
    child.terminate()
    heard.wait(lambda: ("stubborn: not yet", False) in heard.lines)
    assert child.code is None
    assert child.wait(0.0) == -9
    heard.wait(lambda: not other.is_running() or other.status() == psutil.STATUS_ZOMBIE)
