"""Tools that judge manifests; a test that needs one is skipped where it is not installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

MANIFESTS = Path(__file__).resolve().parents[2] / "deploy" / "manifests"
_SECONDS = 60.0


def tool(name: str) -> str:
    """Its path, of this environment or of the machine; skips where there is none."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    found = shutil.which(name, path=path)
    if found is None:
        pytest.skip(f"no {name} here")
    return found


def judge(*words: str | Path) -> str:
    """What the tool said; fails where it finds anything wrong."""
    ended = subprocess.run(
        [tool(str(words[0])), *map(str, words[1:])],
        cwd=MANIFESTS, capture_output=True, text=True, timeout=_SECONDS, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout
