"""How far long work has come: a bar on a terminal, elsewhere a line every few seconds."""

from __future__ import annotations

import time
from types import TracebackType

import typer
from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

_LINE_SECONDS, _SHORT_SECONDS = 5.0, 2.0


class Meter:
    """Use as a context manager, and call it with how much is done, and of how much.

    what: the work, such as "compacting". unit: of what is counted, such as "blocks".
    """

    def __init__(self, what: str, unit: str) -> None:
        self._what, self._unit = what, unit
        self._console = Console(stderr=True)
        self._next = time.monotonic() + _LINE_SECONDS
        self._bar = Bar(
            TextColumn("{task.description}"), BarColumn(bar_width=24), TaskProgressColumn(),
            TimeRemainingColumn(), TextColumn("{task.fields[figures]}"), console=self._console,
            transient=True, disable=not self._console.is_terminal,
        )  # fmt: skip
        self._task = self._bar.add_task(what, total=None, figures="")

    def __enter__(self) -> Meter:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def turn_to(self, what: str, unit: str) -> None:
        """From now on other work is going on."""
        self._what, self._unit = what, unit
        self._bar.update(self._task, description=what, completed=0, total=None, figures="")

    def __call__(self, done: int, total: int) -> None:
        """``done`` of ``total`` are done; 0 is a total that nobody knows."""
        figures = f"{done:,} of {total:,} {self._unit}" if total else f"{done:,} {self._unit}"
        self._bar.update(self._task, completed=done, total=total or None, figures=figures)
        now = time.monotonic()
        if not self._console.is_terminal and now >= self._next:
            self._next = now + _LINE_SECONDS
            self._console.print(f"{self._what}: {figures}", highlight=False, soft_wrap=True)


class Ticker:
    """Called with what is going on now; shows it on standard error at most every two seconds."""

    def __init__(self) -> None:
        self._next = 0.0

    def __call__(self, line: str) -> None:
        """Show the line, unless another was shown a moment ago."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _SHORT_SECONDS
            typer.echo(line, err=True)
