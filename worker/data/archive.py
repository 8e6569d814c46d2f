"""Archive: a file as the bytes that were packed into it, by gzip, xz, zstd or nothing.

What it is shows from its first bytes, never from its name. Memory: the codec's own window.
Threads: one owner.
"""

from __future__ import annotations

import gzip
import lzma
import zlib
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from storage.errors import ConfigError, DataError

_MAGIC: Final = {b"\x1f\x8b": "gzip", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_LONGEST = max(map(len, _MAGIC))


class Archive:
    """Reads a file unpacked; a context manager. kind: "gzip", "xz", "zstd", or "" for none.

    Raises: DataError for a file that cannot be opened; ConfigError for zstd without pyarrow.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                head = file.read(_LONGEST)
            self.kind = next((name for magic, name in _MAGIC.items() if head.startswith(magic)), "")
            self._file = _open(path, self.kind)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
        self._done = 0

    def __enter__(self) -> Archive:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def read(self, size: int, after: str | None = None) -> bytes:
        """The next ``size`` bytes unpacked; fewer at the end only.

        after: what was read so far, for the message about damage; None counts bytes.
        Raises: DataError for a damaged archive or a file that cannot be read.
        """
        parts = []
        while size > 0 and (part := self._part(size, after)):
            parts.append(part)
            size -= len(part)
            self._done += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _part(self, size: int, after: str | None) -> bytes:
        try:
            return bytes(self._file.read(size))
        except (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError) as error:
            raise self._damaged(error, after) from error
        except OSError as error:
            if self.kind == "zstd" and error.errno is None:  # how pyarrow says it
                raise self._damaged(error, after) from error
            raise DataError(f"{self.path}: cannot be read ({error.strerror or error})") from error

    def _damaged(self, error: Exception, after: str | None) -> DataError:
        return DataError(
            f"{self.path}: after {after or f'{self._done} bytes'}: expected {self.kind} data, got "
            f"a damaged or cut-off file ({error}); fetch or compress it again"
        )


def _open(path: Path, kind: str) -> Any:
    if kind == "gzip":
        return gzip.open(path, "rb")
    if kind == "xz":
        return lzma.open(path, "rb")
    if kind == "zstd":
        try:
            arrow = import_module("pyarrow")
        except ImportError as error:
            raise ConfigError(
                f"{path}: zstd is unpacked by pyarrow, which is not here; pip install "
                "'terrace-ps[data]', or pack the file with gzip or xz"
            ) from error
        return arrow.CompressedInputStream(arrow.OSFile(str(path)), "zstd")
    return path.open("rb")
