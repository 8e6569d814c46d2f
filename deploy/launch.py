"""``terrace launch``: servers and workers of one training on this machine, in one line."""

# ruff: noqa: E501 - the options are a table, one a line

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from deploy.child import Say
    from deploy.cluster import Cluster

EXAMPLE = """Example: terrace launch --servers 2 --workers 2 -- train --data flights --mode async --staleness 2

With --servers, rows are on that many servers, each a shard of them; with none the workers share a
store, and train exactly as one would. What follows -- is a terrace train without --store and --servers;
it goes on from the newest checkpoint, if there is one in --dir. A worker or a server that dies is
started again, --max-restarts times at most: workers all together, by torchrun. Ctrl-C ends the
workers after a step with a checkpoint, then the servers; again to kill them all."""

_WORKERS_END_SECONDS, _LOOK_SECONDS = 60.0, 0.1


def launch(
    words: Annotated[list[str], typer.Argument(help="-- train ...: what each worker runs.", metavar="-- train ...")],
    servers: Annotated[int, typer.Option(help="Servers that hold the rows; 0: the workers do.", min=0, max=64)] = 0,
    workers: Annotated[int, typer.Option(help="Workers that train.", min=1, max=64)] = 2,
    dir: Annotated[Path, typer.Option(help="Folder of the rows; made when absent.")] = Path("run/launch"),
    ram: Annotated[str, typer.Option(help="RAM of each server, such as 8GiB.")] = "1GiB",
    durability: Annotated[str, typer.Option(help="Of the servers: strict, interval, checkpoint.")] = "interval",
    max_restarts: Annotated[int, typer.Option(help="Of the workers, and of each server.", min=0)] = 3,
    json: Annotated[Path | None, typer.Option(help="Write how it went here as one JSON object.")] = None,
) -> int:  # fmt: skip
    """Start servers and workers of one training on this machine, and see to them."""
    from deploy.cluster import Cluster
    from deploy.report import write_json

    options = _checked(words)
    began, lock = time.monotonic(), threading.Lock()

    def say(line: str, on_stderr: bool) -> None:
        with lock:
            print(line, file=sys.stderr if on_stderr else sys.stdout, flush=True)

    with ExitStack() as undo:
        stops = undo.enter_context(_stops())
        cluster = undo.enter_context(
            Cluster(
                dir, servers, workers, options, say,
                server_options=("--ram", ram, "--durability", durability), restarts=max_restarts,
            )
        )  # fmt: skip
        code = _see_to(cluster, stops, say)
        restarts = cluster.restarted
    report = {
        "servers": servers, "workers": workers, "code": code, "server_restarts": restarts,
        "seconds": time.monotonic() - began,
    }  # fmt: skip
    write_json(json, report)
    return code


launch.__doc__ = f"{launch.__doc__}\n\n{EXAMPLE}"


def _checked(words: Sequence[str]) -> list[str]:
    """The words of ``terrace train``. Raises: ConfigError for what is given here already."""
    from storage.errors import ConfigError

    if not words or words[0] != "train":
        raise ConfigError(f"launch: expected -- train ..., got {' '.join(words) or 'nothing'}")
    for option, instead in (("--store", "--dir"), ("--servers", "--servers, before the --")):
        if any(word == option or word.startswith(option + "=") for word in words):
            raise ConfigError(f"{option}: not in what follows --; give {instead}")
    return list(words[1:])


def _see_to(cluster: Cluster, stops: list[int], say: Say) -> int:
    """Until the workers end: the exit code. stops: one more for each signal that came."""
    while (code := cluster.look()) is None:
        if stops:
            say("terrace: stopping after this step; again to kill all", True)
            cluster.stop_workers(_WORKERS_END_SECONDS, killed=lambda: len(stops) > 1)
            return 130
        threading.Event().wait(_LOOK_SECONDS)
    return 0 if code == 0 else 1


@contextmanager
def _stops() -> Iterator[list[int]]:
    """Signals to stop, as they come."""
    stops: list[int] = []
    before = {
        number: signal.signal(number, lambda got, _: stops.append(got))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield stops
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
