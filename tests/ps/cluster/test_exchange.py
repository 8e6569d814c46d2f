"""Exchange: what one worker says to itself; several are in test_partitioned.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from storage.errors import ConfigError, StoreError
from tests.ps.cluster.alone import alone


def test_one_worker_hears_what_it_says(tmp_path: Path) -> None:
    with alone(tmp_path) as exchange:
        assert (exchange.rank, exchange.world) == (0, 1)
        assert exchange.table(np.array([[3, 4]])).tolist() == [[3, 4]]
        rows = torch.arange(6.0).view(3, 2)
        assert exchange.split(rows, [3], [3]).equal(rows)
        assert exchange.split(rows[:0], [0], [0]).shape == (0, 2)
        assert exchange.most(3, -5) == [3, -5]
        assert exchange.sum(0.5, 2.0) == [0.5, 2.0]
        for word in (b"", b"a word", bytes(range(256))):
            assert exchange.words(word) == [word]
            assert exchange.word_of_first(word) == word
        exchange.close()
        exchange.close()


def test_what_one_cannot_do_is_an_error_and_others_are_not_hidden(tmp_path: Path) -> None:
    def fail() -> None:
        raise StoreError("the reason")

    with alone(tmp_path) as exchange:
        done: list[int] = []
        exchange.all("work", lambda: done.append(1))
        assert done == [1]
        with pytest.raises(StoreError, match="the reason"):
            exchange.all("work", fail)
        with pytest.raises(ConfigError):
            exchange.all("work", lambda: (_ for _ in ()).throw(ConfigError("no")))
        with pytest.raises(ZeroDivisionError):  # nobody else's business, and no silence
            exchange.all("work", lambda: done.append(1 // 0))
        with pytest.raises(RuntimeError, match="Split sizes"):
            exchange.split(torch.zeros(2, 2), [3], [3])
