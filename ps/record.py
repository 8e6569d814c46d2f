"""Record: what backward leaves behind for the step, and how a table's records become one apply.

Backward only records; the step sums each row's gradients over all records of its table, in the
order they were recorded and in batch order inside each, and applies the optimizer once. One record
goes through a fused kernel, several through a buffer, with the same bits. Where the table has a
doorkeeper, it is asked here which rows the step trains; the gradients of the others are dropped.

Threads: a record belongs to the thread that trains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ps.device import apply_tensors, merge_tensors
from ps.gradient import group, merge, merge_max
from ps.pool import Pool
from ps.stack import Stack
from ps.update import apply_bags, apply_rows
from ps.workingset import Hold
from storage.array import FloatArray
from storage.keys import dedupe
from storage.rows import Counts, Floats, Positions

_NO_WEIGHTS = np.empty(0, np.float32)


@dataclass(frozen=True, slots=True)
class Record:
    """The gradient of one use of a table.

    positions: (U,) int64 of the rows used. inverse: (N,) int32, the row of each access. bags: (N,)
    int32, the bag of each access. weights: (N,) float32, its factor, (0,) for 1.
    gradient: (bags, D) float32 of the pooled output, on the store's device. argmax: (bags, D)
    int32, the access that each float came from, for pooling by maximum, else None. holds: keep the
    rows pinned. finite: no NaN or infinity in ``gradient``. counts: (U,) int32, accesses of each
    row where that is more than ``inverse`` says, in place of several records, else None.
    """

    positions: Positions
    inverse: NDArray[np.int32]
    bags: NDArray[np.int32]
    weights: Floats
    gradient: Tensor
    argmax: NDArray[np.int32] | None
    holds: tuple[Hold, ...]
    finite: bool
    counts: Counts | None = None

    @property
    def uses(self) -> Counts:
        """(U,) int32: accesses of each row."""
        if self.counts is not None:
            return self.counts
        return np.bincount(self.inverse, minlength=len(self.positions)).astype(np.int32)

    def drop(self) -> None:
        """Let go of the rows: the step is done, or left out."""
        for hold in self.holds:
            hold.drop()


def apply(
    stack: Stack, records: Sequence[Record], pool: Pool, *, lr: float, step: int, scale: float
) -> int:
    """Apply one step's records of a table to its rows: how many rows were skipped as not finite.

    lr, step: of this step, step 1 the first. scale: multiplies all gradients. The rows must be
    pinned by the records' holds.
    """
    stack.step = max(stack.step, step)
    if isinstance(stack.top.array, FloatArray) and stack.top.array.host is None:
        return _apply_on_device(stack, records, lr=lr, step=step, scale=scale)
    table, top = stack.table, stack.top
    assert isinstance(top.array, FloatArray) and top.array.host is not None
    head = (table.optimizer.kind, table.optimizer.hyper(lr=lr, step=step), step, scale)
    rows = (*top.array.host, top.steps, top.dirty)
    if len(records) == 1 and records[0].argmax is None:
        record = records[0]
        positions, inverse, dropped = record.positions, record.inverse, 0
        if stack.doorkeeper is not None:
            kept = _trained(stack, positions, record.uses, step)
            # Accesses of all other rows are brought together behind those of the last one.
            number = np.full(len(positions), len(kept), np.int32)
            number[kept] = np.arange(len(kept))
            positions, inverse, dropped = positions[kept], number[inverse], 1
        starts, order = group(inverse, len(positions) + dropped)
        tail = (starts, order, record.bags, record.weights, record.gradient.numpy())
        return sum(pool.run(apply_bags, len(positions), *head, *rows, positions, *tail))
    condensed = condense(table.dim, records, pool)
    return apply_condensed(stack, *condensed, pool, lr=lr, step=step, scale=scale)


def apply_condensed(
    stack: Stack,
    positions: Positions,
    gradients: Floats,
    uses: Counts,
    pool: Pool,
    *,
    lr: float,
    step: int,
    scale: float,
) -> int:
    """`apply` what `condense` gave, to rows in host memory, with the same bits.

    positions: (U,) int64, unique and pinned. gradients: (U, D) float32. uses: (U,) int32.
    """
    stack.step = max(stack.step, step)
    table, top = stack.table, stack.top
    assert isinstance(top.array, FloatArray) and top.array.host is not None
    if stack.doorkeeper is not None:
        kept = _trained(stack, positions, uses, step)
        positions, gradients = positions[kept], gradients[kept]
    head = (table.optimizer.kind, table.optimizer.hyper(lr=lr, step=step), step, scale)
    rows = (*top.array.host, top.steps, top.dirty)
    return sum(pool.run(apply_rows, len(positions), *head, *rows, positions, gradients))


def condense(dim: int, records: Sequence[Record], pool: Pool) -> tuple[Positions, Floats, Counts]:
    """The rows of all records, each once, the sum of its gradients, and its accesses.

    (U,) int64, (U, D) float32, (U,) int32. On the host. Rows are in order of first use.
    """
    union, numbers = _united(records)
    gradients = np.zeros((len(union), dim), np.float32)
    for record, number in zip(records, numbers, strict=True):
        starts, order = group(number[record.inverse], len(union))
        where = (starts, order, record.bags)
        gradient = record.gradient.cpu().numpy()
        if record.argmax is None:
            pool.run(merge, len(union), *where, record.weights, gradient, gradients)
        else:
            pool.run(merge_max, len(union), *where, record.argmax, gradient, gradients)
    return union, gradients, _uses(records, numbers, len(union))


def merged(dim: int, records: Sequence[Record], pool: Pool) -> tuple[Positions, Tensor, Counts]:
    """`condense`, the sums (U, D) left where the gradients are. records: one or more."""
    if records[0].gradient.device.type == "cpu":
        positions, gradients, uses = condense(dim, records, pool)
        return positions, torch.from_numpy(gradients), uses
    union, numbers, total = _united_on_device(records)
    return union, total, _uses(records, numbers, len(union))


def condensed(dim: int, records: Sequence[Record], pool: Pool) -> Record:
    """One record in place of several, with the same sums and all their pins."""
    positions, gradients, uses = condense(dim, records, pool)
    each = np.arange(len(positions), dtype=np.int32)
    finite = all(record.finite for record in records)
    device = records[0].gradient.device
    tensor = torch.from_numpy(gradients).to(device)
    holds = tuple(hold for record in records for hold in record.holds)
    return Record(positions, each, each, _NO_WEIGHTS, tensor, None, holds, finite, uses)


def _united(records: Sequence[Record]) -> tuple[Positions, list[NDArray[np.int32]]]:
    """The rows of all records, each once, in order of first use; and where each record's went."""
    union, numbers, _ = dedupe(np.concatenate([r.positions for r in records]).view(np.uint64))
    edges = np.cumsum([len(record.positions) for record in records])[:-1]
    return union.view(np.int64), np.split(numbers, edges)


def _uses(
    records: Sequence[Record], numbers: Sequence[NDArray[np.int32]], unique_count: int
) -> Counts:
    """(U,) int32: accesses of each row of `_united` by all records."""
    uses = np.zeros(unique_count, np.int32)
    for record, number in zip(records, numbers, strict=True):
        uses[number] += record.uses
    return uses


def _trained(stack: Stack, positions: Positions, uses: Counts, step: int) -> Positions:
    """(n,) int64, ascending: which of these pinned rows the step trains, by the doorkeeper.

    positions: (U,) int64, unique. uses: (U,) int32, accesses of each in this step.
    """
    assert stack.doorkeeper is not None
    trained = stack.top.steps[positions] > 0
    new = np.flatnonzero(~trained & (uses > 0))
    trained[new] = stack.doorkeeper.admits(stack.top.keys_at(positions[new]), uses[new], step)
    return np.flatnonzero(trained)


def _apply_on_device(
    stack: Stack, records: Sequence[Record], *, lr: float, step: int, scale: float
) -> int:
    """`apply` with torch operations where the top tier is."""
    array, table, device = stack.top.array, stack.table, records[0].gradient.device
    assert isinstance(array, FloatArray)
    union, numbers, total = _united_on_device(records)
    if stack.doorkeeper is not None:
        kept = _trained(stack, union, _uses(records, numbers, len(union)), step)
        union, total = union[kept], total.index_select(0, torch.from_numpy(kept).to(device))
    positions = torch.from_numpy(union).to(device)
    skipped = apply_tensors(
        table.optimizer, array.embeddings, array.state, positions, total,
        lr=lr, step=step, scale=scale,
    )  # fmt: skip
    good = union[~skipped.cpu().numpy()]
    stack.top.steps[good] = step
    stack.top.dirty[good] = 1
    return len(union) - len(good)


def _united_on_device(
    records: Sequence[Record],
) -> tuple[Positions, list[NDArray[np.int32]], Tensor]:
    """`_united`, and the sums of gradients, (U, D), where those are."""
    union, numbers = _united(records)
    inverses = [number[r.inverse] for r, number in zip(records, numbers, strict=True)]
    return union, numbers, _merged_on_device(records, inverses, len(union))


def _merged_on_device(
    records: Sequence[Record], inverses: Sequence[NDArray[Any]], count: int
) -> Tensor:
    """`condense` where the gradients are: (U, D) float32, summed in the same order."""
    device = records[0].gradient.device
    rows = torch.from_numpy(np.concatenate(inverses).astype(np.int64)).to(device)
    if len(records) == 1 and records[0].argmax is None:
        bags, weights = _on_device(records[0])
        return merge_tensors(rows, bags, weights, records[0].gradient, count)
    parts = torch.cat([_by_access(record) for record in records])
    return merge_tensors(rows, torch.arange(len(parts), device=device), None, parts, count)


def _by_access(record: Record) -> Tensor:
    """(N, D): what each access has of its bag's gradient."""
    bags, weights = _on_device(record)
    parts = record.gradient[bags]
    if record.argmax is not None:
        argmax = torch.from_numpy(record.argmax).to(parts.device)[bags]
        access = torch.arange(len(bags), device=parts.device).unsqueeze(1)
        return torch.where(argmax == access, parts, 0.0)
    return parts if weights is None else parts * weights.unsqueeze(1)


def _on_device(record: Record) -> tuple[Tensor, Tensor | None]:
    device = record.gradient.device
    bags = torch.from_numpy(record.bags.astype(np.int64)).to(device)
    return bags, torch.from_numpy(record.weights).to(device) if len(record.weights) else None
