"""The plot of hit rates by size: readable in print, so lines differ in more than colour."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deploy.cache.study import BELADY, Result
from storage.errors import ConfigError

_ENDINGS = (".png", ".svg")
_STYLES = ("-", "--", "-.", ":")
_MARKERS = "osv^D<>pPX*h"


def check_plot(path: Path | None) -> None:
    """Raises: ConfigError when a plot could not be made there, before long work is done."""
    if path is None:
        return
    if path.suffix not in _ENDINGS:
        raise ConfigError(f"--plot: expected a name ending in .png or .svg, got {str(path)!r}")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"--plot {path}: its folder is not there; make it first")
    try:
        import matplotlib as matplotlib
    except ImportError as error:
        raise ConfigError("--plot: expected matplotlib; pip install terrace-ps[plot]") from error


def plot(path: Path, title: str, results: Sequence[Result], distinct: int) -> None:
    """Draw hit rate against size, a line for each policy. Raises: ConfigError."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 4.6), layout="constrained")
    axes: Any = figure.subplots()
    policies = list(dict.fromkeys(result.policy for result in results))
    for number, policy in enumerate(policies):
        line = sorted((r.capacity, 100 * r.hit_rate) for r in results if r.policy == policy)
        best = policy == BELADY
        axes.plot(
            *zip(*line, strict=True), label="belady (best possible)" if best else policy,
            color="black" if best else f"C{number % 10}", linewidth=2.0 if best else 1.4,
            linestyle=(0, (6, 2)) if best else _STYLES[number % 4],
            marker=None if best else _MARKERS[number % 12], markersize=4,
        )  # fmt: skip
    one = results[0]
    ceiling = 100 * (1 - one.first_seen / one.accesses)
    axes.axhline(ceiling, color="grey", linewidth=1, linestyle=":")
    axes.annotate(
        f"{ceiling:.1f} %: all but first uses", (0.01, ceiling), xytext=(0, 3),
        xycoords=("axes fraction", "data"), textcoords="offset points", color="dimgrey", fontsize=8,
    )  # fmt: skip
    axes.set(xscale="log", ylim=(0, 100), title=title)
    axes.set_xlabel(f"cache size, rows (of {distinct:,} different keys)")
    axes.set_ylabel("hit rate, % of accesses")
    axes.grid(visible=True, which="major", linewidth=0.4)
    axes.legend(fontsize=8, loc="lower right")
    try:
        figure.savefig(path, dpi=200)
    except OSError as error:
        raise ConfigError(f"--plot {path}: cannot be written ({error.strerror})") from error
