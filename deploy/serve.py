"""``terrace serve``: one shard of the tables on a port, until it is told to stop.

Ctrl-C and SIGTERM drain: no new calls, those under way finish, everything is made durable, exit 0.
A store that has stopped after an error ends the process with exit 1, for a supervisor to start it
again: it then shows the last cut, and clients repeat what that lacks.
"""

# ruff: noqa: E501 - the options are a table, one a line

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ps.server.health import Health
    from ps.server.metrics import Metrics
    from ps.shard import Shard

EXAMPLE = "Example: terrace serve --shard 0/2 --dir run/ps-0 --listen 127.0.0.1:7000 --ram 8GiB"

_WIRE_SHARE, _MOST_WIRE = 4, 256 << 20
_LOOK_SECONDS = 0.5
_MOST_SECONDS, _HIGHEST_PORT = 86_400, 65_535


def serve(
    directory: Annotated[Path, typer.Option("--dir", help="Folder of the shard's store; made if absent.")],
    shard: Annotated[str, typer.Option(help="Which shard of how many, I/N, from 0.")] = "0/1",
    listen: Annotated[str, typer.Option(help="HOST:PORT; port 0 is one of the system's choice. Other hosts than this one need --tls.")] = "127.0.0.1:7000",
    ram: Annotated[str, typer.Option(help="Budget for rows in RAM, index, buffers and messages.")] = "1GiB",
    disk: Annotated[str | None, typer.Option(help="Most bytes of the store; None: as far as the disk goes.")] = None,
    durability: Annotated[str, typer.Option(help="strict, interval or checkpoint: what a crash may undo (see the README).")] = "interval",
    interval: Annotated[float, typer.Option(help="Seconds between cuts.")] = 1.0,
    replay_seconds: Annotated[float, typer.Option(help="After a restart, how long workers have to repeat changes before they are shut out.")] = 120.0,
    policy: Annotated[str, typer.Option(help="Who is evicted from RAM first.")] = "sieve",
    threads: Annotated[int | None, typer.Option(help="For kernels; None: all cores.")] = None,
    tls: Annotated[Path | None, typer.Option(help="Folder with certificates and token, as terrace certificate makes it.")] = None,
    token: Annotated[Path | None, typer.Option(help="File with one or two tokens, if not in --tls.")] = None,
    metrics: Annotated[str | None, typer.Option(help="HOST:PORT for /metrics, /healthz and /readyz, plain HTTP without data.")] = None,
    health_port: Annotated[int | None, typer.Option(help="Port beside --metrics for grpc.health.v1 without TLS or token.")] = None,
    reflection: Annotated[bool, typer.Option("--reflection", help="Let tools ask which methods there are.")] = False,
    drain_seconds: Annotated[float, typer.Option(help="How long calls under way may take when it stops.")] = 10.0,
    json: Annotated[Path | None, typer.Option(help="Write ports and state here as one JSON object, once it serves and when it ends.")] = None,
) -> int:  # fmt: skip
    """Serve one shard of the tables to workers."""
    from deploy.report import write_json
    from ps.server.health import Health, State
    from ps.server.heap import keep_memory
    from ps.server.metrics import Metrics
    from ps.server.security import check_address

    _check_seconds("--drain-seconds", drain_seconds)
    _check_seconds("--replay-seconds", replay_seconds)
    place, files = _place(shard), _files(tls)
    token = token or (files.token if files else None)
    check_address(listen, secure=files is not None and bool(files.client_ca or token))
    began = time.monotonic()
    state, figures, stop = Health(), Metrics(), threading.Event()
    with ExitStack() as undo, _stopping(stop):
        plain = _plain(figures, state, metrics, health_port)
        if plain is not None:
            undo.callback(plain.close)
        budget = _parse(ram)
        wire = min(_MOST_WIRE, budget // _WIRE_SHARE)
        keep_memory(wire)
        settings = _settings(
            ram=budget - wire, disk=disk, durability=durability, interval_seconds=interval,
            policy=policy, threads=threads,
        )  # fmt: skip
        from ps.shard import Shard

        typer.echo(f"loading shard {shard} from {directory}", err=True)
        one = Shard(
            directory, place, settings, replay_seconds=replay_seconds,
            queue_bytes=wire,
        )  # fmt: skip
        undo.callback(one.close)
        figures.watch(one.figures)
        endpoint = _endpoint(
            one, listen, figures, state, files, token, reflection=reflection, wire=wire
        )
        undo.callback(endpoint.stop, drain_seconds)
        undo.callback(one.drain)
        undo.callback(state.change, State.DRAINING)
        state.change(State.SERVING)
        seconds = time.monotonic() - began
        report = {
            "state": "serving", "pid": os.getpid(), "shard": place.shard, "shards": place.shards,
            "port": endpoint.port, "metrics_port": plain.port if plain else None,
            "health_port": plain.grpc_port if plain else None, "load_seconds": seconds,
            "durability": durability,
        }  # fmt: skip
        write_json(json, report)
        host = listen.rpartition(":")[0]
        typer.echo(
            f"serving shard {shard} at {host}:{endpoint.port}, durability {durability}; ready after "
            f"{seconds:.1f} s; Ctrl-C stops it",
            err=True,
        )
        failure = _wait(one, stop)
        typer.echo("stopping: finishing what is under way, making it durable", err=True)
    if failure is not None:
        from storage.errors import StoreError

        write_json(json, report | {"state": "failed"})
        raise StoreError(f"{directory}: the shard stopped after an error ({failure})")
    write_json(json, report | {"state": "stopped"})
    return 0


serve.__doc__ = f"{serve.__doc__}\n\n{EXAMPLE}"


def _wait(shard: Shard, stop: threading.Event) -> BaseException | None:
    """Until somebody wants it to stop, or its store has: why, in that case."""
    while not stop.wait(_LOOK_SECONDS):
        if shard.failure is not None:
            return shard.failure
    return None


@contextmanager
def _stopping(stop: threading.Event) -> Iterator[None]:
    """SIGTERM and Ctrl-C set the event; a second one ends the process."""

    def ask(number: int, frame: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _place(text: str) -> Any:
    from ps.server.place import Place
    from storage.errors import ConfigError

    shard, slash, shards = text.partition("/")
    if not (slash and shard.isdecimal() and shards.isdecimal()):
        raise ConfigError(f"--shard: expected I/N such as 0/2, got {text!r}")
    return Place(int(shard), int(shards))


def _check_seconds(option: str, seconds: float) -> None:
    from storage.errors import ConfigError

    if not 0 <= seconds <= _MOST_SECONDS:
        raise ConfigError(f"{option}: expected 0 to {_MOST_SECONDS} seconds, got {seconds}")


def _parse(size: str) -> int:
    from storage.budget import parse_size

    return parse_size(size, "--ram")


def _settings(*, disk: str | None, threads: int | None, **others: Any) -> Any:
    from ps.settings import Settings
    from storage.budget import parse_size

    return Settings(
        disk=None if disk is None else parse_size(disk, "--disk"),
        threads=threads or os.cpu_count() or 1,
        **others,
    )


def _files(tls: Path | None) -> Any:
    """The server's certificates, None for none."""
    from ps.tls import ServerFiles

    return None if tls is None else ServerFiles.in_folder(tls)


def _plain(figures: Metrics, state: Health, metrics: str | None, health: int | None) -> Any:
    """The plain port, None where nobody asked for it."""
    from ps.server.plain import PlainPort
    from storage.errors import ConfigError

    if metrics is None and health is None:
        return None
    host, _, port = (metrics or "127.0.0.1:0").rpartition(":")
    if not port.isdecimal():
        raise ConfigError(f"--metrics: expected HOST:PORT, got {metrics!r}")
    if health is not None and not 0 <= health <= _HIGHEST_PORT:
        # gRPC would take what is left of it modulo 65,536.
        raise ConfigError(f"--health-port: expected 0 to {_HIGHEST_PORT}, got {health}")
    return PlainPort(figures, state, host.strip("[]"), int(port), grpc_port=health)


def _endpoint(
    shard: Shard,
    listen: str,
    figures: Metrics,
    state: Health,
    files: Any,
    token: Path | None,
    *,
    reflection: bool,
    wire: int,
) -> Any:
    from ps.server.endpoint import Endpoint
    from ps.server.security import Guard, Tokens, server_credentials

    def say(line: str) -> None:
        typer.echo(line, err=True)

    interceptors, credentials = [], None
    if files is not None:
        pair = (files.certificate, files.key)
        credentials = server_credentials(*pair, files.client_ca, report=say)
    if token is not None:
        interceptors.append(
            Guard(
                Tokens(token, report=say),
                refused=lambda: figures.refused("token"),
                open_methods=("/grpc.health.v1.Health/",),
            )
        )
    return Endpoint(
        shard, listen, metrics=figures, health=state, credentials=credentials,
        interceptors=interceptors, reflection=reflection, most_bytes=wire,
    )  # fmt: skip
