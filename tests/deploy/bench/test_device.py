"""Device: the figures are of work that was done, and files leave the page cache."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import pytest

from deploy.bench import device
from deploy.bench.device import DEPTHS, plain_appends, random_reads, read_rates, uncache
from storage.errors import ConfigError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "data"
    path.write_bytes(bytes(1 << 20))
    return path


def test_reads_at_every_depth(file: Path) -> None:
    try:
        assert random_reads(file, 3, 64, 0) > 0
    except ConfigError as error:
        pytest.skip(str(error))
    assert set(read_rates(file, 64, 0)) == set(DEPTHS)


def test_fio_is_asked_where_it_is_installed(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fio = tmp_path / "fio"
    fio.write_text('#!/bin/sh\necho \'{"jobs": [{"read": {"iops": 123.5}}]}\'\n')
    fio.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert read_rates(file, 64, 0) == dict.fromkeys(DEPTHS, 123.5)


def test_a_plain_file_is_written_and_removed(tmp_path: Path) -> None:
    assert plain_appends(tmp_path / "plain", 3 << 16, 1 << 16) > 0
    assert list(tmp_path.iterdir()) == []


def test_uncached_files_keep_their_bytes(tmp_path: Path) -> None:
    content = np.random.default_rng(0).bytes(3 * mmap.PAGESIZE)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "x").write_bytes(content)
    uncache(tmp_path)
    assert (tmp_path / "sub" / "x").read_bytes() == content
    assert device.PAGE == 4096
