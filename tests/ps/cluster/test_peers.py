"""Peers: what broke a call that all make is told; real workers that miss are in the crews."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from ps.cluster.peers import Peers, backend_for, join
from ps.launch import Launch
from storage.errors import UnavailableError

SECONDS = 2.5


def test_backends() -> None:
    assert backend_for(torch.device("cpu")) == "gloo"
    assert "nccl" in backend_for(torch.device("cuda"))


def broken(peers: Peers, error: RuntimeError) -> str:
    """What is said of a call that this breaks."""
    with pytest.raises((RuntimeError, UnavailableError)) as raised, peers.together("a call"):
        raise error
    return f"{type(raised.value).__name__}: {raised.value}"


def test_who_has_not_come_is_named_and_other_errors_are_not_hidden(tmp_path: Path) -> None:
    peers = Peers("test", 1, 3, SECONDS)
    said = broken(peers, RuntimeError("gloo/transport/tcp/pair.cc: closed"))
    assert said.startswith("UnavailableError: worker 1 of 3: a call: expected all workers to take")
    assert "within 2.5 s, but one is late or has ended (gloo/" in said
    assert broken(peers, RuntimeError("of its own")) == "RuntimeError: of its own"
    launch = Launch(0, 1, 0, "test/0")
    join(launch, torch.device("cpu"), meet=f"file://{tmp_path}/meet", deadline_seconds=SECONDS)
    try:
        meeting = dist.distributed_c10d._get_default_store()
        meeting.set("terrace/test/3/0", "here")
        assert "but worker 2 did not come" in broken(peers, dist.DistNetworkError("reset"))
        for rank in (0, 2):
            meeting.set(f"terrace/test/4/{rank}", "here")
        assert "between two of them broke" in broken(peers, dist.DistNetworkError("reset"))
    finally:
        dist.destroy_process_group()
