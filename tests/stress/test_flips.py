"""Flipped bits: each is found, or lies where nothing is; none shows a wrong value in silence."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

DEADLINE_SECONDS = 600.0


@pytest.mark.parametrize(
    ("flips", "seed"),
    [(24, 0), pytest.param(1000, 1, marks=pytest.mark.stress)],
    ids=["few", "thousand"],
)
def test_a_flipped_bit_is_found_or_does_no_harm(tmp_path: Path, flips: int, seed: int) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.stress.flipper", str(tmp_path), str(flips), str(seed)],
        check=True, timeout=DEADLINE_SECONDS, cwd=Path(__file__).resolve().parents[2],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    results = json.loads(done.stdout)
    became = Counter(one["became"] for one in results)
    assert became.keys() == {"right", "found"}, (
        became, [one for one in results if one["became"] not in ("right", "found")]
    )  # fmt: skip
    assert len(results) == flips
    # Blocks are most of the file, and hardly a byte of them is unused.
    assert sum(one["became"] == "found" and not one["own"] for one in results) > flips // 4
