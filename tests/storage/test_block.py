"""Blocks fill LMDB's pages exactly, waste little, and show when a single bit has changed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.block import (
    BlockShape,
    is_sound,
    pack_run,
    pack_tombstone,
    run_of,
    seal,
    unpack_run,
    unpack_tombstone,
)
from storage.codec import CODECS

shapes = st.builds(
    BlockShape, st.integers(1, 2048), st.sampled_from([0, 1, 2, 64, 2048]),
    st.sampled_from(list(CODECS.values())),
)  # fmt: skip


def blocks_of(shape: BlockShape, *counts: int) -> np.ndarray:
    """Blocks with these numbers of rows, random all over."""
    rng = np.random.default_rng(0)
    blocks = np.zeros(len(counts), shape.dtype)
    for block, count in zip(blocks, counts, strict=True):
        block["count"] = count
        block["keys"][:count] = rng.integers(0, 2**64 - 1, count, dtype=np.uint64)
        block["records"][:count] = rng.integers(0, 256, (count, shape.record_bytes))
    return blocks


def check_geometry(shape: BlockShape) -> None:
    assert 1 <= shape.rows <= 255
    assert shape.bytes == shape.pages * 4096 - 16 == shape.dtype.itemsize
    assert 1 << shape.place_bits >= shape.rows
    used = sum(kind.itemsize for kind, *_ in shape.dtype.fields.values())
    assert used <= shape.bytes
    if shape.rows > 1:
        assert shape.rows * shape.stored_bytes >= 0.8 * 4096 * shape.pages


@pytest.mark.parametrize("dim", [1, 2, 3, 8, 16, 64, 128, 250, 1024, 2048])
@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("state", [0, 1, -1])
def test_common_rows_fill_whole_pages(dim: int, name: str, state: int) -> None:
    check_geometry(BlockShape(dim, dim if state < 0 else state, CODECS[name]))


@given(shapes)
def test_rows_of_any_size_fill_whole_pages_and_waste_at_most_a_fifth(shape: BlockShape) -> None:
    check_geometry(shape)


def test_a_smaller_number_of_pages_would_waste_more() -> None:
    for dim in range(1, 2048, 13):
        shape = BlockShape(dim, 1, CODECS["float32"])
        for pages in range(1, shape.pages):
            rows = min(255, (pages * 4096 - 32) // shape.stored_bytes)
            assert rows * shape.stored_bytes < 0.8 * 4096 * pages


@given(shapes, st.integers(0, 2**40), st.data())
@settings(max_examples=40)
def test_a_flipped_bit_anywhere_is_seen(shape: BlockShape, first: int, data: st.DataObject) -> None:
    sealed = [bytes(block) for block in seal(blocks_of(shape, shape.rows, 1), first)]
    assert [len(block) for block in sealed] == [shape.bytes] * 2
    assert all(is_sound(block, first + i) for i, block in enumerate(sealed))
    place = data.draw(st.integers(0, 8 * shape.bytes - 1))
    torn = bytearray(sealed[0])
    torn[place // 8] ^= 1 << place % 8
    assert not is_sound(bytes(torn), first)


def test_a_block_in_the_place_of_another_is_not_sound() -> None:
    sealed = seal(blocks_of(BlockShape(16, 1, CODECS["float32"]), 3, 3), 7)
    assert not is_sound(bytes(sealed[0]), 8) and is_sound(bytes(sealed[1]), 8)


@pytest.mark.parametrize("length", [0, 3, 4, 15, 16, 100])
def test_a_block_that_is_cut_off_is_not_sound(length: int) -> None:
    whole = bytes(seal(blocks_of(BlockShape(16, 1, CODECS["float32"]), 3), 0)[0])
    assert not is_sound(whole[:length], 0)


def test_a_run_gives_back_counts_and_keys() -> None:
    blocks = blocks_of(BlockShape(16, 1, CODECS["float32"]), 5, 1, 0, 9)
    run = unpack_run(70, pack_run(70, blocks))
    assert run is not None
    first, rows, keys = run
    assert (first, rows.tolist()) == (70, [5, 1, 0, 9])
    wanted = [block["keys"][: block["count"]] for block in blocks]
    np.testing.assert_array_equal(keys, np.concatenate(wanted))


def test_a_block_alone_gives_the_same_run() -> None:
    blocks = blocks_of(BlockShape(16, 1, CODECS["float32"]), 5)
    alone = run_of(3, bytes(seal(blocks, 3)[0]))
    packed = unpack_run(3, pack_run(3, blocks))
    assert packed is not None and alone[0] == packed[0]
    for mine, theirs in zip(alone[1:], packed[1:], strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_damaged_run_or_one_in_the_place_of_another_is_none() -> None:
    value = pack_run(70, blocks_of(BlockShape(4, 0, CODECS["int8"]), 5, 6))
    assert unpack_run(71, value) is None
    for place in range(len(value)):
        torn = bytearray(value)
        torn[place] ^= 0x10
        assert unpack_run(70, bytes(torn)) is None
    assert unpack_run(70, value[:3]) is None


def test_a_tombstone_gives_back_end_and_keys_and_is_none_when_damaged() -> None:
    keys = np.array([0, 7, 2**64 - 1], np.uint64)
    value = pack_tombstone(5, 2**40, keys)
    found = unpack_tombstone(5, value)
    assert found is not None and found[0] == 2**40 and found[1].tolist() == keys.tolist()
    assert unpack_tombstone(6, value) is None and unpack_tombstone(5, value[:15]) is None
    for place in range(len(value)):
        torn = bytearray(value)
        torn[place] ^= 0x10
        assert unpack_tombstone(5, bytes(torn)) is None
