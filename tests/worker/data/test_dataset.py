"""Datasets: what is asked for makes sense, and one that holds nothing out says so."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from storage.errors import ConfigError
from worker.data.batch import Batch
from worker.data.dataset import Dataset


class Numbers(Dataset):
    """Ten examples whose key is their number, in blocks of four."""

    name, dense_names, feature_names = "numbers", (), ("number",)

    @property
    def train_examples(self) -> int:
        return 10

    def _read_train(self, first: int) -> Iterator[Batch]:
        for start in range(first, 10, 4):
            keys = torch.arange(start, min(start + 4, 10))
            size = keys.shape[0]
            yield Batch(torch.zeros(size), torch.zeros(size, 0), keys, torch.arange(size + 1))

    def _read_test(self) -> Iterator[Batch]:
        return iter(())


def test_training_starts_at_the_batch_asked_for() -> None:
    for start in range(6):
        batches = [batch.ids.tolist() for batch in Numbers().train(3, start=start)]
        assert batches == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]][start:]


def test_iterators_of_one_dataset_do_not_disturb_each_other() -> None:
    data = Numbers()
    pairs = zip(data.train(3), data.train(3), strict=True)
    assert all(torch.equal(one.ids, two.ids) for one, two in pairs)


def test_nothing_held_out_gives_no_test_batches() -> None:
    assert list(Numbers().test(5)) == []
    assert Numbers().bad_lines == 0


@pytest.mark.parametrize(("batch_size", "start"), [(0, 0), (-1, 0), (1, -1)])
def test_sizes_that_cannot_be_meant_are_refused_at_once(batch_size: int, start: int) -> None:
    with pytest.raises(ConfigError, match=r"or more, got"):
        Numbers().train(batch_size, start=start)
