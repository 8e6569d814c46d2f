"""``terrace compact``: the smallest file that shows the same."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def compact(
    directory: Annotated[Path, typer.Argument(help="Directory of the store.")],
    json: Annotated[Path | None, typer.Option(help="Write the report as one JSON object.")] = None,
) -> int:
    """Rewrite a store's file with only what the present and the kept checkpoints need.

    Deleted rows leave the disk. Nobody may have the store open, and the disk must have room for
    both files; the old one stays until the new one is whole.

    Example: terrace compact run/demo
    """
    from dataclasses import asdict

    from deploy.progress import Meter
    from deploy.report import write_json
    from ps.shrink import shrink
    from storage.budget import show_size

    with Meter("compacting", "rows") as meter:
        report = shrink(directory, meter)
    before, after = show_size(report.bytes_before), show_size(report.bytes_after)
    typer.echo(f"{directory}: {before} -> {after}, {sum(report.rows.values()):,} versions of rows")
    write_json(json, asdict(report))
    return 0
