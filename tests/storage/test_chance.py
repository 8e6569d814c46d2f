"""Chance: draws repeat, differ where they should, and are won as often as asked."""

from __future__ import annotations

import numpy as np
import pytest

from storage.chance import wins

KEYS = np.arange(20_000, dtype=np.uint64)
ONE = np.ones(len(KEYS), np.int32)
STREAM = np.uint64(7)


@pytest.mark.parametrize("probability", [0.0, 0.01, 0.3, 1.0])
def test_draws_are_won_as_often_as_asked(probability: float) -> None:
    for step in (1, 2):
        share = wins(STREAM, KEYS, ONE, step, probability).mean()
        assert share == pytest.approx(probability, abs=4 * np.sqrt(0.25 / len(KEYS)))


def test_each_use_is_a_draw() -> None:
    share = wins(STREAM, KEYS, 3 * ONE, 1, 0.2).mean()
    assert share == pytest.approx(1 - 0.8**3, abs=0.015)
    assert not wins(STREAM, KEYS, 0 * ONE, 1, 1.0).any()


def test_a_draw_depends_on_stream_key_and_step_alone() -> None:
    won = wins(STREAM, KEYS, ONE, 5, 0.5)
    assert np.array_equal(wins(STREAM, KEYS[::-1], ONE, 5, 0.5), won[::-1])
    more = wins(STREAM, KEYS, 2 * ONE, 5, 0.5)
    assert more[won].all() and more.mean() > 0.7
    for other in (wins(np.uint64(8), KEYS, ONE, 5, 0.5), wins(STREAM, KEYS, ONE, 6, 0.5)):
        assert (other == won).mean() == pytest.approx(0.5, abs=0.02)
