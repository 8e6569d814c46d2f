"""Cluster: a server that dies is started again where it was, and not for ever."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import psutil
import pytest

from deploy.cluster import Cluster
from storage.errors import UnavailableError
from tests.deploy.test_child import SECONDS, Heard

DATA = "synthetic:rows=20000,examples=2000000,features=4,dense=2"
OPTIONS = ("--data", DATA, "--batch-size", "200", "--threads", "1", "--checkpoint-every", "10")


def test_a_server_that_dies_is_started_again_and_training_goes_on(tmp_path: Path) -> None:
    heard = Heard()
    train = (*OPTIONS, "--mode", "async", "--steps", "150", "--ram", "16MiB")
    with Cluster(
        tmp_path, 1, 1, train, heard,
        server_options=("--ram", "32MiB", "--durability", "strict"), restarts=1,
    ) as cluster:  # fmt: skip
        heard.wait(lambda: _said(heard, "starting at step 0"))
        _server(tmp_path).kill()
        code, pause = None, threading.Event()
        while code is None:
            code = cluster.look()
            pause.wait(0.05)
        assert code == 0, heard.lines[-20:]
        assert cluster.restarted == 1
    assert _said(heard, "server 0 ended with code -9; starting it again")
    table = [line for line, _ in heard.lines if re.match(r"worker 0: . steps +. +150", line)]
    assert len(table) == 1
    ports = {line.split(", durability")[0] for line, _ in heard.lines if "serving shard" in line}
    assert len(ports) == 1  # the same, both times


def test_a_server_that_cannot_be_started_ends_it(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="server 0: expected it to serve"):
        Cluster(tmp_path, 2, 1, OPTIONS, Heard(), server_options=("--policy", "none"), restarts=3)


def _said(heard: Heard, words: str) -> bool:
    return any(words in line for line, _ in heard.lines)


def _server(folder: Path) -> psutil.Process:
    for child in psutil.Process().children():
        if "serve" in child.cmdline() and str(folder / "0-of-1") in child.cmdline():
            return child
    raise AssertionError(f"no server within {SECONDS} s")
