"""Watch: a value read from files, and read anew once they change.

Files are looked at when the value is asked for, by their stamps: no thread, and nothing to close.
A change that cannot be read, a file half written say, is reported once and the last good value
stays: what runs goes on with what it had.

Threads: any.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from storage.errors import ConfigError

_Value = TypeVar("_Value")
_Stamp = tuple[int, int, int, int] | None


class Watch(Generic[_Value]):
    """See the module's docstring.

    read: gives the value; what it raises the first time, ConfigError, comes from the constructor.
    report: is told in one line why a change was not taken; must not raise.
    """

    def __init__(
        self, paths: Sequence[Path], read: Callable[[], _Value], report: Callable[[str], None]
    ) -> None:
        self._paths = tuple(paths)
        self._read = read
        self._report = report
        self._lock = threading.Lock()
        # Stamps first: a file that changes while it is read has another one afterwards.
        self._stamps = self._look()
        self._value = read()

    def value(self) -> _Value:
        """The value of the files as they are now, or the last one that could be read."""
        with self._lock:
            stamps = self._look()
            if stamps != self._stamps:
                self._stamps = stamps
                try:
                    self._value = self._read()
                except ConfigError as error:
                    self._report(f"{error}; what was read before stays in use")
            return self._value

    def _look(self) -> tuple[_Stamp, ...]:
        return tuple(_stamp(path) for path in self._paths)


def _stamp(path: Path) -> _Stamp:
    """What tells a file from its next version: written over, renamed into its place, or opened to
    others or shut to them, which the time of the last write does not show."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_size
