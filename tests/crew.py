"""Processes of one training, started from a module that is both library and program."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Ended:
    """How one worker ended: exit code, what it found, and its standard error."""

    code: int
    found: dict[str, Any]
    err: str


def run(module: str, scenarios: str, world: int, folder: Path, *, seconds: float) -> list[Ended]:
    """Run scenarios (comma between) one after the other in ``world`` processes of ``module``."""
    command = [sys.executable, "-m", module, scenarios, str(world), str(folder)]
    processes = [
        Popen([*command, str(rank)], cwd=REPOSITORY, stdout=PIPE, stderr=PIPE, text=True)
        for rank in range(world)
    ]
    try:
        said = [process.communicate(timeout=seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [
        Ended(process.returncode, json.loads(out.splitlines()[-1]) if out else {}, err)
        for process, (out, err) in zip(processes, said, strict=True)
    ]
