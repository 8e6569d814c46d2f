from __future__ import annotations

from pathlib import Path

import pytest

import ps
from ps.server.place import Place
from storage.errors import ConfigError, MismatchError

TABLE = ps.Table("ads", dim=2)


def test_a_folder_is_one_shards_for_good(tmp_path: Path) -> None:
    for _ in range(2):
        with ps.open(tmp_path, [TABLE], ram="4MiB") as store:
            Place(1, 2).claim(store)
    with ps.open(tmp_path, [TABLE], ram="4MiB") as store:
        for other in (Place(0, 2), Place(1, 3)):
            with pytest.raises(MismatchError, match="this folder has shard 1/2"):
                other.claim(store)


@pytest.mark.parametrize(("shard", "shards"), [(2, 2), (-1, 2), (0, 0), (0, 2000)])
def test_a_place_that_cannot_be_is_refused(shard: int, shards: int) -> None:
    with pytest.raises(ConfigError):
        Place(shard, shards)
