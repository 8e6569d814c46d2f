"""Meter: lines where there is no terminal, not too many."""

from __future__ import annotations

import pytest

from deploy import progress
from deploy.progress import Meter


def test_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Meter("compacting", "blocks") as meter:
        meter(1, 2000)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "_LINE_SECONDS", 0.0)
    with Meter("compacting", "blocks") as meter:
        meter(1000, 2000)
    assert capsys.readouterr().err == "compacting: 1,000 of 2,000 blocks\n"
