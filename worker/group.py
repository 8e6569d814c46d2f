"""Group: the workers of one training, and what they do together.

One worker is a group as well: then every call gives back what it got, and nothing is set up. More
meet through torch.distributed: gloo for what lies on the host, nccl for gradients on CUDA.

Every call is collective: each worker makes the same calls in the same order. None waits longer than
the deadline, and where a worker's process ends, the others' calls end at once.

Threads: the one that trains. Not the prefetch thread: two threads on one gloo group hang.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from ps.cluster.peers import Peers, join
from ps.launch import Launch
from storage.errors import ConfigError

_DEADLINE_SECONDS = 600.0


class Group:
    """Use as a context manager, or ``close`` it.

    device: where the layers are. meet: how the workers find each other, a URL as of
    torch.distributed.init_process_group; "env://" is what torchrun provides for.

    Raises: ConfigError; UnavailableError when the others do not come.
    """

    def __init__(
        self,
        launch: Launch | None = None,
        *,
        device: torch.device | str = "cpu",
        meet: str = "env://",
        deadline_seconds: float = _DEADLINE_SECONDS,
    ) -> None:
        launch = launch or Launch()
        self.rank, self.world = launch.rank, launch.world
        self._deadline = deadline_seconds
        self._peers = Peers("group", self.rank, self.world, deadline_seconds)
        if deadline_seconds <= 0:
            raise ConfigError(f"deadline: expected more than 0 s, got {deadline_seconds}")
        if self.world > 1:
            self._join(launch, torch.device(device), meet)

    def __enter__(self) -> Group:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave, without waiting for anybody. Twice is fine."""
        if self.world > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module such that backward leaves the same gradients at all workers: their *sum*.

        So each worker's loss is its part of the whole loss, for parameters and for rows of a store
        alike: the anchors of a store's tables (see `worker.lookup`) are no parameters, so rows'
        gradients stay with the worker that has them. Parameters start as those of rank 0. The
        forward pass has to use every parameter, even for a batch without examples.
        """
        if self.world == 1:
            return module
        with self._peers.together("the layers' first values"):
            wrapped = DistributedDataParallel(module)  # without device_ids inputs are not moved
        # Buffers are constants here: no broadcast a step. As an argument, newer torch warns of it.
        wrapped.broadcast_buffers = False
        # DDP divides by the number of workers otherwise. Not annotated: it compares annotations
        # with classes, and here they are text.
        wrapped.register_comm_hook(None, lambda state, bucket: _summed(bucket.buffer()))
        return wrapped

    def backward(self, loss: Tensor) -> None:
        """``loss.backward()``; what `wrap`-ped modules got is summed when it returns."""
        with self._peers.together("gradients"):
            loss.backward()

    def sum(self, values: Tensor) -> Tensor:
        """Sum over all workers, on the host: of the shape and dtype given, a copy."""
        total = values.detach().cpu().clone()
        if self.world > 1:
            with self._peers.together("a sum"):
                dist.all_reduce(total)
        return total

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Each flag: whether it is true at any worker."""
        if self.world == 1:
            return flags
        return tuple(bool(count) for count in self.sum(torch.tensor(flags, dtype=torch.int32)))

    def gather(self, *columns: Tensor, most: int) -> tuple[Tensor, ...]:
        """Each column of all workers, joined by rising rank, on the host.

        columns: (n,) float32 each, with the same n, which may differ from worker to worker but is
        at most ``most`` at each. One worker gets its own columns back.
        """
        if self.world == 1:
            return columns
        count = len(columns[0])
        assert count <= most, (count, most)
        sent = torch.zeros((len(columns) + 1, max(1, most)))
        sent[0].view(torch.int32)[0] = count  # its bits: nothing is computed on the way
        for row, column in zip(sent[1:], columns, strict=True):
            row[:count] = column.detach()
        parts = [torch.empty_like(sent) for _ in range(self.world)]
        with self._peers.together("figures"):
            dist.all_gather(parts, sent)
        counts = [int(part[0].view(torch.int32)[0]) for part in parts]
        return tuple(
            torch.cat([part[i][:n] for part, n in zip(parts, counts, strict=True)])
            for i in range(1, len(columns) + 1)
        )

    def _join(self, launch: Launch, device: torch.device, meet: str) -> None:
        if dist.is_initialized():
            raise ConfigError(
                "Group: expected no process group in this process, found one; close the other "
                "Group, or leave init_process_group to this one"
            )
        if device.type == "cuda":
            torch.cuda.set_device(device)
        with self._peers.together("the meeting of all workers", kinds=(RuntimeError,)):
            join(launch, device, meet=meet, deadline_seconds=self._deadline)


def _summed(buffer: Tensor) -> Future[Tensor]:
    """The sum over all workers, in place, when it is there."""
    future = dist.all_reduce(buffer, async_op=True).get_future()
    return future.then(lambda done: done.value()[0])  # type: ignore[no-any-return]
