"""``terrace bench``: its subcommands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def store(
    dir: Annotated[Path, typer.Option(help="A new folder on the disk to measure.")] = Path(
        "run/bench"
    ),
    rows: Annotated[int, typer.Option(help="Rows to write.", min=1 << 17)] = 4_000_000,
    dim: Annotated[int, typer.Option(help="Floats of a row.", min=1, max=4096)] = 64,
    rounds: Annotated[int, typer.Option(help="Medians are over so many rounds.", min=1)] = 5,
    reads: Annotated[int, typer.Option(help="Rows read at random in a round.", min=32)] = 40_000,
    peers: Annotated[bool, typer.Option(help="Measure what else keeps rows, too.")] = True,
    json: Annotated[Path | None, typer.Option(help="Write the figures as one JSON object.")] = None,
) -> int:
    """Measure the SSD tier: reads, appends and opening, beside the device and other stores.

    The device's limits are taken in the same run, by fio where it is installed. RocksDB is measured
    when the package rocksdict is installed. The folder is removed afterwards.

    Example: terrace bench store --dir run/bench --json run/bench.json
    """
    import shutil

    from deploy.bench.store import Plan, bench_store, ensure_fits
    from deploy.display import show_table
    from deploy.progress import Ticker
    from deploy.report import write_json
    from storage.errors import ConfigError

    if dir.exists():
        raise ConfigError(f"--dir {dir}: expected a new folder, but it is there; name another")
    plan = Plan(dir, rows, dim, rounds, reads, peers)
    try:
        dir.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(f"--dir {dir}: cannot be made ({error.strerror})") from error
    try:
        ensure_fits(plan)
        figures = bench_store(plan, Ticker())
    finally:
        shutil.rmtree(dir, ignore_errors=True)
    show_table(f"{rows:,} rows x {dim} float32", _shown(figures))
    write_json(json, {"rows": rows, "dim": dim, **figures})
    return 0


def network(
    dir: Annotated[Path, typer.Option(help="A new folder for the servers' stores.")] = Path(
        "run/bench-network"
    ),
    stored: Annotated[int, typer.Option(help="Rows at each shard, in its RAM.", min=1)] = 1_000_000,
    rows: Annotated[int, typer.Option(help="Rows of one pull or push.", min=1)] = 40_000,
    dim: Annotated[int, typer.Option(help="Floats of a row.", min=1, max=4096)] = 64,
    rounds: Annotated[int, typer.Option(help="Medians are over so many rounds.", min=1)] = 21,
    shards: Annotated[str, typer.Option(help="Numbers of shards to try.")] = "1,2",
    clients: Annotated[
        int, typer.Option(help="Processes that ask at once, for rows/s by shards.", min=1, max=64)
    ] = 1,
    tls: Annotated[Path | None, typer.Option(help="Also with the certificates here.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the figures as one JSON object.")] = None,
) -> int:
    """Measure pulls and pushes over gRPC beside bare calls that carry as many bytes.

    Servers are started on this machine, as processes; the folder is removed afterwards.

    Example: terrace bench network --json run/network.json
    """
    import shutil

    from deploy.bench.network import Plan, bench_network
    from deploy.display import show_table
    from deploy.progress import Ticker
    from deploy.report import write_json
    from storage.errors import ConfigError

    if dir.exists():
        raise ConfigError(f"--dir {dir}: expected a new folder, but it is there; name another")
    numbers = shards.split(",")
    if not all(number.isdecimal() and 1 <= int(number) <= 64 for number in numbers):
        raise ConfigError(f"--shards: expected numbers from 1 to 64 such as 1,2, got {shards!r}")
    if rows > stored:
        raise ConfigError(f"--rows: expected --stored ({stored}) at most, got {rows}")
    plan = Plan(dir, stored, rows, dim, rounds, [int(number) for number in numbers], tls, clients)
    try:
        figures = bench_network(plan, Ticker())
    finally:
        shutil.rmtree(dir, ignore_errors=True)
    show_table(f"{rows:,} rows x {dim} float32", _shown_network(figures))
    write_json(json, {"rows": rows, "dim": dim, "clients": clients, **figures})
    return 0


def step(
    dir: Annotated[Path, typer.Option(help="A new folder for stores.")] = Path("run/bench-step"),
    rows: Annotated[int, typer.Option(help="Rows of the table.", min=1)] = 5_000_000,
    steps: Annotated[int, typer.Option(help="Steps of a round.", min=1)] = 20,
    rounds: Annotated[int, typer.Option(help="Medians are over so many rounds.", min=1)] = 5,
    threads: Annotated[int, typer.Option(help="For kernels and layers.", min=1)] = 1,
    servers: Annotated[
        str | None,
        typer.Option(help="Rows on servers: how many to start here, or HOST:PORT,HOST:PORT."),
    ] = None,
    staleness: Annotated[int, typer.Option(help="With servers: steps copies may be old.")] = 4,
    prefetch: Annotated[int, typer.Option(help="Batches made resident ahead.", min=0)] = 2,
    json: Annotated[Path | None, typer.Option(help="Write the figures as one JSON object.")] = None,
) -> int:
    """Measure a step's embedding layer: look up, backward with a constant gradient, update.

    4096 x 26 ids a step, Zipf 1.05, hashed to 64 bits, row-wise Adagrad, rows of 64 float32.

    Example: terrace bench step --servers 1 --json run/step.json
    """
    import shutil

    import torch

    from deploy.bench.step import Plan, bench_step
    from deploy.display import show_table
    from deploy.progress import Ticker
    from deploy.report import write_json
    from storage.errors import ConfigError

    if dir.exists():
        raise ConfigError(f"--dir {dir}: expected a new folder, but it is there; name another")
    where = int(servers) if servers is not None and servers.isdecimal() else servers
    plan = Plan(dir, rows, steps, rounds, threads, where, staleness, prefetch)
    torch.set_num_threads(threads)
    try:
        figures = bench_step(plan, Ticker())
    finally:
        shutil.rmtree(dir, ignore_errors=True)
    shown = {
        "keys/s": f"{figures['keys_per_s'] / 1e6:.2f} M",
        "step": f"{figures['step_ms']:.1f} ms",
        "RAM of this process": f"{figures['rss_bytes'] / 2**20:,.0f} MiB",
    }
    show_table(f"{rows:,} rows x 64 float32, 4096 x 26 ids", shown)
    write_json(json, {"rows": rows, "threads": threads, **figures})
    return 0


def _shown_network(figures: dict[str, Any]) -> dict[str, str]:
    """For people."""
    shown = {}
    for name, bare in (("pull", "bare_grpc"), ("push", "bare_grpc_push")):
        shown[f"{name}, one shard"] = f"{figures[f'{name}_bytes_per_s'] / 1e6:,.0f} MB/s"
        shown[f"  bare {name}"] = f"{figures[f'{bare}_bytes_per_s'] / 1e6:,.0f} MB/s"
        shown[f"  {name}, so much of that"] = f"{figures[f'{name}_fraction']:.2f}"
        if (secure := figures.get(f"mtls_{name}_bytes_per_s")) is not None:
            shown[f"  {name} with mutual TLS"] = f"{secure / 1e6:,.0f} MB/s"
    for shards, rate in figures["rows_per_s"].items():
        pushed = figures["push_rows_per_s"][shards]
        shown[f"rows pulled, pushed: {shards} shards"] = f"{rate:,.0f} /s, {pushed:,.0f} /s"
    return shown


def _shown(figures: dict[str, Any]) -> dict[str, str]:
    """For people."""
    shown = {
        "random rows read": f"{figures['read_rows_per_s']:,.0f} /s",
        "  the device's best, 4 KiB direct": f"{figures['device_read_iops']:,.0f} /s",
        "  so much of it": f"{figures['read_fraction']:.2f}",
        "rows appended, synced": f"{figures['append_rows_per_s']:,.0f} /s",
        "  a plain file, as many syncs": f"{figures['plain_file_bytes_per_s'] / 1e6:,.0f} MB/s",
        "  so much of its bytes": f"{figures['append_fraction']:.2f}",
        "rows taken in when opened": f"{figures['open_rows_per_s']:,.0f} /s",
        "index": f"{figures['index_bytes_per_row']:.1f} bytes of RAM a row",
        "bytes written for each byte": f"{figures['write_amplification']:.2f}",
        "  when all is overwritten": f"{figures['write_amplification_overwriting']:.2f}",
        "bytes held for each live byte": f"{figures['space_amplification']:.2f}",
    }
    for name, peer in figures.get("peers", {}).items():
        shown[f"{name}: read, appended"] = (
            f"{peer['read_rows_per_s']:,.0f} /s, {peer['append_rows_per_s']:,.0f} /s"
        )
    return shown
