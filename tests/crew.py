"""Processes of one training, started from a module that is both library and program."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

_REPOSITORY = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Ended:
    """How one worker ended: exit code, what it found, and its standard error."""

    code: int
    found: dict[str, Any]
    err: str


@contextmanager
def started(module: str, words: Sequence[Sequence[object]]) -> Iterator[list[Popen[str]]]:
    """A process of ``module`` for each list of words; killed at the end."""
    processes = [
        Popen(
            [sys.executable, "-m", module, *map(str, each)],
            cwd=_REPOSITORY, stdout=PIPE, stderr=PIPE, text=True,
        )
        for each in words
    ]  # fmt: skip
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def run(module: str, scenarios: str, world: int, folder: Path, *, seconds: float) -> list[Ended]:
    """Run scenarios (comma between) one after the other in ``world`` processes of ``module``."""
    words = [(scenarios, world, folder, rank) for rank in range(world)]
    with started(module, words) as processes:
        said = [process.communicate(timeout=seconds) for process in processes]
    return [
        Ended(process.returncode, json.loads(out.splitlines()[-1]) if out else {}, err)
        for process, (out, err) in zip(processes, said, strict=True)
    ]
