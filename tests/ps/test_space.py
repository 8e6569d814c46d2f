"""Space: refused before anything has changed; a checkpoint always has room."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest

import ps
from storage.errors import DiskFullError

WIDE = ps.Table("ads", dim=64, optimizer=ps.SGD(lr=1.0), init=ps.Zeros())


def write_until_refused(store: ps.Store) -> int:
    """Write new rows, 500 at a time: how many there are then."""
    start = 0
    with pytest.raises(DiskFullError) as caught:
        while True:
            store.write("ads", np.arange(start, start + 500), np.full((500, 64), 1.0))
            start += 500
    assert "\n" not in str(caught.value) and "--disk" in str(caught.value)
    return start


@pytest.mark.filterwarnings("ignore:.*gave up the checkpoint:ResourceWarning")
def test_a_checkpoint_fits_however_full_the_disk_is(tmp_path: Path) -> None:
    with ps.open(tmp_path, [WIDE], ram="4MiB", disk="12MiB") as store:
        rows = write_until_refused(store)
        assert store.read("ads", np.array([rows, 0]))[:, 0].tolist() == [0.0, 1.0]
        for step in range(1, 5):
            store.checkpoint(step, {"x": bytes(100).hex()})
        assert (tmp_path / "data.mdb").stat().st_size <= 12 << 20
        assert store.check() == []
    with ps.open(tmp_path, None, ram="4MiB", disk="12MiB") as store:
        assert len(store.stacks["ads"].ssd) == rows
        assert store.resume()[0] == 4


def test_the_figures_are_of_the_file(tmp_path: Path) -> None:
    with ps.open(tmp_path, [WIDE], ram="4MiB", disk="12MiB") as store:
        store.write("ads", np.arange(5000), np.ones((5000, 64)))
        store.checkpoint(1)
        found = store.stats()["disk_bytes"]
        assert found["total"] == 12 << 20
        assert 5000 * 268 < found["used"] <= found["file"]


@pytest.mark.filterwarnings("ignore:.*gave up the checkpoint:ResourceWarning")
def test_compaction_leaves_room_for_a_checkpoint(tmp_path: Path) -> None:
    with ps.open(tmp_path, [WIDE], ram="4MiB", disk="14MiB") as store:
        rng, compactor = np.random.default_rng(0), store._upkeep.compactor
        # No cut is made, so nothing that is emptied may go.
        for _ in range(40):
            keys = rng.permutation(30_000)[:2000]
            with contextlib.suppress(DiskFullError):
                store.write("ads", keys, np.full((2000, 64), 1.0))
            with compactor.paused():
                while compactor._tables[0].step(store._upkeep.space.spare, everything=True):
                    pass
            assert store._upkeep.space.spare() >= 0
        store.checkpoint(1)


def test_room_for_the_counts_of_keys_is_kept_from_the_start(tmp_path: Path) -> None:
    left = []
    for number, admission in enumerate([None, ps.CountMin(2, bytes=1 << 20)]):
        table = ps.Table("ads", dim=4, admission=admission)
        with ps.open(tmp_path / str(number), [table], ram="16MiB", disk="32MiB") as store:
            left.append(store._upkeep.space.spare())
    assert left[0] - left[1] >= 1 << 20
