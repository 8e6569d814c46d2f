"""Archives: the bytes that were packed, whatever packed them; damage is said in one line."""

from __future__ import annotations

import gzip
import lzma
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from storage.errors import ConfigError, DataError
from worker.data.archive import Archive

CONTENT = bytes(range(256)) * 3000


def zstd(content: bytes) -> bytes:
    arrow = pytest.importorskip("pyarrow")
    packed: bytes = arrow.compress(content, codec="zstd", asbytes=True)
    return packed


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes, "gzip": gzip.compress, "xz": lzma.compress, "zstd": zstd,
}  # fmt: skip


@pytest.mark.parametrize("kind", PACKERS)
def test_what_was_packed_is_read_in_any_portions(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "file.dat"
    path.write_bytes(PACKERS[kind](CONTENT))
    with Archive(path) as archive:
        assert archive.kind == kind
        assert archive.read(10) == CONTENT[:10]
        assert archive.read(700_000) == CONTENT[10:700_010]
        assert archive.read(1 << 20) == CONTENT[700_010:]
        assert archive.read(1) == b""


@pytest.mark.parametrize("kind", [kind for kind in PACKERS if kind])
@pytest.mark.parametrize("how", ["cut off", "flipped"])
def test_damage_is_one_line_with_the_file(tmp_path: Path, kind: str, how: str) -> None:
    noise = bytes(hash((i, 7)) & 255 for i in range(200_000))
    packed = PACKERS[kind](noise)
    middle = len(packed) // 2
    flipped = packed[:middle] + bytes(255 - byte for byte in packed[middle : middle + 9])
    path = tmp_path / "log"
    path.write_bytes(packed[:-7] if how == "cut off" else flipped + packed[middle + 9 :])
    with Archive(path) as archive, pytest.raises(DataError) as caught:
        while archive.read(1 << 16):
            pass
    assert f"{path}: after " in str(caught.value) and f"expected {kind} data" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_zstd_needs_pyarrow_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log.zst"
    path.write_bytes(b"\x28\xb5\x2f\xfd more")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"log\.zst: zstd is unpacked by pyarrow"):
        Archive(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone: cannot be read \(No such file"):
        Archive(tmp_path / "gone")
