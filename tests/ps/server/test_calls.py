"""Calls: those that are worked on are counted, those that wait for others are not."""

from __future__ import annotations

import threading

import pytest

from ps.server.calls import Calls
from tests.ps.serving import SECONDS, wait_for


def test_calls_are_busy_from_their_coming_to_their_end() -> None:
    go, waiting = threading.Event(), [0]
    with Calls(1, lambda: waiting[0]) as calls:
        held = [calls.submit(go.wait, SECONDS) for _ in range(3)]
        assert calls.busy == 3
        waiting[0] = 1
        assert calls.busy == 2
        waiting[0] = 5
        assert calls.busy == 0  # never fewer
        waiting[0] = 0
        assert held[2].cancel() and calls.busy == 2  # though no thread had it yet
        go.set()
        assert held[1].result(SECONDS)
        wait_for(lambda: calls.busy == 0)
        failed = calls.submit(int, "x")
        assert isinstance(failed.exception(SECONDS), ValueError)
        wait_for(lambda: calls.busy == 0)
    with pytest.raises(RuntimeError):
        calls.submit(go.wait)
    assert calls.busy == 0
