"""Peers: the workers of a training, how they meet, and who of them did not come.

Threads: one at a time.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from ps.launch import Launch
from storage.errors import UnavailableError

_TELL_SECONDS = 3.0
_LOOK_SECONDS = 0.02


def join(
    launch: Launch, device: torch.device, *, meet: str = "env://", deadline_seconds: float
) -> None:
    """Set up torch.distributed for the workers of ``launch``. meet: a URL as of
    torch.distributed.init_process_group.

    After a restart torchrun may offer the store of the start before, with addresses of processes
    that are gone: what is said there is said under the name of this start.
    """
    timeout = timedelta(seconds=deadline_seconds)
    meeting, rank, world = next(rendezvous(meet, launch.rank, launch.world, timeout=timeout))
    meeting.set_timeout(timeout)
    dist.init_process_group(
        backend_for(device), store=PrefixStore(f"terrace/{launch.round}", meeting),
        rank=rank, world_size=world, timeout=timeout,
    )  # fmt: skip


def backend_for(device: torch.device) -> str:
    """What carries tensors on the host and, where there are any, on CUDA."""
    return "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"


class Peers:
    """Worker ``rank`` of ``world``, in what they do together under ``name``: all the same calls, in
    the same order.
    """

    def __init__(self, name: str, rank: int, world: int, deadline_seconds: float) -> None:
        self._name, self._rank, self._world = name, rank, world
        self._deadline = deadline_seconds
        self._calls = 0

    @contextmanager
    def together(
        self, what: str, kinds: tuple[type[RuntimeError], ...] = (dist.DistError,)
    ) -> Iterator[None]:
        """One call. kinds: of errors that say that the others did not take part; gloo has none of
        its own, but names its source file. Raises: UnavailableError, naming who did not come.
        """
        self._calls += 1
        try:
            yield
        except RuntimeError as error:
            if not isinstance(error, kinds) and "gloo" not in str(error):
                raise
            raise UnavailableError(
                f"worker {self._rank} of {self._world}: {what}: expected all workers to take part "
                f"within {self._deadline:g} s, but {self._missing()} "
                f"({str(error).strip().splitlines()[0]}); see what it said, and --resume from the "
                f"last checkpoint"
            ) from error

    def _missing(self) -> str:
        """Who is not known to have come to this call: those who did tell one another so."""
        call = f"terrace/{self._name}/{self._calls}"
        others = set(range(self._world)) - {self._rank}
        try:
            meeting: Any = dist.distributed_c10d._get_default_store()
            meeting.set(f"{call}/{self._rank}", "here")
            end = time.monotonic() + _TELL_SECONDS
            while others and time.monotonic() < end:
                others -= {rank for rank in others if meeting.check([f"{call}/{rank}"])}
                time.sleep(_LOOK_SECONDS)
        except (RuntimeError, ValueError):
            return "one is late or has ended"
        if not others:
            return "the connection between two of them broke"
        ranks = ", ".join(map(str, sorted(others)))
        return f"worker{'s' if len(others) > 1 else ''} {ranks} did not come"
