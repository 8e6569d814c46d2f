"""A batch of training examples: labels, dense values and bags of keys, in tensors on the host.

A batch may share memory with the batches beside it, so its tensors are read and never written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """B examples of I dense values and F features.

    labels: (B,) float32, 0 or 1. dense: (B, I) float32. ids: (N,) int64, the bit pattern of the
    uint64 key; bags are example-major (example 0 feature 0, example 0 feature 1, ...). offsets:
    (B*F+1,) int64, from 0 to N: bag b of the flattened order is ``ids[offsets[b]:offsets[b+1]]``.
    With one key a bag ``offsets`` counts 0, 1, 2, ...
    """

    labels: Tensor
    dense: Tensor
    ids: Tensor
    offsets: Tensor

    @property
    def size(self) -> int:
        """B, the number of examples."""
        return int(self.labels.shape[0])

    @property
    def features(self) -> int:
        """F, the number of bags an example has; 0 for a batch without examples."""
        return (int(self.offsets.shape[0]) - 1) // self.size if self.size else 0

    def slice(self, start: int, stop: int) -> Batch:
        """Examples ``start`` to ``stop - 1``; labels, dense and ids are views."""
        bags = self.features
        offsets = self.offsets[start * bags : stop * bags + 1]
        first, last = int(offsets[0]), int(offsets[-1])
        return Batch(
            self.labels[start:stop], self.dense[start:stop], self.ids[first:last], offsets - first
        )


def one_each(
    labels: NDArray[np.float32], dense: NDArray[np.float32], keys: NDArray[np.int64]
) -> Batch:
    """A batch with one key a bag; shares the arrays' memory.

    labels: (B,) float32. dense: (B, I) float32. keys: (B, F) int64.
    """
    return Batch(
        torch.from_numpy(labels),
        torch.from_numpy(dense),
        torch.from_numpy(keys.reshape(-1)),
        torch.arange(keys.size + 1),
    )


def join(parts: Sequence[Batch]) -> Batch:
    """The examples of all parts in order, a copy; the part itself when there is one.

    parts: at least one, with the same I and F.
    """
    if len(parts) == 1:
        return parts[0]
    offsets = [parts[0].offsets]
    for part in parts[1:]:
        offsets.append(part.offsets[1:] + offsets[-1][-1])
    return Batch(
        torch.cat([part.labels for part in parts]),
        torch.cat([part.dense for part in parts]),
        torch.cat([part.ids for part in parts]),
        torch.cat(offsets),
    )


def rebatch(blocks: Iterator[Batch], batch_size: int) -> Iterator[Batch]:
    """The examples of ``blocks`` in order in batches of ``batch_size``; the last may be smaller.

    blocks: of any sizes; how the examples are cut into blocks leaves no trace in the batches.
    """
    waiting: list[Batch] = []
    have = 0
    for block in blocks:
        start = 0
        while have + block.size - start >= batch_size:
            stop = start + batch_size - have
            waiting.append(block.slice(start, stop))
            yield join(waiting)
            waiting, have, start = [], 0, stop
        if start < block.size:
            waiting.append(block.slice(start, block.size))
            have += block.size - start
    if waiting:
        yield join(waiting)
