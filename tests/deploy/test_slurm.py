"""The Slurm batch file, run by bash with stand-ins for srun, scontrol, terrace and torchrun.

They write down how they were called. Slurm itself is not here: what its options do is not tested.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.deploy import commands
from tests.deploy.linters import MANIFESTS
from tests.ps.serving import wait_for

NODES = ["node-a", "node-b"]
SECONDS = 20.0
NOTE = """
import json, os, signal, sys
from pathlib import Path
NAME = Path(sys.argv[0]).name
def note(**more):
    to = Path(os.environ["NOTES"], f"{NAME}-{os.getpid()}.new")
    to.write_text(json.dumps({"name": NAME, "words": sys.argv[1:], **more}))
    to.rename(to.with_suffix(".json"))
"""
STANDS_IN = {
    # Each task a child; SIGTERM goes on to all.
    "srun": """
import subprocess
from itertools import takewhile
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGCHLD])
options = list(takewhile(lambda word: word.startswith("--"), sys.argv[1:]))
tasks = [word.partition("=")[2] for word in options if word.startswith("--ntasks=")][0]
note()
command = sys.argv[1 + len(options):]
children = [
    subprocess.Popen(command, env={**os.environ, "SLURM_PROCID": str(n), "SLURM_NTASKS": tasks})
    for n in range(int(tasks))
]
while any(child.poll() is None for child in children):
    came = signal.sigtimedwait([signal.SIGTERM, signal.SIGCHLD], 1)
    if came and came.si_signo == signal.SIGTERM:
        for child in children:
            child.terminate()
sys.exit(max(child.returncode for child in children))
""",
    "scontrol": """
if sys.argv[1] == "show":
    print("node-a\\nnode-b")
else:
    note()
""",
    "terrace": """
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
if sys.argv[1] == "certificate":
    folder = Path(sys.argv[2])
    folder.mkdir(exist_ok=True)
    (folder / "ca.pem").touch()
note(task=os.environ.get("SLURM_PROCID"))
if sys.argv[1] == "serve":
    signal.sigwait([signal.SIGTERM])
""",
    "torchrun": """
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
note(task=os.environ["SLURM_PROCID"])
if os.environ["TRAINS"] == "until stopped":
    signal.sigwait([signal.SIGTERM])
    sys.exit(1)
sys.exit(int(os.environ["TRAINS"]))
""",
}


class Job:
    """One start of the batch file. trains: the workers' exit code, or "until stopped"."""

    def __init__(self, folder: Path, *words: str, trains: str = "0", restarts: str = "0") -> None:
        self._notes = folder / f"notes-{restarts}"
        programs = folder / "bin"
        for made in (self._notes, programs, folder / "work"):
            made.mkdir(exist_ok=True)
        for name, code in STANDS_IN.items():
            (programs / name).write_text(f"#!{sys.executable} -S\n{NOTE}{code}")
            (programs / name).chmod(0o755)
        self.child = subprocess.Popen(
            ["bash", str(MANIFESTS / "slurm.sbatch"), *words],
            env={
                "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "NOTES": str(self._notes),
                "TRAINS": trains, "SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": restarts,
                "SLURM_JOB_NODELIST": "node-[a-b]", "SLURM_SUBMIT_DIR": str(folder / "work"),
                "SLURM_CPUS_PER_TASK": "8",
            },
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip

    def called(self, name: str) -> list[Any]:
        """How a program was called, in the order of tasks."""
        found = [json.loads(path.read_text()) for path in self._notes.glob(f"{name}-*.json")]
        return sorted(found, key=lambda each: each.get("task") or "")

    def end(self) -> tuple[int, str]:
        said, _ = self.child.communicate(timeout=SECONDS)
        return self.child.returncode, said

    def close(self) -> None:
        """Kill what a test that failed has left."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.child.pid, signal.SIGKILL)
        self.child.communicate(timeout=SECONDS)


Starts = Callable[..., Job]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Starts]:
    """Starts jobs in one folder; none is left at the end."""
    with contextlib.ExitStack() as undo:
        yield lambda *words, **how: undo.enter_context(
            contextlib.closing(Job(tmp_path, *words, **how))
        )


def parsed(job: Job, command: str) -> list[Any]:
    found = [commands.terrace(each["words"]) for each in job.called("terrace")]
    return [values for name, values in found if name == command]


def test_it_starts_a_server_and_a_worker_on_each_node(start: Starts) -> None:
    job = start("--data", "clicks", "--preset", "kaggle")
    code, said = job.end()
    assert code == 0, said
    (certificate,) = parsed(job, "certificate")
    assert (certificate["hosts"], certificate["renew"]) == ("node-a,node-b", False)
    servers = parsed(job, "serve")
    assert [each["shard"] for each in servers] == ["0/2", "1/2"]
    assert len({each["directory"] for each in servers}) == 2
    assert {each["tls"] for each in servers} == {certificate["directory"]}
    port = servers[0]["listen"].rpartition(":")[2]
    for each in job.called("torchrun"):
        meeting, words = commands.torchrun(each["words"])
        assert (meeting.nnodes, meeting.rdzv_endpoint) == ("2", "node-a:29500")
        _, train = commands.terrace(words)
        assert train["servers"] == ",".join(f"{node}:{port}" for node in NODES)
        assert (train["data"], train["preset"], train["resume"]) == ("clicks", "kaggle", True)
        assert train["tls"] == certificate["directory"]
    assert len(job.called("torchrun")) == len(NODES)
    for each in job.called("srun"):
        assert {"--overlap", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1"} < set(each["words"])
    assert not job.called("scontrol")


def test_before_its_time_is_up_it_stops_and_queues_again_and_goes_on(start: Starts) -> None:
    job = start("--data", "clicks", trains="until stopped")
    wait_for(lambda: len(job.called("torchrun")) == 2 and len(parsed(job, "serve")) == 2, SECONDS)
    job.child.send_signal(signal.SIGUSR1)
    code, said = job.end()
    assert code == 0, said
    (requeue,) = job.called("scontrol")
    assert requeue["words"] == ["requeue", "7"]
    again = start("--data", "clicks", restarts="1")
    assert again.end()[0] == 0
    (certificate,) = parsed(again, "certificate")
    assert certificate["renew"]
    runs = [commands.torchrun(each["words"])[0].rdzv_id for each in again.called("torchrun")]
    assert set(runs) == {"7-1"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_job_that_is_cancelled_stops_and_does_not_queue_again(
    start: Starts, number: signal.Signals
) -> None:
    job = start("--data", "clicks", trains="until stopped")
    wait_for(lambda: len(job.called("torchrun")) == 2 and len(parsed(job, "serve")) == 2, SECONDS)
    job.child.send_signal(number)
    code, _ = job.end()
    assert code == 1
    assert not job.called("scontrol")


def test_a_training_that_fails_fails_the_job(start: Starts) -> None:
    job = start("--data", "clicks", trains="3")
    assert job.end()[0] == 3
    assert not job.called("scontrol")
