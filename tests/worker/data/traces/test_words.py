"""Words: the width is told from the first of them; every bit pattern is a key."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import DataError
from worker.data.traces.words import read_words, width_of


def ids(kind: str, count: int, seed: int) -> np.ndarray:
    """Keys as traces have them: skewed ids, a scan, ids above 32 bits, and hashes, with repeats."""
    rng = np.random.default_rng(seed)
    skewed = rng.zipf(1.2, count).astype(np.uint64) % np.uint64(10_000)
    if kind == "skewed":
        return skewed
    if kind == "scan":
        return np.arange(count, dtype=np.uint64)
    if kind == "blocks":
        return skewed * np.uint64(512) + np.uint64(2**31)
    if kind == "wide":
        return skewed * np.uint64(2**22 + 1)
    return rng.integers(0, 2**63, 10_000).astype(np.uint64)[skewed.astype(np.int64)]


@pytest.mark.parametrize("count", [100, 1000, 30_000])
@pytest.mark.parametrize("kind", ["skewed", "scan", "blocks"])
@pytest.mark.parametrize("width", [4, 8])
def test_small_ids_have_the_width_they_were_written_in(kind: str, count: int, width: int) -> None:
    for seed in range(5):
        head = ids(kind, count, seed).astype(f">u{width}").tobytes()
        assert width_of(head) == f"int{8 * width}"


@pytest.mark.parametrize("kind", ["wide", "hashed"])
def test_large_ids_are_of_64_bits(kind: str) -> None:
    for seed in range(5):
        assert width_of(ids(kind, 5000, seed).astype(">u8").tobytes()) == "int64"


def test_hashes_of_32_bits_are_not_taken_for_64() -> None:
    for seed in range(5):
        keys = ids("hashed", 5000, seed) & np.uint64(2**32 - 1)
        assert width_of(keys.astype(">u4").tobytes()) == "int32"


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=50))
def test_every_pattern_of_64_bits_is_a_key(
    tmp_path_factory: pytest.TempPathFactory, keys: list[int]
) -> None:
    path = tmp_path_factory.getbasetemp() / "words"
    path.write_bytes(np.array(keys, np.uint64).astype(">u8").tobytes())
    (piece,) = read_words(path, "int64")
    assert piece.keys.tolist() == keys


def test_words_of_32_bits_are_widened_without_a_sign(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(bytes([255, 255, 255, 254, 0, 0, 1, 0]))
    (piece,) = read_words(tmp_path / "t", "int32")
    assert piece.keys.tolist() == [2**32 - 2, 256]


def test_an_odd_number_of_bytes_is_said(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(bytes(12))
    with pytest.raises(DataError, match=r"t: expected int64, 8 bytes a key, got 12 bytes, 4 too"):
        list(read_words(tmp_path / "t", "int64"))
