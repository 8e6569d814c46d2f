"""What a person sees of a run: progress while it goes on, a table when it is done.

A bar on a terminal; elsewhere a plain line every few seconds, so that a log stays readable.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from ps.tables import Tables
from worker.trainer import Progress

_BAR_SECONDS, _LINE_SECONDS = 0.5, 5.0
_RECENT = 100


class Display:
    """Shows a `Progress` after every step, at most twice a second. Use as a context manager.

    total: steps of the run, None when unknown.
    """

    def __init__(self, store: Tables, total: int | None) -> None:
        self._store = store
        self._console = Console(stderr=True)
        self._shown = 0.0
        self._bar: Bar | None = None
        self._total = total
        if self._console.is_terminal:
            self._bar = Bar(
                TextColumn("training"), BarColumn(bar_width=24), MofNCompleteColumn(),
                TimeRemainingColumn(), TextColumn("{task.fields[figures]}"), console=self._console,
            )  # fmt: skip
            self._task = self._bar.add_task("training", total=total, figures="")

    def __enter__(self) -> Display:
        if self._bar is not None:
            self._bar.start()
        self._shown = time.monotonic()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, progress: Progress) -> None:
        """Show where the run is, unless that was shown a moment ago."""
        now = time.monotonic()
        if now - self._shown < (_LINE_SECONDS if self._bar is None else _BAR_SECONDS):
            return
        self._shown = now
        figures = self._figures(progress)
        if self._bar is not None:
            self._bar.update(self._task, completed=progress.step, figures=figures)
            return
        of = "" if self._total is None else f"/{self._total}"
        self._console.print(f"step {progress.step}{of}  {figures}", highlight=False, soft_wrap=True)

    def _figures(self, progress: Progress) -> str:
        recent = progress.losses[-_RECENT:]
        rates = hit_rates(self._store.tiers())
        hits = "  ".join(f"{tier} {100 * rate['access']:.0f}%" for tier, rate in rates.items())
        return (
            f"loss {sum(recent) / max(1, len(recent)):.4f}  "
            f"auc {progress.metrics.figures.auc:.4f}  "
            f"{progress.examples_per_s:,.0f} examples/s  hits {hits}"
        )


def hit_rates(tables: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """By tier, over all tables: the share it answered of what it was asked, by access and by key.

    tables: as `ps.Tables.tiers` gives them. First-seen keys are left out of what the lowest tier
    was asked: no tier could have had them.
    """
    asked: dict[str, list[int]] = {}
    for table in tables.values():
        seen = table.get("first_seen", {"accesses": 0, "keys": 0})
        for tier in table["tiers"]:
            total = asked.setdefault(tier["tier"], [0, 0, 0, 0])
            lowest = tier["tier"] == "ssd"
            total[0] += tier["access_hits"]
            total[1] += tier["accesses"] - (seen["accesses"] if lowest else 0)
            total[2] += tier["key_hits"]
            total[3] += tier["keys"] - (seen["keys"] if lowest else 0)
    return {
        tier: {"access": hits / max(1, accesses), "key": key_hits / max(1, keys)}
        for tier, (hits, accesses, key_hits, keys) in asked.items()
    }


def show_table(title: str, rows: Mapping[str, Any]) -> None:
    """Two columns on standard output, plain where that is no terminal."""
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column()
    table.add_column(justify="right")
    for name, value in rows.items():
        table.add_row(name, str(value))
    Console(width=None if Console().is_terminal else 100).print(table)
