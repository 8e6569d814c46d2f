"""Reports are JSON that any reader takes: no NaN, no infinity."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from deploy.report import write_json
from storage.errors import ConfigError


def test_what_is_not_finite_becomes_null(tmp_path: Path) -> None:
    write_json(tmp_path / "r.json", {"a": math.nan, "b": [math.inf, 1], 3: (2, {"c": "x"})})
    assert json.loads((tmp_path / "r.json").read_text()) == {
        "a": None, "b": [None, 1], "3": [2, {"c": "x"}],
    }  # fmt: skip


def test_no_path_writes_nothing_and_a_bad_one_is_an_error(tmp_path: Path) -> None:
    write_json(None, {})
    with pytest.raises(ConfigError, match="--json"):
        write_json(tmp_path / "absent" / "r.json", {})
