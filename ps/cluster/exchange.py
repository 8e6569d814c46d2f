"""Exchange: what the workers of a training send each other, all at once.

Every call is collective: all workers make the same calls of one exchange in the same order. Nobody
waits longer than the deadline; where somebody did not come, the others say who.

An exchange has a process group of its own: two threads on one group of gloo hang. What is on the
host travels by gloo, what is on CUDA by NCCL.

Threads: one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from ps.cluster.peers import Peers, backend_for
from storage.errors import StoreError, TerraceError

DEADLINE_SECONDS = 600.0


class Exchange:
    """See the module's docstring; made by all workers together, once torch.distributed is set up.

    name: of this exchange, the same at all workers and no other's. device: of tensors that travel.

    Raises: UnavailableError when the others do not come.
    """

    def __init__(
        self, name: str, device: torch.device, *, deadline_seconds: float = DEADLINE_SECONDS
    ) -> None:
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self._peers = Peers(name, self.rank, self.world, deadline_seconds)
        with self._peers.together("the meeting of all workers"):
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
        with self._peers.together("rows of all workers"):
            dist.all_to_all_single(received, sent, list(expected), list(sizes), group=self._group)
        return received

    def most(self, *values: int) -> list[int]:
        """Of each value the largest that a worker has."""
        largest = torch.tensor(values, dtype=torch.int64)
        with self._peers.together("a word of all workers"):
            dist.all_reduce(largest, dist.ReduceOp.MAX, group=self._group)
        return [int(value) for value in largest]

    def sum(self, *values: float) -> list[float]:
        """Of each value the sum over all workers, in float64."""
        total = torch.tensor(values, dtype=torch.float64)
        with self._peers.together("a sum over all workers"):
            dist.all_reduce(total, group=self._group)
        return [float(value) for value in total]

    def words(self, word: bytes) -> list[bytes]:
        """What every worker says, by rank."""
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world)]
        mine = torch.from_numpy(np.frombuffer(bytearray(word), np.uint8))
        with self._peers.together("a word of each worker"):
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
        with self._peers.together("a word of worker 0"):
            dist.broadcast(size, 0, group=self._group)
            held = torch.zeros(int(size), dtype=torch.uint8)
            if self.rank == 0:
                held[:] = torch.from_numpy(np.frombuffer(bytearray(word), np.uint8))
            if len(held):
                dist.broadcast(held, 0, group=self._group)
        return held.numpy().tobytes()
