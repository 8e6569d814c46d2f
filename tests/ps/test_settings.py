"""Settings refuse what cannot be meant, in a line that names the argument."""

from __future__ import annotations

from typing import Any

import pytest

from ps.settings import DURABILITIES, Settings
from storage.errors import ConfigError


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"durability": "always"}, "durability: expected one of strict, interval, checkpoint"),
        ({"interval_seconds": 0}, "interval_seconds: expected more than 0"),
        ({"interval_seconds": 1e9}, "interval_seconds: expected more than 0"),
        (
            {"policy": "random"},
            "policy: expected one of lru, fifo, .*, got 'random'",
        ),
        ({"threads": 0}, "threads: expected 1 or more, got 0"),
    ],
)
def test_what_cannot_be_meant_is_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Settings(ram=1, **wrong)


def test_every_durability_is_taken() -> None:
    for durability in DURABILITIES:
        assert Settings(ram=1, durability=durability).durability == durability
