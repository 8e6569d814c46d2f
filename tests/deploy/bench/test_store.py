"""The figures of `terrace bench store` are there, and are of this size."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.bench.store import Plan, bench_store
from storage.errors import ConfigError

FIGURES = (
    "read_rows_per_s", "device_read_iops", "read_fraction", "append_rows_per_s",
    "plain_file_bytes_per_s", "append_fraction", "row_store_rows_per_s", "write_amplification",
    "space_amplification", "index_bytes_per_row", "open_rows_per_s",
)  # fmt: skip


def test_all_figures(tmp_path: Path) -> None:
    said: list[str] = []
    try:
        found = bench_store(Plan(tmp_path, 40_000, 16, rounds=1, reads=64, peers=True), said.append)
    except ConfigError as error:
        pytest.skip(str(error))
    assert all(found[name] > 0 for name in FIGURES)
    assert found["index_bytes_per_row"] < 30
    assert found["rows_written_over_rows_given"] < 3
    assert {"read_rows_per_s", "append_rows_per_s"} <= found["peers"]["memory-mapped array"].keys()
    assert any("reading" in line for line in said)
