"""``terrace train --verify``: proof on the user's own data that tiers do not change results.

Two runs in scratch stores, one with the budgets asked for and one with everything in RAM, must
agree in every loss and every row: bit for bit when rows are float32, else to a stated tolerance.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import typer

from deploy.display import Display
from deploy.job import TABLE, Job
from deploy.report import write_json
from ps.doorkeeper import bytes_held
from ps.store import Store
from storage.budget import show_size
from storage.codec import tolerance
from storage.keys import mix_keys
from storage.rows import Rows

_STEPS = 200
_ORACLE_SHARE = 1.3
# Narrow rows round each time they leave the top tier changed, and training carries that on: losses,
# and the 2-norm of all rows, may differ by this multiple of one rounding's bound.
_ROUNDINGS = 40


@dataclass(frozen=True)
class Difference:
    """The first place where two runs are not the same; key None for a loss."""

    step: int | None
    key: int | None
    text: str


def verify(job: Job, json: Path | None) -> int:
    """Run both, say what differs: exit code 0 when nothing does, else 1."""
    steps = job.schedule.steps or _STEPS
    schedule = replace(job.schedule, steps=steps, checkpoint_every=0, checkpoint_minutes=None)
    with tempfile.TemporaryDirectory(prefix="terrace-verify-") as folder:
        asked = replace(job, store=Path(folder, "asked"), schedule=schedule)
        ram = _enough(job, steps)
        plain = replace(schedule, depth=0, lookahead=None)
        oracle = replace(asked, store=Path(folder, "oracle"), ram=ram, hbm=None, schedule=plain)
        losses, evicted = _run(asked, "as asked")
        expected, _ = _run(oracle, f"all in RAM ({show_size(int(ram))})")
        difference, rows = _compare(asked, oracle, losses, expected)
    exact = job.dtype == "float32"
    how = "bit for bit" if exact else f"to the tolerance of {job.dtype} ({_bound(job):.2g})"
    verdict = difference.text if difference else f"{len(losses)} losses and {rows} rows equal {how}"
    typer.echo(f"verify: {verdict}; the run as asked evicted {evicted} rows")
    write_json(json, {
        "equal": difference is None, "exact": exact, "steps": len(losses), "rows": rows,
        "evicted": evicted, "step": difference.step if difference else None,
        "key": difference.key if difference else None, "losses": losses,
    })  # fmt: skip
    return 0 if difference is None else 1


def _enough(job: Job, steps: int) -> str:
    """RAM that holds every row the run could touch."""
    examples = 0
    ids = 0
    for batch in job.dataset().train(job.schedule.batch_size):
        examples, ids = batch.size, len(batch.ids)
        break
    most = steps * max(1, ids) * max(1, job.schedule.batch_size // max(1, examples))
    table = job.table()
    fixed = (64 << 20) + 2 * bytes_held(table)
    return str(int(_ORACLE_SHARE * most * (4 * table.width + 64)) + fixed)


def _run(job: Job, title: str) -> tuple[list[float], int]:
    """Train; the store stays, with a checkpoint. Losses, and rows evicted from caches."""
    typer.echo(f"verify: {title}", err=True)
    with job.opened() as store:
        trainer = job.trainer(store, job.dataset())
        with Display(store, job.schedule.steps) as display:
            progress = trainer.train(display.show)
        evicted = sum(c.stats.evicted for stack in store.stacks.values() for c in stack.caches)
        return progress.losses, evicted


def _compare(
    asked: Job, oracle: Job, losses: list[float], expected: list[float]
) -> tuple[Difference | None, int]:
    """The first difference, losses first, and how many rows the oracle has."""
    found = _compare_losses(losses, expected, _bound(asked))
    count, drift, size = 0, 0.0, 0.0
    with asked.opened() as ours, oracle.opened() as theirs:
        assert isinstance(ours, Store) and isinstance(theirs, Store)
        for mine, reference in _side_by_side(ours.rows(TABLE), theirs.rows(TABLE)):
            count += len(reference)
            found = found or _compare_rows(asked, mine, reference)
            if found is None and asked.dtype != "float32":
                drift += float(np.square(mine.values - reference.values, dtype=np.float64).sum())
                size += float(np.square(reference.values, dtype=np.float64).sum())
    if found is None and drift > (_bound(asked) ** 2) * size:
        share = (drift / max(size, 1e-300)) ** 0.5
        text = f"rows differ by {share:.2g} of their size, expected {_bound(asked):.2g} at most"
        found = Difference(None, None, text)
    return found, count


def _compare_losses(losses: list[float], expected: list[float], bound: float) -> Difference | None:
    for step, (ours, theirs) in enumerate(zip(losses, expected, strict=True), start=1):
        if abs(ours - theirs) > bound * max(1.0, abs(theirs)):
            return Difference(step, None, f"step {step}: loss {ours!r}, expected {theirs!r}")
    return None


def _bound(job: Job) -> float:
    """Relative difference allowed in a loss, and in all rows together: 0 for float32."""
    if job.dtype == "float32":
        return 0.0
    one = tolerance(job.dtype)
    return _ROUNDINGS * (one.relative + one.absolute)


def _side_by_side(ours: Iterator[Rows], theirs: Iterator[Rows]) -> Iterator[tuple[Rows, Rows]]:
    """Both stores' rows by bucket; a store without rows in a bucket gives nothing for it."""
    from itertools import zip_longest

    yield from zip_longest(ours, theirs, fillvalue=Rows.empty(0, 0))


def _compare_rows(job: Job, mine: Rows, reference: Rows) -> Difference | None:
    if not np.array_equal(mine.keys, reference.keys):
        # Both come by rising mixed key, so of those in one only the lowest is surely missing.
        keys = np.setxor1d(mine.keys, reference.keys)
        key = int(keys[np.argmin(mix_keys(keys))])
        return Difference(None, key, f"key {key} has a row in one run only")
    if job.dtype != "float32":
        return None
    differing: Any = (mine.values.view(np.uint32) != reference.values.view(np.uint32)).any(axis=1)
    if not differing.any():
        return None
    i = int(np.flatnonzero(differing)[0])
    key, step = int(mine.keys[i]), int(mine.steps[i])
    return Difference(step, key, f"key {key}, last applied at step {step}: its row differs")
