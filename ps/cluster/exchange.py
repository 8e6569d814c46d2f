"""Exchange: what the workers of a training send each other, all at once.

Every call is collective: all workers make the same calls of one exchange in the same order. Nobody
waits longer than the deadline; where somebody did not come, the others say who.

An exchange has a process group of its own: two threads on one group of gloo hang. What is on the
host travels by gloo, what is on CUDA by NCCL.

Threads: one at a time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from ps.launch import Launch
from storage.errors import StoreError, TerraceError, UnavailableError

DEADLINE_SECONDS = 600.0
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


class Exchange:
    """See the module's docstring; made by all workers together, once torch.distributed is set up.

    name: of this exchange, the same at all workers and no other's. device: of tensors that travel.

    Raises: UnavailableError when the others do not come.
    """

    def __init__(
        self, name: str, device: torch.device, *, deadline_seconds: float = DEADLINE_SECONDS
    ) -> None:
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self._name = name
        self._deadline = deadline_seconds
        self._calls = 0
        with self._together("the meeting of all workers"):
            self._group = dist.new_group(
                backend=backend_for(device), timeout=timedelta(seconds=deadline_seconds)
            )

    def close(self) -> None:
        """Leave, without waiting for anybody. Twice is fine."""
        group, self._group = self._group, None
        if group is not None and dist.is_initialized():
            dist.destroy_process_group(group)

    def table(self, sent: NDArray[np.int64]) -> NDArray[np.int64]:
        """Row r to worker r: (world, K) int64 -> (world, K) int64, row r from worker r."""
        return self.split(torch.from_numpy(sent), [1] * self.world, [1] * self.world).numpy()

    def split(self, sent: Tensor, sizes: Sequence[int], expected: Sequence[int]) -> Tensor:
        """The first ``sizes[0]`` rows to worker 0, the next ``sizes[1]`` to worker 1, and so on.

        sent: (n, ...) contiguous. expected: rows from each worker. Returns them in that order.
        """
        received = torch.empty(
            (sum(expected), *sent.shape[1:]), dtype=sent.dtype, device=sent.device
        )
        with self._together("rows of all workers"):
            dist.all_to_all_single(received, sent, list(expected), list(sizes), group=self._group)
        return received

    def most(self, *values: int) -> list[int]:
        """Of each value the largest that a worker has."""
        largest = torch.tensor(values, dtype=torch.int64)
        with self._together("a word of all workers"):
            dist.all_reduce(largest, dist.ReduceOp.MAX, group=self._group)
        return [int(value) for value in largest]

    def sum(self, *values: float) -> list[float]:
        """Of each value the sum over all workers, in float64."""
        total = torch.tensor(values, dtype=torch.float64)
        with self._together("a sum over all workers"):
            dist.all_reduce(total, group=self._group)
        return [float(value) for value in total]

    def words(self, word: bytes) -> list[bytes]:
        """What every worker says, by rank."""
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world)]
        mine = torch.from_numpy(np.frombuffer(bytearray(word), np.uint8))
        with self._together("a word of each worker"):
            dist.all_gather(sizes, torch.tensor([len(word)]), group=self._group)
            most = max(1, max(int(size) for size in sizes))
            padded = torch.zeros(most, dtype=torch.uint8)
            padded[: len(word)] = mine
            parts = [torch.empty(most, dtype=torch.uint8) for _ in range(self.world)]
            dist.all_gather(parts, padded, group=self._group)
        return [part[: int(n)].numpy().tobytes() for part, n in zip(parts, sizes, strict=True)]

    def all(self, what: str, work: Callable[[], None]) -> None:
        """Every worker does it; where one of them could not, all raise. Raises: TerraceError."""
        failure: TerraceError | None = None
        try:
            work()
        except TerraceError as error:
            failure = error
        said = self.words(b"" if failure is None else str(failure).encode() or b"no reason given")
        if failure is not None:
            raise failure
        for rank, word in enumerate(said):
            if word:
                raise StoreError(f"{what}: worker {rank} could not: {word.decode()}")

    def word_of_first(self, word: bytes) -> bytes:
        """What worker 0 says; the others' words do not travel."""
        size = torch.tensor([len(word)])
        with self._together("a word of worker 0"):
            dist.broadcast(size, 0, group=self._group)
            held = torch.zeros(int(size), dtype=torch.uint8)
            if self.rank == 0:
                held[:] = torch.from_numpy(np.frombuffer(bytearray(word), np.uint8))
            if len(held):
                dist.broadcast(held, 0, group=self._group)
        return held.numpy().tobytes()

    # -- private --------------------------------------------------------------------------------

    @contextmanager
    def _together(self, what: str) -> Iterator[None]:
        self._calls += 1
        try:
            yield
        except RuntimeError as error:
            # gloo has no errors of its own, but names its source file.
            if not isinstance(error, dist.DistError) and "gloo" not in str(error):
                raise
            raise UnavailableError(
                f"worker {self.rank} of {self.world}: {what}: expected all workers to take part "
                f"within {self._deadline:g} s, but {self._missing()} "
                f"({str(error).strip().splitlines()[0]}); see what it said, and go back to the "
                f"last checkpoint"
            ) from error

    def _missing(self) -> str:
        """Who is not known to have come to this call: those who did tell one another so."""
        call = f"terrace/{self._name}/{self._calls}"
        others = set(range(self.world)) - {self.rank}
        try:
            meeting: Any = dist.distributed_c10d._get_default_store()
            meeting.set(f"{call}/{self.rank}", "here")
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
