"""``terrace backup``: the newest checkpoint in another folder, and later what has come since."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def backup(
    directory: Annotated[Path, typer.Argument(help="Directory of the store.")],
    destination: Annotated[
        Path, typer.Argument(help="A new folder, or one with an earlier backup of this store.")
    ],
    json: Annotated[Path | None, typer.Option(help="Write the report as one JSON object.")] = None,
) -> int:
    """Copy a store's newest checkpoint to another folder, where only what is new is written.

    The destination is a store, good at every moment: to restore, use it, or back it up to a new
    folder. Nobody may have either open; Ctrl-C or a crash leaves the earlier backup, and the next
    run goes on.

    Example: terrace backup run/demo /mnt/other/demo
    """
    from dataclasses import asdict

    from deploy.progress import Meter
    from deploy.report import write_json
    from ps.backup import back_up
    from storage.budget import show_size

    with Meter("backing up", "blocks") as meter:
        report = back_up(directory, destination, meter)
    typer.echo(
        f"{destination}: step {report.step}, {report.blocks_copied:,} blocks "
        f"({show_size(report.bytes_written)}) written, {report.blocks_removed:,} removed, "
        f"{report.seconds:.1f} s"
    )
    write_json(json, asdict(report))
    return 0
