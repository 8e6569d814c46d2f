"""What a study found, as a table for people and as CSV."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from deploy.cache.curve import Offer
from deploy.cache.study import Result
from storage.budget import show_size
from storage.errors import ConfigError

_FIELDS = (
    "policy", "capacity", "accesses", "hits", "hit_rate", "first_seen", "misses",
    "hit_rate_seen_before", "ssd_reads", "accesses_per_s",
)  # fmt: skip


def show_results(title: str, results: Sequence[Result], distinct: int) -> None:
    """A row for each policy and size."""
    names = [tier["tier"] for tier in results[0].tiers[:-1]] if results[0].tiers else []
    heads = ["policy", "rows", "of keys", "hits", "of seen before"]
    heads += [f"in {name}" for name in names] if len(names) > 1 else []
    heads += ["SSD reads"] if names else []
    heads += ["M accesses/s"]
    lines = []
    for one in results:
        share = f"{one.capacity / distinct:.3%}"
        line = [one.policy, f"{one.capacity:,}", share, f"{one.hit_rate:.2%}"]
        line += [f"{one.again_rate:.2%}"]
        if len(names) > 1:
            line += _by_tier(one, len(names))
        line += [f"{one.ssd_reads:,}"] if one.ssd_reads is not None else []
        lines.append([*line, f"{one.accesses_per_s / 1e6:.1f}"])
    show_columns(title, heads, lines)


def show_offers(title: str, offers: Mapping[str, Offer]) -> None:
    """A row for each pair of budgets."""
    heads = ["budgets", "HBM", "rows", "hits", "RAM", "rows", "hits", "first seen", "SSD reads/s"]
    lines = [
        [
            name, show_size(one.hbm), f"{one.hbm_rows:,}", f"{one.hbm_hits:.1%}",
            show_size(one.ram), f"{one.ram_rows:,}", f"{one.ram_hits:.1%}",
            f"{one.first_seen:.1%}", f"{one.ssd_reads_per_s:,.0f}",
        ]
        for name, one in offers.items()
    ]  # fmt: skip
    show_columns(title, heads, lines)


def show_columns(title: str, heads: Sequence[str], lines: Iterable[Sequence[str]]) -> None:
    """A table on standard output, plain where that is no terminal."""
    table = Table(title=title, title_justify="left")
    for number, head in enumerate(heads):
        table.add_column(head, justify="right" if number else "left")
    for line in lines:
        table.add_row(*line)
    Console(width=None if Console().is_terminal else 110).print(table)


def write_csv(path: Path | None, results: Sequence[Result]) -> None:
    """Write a line for each result (none: do nothing). Raises: ConfigError."""
    if path is None:
        return
    try:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, _FIELDS, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(result.report() for result in results)
    except OSError as error:
        raise ConfigError(f"--csv {path}: cannot be written ({error.strerror})") from error


def _by_tier(result: Result, count: int) -> list[str]:
    tiers: Sequence[dict[str, Any]] = result.tiers[:count]
    return [f"{tier['access_hits'] / tiers[0]['accesses']:.2%}" for tier in tiers]
