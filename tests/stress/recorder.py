"""Recorder: runs the work in a process whose calls on the store's files are written down.

The library that does it, recorder.c, is preloaded, so that it sees what LMDB calls, too.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from unittest import mock

import lmdb

from tests.stress.work import Life, live

_HERE = Path(__file__).resolve().parent
_DEADLINE_SECONDS = 120.0


def compiler() -> str | None:
    """The C compiler, if there is one."""
    return shutil.which("cc") or shutil.which("gcc")


def build(folder: Path) -> Path:
    """The library to preload, compiled into the folder."""
    library = folder / "recorder.so"
    options = ["-O2", "-shared", "-fPIC", "-ldl", "-lpthread"]
    subprocess.run(
        [str(compiler()), *options, "-o", str(library), str(_HERE / "recorder.c")],
        check=True,
        timeout=_DEADLINE_SECONDS,
    )
    return library


def record(library: Path, lives: dict[Path, Life]) -> None:
    """Live each life in a store of its own: a new folder, the journal beside it as `.journal`.

    One process does all, since to start one takes two seconds.
    """
    for path in lives:
        path.parent.mkdir(parents=True, exist_ok=True)
    orders = [{"path": str(path), "life": asdict(life)} for path, life in lives.items()]
    subprocess.run(
        [sys.executable, "-m", "tests.stress.recorder", json.dumps(orders)],
        check=True, timeout=_DEADLINE_SECONDS, cwd=_HERE.parents[1],
        env={**os.environ, "LD_PRELOAD": str(library)},
    )  # fmt: skip


def _live_recorded(path: str, life: Life) -> None:
    recorder = ctypes.CDLL(None)
    recorder.recorder_begin(path.encode(), f"{path}.journal".encode())
    live(path, life, lambda what, step, _: recorder.recorder_mark(f"{what} {step}".encode()))
    recorder.recorder_end()


def main() -> None:
    """The process that is recorded; its argument says what to do."""
    for order in json.loads(sys.argv[1]):
        life = Life(**order["life"])
        with mock.patch.object(lmdb, "open", partial(lmdb.open, sync=life.sync)):
            _live_recorded(order["path"], life)


if __name__ == "__main__":
    main()
