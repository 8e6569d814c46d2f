"""One of two workers that make a checkpoint together, and one of them dies in the middle of it.

All rows have the number of the last checkpoint as their value, so a mix of two shows. Run as a
program: rank, folder, and the call of a Python function at which this worker dies, 0 for never.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

import ps
from ps.cluster.opening import open_partitioned
from ps.launch import Launch
from ps.settings import Settings
from worker.group import Group

WORLD, KEYS, SECONDS = 2, 3000, 60.0
_OURS = tuple(f"{Path(__file__).resolve().parents[2] / name}{os.sep}" for name in ("ps", "storage"))


class Death:
    """Counts calls of Terrace's own functions in this thread, and dies at one of them."""

    def __init__(self, at: int) -> None:
        self._at, self.calls = at, 0

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(_OURS):
            self.calls += 1
            if self.calls == self._at:
                os.kill(os.getpid(), signal.SIGKILL)


def main(rank: int, folder: Path, at: int) -> None:
    """Go back, look, change all rows, make a checkpoint; print what was seen."""
    torch.set_num_threads(1)
    tables = [ps.Table("rows", dim=4, optimizer=ps.SGD(lr=1.0), init=ps.Zeros())]
    keys, launch = np.arange(KEYS), Launch(rank, WORLD, rank, "test/0")
    with Group(launch, meet=f"file://{folder}/meet", deadline_seconds=SECONDS):
        settings = Settings(ram=8 << 20, threads=1)
        with open_partitioned(
            folder / "store", tables, settings, launch, deadline_seconds=SECONDS
        ) as store:
            step, state = store.resume() if store.checkpoints else (0, {"step": 0})
            seen = sorted({float(value) for value in store.read("rows", keys).ravel()})
            # Said before the death: what it says is read by whoever waits for it.
            print(json.dumps({"step": step, "state": state["step"], "seen": seen}), flush=True)
            store.write("rows", keys, np.full((KEYS, 4), float(step + 1)))
            death = Death(at)
            sys.setprofile(death)
            store.checkpoint(step + 1, {"step": step + 1} if rank == 0 else {})
            sys.setprofile(None)
            print(json.dumps({"calls": death.calls}), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
