"""Server: a `terrace serve` of its own that is killed, stopped, and started again where it was.

Threads: one owner, but `pause`, `go_on` and figures from any.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

REPOSITORY = Path(__file__).resolve().parents[2]
DEADLINE_SECONDS = 60.0
_LOOK_SECONDS = 0.01
_MAIN = "from deploy.command import main; main()"


class Server:
    """One shard, served from its making on. folder: of its store, its log and its note.

    options: of ``terrace serve``. inside: the words that run these words elsewhere
    (`Host.inside`); host: where it listens. The port is the system's choice, and stays the same.
    """

    def __init__(
        self,
        folder: Path,
        *options: str,
        shard: str = "0/1",
        host: str = "127.0.0.1",
        store: Path | None = None,
        inside: Callable[[Sequence[str]], list[str]] = list,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.store = store or folder / "store"
        self.started_seconds = 0.0
        self.starts = self.port = 0
        self._host, self._shard, self._options, self._inside = host, shard, options, inside
        self._note, self._log = folder / "note.json", folder / "log"
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self.start()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def address(self) -> str:
        """As clients take it."""
        return f"{self._host}:{self.port}"

    @property
    def pid(self) -> int:
        """Of the process that lives now."""
        assert self._process is not None
        return self._process.pid

    @property
    def rss(self) -> int:
        """Bytes of memory that it has."""
        size: int = psutil.Process(self.pid).memory_info().rss
        return size

    @property
    def said(self) -> str:
        """All that it has said in all its lives."""
        return self._log.read_text()

    def start(self) -> None:
        """Start it, and wait until it serves; ``started_seconds`` says how long that took."""
        self._note.unlink(missing_ok=True)
        began = time.monotonic()
        self.launch()
        deadline = began + DEADLINE_SECONDS
        while not self._serves():
            assert time.monotonic() < deadline, f"no server: {self.said[-2000:]}"
            assert self.waits_for_end(_LOOK_SECONDS) is None, f"it ended: {self.said[-2000:]}"
        self.started_seconds = time.monotonic() - began

    def launch(self) -> None:
        """Start it, and do not wait."""
        command = [
            sys.executable, "-c", _MAIN, "serve", "--dir", str(self.store), "--shard", self._shard,
            "--listen", f"{self._host}:{self.port}", "--json", str(self._note), *self._options,
        ]  # fmt: skip
        self.starts += 1
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                self._inside(command), stderr=log, stdout=log, cwd=REPOSITORY,
                env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            )  # fmt: skip

    def kill(self) -> None:
        """Kill -9."""
        self.signal(signal.SIGKILL)
        assert self.waits_for_end(DEADLINE_SECONDS) is not None

    def stop(self) -> int:
        """SIGTERM: the exit code."""
        self.signal(signal.SIGTERM)
        code = self.waits_for_end(DEADLINE_SECONDS)
        assert code is not None, "it did not stop"
        return code

    def pause(self) -> None:
        """SIGSTOP: it does nothing any more, and closes nothing."""
        self.signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """SIGCONT."""
        self.signal(signal.SIGCONT)

    def signal(self, number: int) -> None:
        """Send a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def waits_for_end(self, seconds: float) -> int | None:
        """The exit code, None when it lives on after so many seconds."""
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(seconds)
        return None

    def ready(self) -> str:
        """What `/readyz` says; it needs ``--metrics 127.0.0.1:0`` among the options."""
        url = f"http://127.0.0.1:{self.note['metrics_port']}/readyz"
        try:
            with urllib.request.urlopen(url, timeout=DEADLINE_SECONDS) as answer:
                return answer.read().decode().strip()
        except urllib.error.HTTPError as error:
            with error:
                return error.read().decode().strip()

    @property
    def note(self) -> dict[str, Any]:
        """What it wrote of itself once it served."""
        note: dict[str, Any] = json.loads(self._note.read_text())
        return note

    def close(self) -> None:
        """Kill it, if it lives. Twice is fine."""
        if self._process is not None and self._process.poll() is None:
            self.kill()

    def _serves(self) -> bool:
        try:
            self.port = int(self.note["port"])
        except (FileNotFoundError, ValueError):
            return False
        return True
