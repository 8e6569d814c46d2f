"""``terrace cache``: the command."""

# ruff: noqa: E501 - the options are a table, one a line

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from deploy.cache.study import Accesses, Result
    from worker.data.trace import Trace

EXAMPLE = """Example: terrace cache flights --policy all --size 1%,10% --plot hits.png

Example: terrace cache run/trace.npy --hbm 1% --ram 10% --policy lru,sieve

Example: terrace cache run/trace.npy --recommend --hbm-gb 40 --ram-gb 256 --dim 64

DATA is a key trace (big-endian int32 or int64, ARC .lis, CSV, NumPy, text; gz, xz or zst), what
`terrace train --record` wrote, or anything that `terrace train --data` takes."""

_BATCH = 1024


@dataclass(frozen=True)
class Request:
    """What was asked for."""

    policy: str
    size: str | None
    batch: int | None
    hbm: str | None
    ram: str | None
    prefetch: int
    sample: float
    shards: int | None
    plot: Path | None

    @property
    def by_batch(self) -> bool:
        """Whether batches count, not accesses."""
        return self.batch is not None or self.ram is not None


def cache(
    data: Annotated[str, typer.Argument(help="The trace, or what to train on.", metavar="DATA")],
    policy: Annotated[str, typer.Option(help="Policies, with commas, or all; belady is the best possible.")] = "lru,clock,sieve,lfu,belady",
    size: Annotated[str | None, typer.Option(help="Sizes, with commas: rows, or shares of the different keys. [default: 1%,10%,50%]")] = None,
    batch: Annotated[int | None, typer.Option(help="Count working sets: of so many accesses, or of so many examples.", min=1)] = None,
    hbm: Annotated[str | None, typer.Option(help="The whole stack, by batches: rows or share in HBM.")] = None,
    ram: Annotated[str | None, typer.Option(help="Of the stack: rows or share in RAM.")] = None,
    prefetch: Annotated[int, typer.Option(help="Batches made resident ahead, with batches.", min=0)] = 0,
    sample: Annotated[float, typer.Option(help="Replay this share of the keys, with sizes as much smaller.")] = 1.0,
    shards: Annotated[int | None, typer.Option(help="LRU at all sizes in one pass that tracks so many keys at most; for any length.", min=1)] = None,
    recommend: Annotated[bool, typer.Option("--recommend", help="Budgets for HBM and RAM, and what to expect of them.")] = False,
    hbm_gb: Annotated[float, typer.Option(help="HBM there is, in GiB.", min=0)] = 0.0,
    ram_gb: Annotated[float, typer.Option(help="RAM there is, in GiB.", min=0)] = 16.0,
    dim: Annotated[int, typer.Option(help="Floats of an embedding.", min=1)] = 64,
    optimizer: Annotated[str, typer.Option(help="Of the rows.")] = "rowwise_adagrad",
    accesses_per_s: Annotated[float, typer.Option(help="What the training asks for in a second.", min=0)] = 1e6,
    limit: Annotated[int | None, typer.Option(help="Read so many accesses at most.", min=1)] = None,
    column: Annotated[str | None, typer.Option(help="Of a CSV: the name or number (from 1) of the keys.")] = None,
    format: Annotated[str | None, typer.Option(help="int32, int64, lis, csv, text, words, npy or data; found out if not given.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw hit rate by size here, .png or .svg.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write the results here, a line each.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the results here as one JSON object.")] = None,
) -> int:  # fmt: skip
    """Replay a trace against eviction policies and sizes: what would caches hit?

    Access by access, or with --batch, --hbm and --ram batch by batch through the tiers that
    training uses.
    """
    from deploy.cache.plot import check_plot
    from deploy.cache.plot import plot as draw
    from deploy.cache.show import show_results, write_csv
    from deploy.cache.sizes import note_large
    from deploy.progress import Meter
    from deploy.report import write_json
    from worker.data.trace import open_trace

    request = Request(policy, size, batch, hbm, ram, prefetch, sample, shards, plot)
    _check(request)
    check_plot(plot)
    trace = open_trace(data, batch_size=batch, limit=limit, column=column, format=format)
    report: dict[str, Any] = {"trace": trace.name, "format": trace.format}
    if recommend:
        report |= _recommend(trace, request, hbm_gb, ram_gb, dim, optimizer, accesses_per_s)
        write_json(json, report)
        return 0
    with Meter("reading", "accesses") as meter:
        distinct, results = _results(trace, request, meter)
    show_results(
        f"{trace.name}: {results[0].accesses:,} accesses, {distinct:,} different keys",
        results,
        distinct,
    )
    note = note_large([result.capacity for result in results], distinct)
    if note is not None:
        typer.echo(note)
    if plot is not None:
        draw(plot, Path(trace.name).name, results, distinct)
        typer.echo(f"plot: {plot}")
    write_csv(csv, results)
    write_json(
        json,
        report
        | {
            "accesses": results[0].accesses,
            "distinct": distinct,
            "first_seen": results[0].first_seen,
            "sample": sample,
            "results": [result.report() for result in results],
        },
    )
    return 0


cache.__doc__ = f"{cache.__doc__}\n\n{EXAMPLE}"


def _check(request: Request) -> None:
    """Raises: ConfigError for options that do not go together, before anything is read."""
    from deploy.cache.study import check_policies
    from storage.errors import ConfigError

    check_policies(request.policy)
    if request.hbm is not None and request.ram is None:
        raise ConfigError("--hbm: expected --ram too, the tier below; give both")
    if request.ram is not None and request.size is not None:
        raise ConfigError("--size: expected either one tier's sizes or --ram, got both")
    if request.shards is not None and (request.ram is not None or request.sample != 1):
        raise ConfigError("--shards: expected neither --ram nor --sample with it; leave them out")


def _results(trace: Trace, request: Request, meter: Any) -> tuple[int, list[Result]]:
    """How many different keys there are, and one result for each policy and size."""
    from deploy.cache.study import Plan, check_policies, load, study

    if request.shards is not None:
        return _curve(trace, request, meter)
    batch = (request.batch or _BATCH) if request.by_batch else None
    accesses = load(trace, batch=batch, rate=request.sample, watch=meter)
    plan = Plan(
        check_policies(request.policy), _tiers(request, accesses), request.by_batch,
        request.prefetch,
    )  # fmt: skip
    meter.turn_to("replaying", "replays")
    return accesses.keys_estimate, list(study(accesses, plan, meter))


def _tiers(request: Request, accesses: Accesses) -> tuple[tuple[int, ...], ...]:
    from deploy.cache.sizes import parse_rows

    distinct = accesses.keys_estimate
    if request.ram is None:
        return tuple((size,) for size in _sizes(request, distinct))
    ram = parse_rows(request.ram, distinct, "--ram")
    if request.hbm is None:
        return ((ram,),)
    return ((parse_rows(request.hbm, distinct, "--hbm"), ram),)


def _sizes(request: Request, distinct: int, count: int = 13) -> tuple[int, ...]:
    from deploy.cache.sizes import parse_sizes, spread

    if request.size is None and request.plot is not None:
        return spread(distinct, count)
    return parse_sizes(request.size or "1%,10%,50%", distinct)


def _curve(trace: Trace, request: Request, meter: Any) -> tuple[int, list[Result]]:
    import numpy as np

    from deploy.cache.curve import measure, results_of
    from storage.reuse import MissRatioCurve

    curve = MissRatioCurve(most_keys=request.shards)
    curve.add(np.empty(0, np.uint64))  # compiles
    began = time.perf_counter()
    measure(trace, curve, batch=request.batch, watch=meter)
    distinct = max(1, round(curve.distinct_estimate))
    sizes = _sizes(request, distinct, 40)
    return distinct, results_of(curve, sizes, time.perf_counter() - began)


def _recommend(
    trace: Trace, request: Request, hbm_gb: float, ram_gb: float, dim: int, optimizer: str,
    accesses_per_s: float,
) -> dict[str, Any]:  # fmt: skip
    """Print offers: what a report says of them."""
    from deploy.cache.curve import Demand, measure, recommend
    from deploy.cache.show import show_offers
    from deploy.progress import Meter
    from storage.budget import show_size
    from storage.reuse import MissRatioCurve

    curve = MissRatioCurve() if request.shards is None else MissRatioCurve(most_keys=request.shards)
    with Meter("reading", "accesses") as meter:
        measure(trace, curve, batch=request.batch, watch=meter)
    state = _state_floats(optimizer, dim)
    demand = Demand(int(hbm_gb * 2**30), int(ram_gb * 2**30), dim + state, accesses_per_s)
    offers = recommend(curve, demand)
    best = offers["recommended"]
    uses = "accesses" if request.batch is None else "unique keys of batches"
    show_offers(
        f"{trace.name}: {curve.accesses:,} {uses}, {curve.distinct_estimate:,.0f} different keys, rows of {dim} + {state} floats",
        offers,
    )
    hbm = f"--hbm {show_size(best.hbm).replace(' ', '')} " if best.hbm else ""
    typer.echo(
        f"recommended: {hbm}--ram {show_size(best.ram).replace(' ', '')}: {best.hbm_hits:.1%} of the "
        f"{uses} hit in HBM, {best.ram_hits:.1%} in RAM, {best.ssd_reads_per_s:,.0f} SSD reads/s at "
        f"{accesses_per_s:,.0f} {uses}/s"
    )
    return {
        "accesses": curve.accesses,
        "distinct": curve.distinct_estimate,
        "row_floats": dim + state,
        "offers": {name: one.report() for name, one in offers.items()},
    }


def _state_floats(optimizer: str, dim: int) -> int:
    import ps
    from ps.optimizer import OPTIMIZERS
    from storage.errors import ConfigError

    if optimizer not in OPTIMIZERS:
        raise ConfigError(
            f"--optimizer: expected one of {', '.join(OPTIMIZERS)}, got {optimizer!r}"
        )
    kind: Any = OPTIMIZERS[optimizer]
    return ps.Table("rows", dim=dim, optimizer=kind(lr=0.1)).state_width
