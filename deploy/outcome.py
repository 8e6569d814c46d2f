"""Outcome: what a training run ends with, for programs and for people."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import typer

from deploy import admit
from deploy.display import hit_rates, show_table
from deploy.job import TABLE, Job
from ps.store import Store
from ps.tables import Tables
from storage.budget import show_size
from worker.metrics import Figures
from worker.trainer import Progress


def report_of(
    store: Tables, progress: Progress, figures: Figures | None, bad_lines: int, skipped_rows: int
) -> dict[str, Any]:
    """What a run ends with, as JSON values. figures: of the held-out examples, or None."""
    so_far = progress.metrics.figures
    shown = figures or so_far
    digest = store.digest()  # what is dirty is written first
    stats = store.stats()
    ssd = [tier for _, table in _tables(stats) for tier in table["tiers"] if tier["tier"] == "ssd"]
    return {
        "step": progress.step,
        "loss": progress.losses[-1] if progress.losses else None,
        "losses": progress.losses,
        "auc": shown.auc,
        "logloss": shown.logloss,
        "test": None if figures is None else asdict(figures),
        "train": asdict(so_far),
        "examples_per_s": progress.examples_per_s,
        "seconds": progress.seconds,
        "checkpoints": progress.checkpoints,
        "checkpoint_seconds": progress.checkpoint_seconds,
        "hit_rate": _rates(store, stats),
        "ssd_rows_read": sum(tier["rows_read"] for tier in ssd),
        "ssd_rows_written": sum(tier["rows_written"] for tier in ssd),
        "rows": sum(tier["rows"] for tier in ssd),
        "bytes": _bytes(store, stats),
        "rows_crc": digest,
        "admission": admit.report(stats, TABLE),
        "bad_lines": bad_lines,
        "bad_steps": progress.bad_steps,
        "skipped_rows": skipped_rows + stats.get("skipped_rows", 0),
        "staleness": _staleness(stats),
        "ghost": store.ghost.report() if isinstance(store, Store) and store.ghost else None,
        "stats": stats,
    }


def _bytes(store: Tables, stats: dict[str, Any]) -> dict[str, int]:
    """Bytes of rows by tier, the peak of the RAM budget, and the file; servers' all together."""
    found = {"ram_budget": 0, "ram_peak": 0}
    for name, tables in _tables(stats):
        table = store.tables[name]
        for tier in tables["tiers"]:
            row = table.shape.stored_bytes if tier["tier"] == "ssd" else 4 * table.width
            found[tier["tier"]] = found.get(tier["tier"], 0) + tier["rows"] * row
        found["ram_budget"] += tables["ram_bytes"]["total"]
        found["ram_peak"] += tables["ram_bytes"]["peak"]
    found["file"] = sum(each["disk_bytes"]["file"] for each in _parts(stats))
    return found


def _tables(stats: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The tables of the store, or of each of its shards or workers, as `Stack.report` has them."""
    return [pair for each in _parts(stats) for pair in each["tables"].items()]


def _parts(stats: dict[str, Any]) -> list[dict[str, Any]]:
    """Of each store that has a part of the rows."""
    parts: list[dict[str, Any]] = stats.get("shards") or stats.get("workers") or [stats]
    return parts


def _staleness(stats: dict[str, Any]) -> dict[str, int]:
    """This worker's uses of rows by the steps they were behind; none where they never are."""
    found: dict[str, int] = {}
    for table in stats["tables"].values():
        for age, uses in table.get("staleness", {}).items():
            found[age] = found.get(age, 0) + uses
    return found


def _rates(store: Tables, stats: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Hits by tier; of servers, by what workers pulled from them."""
    rates = hit_rates(store.tiers())
    if "shards" in stats:
        keys = sum(shard["pulled"]["keys"] for shard in stats["shards"])
        hits = sum(shard["pulled"]["hits"] for shard in stats["shards"])
        rates["shard ram"] = {"access": hits / max(1, keys), "key": hits / max(1, keys)}
    return rates


def show(job: Job, report: dict[str, Any], *, interrupted: bool) -> None:
    """Print a report for people."""
    test, held, of = report["test"], report["bytes"], "" if report["test"] else " (training)"
    rows = {
        "steps": f"{report['step']:,}",
        "loss, last 100 steps": f"{_mean(report['losses'][-100:]):.4f}",
        f"AUC{of}": f"{report['auc']:.4f}",
        f"log loss{of}": f"{report['logloss']:.4f}",
    }
    if test:
        rows |= {
            "normalized entropy": f"{test['normalized_entropy']:.4f}",
            "calibration": f"{test['calibration']:.3f}",
        }
    rows["examples/s"] = f"{report['examples_per_s']:,.0f}"
    rows["checkpoints"] = f"{report['checkpoints']}, in {report['checkpoint_seconds']:.1f} s"
    for tier, rate in report["hit_rate"].items():
        rows[f"hits {tier}"] = f"{rate['access']:.1%} of accesses, {rate['key']:.1%} of keys"
    for tier, count in _rows(report["stats"]).items():
        rows[f"rows in {tier}"] = f"{count:,} ({show_size(held[tier])})"
    seen = sum(table["first_seen"]["keys"] for _, table in _tables(report["stats"]))
    rows["keys first seen"] = f"{seen:,}"
    if uses := sum(report["staleness"].values()):
        shares = (f"{age}: {count / uses:.0%}" for age, count in report["staleness"].items())
        rows["rows used so many steps old"] = ", ".join(shares)
    if report["admission"]:
        rows |= admit.shown(report["admission"])
    rows |= {
        "SSD rows read / written": f"{report['ssd_rows_read']:,} / {report['ssd_rows_written']:,}",
        "RAM budget, peak": f"{show_size(held['ram_budget'])}, {show_size(held['ram_peak'])}",
        "file": show_size(held["file"]),
    }
    for name in ("bad_lines", "bad_steps", "skipped_rows"):
        if report[name]:
            rows[name.replace("_", " ")] = f"{report[name]:,}"
    for name, table in (report["ghost"] or {}).items():
        for size in table["sizes"]:
            if size["times_ram"] != 1:
                rows[f"{name}: with {size['times_ram']:g}x the RAM"] = (
                    f"about {size['hit_rate']:.1%} of keys hit, "
                    f"{size['hit_rate_seen_before']:.1%} of those not first seen"
                )
    show_table("interrupted" if interrupted else "done", rows)
    more = "" if interrupted else f" --epochs {job.schedule.epochs + 1}"
    where = f"--store {job.store}" if job.servers is None else f"--servers {job.servers}"
    typer.echo(f"go on: terrace train --data {job.data} {where} --resume{more} ...")


def _rows(stats: dict[str, Any]) -> dict[str, int]:
    """Rows by tier, of all tables and shards together."""
    found: dict[str, int] = {}
    for _, table in _tables(stats):
        for tier in table["tiers"]:
            found[tier["tier"]] = found.get(tier["tier"], 0) + tier["rows"]
    return found


def _mean(values: list[float]) -> float:
    return sum(values) / max(1, len(values))
