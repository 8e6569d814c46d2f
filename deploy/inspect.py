"""``terrace check`` and ``terrace stats``: whether a store is sound, and what is in it."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

_Directory = Annotated[Path, typer.Argument(help="Directory of the store.")]
_Json = Annotated[Path | None, typer.Option(help="Write the report here as one JSON object.")]
_Ram = Annotated[str, typer.Option(help="RAM to work in, such as 1GiB.")]


def check(directory: _Directory, ram: _Ram = "1GiB", json: _Json = None) -> int:
    """Read every row of a store and verify checksums, index and counts.

    Exit code 1 when something is broken; each line says what, in which table, and how many rows it
    costs. Example: terrace check run/demo
    """
    import ps
    from deploy.report import write_json
    from ps.directory import StoreDirectory
    from storage.pages import page_damage

    rows: dict[str, int] = {}
    with closing(StoreDirectory(directory, None)):
        broken = page_damage(directory)
    if not broken:  # or opening it could crash
        with ps.open(directory, None, ram=ram) as store:
            broken = store.check()
            rows = {name: len(stack.ssd) for name, stack in store.stacks.items()}
    for line in broken:
        typer.echo(line)
    if not broken:
        typer.echo(f"{directory}: sound, {sum(rows.values()):,} rows in {len(rows)} table(s)")
    write_json(json, {"sound": not broken, "broken": broken, "rows": rows})
    return 1 if broken else 0


def stats(directory: _Directory, ram: _Ram = "1GiB", json: _Json = None) -> int:
    """Show a store's tables, rows, bytes and checkpoints.

    Example: terrace stats run/demo
    """
    import ps
    from deploy.display import show_table
    from deploy.report import write_json
    from storage.budget import show_size

    with ps.open(directory, None, ram=ram) as store:
        found = store.stats()
        tables = {name: table.describe() for name, table in store.tables.items()}
        shown: dict[str, str] = {}
        for name, stack in store.stacks.items():
            size = len(stack.ssd) * stack.table.shape.stored_bytes
            shown[f"{name}: rows"] = f"{len(stack.ssd):,} ({show_size(size)})"
            shown[f"{name}: dim, optimizer, dtype"] = (
                f"{stack.table.dim}, {stack.table.optimizer.name}, {stack.table.dtype}"
            )
            shown[f"{name}: RAM for index and buffers"] = show_size(stack.ssd.memory_bytes)
    shown["file"] = show_size(found["disk_bytes"]["file"])
    shown["checkpoints at steps"] = ", ".join(map(str, found["checkpoints"])) or "none"
    show_table(str(directory), shown)
    write_json(json, {"tables": tables, **found})
    return 0
