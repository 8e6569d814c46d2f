"""Opening: a folder has the rows of so many workers, and no other number opens it."""

from __future__ import annotations

from pathlib import Path

import pytest

import ps
from ps.cluster.opening import check_layout, open_partitioned, worlds
from ps.launch import Launch
from ps.settings import Settings
from storage.errors import ConfigError
from tests.ps.cluster.crew import TABLES, open_whole


def test_another_number_of_workers_is_refused_and_told_what_to_do(tmp_path: Path) -> None:
    check_layout(tmp_path / "absent", 3)
    (tmp_path / "0-of-9").mkdir()  # no store
    assert worlds(tmp_path) == 0
    open_whole(tmp_path / "1-of-2").close()
    assert worlds(tmp_path) == 2
    check_layout(tmp_path, 2)
    with pytest.raises(ConfigError, match="rows of 2 workers, expected 3; start 2, or"):
        check_layout(tmp_path, 3)
    with pytest.raises(ConfigError, match="rows of 2 workers, expected 1"):
        ps.open(tmp_path, TABLES, ram="8MiB", launch=Launch())
    open_whole(tmp_path / "plain").close()
    with pytest.raises(ConfigError, match="rows of 1 worker, expected 2"):
        check_layout(tmp_path / "plain", 2)


def test_durability_that_cannot_be_kept_together_is_refused(tmp_path: Path) -> None:
    settings = Settings(ram=8 << 20, durability="strict")
    with pytest.raises(ConfigError, match="expected 'checkpoint' with several workers"):
        open_partitioned(tmp_path, TABLES, settings, Launch(0, 2))
