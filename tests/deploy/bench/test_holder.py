"""Holders: each gives back the rows that it was given, after it was closed, too."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from deploy.bench.holder import Terrace, installed_peers, open_holder

ROWS, DIM = 3000, 8


@pytest.mark.parametrize("name", [Terrace.name, *installed_peers()])
def test_rows_come_back(name: str, tmp_path: Path) -> None:
    keys = np.random.default_rng(0).permutation(ROWS).astype(np.uint64)
    values = np.repeat(keys.astype(np.float32)[:, None], DIM, axis=1)
    with closing(open_holder(name, tmp_path / "x", DIM, ROWS)) as holder:
        for part in np.array_split(np.arange(ROWS), 3):
            holder.append(keys[part], values[part])
        holder.sync()
        assert (holder.read(keys[:100]) == values[:100]).all()
        assert holder.file.exists()
    with closing(open_holder(name, tmp_path / "x", DIM, ROWS)) as holder:
        assert (holder.read(keys) == values).all()
