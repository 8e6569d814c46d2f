"""Child: a process that `terrace launch` started: its lines with its name before them, its end.

It has a session of its own, so that Ctrl-C reaches it only through whoever started it.

Threads: one owner; "terrace-child" passes on each of its two streams, until it ends.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import IO

import psutil

from storage.errors import StoreError

_END_SECONDS = 10.0
Say = Callable[[str, bool], None]
"""A line, and whether it was said on standard error."""


class Child:
    """name: stands before each line, "" for none. say: is given the lines, from threads."""

    def __init__(
        self, name: str, command: Sequence[str], say: Say, more: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self._before = f"{name}: " if name else ""
        self._say = say
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, errors="replace", bufsize=1, start_new_session=True,
            env={**os.environ, **(more or {})},
        )  # fmt: skip
        streams = ((self._process.stdout, False), (self._process.stderr, True))
        self._threads = [
            threading.Thread(target=self._pass_on, args=pair, name="terrace-child", daemon=True)
            for pair in streams
        ]
        for thread in self._threads:
            thread.start()

    @property
    def code(self) -> int | None:
        """Its exit code, None while it lives."""
        return self._process.poll()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def terminate(self) -> None:
        """SIGTERM, to this process alone."""
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)

    def wait(self, seconds: float) -> int:
        """Its exit code; after so many seconds it is killed, with all that it started.

        Raises: StoreError when it does not end even so.
        """
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            try:
                code = self._process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired as error:
                raise StoreError(f"{self.name or 'the workers'}: cannot be killed") from error
        for thread in self._threads:
            thread.join(_END_SECONDS)
        return code

    def kill(self) -> None:
        """SIGKILL to it and to all that it started, whatever sessions those have.

        To it first, as it may start others in place of those that die.
        """
        started: list[psutil.Process] = []
        with suppress(psutil.NoSuchProcess):
            started = psutil.Process(self._process.pid).children(recursive=True)
        self._process.kill()
        for each in started:
            with suppress(psutil.NoSuchProcess):
                each.kill()

    def _pass_on(self, stream: IO[str], on_stderr: bool) -> None:
        with stream:
            for line in stream:
                self._say(self._before + line.rstrip("\n"), on_stderr)
