"""A folder is whole when its manifest is there, and not before."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import ps
from ps.column import whole_columns
from ps.folder import ExportFolder
from ps.manifest import MANIFEST, check_file, read_manifest
from ps.rowfile import FORMATS, RowFile
from storage.errors import ConfigError, StoreError
from storage.rows import Rows

ADS = ps.Table("ads", dim=2, optimizer=ps.SGD())
FORM = FORMATS["safetensors"]


def pieces(*counts: int) -> Iterator[Rows]:
    key = 0
    for count in counts:
        rows = Rows.empty(count, ADS.width)
        rows.keys[:] = np.arange(key, key + count)
        rows.values[:] = rows.keys[:, None]
        rows.steps[:] = rows.keys
        key += count
        yield rows


@pytest.mark.parametrize("counts", [(), (0, 1), (10,), (3, 3, 3), (25, 0, 5), (1,) * 21])
def test_pieces_of_any_size_become_files_of_one_size(
    tmp_path: Path, counts: tuple[int, ...]
) -> None:
    folder = ExportFolder(tmp_path / "out", FORM)
    sizes = list(folder.write(ADS, pieces(*counts), 10))
    assert not (tmp_path / "out" / MANIFEST).exists()
    manifest = folder.finish()
    total = sum(counts)
    assert sizes == [10] * (total // 10) + [total % 10] * (total % 10 > 0)
    assert read_manifest(tmp_path / "out") == manifest
    keys = []
    for entry in manifest.tables[0].files:
        check_file(tmp_path / "out" / entry.name, entry)
        with RowFile(tmp_path / "out" / entry.name, ADS, FORM, whole_columns(ADS)) as file:
            for rows in file.pieces():
                keys += rows.keys.tolist()
                assert (rows.values == rows.keys[:, None]).all()
                assert (rows.steps == rows.keys).all()
    assert keys == list(range(total))


def test_a_folder_with_anything_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(ConfigError, match="expected an empty folder or none"):
        ExportFolder(tmp_path, FORM)


def test_a_folder_that_cannot_be_written_is_a_store_error(tmp_path: Path) -> None:
    folder = ExportFolder(tmp_path / "out", FORM)
    (tmp_path / "out").rmdir()
    with pytest.raises(StoreError) as error:
        list(folder.write(ADS, pieces(3), 10))
    assert "\n" not in str(error.value)
