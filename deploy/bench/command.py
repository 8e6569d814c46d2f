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
