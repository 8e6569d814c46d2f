"""Calls: those that are worked on are counted, those that wait for others are not."""

from __future__ import annotations

import pytest

from ps.server.calls import Calls
from tests.ps.serving import wait_for


def test_calls_are_busy_while_they_are_worked_on() -> None:
    waiting = [0]
    calls = Calls(lambda: waiting[0])
    assert calls.busy == 0
    with calls.one():
        with pytest.raises(ZeroDivisionError), calls.one():
            assert calls.busy == 2
            waiting[0] = 1
            assert calls.busy == 1
            waiting[0] = 5
            assert calls.busy == 0  # never fewer
            waiting[0] = 0
            raise ZeroDivisionError
        assert calls.busy == 1
    assert calls.busy == 0


def test_one_whose_message_does_not_come_counts_for_a_moment() -> None:
    calls = Calls(lambda: 0)
    for number in range(3):
        calls.expect()
        assert calls.busy == number + 1
    with calls.one():
        assert calls.busy == 3  # one of the three
        wait_for(lambda: calls.busy == 1)
    assert calls.busy == 0
    with calls.one():  # that of one that was given up
        assert calls.busy == 1
