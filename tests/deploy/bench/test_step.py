from __future__ import annotations

import json
from pathlib import Path

import pytest

from deploy.bench.step import BATCH, FEATURES, zipf_ids
from deploy.command import run


@pytest.mark.parametrize("servers", [[], ["--servers", "2", "--staleness", "1"]])
def test_every_step_is_counted(
    servers: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--rows", "5000", "--steps", "2", "--rounds", "2", "--dir", str(tmp_path / "new")]
    figures = tmp_path / "figures.json"
    assert run(["bench", "step", *arguments, *servers, "--json", str(figures)]) == 0
    found = json.loads(figures.read_text())
    assert found["keys_per_s"] > 0 and len(found["keys_per_s_by_round"]) == 2
    (top, *_) = found["tiers"]
    assert top["accesses"] == (10 + 2 * 2) * BATCH * FEATURES
    capsys.readouterr()


def test_ids_are_the_same_each_time_and_skewed() -> None:
    ids = zipf_ids(1000, 3)
    assert (ids == zipf_ids(1000, 3)).all()
    assert ids.min() >= 0 and ids.max() < 1000
    assert len(set(ids[0].tolist())) < BATCH * FEATURES
