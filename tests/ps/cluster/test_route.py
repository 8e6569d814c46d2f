"""Route: rows to their owner and back, each where it belongs, whatever the tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ps.cluster.route import EndedError, LaterError, Route
from ps.partition import Partition
from tests.ps.cluster.alone import alone


def needs_of(*counts: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(3)
    return {
        f"t{i}": (
            rng.choice(1 << 40, count, replace=False).astype(np.uint64),
            rng.integers(1, 9, count).astype(np.int32),
        )
        for i, count in enumerate(counts)
    }


@pytest.mark.parametrize("counts", [(50,), (50, 0, 7), (0,), (0, 0)])
def test_rows_go_there_and_back(tmp_path: Path, counts: tuple[int, ...]) -> None:
    needs = needs_of(*counts)
    with alone(tmp_path) as exchange:
        route = Route.plan(exchange, Partition(1), needs)
        sent, back = {}, {}
        for i, (name, (keys, uses)) in enumerate(needs.items()):
            lent = route.lent[name]
            at = {int(key): number for number, key in enumerate(keys)}
            order = [at[int(key)] for key in lent.keys]
            assert sorted(order) == list(range(len(keys)))
            assert lent.uses.tolist() == uses[order].tolist()
            assert list(lent.sizes) == [len(keys)] == list(route.wanted[name].sizes)
            sent[name] = torch.rand(len(keys), i + 1)
            back[name] = torch.from_numpy(lent.keys.astype(np.float64))[lent.inverse, None]
        came = route.to_owners(exchange, sent)
        returned = route.from_owners(exchange, back)
        for name, (keys, _) in needs.items():
            assert came[name].equal(sent[name][route.wanted[name].order])
            there = returned[name][route.wanted[name].places, 0].numpy()
            assert there.tolist() == keys.astype(np.float64).tolist()


def test_who_ends_or_would_rather_wait_ends_it_for_all(tmp_path: Path) -> None:
    with alone(tmp_path) as exchange:
        with pytest.raises(LaterError):
            Route.plan(exchange, Partition(1), needs_of(3), later=True)
        Route.end(exchange, 2)
        ends = exchange.table

        def end(counts: np.ndarray) -> np.ndarray:
            counts[:, 0] = 2
            return ends(counts)

        exchange.table = end  # type: ignore[method-assign]
        with pytest.raises(EndedError, match="has ended its loop"):
            Route.plan(exchange, Partition(1), needs_of(3))
