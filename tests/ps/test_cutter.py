"""Cutter: one cut a while after the first change, none without, and its failures are raised."""

from __future__ import annotations

import threading
import time

import pytest

from ps.cutter import Cutter
from storage.errors import DiskFullError

DEADLINE = 30.0


def test_changes_are_cut_after_the_interval_and_once() -> None:
    cuts, made = [], threading.Event()

    def cut() -> None:
        cuts.append(time.monotonic())
        made.set()

    cutter = Cutter(cut, 0.05)
    try:
        began = time.monotonic()
        for _ in range(5):
            cutter.changed()
        assert made.wait(DEADLINE)
        assert cuts[0] - began >= 0.05
        made.clear()
        cutter.changed()
        assert made.wait(DEADLINE)
    finally:
        cutter.close()
    assert len(cuts) == 2


def test_no_cut_without_a_change_and_none_at_the_close() -> None:
    cuts: list[int] = []
    cutter = Cutter(lambda: cuts.append(1), 1000.0)
    cutter.changed()
    cutter.close()
    cutter.close()
    assert cuts == []


def test_what_a_cut_raised_is_raised_at_the_next_change_once() -> None:
    failed = threading.Event()

    def cut() -> None:
        failed.set()
        raise DiskFullError("full")

    cutter = Cutter(cut, 0.001)
    try:
        cutter.changed()
        assert failed.wait(DEADLINE)
        deadline = time.monotonic() + DEADLINE
        while cutter.failure is None and time.monotonic() < deadline:
            pass
        with pytest.raises(DiskFullError, match="full"):
            cutter.changed()
    finally:
        cutter.close()
