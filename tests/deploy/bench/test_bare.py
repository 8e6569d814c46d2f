from __future__ import annotations

import subprocess
import sys

import grpc

from deploy.bench.bare import PULL, PUSH


def test_it_carries_what_is_asked_for() -> None:
    command = [sys.executable, "-m", "deploy.bench.bare"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None and child.stdout is not None
        port = int(child.stdout.readline())
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            assert channel.unary_unary(PULL)(b"1000", timeout=30) == bytes(1000)
            assert channel.unary_unary(PUSH)(bytes(1000), timeout=30) == b""
        child.stdin.close()
        assert child.wait(30) == 0
