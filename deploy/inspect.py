"""``terrace check`` and ``terrace stats``: whether a store is sound, and what is in it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_Directory = Annotated[Path, typer.Argument(help="Directory of the store.")]
_Json = Annotated[Path | None, typer.Option(help="Write the report here as one JSON object.")]
_Ram = Annotated[str, typer.Option(help="RAM to work in, such as 1GiB.")]


def check(
    directory: _Directory,
    repair: Annotated[bool, typer.Option(help="Keep what is whole, in a new file.")] = False,
    json: _Json = None,
) -> int:
    """Read every block of a store and verify checksums; with --repair, keep all that is whole.

    Exit code 1 when something is damaged; each line says what, in which table and block, and which
    rows it costs. A repair keeps the damaged file as data.damaged.mdb; rows whose newest version
    is lost show that of an older checkpoint, or start anew.

    Example: terrace check run/demo
    """
    from deploy.progress import Meter
    from deploy.report import write_json
    from ps.salvage import diagnose
    from ps.shrink import repair as repair_store

    with Meter("checking", "blocks") as meter:
        found = diagnose(directory, meter)
    for line in found.broken:
        typer.echo(line)
    total = sum(found.rows.values())
    if not found.broken:
        typer.echo(f"{directory}: sound, {total:,} rows in {len(found.rows)} table(s)")
    report = {"sound": not found.broken, "broken": found.broken, "rows": found.rows,
              "lost_rows": found.lost, "repaired": False}  # fmt: skip
    if found.broken and repair:
        with Meter("repairing", "rows") as meter:
            kept = repair_store(directory, meter)
        typer.echo(f"{directory}: repaired: {sum(kept.rows.values()):,} versions of rows are whole")
        report |= {"repaired": True, "rows": kept.rows}
    write_json(json, report)
    return 1 if found.broken and not repair else 0


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
