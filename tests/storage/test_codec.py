"""Codecs: what survives exactly, how far the rest may move, and that a row rounds only once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from storage import codec as C
from storage.errors import ConfigError

DTYPES = list(C.CODECS)
shapes = st.tuples(st.integers(0, 4), st.integers(1, 9))
any_rows = hnp.arrays(np.float32, shapes, elements=st.floats(width=32))


@st.composite
def close_rows(draw: st.DrawFn) -> C.Rows:
    """Rows whose lanes are a few units in the last place apart: int8's steps are below one unit."""
    centre = np.float32(draw(st.floats(-(2.0**100), 2.0**100, width=32)))
    units = draw(hnp.arrays(np.int32, (1, 6), elements=st.integers(-300, 300)))
    return (centre.view(np.int32) + units).astype(np.int32).view(np.float32)


def bits(rows: C.Rows) -> np.ndarray:
    return rows.view(np.uint32)


def torch_row(dtype: torch.dtype, rows: C.Rows) -> C.Rows:
    return torch.from_numpy(rows).to(dtype).float().numpy()


@pytest.mark.parametrize(
    ("dtype", "size"), [("float32", 36), ("bfloat16", 24), ("float16", 24), ("int8", 24)]
)
def test_record_size_counts_lanes_scale_padding_and_state(dtype: str, size: int) -> None:
    # 7 lanes and 2 state values: 28, 14 -> 16, 14 -> 16 and 7 + 8 -> 16 bytes, and 8 of state.
    assert C.codec(dtype).record_bytes(7, 2) == size
    records = C.codec(dtype).encode(np.zeros((3, 9), np.float32), 7)
    assert (records.shape, records.dtype) == ((3, size), np.uint8)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [1, 4, 7])
def test_state_is_kept_to_the_bit(dtype: str, dim: int) -> None:
    patterns = np.random.default_rng(0).integers(0, 2**32, (50, dim + 3), dtype=np.uint32)
    rows = patterns.view(np.float32)
    decoded = C.codec(dtype).decode(C.codec(dtype).encode(rows, dim), dim, 3)
    np.testing.assert_array_equal(bits(decoded)[:, dim:], patterns[:, dim:])


def test_float32_records_are_the_bytes_of_the_rows_with_nan_payloads() -> None:
    patterns = np.array([[0x7FC12345, 0x7F800001, 0x80000000, 0xFF800000]], np.uint32)
    rows = patterns.view(np.float32)
    records = C.codec("float32").encode(rows, 3)
    assert np.shares_memory(records, rows)
    assert records.tobytes() == rows.tobytes()
    np.testing.assert_array_equal(bits(C.codec("float32").decode(records, 3, 1)), patterns)


def test_float32_records_at_an_odd_address_are_decoded() -> None:
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    odd = np.frombuffer(b"x" + rows.tobytes(), np.uint8)[1:].reshape(2, 12)
    decoded = C.codec("float32").decode(odd, 3, 0)
    assert decoded.flags.aligned
    np.testing.assert_array_equal(decoded, rows)


@given(any_rows)
@settings(deadline=None)  # the first example compiles
@example(np.array([[1 + 2**-8, 1 + 3 * 2**-8, 3.4e38, -3.4e38, 1e-40]], np.float32))
def test_bfloat16_rounds_as_torch_does(rows: C.Rows) -> None:
    narrow = C.codec("bfloat16")
    decoded = narrow.decode(narrow.encode(rows, rows.shape[1]), rows.shape[1], 0)
    np.testing.assert_array_equal(decoded, torch_row(torch.bfloat16, rows))


def test_bfloat16_nan_with_only_low_payload_bits_stays_nan() -> None:
    rows = np.array([[0x7F800001, 0xFFFFFFFF]], np.uint32).view(np.float32)
    narrow = C.codec("bfloat16")
    assert np.isnan(narrow.decode(narrow.encode(rows, 2), 2, 0)).all()


@given(any_rows)
@settings(deadline=None)
@example(np.array([[65519.0, 65520.0, -65520.0, 2**-25, 3 * 2**-26]], np.float32))
def test_float16_rounds_and_overflows_as_torch_does(rows: C.Rows) -> None:
    narrow = C.codec("float16")
    decoded = narrow.decode(narrow.encode(rows, rows.shape[1]), rows.shape[1], 0)
    np.testing.assert_array_equal(decoded, torch_row(torch.float16, rows))


def test_every_float16_pattern_is_widened_as_numpy_does_and_comes_back() -> None:
    halves = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    narrow = C.codec("float16")
    decoded = narrow.decode(halves.view(np.uint8), 256, 0)
    np.testing.assert_array_equal(decoded, halves.view(np.float16).astype(np.float32))
    sound = np.isfinite(decoded)
    again = narrow.encode(decoded, 256).view(np.uint16)
    np.testing.assert_array_equal(again[sound], halves[sound])


@pytest.mark.parametrize("dtype", DTYPES)
def test_read_only_records_are_decoded(dtype: str) -> None:
    rows = np.ones((3, 7), np.float32)
    records = C.codec(dtype).encode(rows, 5)
    foreign = np.frombuffer(records.tobytes(), np.uint8).reshape(records.shape)
    np.testing.assert_array_equal(C.codec(dtype).decode(foreign, 5, 2), rows)


@pytest.mark.parametrize("dtype", DTYPES)
@given(rows=any_rows | close_rows())
@settings(deadline=None)
@example(rows=np.array([[-0.0, 0.0, 1.0]], np.float32))
@example(rows=np.array([[-3.4028235e38, 3.4028235e38, 1.0]], np.float32))
@example(rows=np.array([[0.0, 1e-45, 3e-43]], np.float32))
@example(rows=np.array([[0.499 * 2**-16, 255 + 2**-16]], np.float32))  # the scale 1 is not stable
def test_unchanged_row_is_encoded_to_the_same_bytes(dtype: str, rows: C.Rows) -> None:
    dim = rows.shape[1]
    once = C.codec(dtype).encode(rows, dim)
    decoded = C.codec(dtype).decode(once, dim, 0)
    np.testing.assert_array_equal(C.codec(dtype).encode(decoded, dim), once)


def test_many_random_int8_rows_round_only_once() -> None:
    rng = np.random.default_rng(1)
    shift = np.float32(10) ** rng.integers(-6, 6, (50_000, 1)).astype(np.float32)
    rows = (rng.normal(size=(50_000, 8)) + shift * rng.normal(size=(50_000, 1))).astype(np.float32)
    once = C.codec("int8").encode(rows, 8)
    np.testing.assert_array_equal(
        C.codec("int8").encode(C.codec("int8").decode(once, 8, 0), 8), once
    )


@pytest.mark.parametrize("dtype", DTYPES)
@given(
    rows=hnp.arrays(np.float32, shapes, elements=st.floats(-65504, 65504, width=32)) | close_rows()
)
@settings(deadline=None)
def test_one_rounding_stays_within_the_stated_tolerance(dtype: str, rows: C.Rows) -> None:
    assume(np.isfinite(rows).all() and (dtype != "float16" or (np.abs(rows) <= 65504).all()))
    dim = rows.shape[1]
    bound = C.tolerance(dtype)
    decoded = C.codec(dtype).decode(C.codec(dtype).encode(rows, dim), dim, 0)
    largest = np.abs(rows.astype(np.float64)).max(axis=1, keepdims=True, initial=0)
    error = np.abs(decoded.astype(np.float64) - rows)
    assert (error <= bound.absolute + bound.relative * largest).all()


def test_int8_error_is_half_a_step_and_format_is_torchs() -> None:
    rows = np.random.default_rng(0).normal(0, 0.05, (2000, 13)).astype(np.float32)
    records = C.codec("int8").encode(rows, 13)
    theirs = torch.ops.quantized.embedding_bag_byte_prepack(torch.from_numpy(rows)).numpy()
    scale, minimum = records[:, 13:21].copy().view(np.float32).T
    their_scale, their_minimum = theirs[:, 13:21].copy().view(np.float32).T
    np.testing.assert_array_equal(minimum, their_minimum)
    np.testing.assert_allclose(scale, their_scale, rtol=3e-7)
    # Codes differ by the 1e-8 in torch's range at values half-way between two codes only.
    difference = np.abs(records[:, :13].astype(int) - theirs[:, :13])
    assert difference.max() <= 1
    assert difference.mean() < 1e-3
    error = np.abs(C.codec("int8").decode(records, 13, 0) - rows)
    assert (error <= scale[:, None] * 0.5001).all()


def test_torch_reads_our_int8_rows() -> None:
    rows = np.random.default_rng(0).normal(size=(40, 16)).astype(np.float32)
    records = C.codec("int8").encode(rows, 16)
    unpacked = torch.ops.quantized.embedding_bag_byte_unpack(torch.from_numpy(records)).numpy()
    np.testing.assert_allclose(
        unpacked, C.codec("int8").decode(records, 16, 0), rtol=1e-6, atol=1e-6
    )


def test_int8_keeps_constant_rows_exactly() -> None:
    rows = np.repeat(np.array([[0.1], [-3e38], [1e-45], [0.0]], np.float32), 5, axis=1)
    narrow = C.codec("int8")
    np.testing.assert_array_equal(narrow.decode(narrow.encode(rows, 5), 5, 0), rows)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_int8_row_with_a_value_that_is_not_finite_is_nan_throughout(bad: float) -> None:
    rows = np.array([[1.0, bad, 2.0], [1.0, 1.5, 2.0]], np.float32)
    narrow = C.codec("int8")
    decoded = narrow.decode(narrow.encode(rows, 3), 3, 0)
    assert np.isnan(decoded[0]).all()
    assert np.isfinite(decoded[1]).all()


def test_unknown_dtype_is_refused_with_the_known_names() -> None:
    with pytest.raises(ConfigError, match="'int4' is unknown, expected one of float32, bfloat16"):
        C.codec("int4")
