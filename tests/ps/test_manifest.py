"""A manifest is believed only as far as it makes sense."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import ps
from ps.manifest import (
    FORMAT,
    MANIFEST,
    Description,
    FileEntry,
    Manifest,
    TableEntry,
    check_file,
    file_checksum,
    read_manifest,
)
from storage.errors import ConfigError, CorruptError, MismatchError

TABLE = ps.Table("ads", dim=4, optimizer=ps.FTRL(), init=ps.Normal(0.1), rows=2**64, seed=3)
FILE = FileEntry(name="ads-000000.parquet", rows=3, bytes=100, crc32c=2**32 - 1)
WHOLE = Manifest(
    format=FORMAT,
    encoding="parquet",
    digest="00000000deadbeef",
    tables=(TableEntry(table=Description(**TABLE.describe()), rows=3, files=(FILE,)),),
)


def test_a_manifest_comes_back_with_its_tables(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text(WHOLE.text())
    found = read_manifest(tmp_path)
    assert found == WHOLE
    assert found.make_tables() == [TABLE]
    assert "admission" not in WHOLE.text()  # versions that did not know it read it too


def test_a_manifest_keeps_who_earns_a_row() -> None:
    table = ps.Table("ads", dim=4, admission=ps.CountMin(2, decay=5))
    entry = TableEntry(table=Description(**table.describe()), rows=0, files=())
    whole = WHOLE.model_copy(update={"tables": (entry,)})
    assert Manifest.model_validate_json(whole.text()).make_tables() == [table]


def changed(place: list[str | int], value: Any) -> str:
    content = json.loads(WHOLE.text())
    inside = content
    for step in place[:-1]:
        inside = inside[step]
    inside[place[-1]] = value
    return json.dumps(content)


FIRST = ["tables", 0]
SECOND = json.loads(WHOLE.text())["tables"][0]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[" * 100_000,
        "[]",
        "{}",
        changed(["more"], 1),
        changed(["digest"], "12"),
        changed(["tables"], []),
        changed(["tables"], [SECOND, SECOND]),
        changed([*FIRST, "rows"], 4),
        changed([*FIRST, "rows"], "3"),
        changed([*FIRST, "files", 0, "rows"], -3),
        changed([*FIRST, "files", 0, "name"], "../../ads.parquet"),
        changed([*FIRST, "files", 0, "name"], "/etc/passwd"),
        changed([*FIRST, "files", 0, "name"], ".."),
        changed([*FIRST, "files", 0, "name"], "ads.parquet\n"),
        changed([*FIRST, "table", "dim"], 10**9),
        changed([*FIRST, "table", "dim"], 4.0),
        changed([*FIRST, "table", "dtype"], "float8"),
        changed([*FIRST, "table", "name"], "a/b"),
        changed([*FIRST, "table", "optimizer"], {"name": "hammer"}),
        changed([*FIRST, "table", "init"], {"name": "uniform", "bound": {}}),
    ],
)
def test_a_damaged_manifest_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(CorruptError, match="damaged") as error:
        read_manifest(tmp_path)
    assert "\n" not in str(error.value)


def test_a_newer_format_is_named(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text('{"format": 2, "anything": []}')
    with pytest.raises(MismatchError, match="expected format 1, found 2"):
        read_manifest(tmp_path)


def test_a_folder_that_is_none_is_a_wrong_argument(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="check the path"):
        read_manifest(tmp_path / "absent")


def test_a_checksum_is_that_of_the_standard(tmp_path: Path) -> None:
    # Source: RFC 3720, appendix B.4, 32 bytes of zeroes.
    (tmp_path / "f").write_bytes(bytes(32))
    assert file_checksum(tmp_path / "f") == 0x8A9136AA


def test_one_changed_bit_is_found(tmp_path: Path) -> None:
    content = bytearray(3 << 20)
    (tmp_path / "f").write_bytes(content)
    entry = FileEntry(
        name="f.parquet", rows=1, bytes=len(content), crc32c=file_checksum(tmp_path / "f")
    )
    check_file(tmp_path / "f", entry)
    content[-1] = 1
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(CorruptError, match="checksum"):
        check_file(tmp_path / "f", entry)
