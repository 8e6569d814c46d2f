"""``terrace export`` and ``terrace import``: rows out of a store and into one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

_Directory = Annotated[Path, typer.Argument(help="Directory of the store.")]
_Ram = Annotated[str, typer.Option(help="RAM to work in, such as 1GiB.")]
_Json = Annotated[Path | None, typer.Option(help="Write the report here as one JSON object.")]


def export(
    directory: _Directory,
    destination: Annotated[Path, typer.Argument(help="A new folder.")],
    format: Annotated[
        Literal["parquet", "safetensors"], typer.Option(help="Of the files.")
    ] = "parquet",
    ram: _Ram = "1GiB",
    json: _Json = None,
) -> int:
    """Write keys, embeddings and optimizer state of all tables to files anybody can read.

    Example: terrace export run/demo run/rows --format parquet
    """
    from dataclasses import asdict

    import ps
    from deploy.progress import Ticker
    from deploy.report import write_json
    from ps.launch import Launch
    from ps.transfer import export_store

    show = Ticker()
    with ps.open(directory, None, ram=ram, launch=Launch()) as store:
        assert isinstance(store, ps.Store)
        report = export_store(
            store, destination, format=format, progress=lambda n: show(f"exported {n:,} rows")
        )
    typer.echo(f"{destination}: {sum(report.rows.values()):,} rows")
    write_json(json, asdict(report))
    return 0


def import_(
    source: Annotated[Path, typer.Argument(help="A folder that terrace export wrote.")],
    directory: _Directory,
    ram: _Ram = "1GiB",
    json: _Json = None,
) -> int:
    """Read an export into a store, which is made when there is none.

    Example: terrace import run/rows run/copy
    """
    from dataclasses import asdict

    from deploy.progress import Ticker
    from deploy.report import write_json
    from ps.transfer import import_store

    show = Ticker()
    report = import_store(
        source, directory, ram=ram, progress=lambda n: show(f"imported {n:,} rows")
    )
    typer.echo(f"{directory}: {sum(report.rows.values()):,} rows")
    write_json(json, asdict(report))
    return 0
