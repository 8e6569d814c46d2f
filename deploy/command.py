"""The ``terrace`` command: its subcommands, and how it ends.

Exit code 0, or one line on standard error and another code: 1 for what Terrace says is wrong, 2 for
a command line that cannot be meant, 130 after Ctrl-C. Of several workers each says its rank first.

Modules that import torch are imported by the subcommand that needs them, so that ``--help`` is
instant.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import Any

import typer

from deploy.backup import backup
from deploy.bench import command as benchmarks
from deploy.cache.command import cache
from deploy.certificate import certificate
from deploy.compact import compact
from deploy.inspect import check, stats
from deploy.launch import launch
from deploy.moving import export, import_
from deploy.serve import serve
from deploy.train import train
from storage.errors import TerraceError

app = typer.Typer(
    name="terrace",
    help="Train recommender models on tables that are larger than memory.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _exiting(command: Callable[..., int]) -> Callable[..., None]:
    """The command as typer calls it: what it returns is the exit code."""

    @functools.wraps(command)
    def call(*args: Any, **kwargs: Any) -> None:
        raise typer.Exit(command(*args, **kwargs))

    return call


_COMMANDS: dict[str, Callable[..., int]] = {
    "train": train, "serve": serve, "launch": launch, "certificate": certificate,
    "cache": cache, "check": check, "stats": stats,
    "compact": compact, "backup": backup, "export": export, "import": import_,
}  # fmt: skip
for _name, _command in _COMMANDS.items():
    app.command(_name)(_exiting(_command))


bench = typer.Typer(
    help="How fast Terrace is here, beside the hardware and its peers.", no_args_is_help=True
)
bench.command("store")(_exiting(benchmarks.store))
bench.command("step")(_exiting(benchmarks.step))
bench.command("network")(_exiting(benchmarks.network))
app.add_typer(bench, name="bench")


def main() -> None:
    """Run the command line and exit."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command line: the exit code. Errors are one line on standard error."""
    try:
        app(arguments)
    except TerraceError as error:
        return _fail(str(error), 1)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 0
    return 0


def _fail(message: str, code: int) -> int:
    print(f"terrace: {_rank()}{' '.join(message.split())}", file=sys.stderr)
    return code


def _rank() -> str:
    """Which of several workers this is, as torchrun says; nothing alone. Not checked here."""
    alone = os.environ.get("WORLD_SIZE", "1") == "1"
    return "" if alone else f"rank {os.environ.get('RANK', '?')}: "
