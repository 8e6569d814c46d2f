"""Traces: the format is found by content, every access comes once and in order, errors are one
line."""

from __future__ import annotations

import gzip
import io
import lzma
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from storage.errors import ConfigError, DataError, TerraceError
from storage.keys import as_keys
from worker.data import open_dataset
from worker.data.trace import open_trace, read_all

KEYS = [int(key) for key in np.random.default_rng(1).zipf(1.3, 3000) % 5000]


def as_array(keys: list[int]) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array(keys, np.int16))
    return file.getvalue()


CONTENTS = {
    "big-endian int32": np.array(KEYS, ">u4").tobytes(),
    "big-endian int64": np.array(KEYS, ">u8").tobytes(),
    "lis (ARC)": "".join(f"{key} 1 0 {i}\n" for i, key in enumerate(KEYS)).encode(),
    "csv, integers of column 'key' (2)": (
        "time,key,x\n" + "".join(f"{i},{key},0\n" for i, key in enumerate(KEYS))
    ).encode(),
    "text, integers": "".join(f"{key}\n" for key in KEYS).encode(),
    "npy, int16": as_array(KEYS),
}


@pytest.mark.parametrize("packer", [bytes, gzip.compress, lzma.compress])
@pytest.mark.parametrize("format", CONTENTS)
def test_a_format_is_found_by_what_is_in_the_file(
    tmp_path: Path, format: str, packer: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "trace"
    path.write_bytes(packer(CONTENTS[format]))
    trace = open_trace(str(path))
    assert (trace.name, trace.format) == (str(path), format)
    for _ in range(2):
        piece = read_all(trace)
        assert piece.keys.dtype == np.uint64 and piece.keys.tolist() == KEYS
        assert piece.batches is None
    assert read_all(open_trace(str(path), limit=17)).keys.tolist() == KEYS[:17]


SHARED = {
    "traces/scarab-recs.trace.xz": ("big-endian int64", 1_245_184, 258_368),
    "traces/orm-busy.trace.xz": ("big-endian int32", 5_000_000, 76_349),
    "traces/web12.trace.xz": ("big-endian int32", 95_607, 13_756),
    "traces/web07.trace.xz": ("big-endian int32", 76_118, 20_484),
    "traces/OLTP.lis.zst": ("lis (ARC)", 914_145, 186_880),
    "traces/cloudPhysicsIO.csv.gz": ("csv, integers of column 'lbn' (5)", 113_872, 48_974),
}


@pytest.mark.parametrize("name", SHARED)
def test_real_traces_have_the_keys_that_their_description_counts(
    shared_data: Path, name: str
) -> None:
    if name.endswith("zst"):
        pytest.importorskip("pyarrow")
    trace = open_trace(str(shared_data / name))
    keys = read_all(trace).keys
    assert (trace.format, len(keys), len(np.unique(keys))) == SHARED[name]


def test_a_column_may_be_chosen(shared_data: Path) -> None:
    path = str(shared_data / "movielens_latest_small" / "ratings.csv.gz")
    trace = open_trace(path, column="movieId")
    assert trace.format == "csv, integers of column 'movieId' (2)"
    keys = read_all(trace).keys
    assert (len(keys), len(np.unique(keys))) == (100_836, 9_724)
    assert np.array_equal(keys, read_all(open_trace(path, column="2")).keys)
    # A known log is read as a table too when a column is named.
    clicks = open_trace(str(shared_data / "avazu" / "train.csv.gz"), column="site_id")
    assert clicks.format == "csv, words of column 'site_id' (6)"
    assert len(read_all(clicks).keys) == 8087


@pytest.mark.parametrize("spec", ["synthetic:rows=500,examples=3000,features=3,bag=0-4", "adult"])
@pytest.mark.parametrize("batch_size", [None, 700])
def test_training_data_gives_the_keys_of_training_with_their_batches(
    request: pytest.FixtureRequest, spec: str, batch_size: int | None
) -> None:
    if spec == "adult":
        spec = str(request.getfixturevalue("shared_data") / "adult")
    piece = read_all(open_trace(spec, batch_size=batch_size))
    batches = list(open_dataset(spec).train(batch_size or 1024))
    assert np.array_equal(piece.keys, np.concatenate([as_keys(b.ids) for b in batches]))
    assert piece.batches is not None
    assert np.bincount(piece.batches).tolist() == [len(b.ids) for b in batches]


def test_a_format_may_be_forced(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_bytes(np.array([1, 2], ">u8").tobytes())
    assert read_all(open_trace(str(path), format="int32")).keys.tolist() == [0, 1, 0, 2]
    path.write_text("1 1 0 0\n")
    assert read_all(open_trace(str(path), format="csv", column="4")).keys.tolist() == [0]
    path.write_text("12\n13\n")
    assert read_all(open_trace(str(path))).keys.tolist() == [12, 13]
    hashed = open_trace(str(path), format="words")
    assert hashed.format == "text, words" and read_all(hashed).keys.min() > 13


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        (b"", {}, "expected at least one key, got an empty trace"),
        (gzip.compress(b"", mtime=0), {}, "expected at least one key, got an empty trace"),
        (b"\n\n", {}, "expected at least one key, got an empty trace"),
        (b"key,time\n", {}, "expected at least one key, got an empty trace"),
        (b"\x00\x01\x02\x03\x04", {}, "got 5 bytes, an odd number"),
        (b"\x00" * 12, {"format": "int64"}, "expected int64, 8 bytes a key, got 12 bytes"),
        (b"PK\x03\x04" + b"\x00" * 60, {}, "got zip"),
        (gzip.compress(b"1\n2\n" * 9, mtime=0)[:-5], {}, "expected gzip data"),
        (b"1\n" * 30 + b"three\n", {}, ":31: expected an integer of 64 bits, got 'three'"),
        (b"1,2\n3,4\n", {"column": "5"}, "column: expected 1 to 2, got '5'"),
        (b"\x00" * 32, {"column": "5"}, "only csv has columns"),
        (b"1\n", {"format": "parquet"}, "format: expected one of int32,"),
        (b"1\n", {"limit": 0}, "limit: expected 1 or more, got 0"),
        (b"1\n", {"batch_size": 0}, "batch_size: expected 1 or more, got 0"),
    ],
)
def test_bad_input_gets_one_line(
    tmp_path: Path, content: bytes, options: dict[str, object], words: str
) -> None:
    path = tmp_path / "trace"
    path.write_bytes(content)
    with pytest.raises(TerraceError) as caught:
        read_all(open_trace(str(path), **options))  # type: ignore[arg-type]
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.csv: expected a file or folder, got nothing"):
        open_trace(str(tmp_path / "gone.csv"))
    with pytest.raises(DataError, match=r"gone: expected a file, got none"):
        open_trace(str(tmp_path / "gone"), format="npy")
    with pytest.raises(ConfigError, match="data 'flihgts' is not understood"):
        open_trace("flihgts")
