"""Export and import, against plain readers of the files and the store's own digest."""

from __future__ import annotations

import json
import sys
import tracemalloc
from pathlib import Path

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file

import ps
from ps.transfer import export_store, import_embeddings, import_store
from storage.errors import (
    ConfigError,
    CorruptError,
    DataError,
    KeyRangeError,
    MismatchError,
    StoreError,
    TerraceError,
)
from storage.rows import Rows

FORMATS = ["safetensors", "parquet"]
LAST = 2**64 - 1
SMALL = 4096
TABLES = [
    ps.Table("ads", dim=5, optimizer=ps.RowWiseAdagrad(lr=0.5)),
    ps.Table("users", dim=8, optimizer=ps.Adam()),
    ps.Table("plain", dim=3, optimizer=ps.SGD(), rows=2**64),
    ps.Table("half", dim=4, optimizer=ps.FTRL(), dtype="bfloat16"),
    ps.Table("byte", dim=8, optimizer=ps.Adagrad(), dtype="int8"),
    ps.Table("empty", dim=2, optimizer=ps.RowWiseAdam()),
]


def random_rows(table: ps.Table, count: int, seed: int = 0) -> Rows:
    """Rows with the first and the last key there is, and every kind of step."""
    rng = np.random.default_rng(seed)
    rows = Rows.empty(count, table.width)
    rows.keys[:] = rng.permutation(np.arange(1, count + 1, dtype=np.uint64) * np.uint64(2**40 + 7))
    rows.keys[:2] = 0, LAST
    rows.values[:] = rng.normal(size=rows.values.shape)
    if table.name == "ads":  # bits that arithmetic would not keep
        rows.values.view(np.uint32)[2, :4] = 0x7FC12345, 0xFF800000, 0x80000000, 0x00000001
    rows.steps[:] = rng.integers(0, 2**32, count, dtype=np.uint32)
    rows.steps[:2] = 0, 2**32 - 1
    rows.dirty[:] = True
    return rows


def filled(path: Path, tables: list[ps.Table], count: int = 500) -> ps.Store:
    store = ps.open(path, tables, ram="64MiB")
    for table in tables:
        if table.name != "empty":
            store.put(table.name, random_rows(table, count))
    return store


def everything(store: ps.Store, table: str) -> dict[int, tuple[bytes, int]]:
    """Key -> (bits of embedding and state, step)."""
    return {
        int(key): (values.tobytes(), int(step))
        for rows in store.rows(table)
        for key, values, step in zip(rows.keys, rows.values, rows.steps, strict=True)
    }


def one_line(error: pytest.ExceptionInfo[BaseException], *words: str) -> None:
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize("format", FORMATS)
def test_a_round_trip_keeps_every_bit_state_and_step(tmp_path: Path, format: str) -> None:
    with filled(tmp_path / "a", TABLES) as store:
        report = export_store(store, tmp_path / "out", format=format, part_bytes=SMALL)
        digest = store.digest()
        before = {table.name: everything(store, table.name) for table in TABLES}
    assert report.rows == {t.name: 0 if t.name == "empty" else 500 for t in TABLES}
    assert report.digest == digest
    assert report.files > 20
    files = [p for p in (tmp_path / "out").iterdir() if p.name != "manifest.json"]
    assert report.files == len(files)
    assert report.bytes == sum(p.stat().st_size for p in files)

    imported = import_store(tmp_path / "out", tmp_path / "b", ram="64MiB")

    assert imported.rows == report.rows
    assert imported.digest == digest
    with ps.open(tmp_path / "b", TABLES, ram="64MiB") as store:
        assert store.digest() == digest
        assert store.check() == []
        for table in TABLES:
            assert everything(store, table.name) == before[table.name]


def test_both_formats_hold_the_same_rows(tmp_path: Path) -> None:
    with filled(tmp_path / "a", TABLES[:2]) as store:
        digests = {export_store(store, tmp_path / name, format=name).digest for name in FORMATS}
    assert len(digests) == 1


def test_parquet_is_read_by_pyarrow_alone_as_documented(tmp_path: Path) -> None:
    with filled(tmp_path / "a", TABLES[1:3]) as store:
        export_store(store, tmp_path / "out", format="parquet", part_bytes=SMALL)
        users, plain = everything(store, "users"), everything(store, "plain")
    table = pq.read_table(sorted(str(p) for p in (tmp_path / "out").glob("users-*.parquet")))
    assert table.schema.field("key").type == pa.uint64()
    assert table.schema.field("embedding").type.list_size == 8
    assert table.schema.field("state").type.list_size == 16
    assert table.schema.field("step").type == pa.uint32()
    found = {
        row["key"]: (
            np.array(row["embedding"] + row["state"], np.float32).tobytes(),
            row["step"],
        )
        for row in table.to_pylist()
    }
    assert found == users
    assert {0, LAST} <= found.keys()
    bare = pq.read_table(sorted(str(p) for p in (tmp_path / "out").glob("plain-*.parquet")))
    assert bare.column_names == ["key", "embedding", "step"]
    assert set(bare["key"].to_pylist()) == plain.keys()


def test_safetensors_are_read_by_their_library_alone_as_documented(tmp_path: Path) -> None:
    with filled(tmp_path / "a", TABLES[:1]) as store:
        export_store(store, tmp_path / "out", part_bytes=SMALL)
        expected = everything(store, "ads")
    found = {}
    for path in (tmp_path / "out").glob("ads-*.safetensors"):
        part = load_file(path)
        assert {name: array.dtype.name for name, array in part.items()} == {
            "keys": "uint64", "embeddings": "float32", "state": "float32", "steps": "uint32",
        }  # fmt: skip
        values = np.concatenate([part["embeddings"], part["state"]], axis=1)
        for key, row, step in zip(part["keys"], values, part["steps"], strict=True):
            found[int(key)] = (row.tobytes(), int(step))
    assert found == expected


def test_the_manifest_says_what_is_there(tmp_path: Path) -> None:
    with filled(tmp_path / "a", TABLES) as store:
        export_store(store, tmp_path / "out", tables=["plain", "empty"], part_bytes=SMALL)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    plain, empty = manifest["tables"]
    assert plain["table"] == TABLES[2].describe()
    assert (plain["rows"], empty["rows"], empty["files"]) == (500, 0, [])
    for file in plain["files"]:
        content = (tmp_path / "out" / file["name"]).read_bytes()
        assert file["bytes"] == len(content)
        assert file["crc32c"] == google_crc32c.value(content)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "manifest.json", *(file["name"] for file in plain["files"])
    }  # fmt: skip


def test_a_store_gets_the_imported_rows_and_keeps_the_others(tmp_path: Path) -> None:
    table = TABLES[0]
    with filled(tmp_path / "a", [table], 50) as store:
        export_store(store, tmp_path / "out")
        exported = everything(store, "ads")
    other = ps.Table("ads", dim=5, optimizer=ps.RowWiseAdagrad(lr=0.25))
    with ps.open(tmp_path / "b", [other, TABLES[1]], ram="64MiB") as store:
        store.put("ads", random_rows(table, 80, seed=1))
        here = everything(store, "ads")
        assert set(here) & set(exported) and set(here) - set(exported)
        import_store(tmp_path / "out", store)
        assert everything(store, "ads") == here | exported
    import_store(tmp_path / "out", tmp_path / "b", ram="64MiB")
    with ps.open(tmp_path / "b", ram="64MiB") as store:
        assert everything(store, "ads") == here | exported


def test_progress_grows_to_all_rows(tmp_path: Path) -> None:
    exported, imported = [], []
    with filled(tmp_path / "a", TABLES[:2]) as store:
        export_store(store, tmp_path / "out", part_bytes=SMALL, progress=exported.append)
    import_store(tmp_path / "out", tmp_path / "b", ram="64MiB", progress=imported.append)
    assert exported[-1] == imported[-1] == 1000
    assert exported == imported == sorted(exported)
    assert len(exported) > 2


def test_memory_is_bounded_by_a_part_and_not_by_the_table(tmp_path: Path) -> None:
    table = ps.Table("wide", dim=256, optimizer=ps.Adam())
    with filled(tmp_path / "a", [table], 8000) as store:  # 24 MB of rows
        store.digest()  # all rows on the SSD, all kernels compiled
        export_store(store, tmp_path / "warm", part_bytes=1 << 20)
        tracemalloc.start()
        export_store(store, tmp_path / "out", part_bytes=1 << 20)
        exporting = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert exporting < 6 << 20
    with ps.open(tmp_path / "b", [table], ram="24MiB") as store:
        import_store(tmp_path / "warm", store)
        tracemalloc.start()
        import_store(tmp_path / "out", store)
        importing = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert importing < 12 << 20


# -- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("damage", ["cut", "flipped", "longer", "gone"])
def test_a_damaged_file_is_refused_before_any_row_changes(
    tmp_path: Path, format: str, damage: str
) -> None:
    with filled(tmp_path / "a", TABLES[:2]) as store:
        export_store(store, tmp_path / "out", format=format, part_bytes=SMALL)
    # The last file of the last table: all others are sound.
    file = max((tmp_path / "out").glob("users-*"))
    content = bytearray(file.read_bytes())
    if damage == "cut":
        file.write_bytes(content[:-100])
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif damage == "longer":
        file.write_bytes(content + b"\0")
    else:
        file.unlink()
    with ps.open(tmp_path / "b", TABLES[:2], ram="64MiB") as store:
        with pytest.raises(CorruptError) as error:
            import_store(tmp_path / "out", store)
        one_line(error, file.name, "expected", "got", "again")
        assert store.digest() == 0
    with pytest.raises(CorruptError):
        import_store(tmp_path / "out", tmp_path / "c", ram="64MiB")
    assert not (tmp_path / "c").exists()
    assert {p.name for p in tmp_path.iterdir()} == {"a", "b", "out"}


def replace_part(folder: Path, change: dict[str, np.ndarray]) -> None:
    """A part whose manifest was made to agree with it: only its content can tell."""
    text = (folder / "manifest.json").read_text()
    manifest = json.loads(text)
    entry = manifest["tables"][0]["files"][0]
    file = folder / entry["name"]
    save_file(load_file(file) | change, file)
    content = file.read_bytes()
    entry["bytes"], entry["crc32c"] = len(content), google_crc32c.value(content)
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"embeddings": np.zeros((100, 4), np.float32)}, "float32 x 5"),
        ({"embeddings": np.zeros((100, 5), np.float64)}, "float64"),
        ({"embeddings": np.zeros((100, 5, 1), np.float32)}, "float32 x 5 x 1"),
        ({"state": np.zeros((100, 2), np.float32)}, "float32 x 1"),
        ({"state": np.zeros((99, 1), np.float32)}, "99 rows"),
        ({"steps": np.zeros(100, np.int64)}, "uint32"),
        ({"keys": np.zeros(100, np.uint64)}, "key 0 twice"),
        ({"keys": np.arange(100, dtype=np.int64)}, "int64"),
        ({"keys": np.arange(100, dtype=np.uint64)}, "digest"),
        (
            {
                "keys": np.arange(9, dtype=np.uint64),
                "embeddings": np.zeros((9, 5), np.float32),
                "state": np.zeros((9, 1), np.float32),
                "steps": np.zeros(9, np.uint32),
            },
            "expected 100 rows, got 9",
        ),
    ],
)
def test_what_a_manifest_claims_is_not_believed(
    tmp_path: Path, change: dict[str, np.ndarray], word: str
) -> None:
    with filled(tmp_path / "a", TABLES[:1], 100) as store:
        export_store(store, tmp_path / "out")
    replace_part(tmp_path / "out", change)
    with ps.open(tmp_path / "b", TABLES[:1], ram="64MiB") as store:
        with pytest.raises((DataError, CorruptError)) as error:
            import_store(tmp_path / "out", store)
        one_line(error, word)
        assert store.digest() == 0


def test_an_unfinished_export_is_refused(tmp_path: Path) -> None:
    def stop(rows: int) -> None:
        raise KeyboardInterrupt

    with filled(tmp_path / "a", TABLES[:1]) as store:
        with pytest.raises(KeyboardInterrupt):
            export_store(store, tmp_path / "out", part_bytes=SMALL, progress=stop)
        store.digest()
    assert list((tmp_path / "out").iterdir())
    with pytest.raises(CorruptError) as error:
        import_store(tmp_path / "out", tmp_path / "b")
    one_line(error, "manifest.json", "did not finish")


def test_an_export_never_writes_over_anything(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    (tmp_path / "empty").mkdir()
    with filled(tmp_path / "a", TABLES[:1]) as store:
        for there in (tmp_path / "full", tmp_path / "full" / "thesis.txt"):
            with pytest.raises(ConfigError) as error:
                export_store(store, there)
            one_line(error, str(there))
        with pytest.raises(StoreError):
            export_store(store, tmp_path / "full" / "thesis.txt" / "below")
        export_store(store, tmp_path / "empty")
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["thesis.txt"]
    with pytest.raises(ConfigError, match="empty folder"):
        import_store(tmp_path / "empty", tmp_path / "full")


@pytest.mark.parametrize(
    "options", [{"format": "csv"}, {"tables": ["adds"]}, {"tables": []}, {"part_bytes": 0}]
)
def test_an_option_that_cannot_be_meant_is_refused(
    tmp_path: Path, options: dict[str, object]
) -> None:
    with filled(tmp_path / "a", TABLES[:1]) as store:
        with pytest.raises(ConfigError, match="expected"):
            export_store(store, tmp_path / "out", **options)
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "other",
    [
        ps.Table("ads", dim=6, optimizer=ps.RowWiseAdagrad(lr=0.5)),
        ps.Table("ads", dim=5, optimizer=ps.Adagrad(lr=0.5)),
        ps.Table("ads", dim=5, optimizer=ps.RowWiseAdagrad(lr=0.5), seed=1),
        ps.Table("users", dim=5),
    ],
)
def test_another_table_is_refused(tmp_path: Path, other: ps.Table) -> None:
    with filled(tmp_path / "a", TABLES[:1]) as store:
        export_store(store, tmp_path / "out")
    with ps.open(tmp_path / "b", [other], ram="64MiB") as store:
        with pytest.raises(MismatchError) as error:
            import_store(tmp_path / "out", store)
        one_line(error, "ads", "new directory")
        assert store.digest() == 0


def test_without_pyarrow_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with filled(tmp_path / "a", TABLES[:1]) as store:
        export_store(store, tmp_path / "parquet", format="parquet")
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        with pytest.raises(ConfigError, match=r"pip install terrace-ps\[data\]"):
            export_store(store, tmp_path / "again", format="parquet")
        with pytest.raises(ConfigError, match=r"pip install terrace-ps\[data\]"):
            import_store(tmp_path / "parquet", store)
        export_store(store, tmp_path / "tensors")


# -- bare embeddings -----------------------------------------------------------------------------


def bare_file(path: Path, keys: np.ndarray, embeddings: np.ndarray) -> Path:
    if path.suffix == ".parquet":
        table = pa.table({"key": keys, "embedding": pa.array(list(embeddings)), "label": keys})
        pq.write_table(table, path)
    else:
        save_file({"keys": keys, "embeddings": embeddings}, path)
    return path


@pytest.mark.parametrize("suffix", [".parquet", ".safetensors"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_bare_embeddings_come_with_fresh_state(tmp_path: Path, suffix: str, dtype: str) -> None:
    table = ps.Table("ads", dim=4, optimizer=ps.Adagrad(initial_accumulator_value=0.25))
    keys = np.array([7, -1, 0], np.int64)
    embeddings = np.arange(12).reshape(3, 4).astype(dtype)
    path = bare_file(tmp_path / f"e{suffix}", keys, embeddings)
    with ps.open(tmp_path / "a", [table], ram="64MiB") as store:
        store.put("ads", random_rows(table, 10))
        told: list[int] = []
        assert import_embeddings(path, store, "ads", progress=told.append) == 3
        assert told == [3]
        found = everything(store, "ads")
        for key, row in zip([7, LAST, 0], embeddings.astype(np.float32), strict=True):
            expected = np.concatenate([row, np.full(4, 0.25, np.float32)])
            assert found[key] == (expected.tobytes(), 0)
        assert len(found) == 11


@pytest.mark.parametrize("suffix", [".parquet", ".safetensors"])
@pytest.mark.parametrize(
    ("keys", "embeddings", "word"),
    [
        (np.array([1, 1]), np.zeros((2, 4), np.float32), "key 1 twice"),
        (np.array([1, 2]), np.zeros((2, 3), np.float32), "x 4"),
        (np.array([1, 2]), np.zeros((2, 4), np.int32), "int32"),
        (np.array([1.0, 2.0]), np.zeros((2, 4), np.float32), "float64"),
        (np.array([1, 2]), np.array([[0] * 4, [0, 0, 0, np.nan]], np.float32), "row 1 (key 2)"),
        (np.array([1, 2]), np.array([[0] * 4, [0, 0, 0, 1e300]]), "row 1 (key 2)"),
        (np.array([1, 50]), np.zeros((2, 4), np.float32), "50"),
    ],
)
def test_bare_embeddings_that_do_not_fit_change_nothing(
    tmp_path: Path, suffix: str, keys: np.ndarray, embeddings: np.ndarray, word: str
) -> None:
    path = bare_file(tmp_path / f"e{suffix}", keys, embeddings)
    with ps.open(tmp_path / "a", [ps.Table("ads", dim=4, rows=50)], ram="64MiB") as store:
        with pytest.raises((DataError, KeyRangeError)) as error:
            import_embeddings(path, store, "ads")
        one_line(error, str(path), word)
        assert store.digest() == 0


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1 and then nothing", b"\x80\x04pickle"])
def test_a_file_that_is_neither_format_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "e").write_bytes(content)
    with ps.open(tmp_path / "a", TABLES[:1], ram="64MiB") as store:
        for path in (tmp_path / "e", tmp_path / "absent", tmp_path):
            with pytest.raises(TerraceError) as error:
                import_embeddings(path, store, "ads")
            one_line(error, str(path))
        with pytest.raises(ConfigError, match="adds"):
            import_embeddings(tmp_path / "e", store, "adds")
