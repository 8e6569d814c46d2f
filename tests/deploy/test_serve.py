"""`terrace serve`: how it begins, tells, ends, and what a death leaves."""

from __future__ import annotations

import json
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.request import urlopen

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from deploy.command import run
from ps.shard import Shard
from ps.wire import terrace_pb2 as wire
from storage.errors import UnavailableError
from tests.deploy.serving import Process, process_at, start
from tests.ps.serving import (
    ADS,
    ALONE,
    Partition,
    expected_digest,
    gradients,
    opening,
    shard_at,
    wait_for,
)

WHERE: Any = SimpleNamespace(place=ALONE, partition=Partition(1))


def enter(process: Process, incarnation: int = 1) -> wire.Session:
    process.call("Open", opening(WHERE, incarnation=incarnation))
    return wire.Session(client="train-0", incarnation=incarnation)


def push(process: Process, session: wire.Session, sequence: int) -> Any:
    some = gradients(sequence)
    return process.call("Push", some.frame(session, sequence).message, some.values).message


def pushes(count: int) -> list[Any]:
    return [gradients(sequence) for sequence in range(1, count + 1)]


def test_sigterm_ends_waits_finishes_calls_makes_a_cut_and_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "shard"
    words = ("--durability", "checkpoint", "--metrics", "127.0.0.1:0", "--health-port", "0")
    with process_at(folder, *words) as process, ThreadPoolExecutor(1, "terrace-test") as pool:
        report = process.report
        assert (report["state"], report["pid"]) == ("serving", process.child.pid)
        assert (report["shard"], report["shards"], report["durability"]) == (0, 1, "checkpoint")
        assert report["load_seconds"] >= 0
        session = enter(process)
        for sequence in range(1, 6):
            push(process, session, sequence)
        told_by_plain_port(report)
        waits = wire.PullRequest(session=session, table="ads", least_clock=99)
        waiting = pool.submit(process.call, "Pull", waits)
        code, said = process.end()
        with pytest.raises(UnavailableError):
            waiting.result(20)
        assert code == 0
        assert "Traceback" not in said
        assert f"serving shard 0/1 at 127.0.0.1:{report['port']}" in said
        assert "stopping" in said.splitlines()[-1]
        assert json.loads(process.file.read_text()) == report | {"state": "stopped"}
    with shard_at(folder) as shard:
        assert shard.digest() == expected_digest(tmp_path / "oracle", pushes(5))


def told_by_plain_port(report: Any) -> None:
    at = f"http://127.0.0.1:{report['metrics_port']}"
    assert urlopen(f"{at}/readyz", timeout=20).read() == b"serving\n"
    text = urlopen(f"{at}/metrics", timeout=20).read().decode()
    assert "terrace_rows_pushed_total 200.0" in text
    assert "terrace_figures_up 1.0" in text
    assert 'terrace_rows{table="ads"' in text
    with grpc.insecure_channel(f"127.0.0.1:{report['health_port']}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        reply = stub.Check(health_pb2.HealthCheckRequest(), timeout=20)
        assert reply.status == health_pb2.HealthCheckResponse.SERVING


def test_ctrl_c_ends_it_as_sigterm_does(tmp_path: Path) -> None:
    with process_at(tmp_path / "shard") as process:
        code, said = process.end(signal.SIGINT)
        assert code == 0
        assert "Traceback" not in said


def test_a_killed_shard_goes_on_in_the_same_folder(tmp_path: Path) -> None:
    folder, words = tmp_path / "shard", ("--durability", "strict", "--interval", "3000")
    with process_at(folder, *words) as process:
        session = enter(process)
        for sequence in range(1, 9):
            push(process, session, sequence)
            if sequence == 5:
                process.call("Cut", wire.CutRequest(session=session))
        process.end(signal.SIGKILL)
    with process_at(folder, *words) as process:
        request = opening(WHERE, last_sequence=8)
        reply = process.call("Open", request).message
        assert reply.boot
        assert reply.applied == 8
        for sequence in range(1, 11):  # repeated from the first on
            push(process, session, sequence)
        keys = np.arange(10, dtype=np.uint64)
        process.call("Pull", wire.PullRequest(session=session, table="ads", rows=10), keys)
        digest = json.loads(process.call("Look", wire.LookRequest(what="digest")).message.text)
        assert digest == expected_digest(tmp_path / "oracle", pushes(10))
        assert process.end()[0] == 0


BAD = [
    (("--shard", "2/2"), "--shard"),
    (("--shard", "half"), "I/N"),
    (("--shard", "0/0"), "1 to 1024"),
    (("--ram", "much"), "--ram"),
    (("--ram", "0"), "--ram"),
    (("--disk", "-1"), "--disk"),
    (("--durability", "sometimes"), "durability"),
    (("--interval", "0"), "interval"),
    (("--policy", "best"), "policy"),
    (("--threads", "-3"), "threads"),
    (("--listen", "127.0.0.1"), "HOST:PORT"),
    (("--listen", "0.0.0.0:0"), "--tls"),
    (("--listen", "[::]:0"), "--tls"),
    (("--metrics", "here"), "--metrics"),
    (("--metrics", "127.0.0.1:99999"), "metrics"),
    (("--health-port", "99999"), "health"),
    (("--tls", "nowhere"), "nowhere"),
    (("--token", "nowhere"), "nowhere"),
    (("--drain-seconds", "-1"), "drain"),
    (("--replay-seconds", "nan"), "replay"),
    (("--json", "nowhere/at/all.json"), "--json"),
]


@pytest.mark.parametrize(("words", "said"), BAD, ids=lambda each: "_".join(each)[:40])
def test_bad_options_get_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    plain = {"--listen": "127.0.0.1:0", "--dir": str(tmp_path / "s"), "--ram": "16MiB"}
    arguments = [word for pair in (plain | {words[0]: words[1]}).items() for word in pair]
    stops = threading.Timer(30.0, lambda: signal.raise_signal(signal.SIGTERM))
    stops.name = "terrace-test-stop"
    stops.start()
    try:
        assert run(["serve", *arguments]) in (1, 2)
    finally:
        stops.cancel()
        stops.join()
    lines = [line for line in capsys.readouterr().err.splitlines() if "loading" not in line]
    assert len(lines) == 1, lines
    assert said in lines[0]


def test_a_port_in_use_gets_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        words = ["serve", "--dir", str(tmp_path / "s"), "--listen", listen, "--ram", "16MiB"]
        assert run(words) == 1
    assert "--listen" in capsys.readouterr().err.splitlines()[-1]


def test_a_folder_in_use_gets_one_line(tmp_path: Path) -> None:
    with shard_at(tmp_path / "shard") as shard:
        shard.open("train-0", 1, 1, rank=0, world=1, awaited=0, tables=[ADS])
        with start(tmp_path / "shard") as child:
            _, said = child.communicate(timeout=60)
        assert child.returncode == 1
        assert "has it open" in said.splitlines()[-1]
        assert "Traceback" not in said


def test_a_store_that_stopped_ends_the_process(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a supervisor to start it again."""
    file, folder = tmp_path / "report.json", tmp_path / "shard"
    with shard_at(folder) as shard:
        shard.ensure_tables([ADS])
    began: list[Shard] = []

    class Seen(Shard):
        def __init__(self, *args: Any, **more: Any) -> None:
            super().__init__(*args, **more)
            began.append(self)

    def break_it() -> None:
        wait_for(file.exists)
        began[0].store.planner.failure = OSError("the device is gone")

    monkeypatch.setattr("ps.shard.Shard", Seen)
    words = ["serve", "--dir", str(folder), "--listen", "127.0.0.1:0", "--ram", "16MiB"]
    with ThreadPoolExecutor(1, "terrace-test") as pool:
        breaking = pool.submit(break_it)
        assert run([*words, "--json", str(file)]) == 1
        breaking.result(20)
    last = capsys.readouterr().err.splitlines()[-1]
    assert "the shard stopped after an error (the device is gone)" in last
    assert json.loads(file.read_text())["state"] == "failed"
