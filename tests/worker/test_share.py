"""Shares cover every batch once; turns give each worker equally many whole batches."""

from __future__ import annotations

import pytest
import torch

from worker.data.batch import Batch, join
from worker.share import Share, turns


def _batch(size: int) -> Batch:
    """Two bags an example, of one and of two keys."""
    offsets = [0]
    for _ in range(size):
        offsets += [offsets[-1] + 1, offsets[-1] + 3]
    labels, ids = torch.arange(size, dtype=torch.float32), torch.arange(3 * size)
    return Batch(labels, labels[:, None], ids, torch.tensor(offsets))


@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.parametrize("size", [1, 2, 6, 20])
def test_shares_cover_the_batch_in_order(size: int, world: int) -> None:
    whole = _batch(size)
    shares = [Share.of(whole, rank=rank, world=world) for rank in range(world)]
    sizes = [share.batch.size for share in shares]
    assert max(sizes) - min(sizes) <= 1
    assert sum(share.weight for share in shares) == pytest.approx(1.0)
    assert {share.total for share in shares} == {size}
    joined = join([share.batch for share in shares if share.batch.size])
    for name in ("labels", "dense", "ids", "offsets"):
        assert torch.equal(getattr(joined, name), getattr(whole, name)), name


def test_one_worker_has_the_batch_itself() -> None:
    whole = _batch(3)
    assert Share.of(whole, rank=0, world=1).batch is whole
    assert Share.of(whole, rank=0, world=1).weight == 1.0


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("count", [0, 1, 3, 4])
def test_every_batch_is_in_one_workers_turns(count: int, world: int) -> None:
    sizes = range(1, count + 1)
    each = [
        [batch.size for batch in turns(map(_batch, sizes), rank=rank, world=world)]
        for rank in range(world)
    ]
    assert {len(one) for one in each} == {-(-count // world)}
    in_order = [size for together in zip(*each, strict=True) for size in together]
    assert in_order == [*sizes, *[0] * (len(in_order) - count)]
