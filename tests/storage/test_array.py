"""Row arrays give back what was set, narrowed as their codec says, and memory when they shrink."""

from __future__ import annotations

import numpy as np
import psutil
import pytest
import torch

from storage.array import CodedArray, FloatArray, Region, RowArray
from storage.codec import CODECS

CPU = torch.device("cpu")
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


def random_rows(count: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, width)).astype(np.float32)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("state", [0, 1, 5])
def test_float_rows_come_back_bit_by_bit(device: str, state: int) -> None:
    array, rows = FloatArray(50, 5, state, torch.device(device)), random_rows(20, 5 + state)
    positions = np.random.default_rng(1).permutation(50)[:20]
    array.scatter(positions, rows)
    np.testing.assert_array_equal(array.gather(positions), rows)
    assert array.bytes_per_position == 4 * (5 + state)
    others = np.setdiff1d(np.arange(50), positions)
    assert not array.gather(others).any()


def test_tensors_and_host_views_are_the_same_memory() -> None:
    array = FloatArray(8, 3, 2, CPU)
    assert array.host is not None
    array.embeddings[2, 1] = 5.0
    array.state[2, 0] = 7.0
    assert array.host[0][2, 1] == 5 and array.gather(np.array([2]))[0].tolist() == [0, 5, 0, 7, 0]


@pytest.mark.parametrize("name", CODECS)
def test_coded_rows_come_back_as_the_codec_rounds_them(name: str) -> None:
    codec = CODECS[name]
    array, rows = CodedArray(50, 5, 2, codec), random_rows(20, 7)
    positions = np.random.default_rng(1).permutation(50)[:20]
    array.scatter(positions, rows)
    expected = codec.decode(codec.encode(rows, 5), 5, 2)
    np.testing.assert_array_equal(array.gather(positions), expected)
    assert array.bytes_per_position == codec.record_bytes(5, 2)


@pytest.mark.parametrize("array", [FloatArray(9, 4, 1, CPU), CodedArray(9, 4, 1, CODECS["int8"])])
def test_no_positions_are_fine(array: RowArray) -> None:
    none = np.empty(0, np.int64)
    array.scatter(none, np.empty((0, 5), np.float32))
    assert array.gather(none).shape == (0, 5)


def test_a_released_region_gives_its_pages_back_and_keeps_what_stands_before() -> None:
    size = 64 << 20
    region = Region(size // 8, np.uint64)
    region.array[:] = 7
    full = psutil.Process().memory_info().rss
    region.release(1000)
    assert full - psutil.Process().memory_info().rss > 0.9 * size
    assert (region.array[:1000] == 7).all() and not region.array[-1000:].any()


@pytest.mark.parametrize(
    "array", [FloatArray(4000, 4, 1, CPU), CodedArray(4000, 4, 1, CODECS["int8"])]
)
def test_positions_before_a_release_keep_their_rows(array: RowArray) -> None:
    rows = np.tile(np.arange(4000, dtype=np.float32)[:, None] % 100, 5)
    array.scatter(np.arange(4000), rows)
    array.release(1234)
    np.testing.assert_array_equal(array.gather(np.arange(1234)), rows[:1234])
    array.scatter(np.arange(3990, 4000), rows[:10])
    np.testing.assert_array_equal(array.gather(np.arange(3990, 4000)), rows[:10])


def test_an_empty_region_can_be_released() -> None:
    region = Region(5, np.float32, 0)
    region.release(2)
    assert region.array.shape == (5, 0)
