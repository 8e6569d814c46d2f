"""Workers under torchrun, of which one is killed, and a shard too: they go on from a checkpoint.

Each start of the workers is the same command, with --resume: torchrun starts them again with it.
"""

from __future__ import annotations

import json
import re
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from deploy.command import run
from tests.stress.server import Server
from tests.stress.torchrun import DEADLINE_SECONDS, kill_worker, wait, workers

BATCH = 200
_ROWS_PUSHED = re.compile(r"^terrace_rows_pushed_total (\S+)$", re.MULTILINE)
Words = list[str]


def options(examples: int, report: Path) -> Words:
    data = f"synthetic:rows=20000,examples={examples},features=4,dense=2,zipf=1.05"
    return ["--data", data, "--batch-size", str(BATCH), "--threads", "1", "--json", str(report)]


def pushed(server: Server) -> float:
    """Rows that workers pushed to a shard since it was started."""
    url = f"http://127.0.0.1:{server.note['metrics_port']}/metrics"
    with urllib.request.urlopen(url, timeout=DEADLINE_SECONDS) as answer:
        found = _ROWS_PUSHED.search(answer.read().decode())
    assert found
    return float(found[1])


def alone(folder: Path, examples: int) -> dict[str, Any]:
    """The report of one worker that nothing befalls."""
    report = folder / "alone.json"
    words = [*options(examples, report), "--store", str(folder / "alone"), "--ram", "64MiB"]
    assert run(["train", *words]) == 0
    return json.loads(report.read_text())


@pytest.mark.stress
@pytest.mark.parametrize(("examples", "every"), [(200_000, 100)])
def test_killed_workers_and_a_killed_shard_cost_time_and_nothing_else(
    tmp_path: Path, examples: int, every: int
) -> None:
    expected = alone(tmp_path, examples)
    report, log = tmp_path / "report.json", tmp_path / "log"
    with ExitStack() as undo:
        servers = [
            undo.enter_context(
                Server(
                    tmp_path / str(i), "--ram", "64MiB", "--metrics", "127.0.0.1:0",
                    shard=f"{i}/2",
                )
            )
            for i in range(2)
        ]  # fmt: skip
        words = [
            *options(examples, report), "--mode", "async", "--staleness", "2", "--resume",
            "--servers", ",".join(server.address for server in servers), "--ram", "64MiB",
            "--checkpoint-every", str(every),
        ]  # fmt: skip
        process = undo.enter_context(workers(words, log))
        wait(process, lambda: pushed(servers[0]) > 1000, log)
        kill_worker(process, 1)  # before the first checkpoint, where that is far
        seen = pushed(servers[1])
        wait(process, lambda: pushed(servers[1]) > seen + 8000, log)
        servers[0].kill()
        servers[0].start()
        wait(process, lambda: pushed(servers[0]) > 4000, log)
        kill_worker(process, 0)
        assert process.wait(DEADLINE_SECONDS) == 0, log.read_text()[-3000:]
    found, said = json.loads(report.read_text()), log.read_text()
    print(re.findall("resumed at step.*|holds nothing yet.*", said))
    print(f"AUC {found['test']['auc']:.5f}, alone {expected['test']['auc']:.5f}")
    assert found["step"] == expected["step"]
    assert said.count("resumed at step") == 2
    assert found["test"]["auc"] == pytest.approx(expected["test"]["auc"], abs=0.002)
