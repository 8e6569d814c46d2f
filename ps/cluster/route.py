"""Route: who needs which rows of whom, for one batch of all workers; and rows on their way.

Made by all workers together: each says which keys it needs (`Wanted`), and learns what the others
need of it (`Lent`). After that rows travel to owners and back in one exchange, whatever tables
they are of.

Threads: values once made; who sends is who made the exchange.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ps.cluster.exchange import Exchange
from ps.partition import Partition
from storage.errors import StoreError
from storage.keys import dedupe
from storage.rows import Counts, Keys, Positions

_NOW, _LATER, _END = 0, 1, 2
Needs = Mapping[str, tuple[Keys, Counts]]
"""By table: (U,) uint64, unique, and (U,) int32 uses of each."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What this worker needs of one table.

    order: (U,) int64, indices of the keys, those of owner 0 first. sizes: how many of each owner.
    places: (U,) int64, where each key's row is among those that come, in that order.
    """

    order: Positions
    sizes: Sequence[int]
    places: Positions


@dataclass(frozen=True, slots=True)
class Lent:
    """What all workers need of this one's part of a table.

    sizes: how many keys each worker asks for, N together, those of worker 0 first. keys: (U,)
    uint64, each once, in order of first mention. inverse: (N,) int32, which of them each is.
    uses: (U,) int32, of all workers.
    """

    sizes: Sequence[int]
    keys: Keys
    inverse: NDArray[np.int32]
    uses: Counts


class EndedError(StoreError):
    """Another worker says that there is no batch any more."""


class LaterError(StoreError):
    """A worker would rather wait until pins are gone."""


class Route:
    """See the module's docstring. Made by `Route.plan`."""

    def __init__(self, wanted: Mapping[str, Wanted], lent: Mapping[str, Lent]) -> None:
        self.wanted, self.lent = wanted, lent

    @staticmethod
    def plan(
        exchange: Exchange, partition: Partition, needs: Needs, *, later: bool = False
    ) -> Route:
        """Collective. needs: the same tables, in the same order, at every worker. later: this one
        would rather wait.

        Raises, at all workers: EndedError when one says `end` instead; LaterError when one would
        rather wait.
        """
        splits = {name: partition.split(keys) for name, (keys, _) in needs.items()}
        wanted = {name: _wanted(split.order, split.edges) for name, split in splits.items()}
        counts = _counts(
            [one.sizes for one in wanted.values()], exchange.world, _LATER if later else _NOW
        )
        told = exchange.table(counts)
        if (told[:, 0] == _END).any():
            raise EndedError("another worker has ended its loop over batches, this one goes on")
        if (told[:, 0] == _LATER).any():
            raise LaterError
        sizes = {name: [int(n) for n in told[:, 1 + i]] for i, name in enumerate(needs)}
        asked = {
            name: torch.from_numpy(np.stack((keys.view(np.int64), uses.astype(np.int64)), 1))
            for name, (keys, uses) in needs.items()
        }
        came = _to_owners(exchange, asked, wanted, sizes)
        return Route(
            wanted, {name: _lent(pairs.numpy(), sizes[name]) for name, pairs in came.items()}
        )

    @staticmethod
    def end(exchange: Exchange, tables: int) -> None:
        """Instead of `plan`: this worker needs nothing any more. Collective like it."""
        exchange.table(_counts([], exchange.world, _END, width=tables))

    def to_owners(self, exchange: Exchange, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rows of this worker's keys, (U, D), in: those of all `Lent` keys out, (N, D).

        Collective, as is `from_owners`. rows: of all tables of the plan.
        """
        sizes = {name: one.sizes for name, one in self.lent.items()}
        return _to_owners(exchange, rows, self.wanted, sizes)

    def from_owners(self, exchange: Exchange, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rows of all lent keys in, (N, D): those of this worker's keys out, (U, D), in the order
        of owners: see `Wanted.places`.
        """
        out = {name: one.sizes for name, one in self.lent.items()}
        back = {name: one.sizes for name, one in self.wanted.items()}
        return _swap(exchange, rows, out, back)


def _wanted(order: Positions, edges: NDArray[np.int64]) -> Wanted:
    places = np.empty(len(order), np.int64)
    places[order] = np.arange(len(order))
    return Wanted(order, [int(size) for size in np.diff(edges)], places)


def _lent(pairs: NDArray[np.int64], sizes: Sequence[int]) -> Lent:
    """pairs: (N, 2), keys and uses."""
    keys, inverse, _ = dedupe(np.ascontiguousarray(pairs[:, 0]).view(np.uint64))
    uses = np.bincount(inverse, pairs[:, 1], len(keys)).astype(np.int32)
    return Lent(sizes, keys, inverse, uses)


def _counts(
    sizes: Sequence[Sequence[int]], world: int, word: int, width: int = 0
) -> NDArray[np.int64]:
    """(world, 1 + tables): the word of this worker, and rows for each worker of each table."""
    counts = np.zeros((world, 1 + (width or len(sizes))), np.int64)
    counts[:, 0] = word
    for table, each in enumerate(sizes):
        counts[:, 1 + table] = each
    return counts


def _to_owners(
    exchange: Exchange,
    rows: Mapping[str, Tensor],
    wanted: Mapping[str, Wanted],
    expected: Mapping[str, Sequence[int]],
) -> dict[str, Tensor]:
    ordered = {
        name: each.index_select(0, torch.from_numpy(wanted[name].order).to(each.device))
        for name, each in rows.items()
    }
    return _swap(exchange, ordered, {name: one.sizes for name, one in wanted.items()}, expected)


def _swap(
    exchange: Exchange,
    rows: Mapping[str, Tensor],
    sizes: Mapping[str, Sequence[int]],
    expected: Mapping[str, Sequence[int]],
) -> dict[str, Tensor]:
    """Rows of all tables, those for worker 0 first, in one exchange. Of one table nothing is moved
    before or after it.
    """
    names = list(rows)
    width = {name: each.shape[1] for name, each in rows.items()}
    pieces = {name: rows[name].split(list(sizes[name])) for name in names}
    flat = [pieces[name][worker].reshape(-1) for worker in range(exchange.world) for name in names]
    sent = rows[names[0]].reshape(-1) if len(names) == 1 else torch.cat(flat)
    lengths = [[n * width[name] for n in sizes[name]] for name in names]
    coming = [[n * width[name] for n in expected[name]] for name in names]
    came = exchange.split(
        sent.contiguous(), [sum(each) for each in zip(*lengths, strict=True)],
        [sum(each) for each in zip(*coming, strict=True)],
    )  # fmt: skip
    if len(names) == 1:
        return {names[0]: came.view(-1, width[names[0]])}
    parts = came.split([coming[i][w] for w in range(exchange.world) for i in range(len(names))])
    return {
        name: torch.cat(parts[i :: len(names)]).view(-1, width[name])
        for i, name in enumerate(names)
    }
