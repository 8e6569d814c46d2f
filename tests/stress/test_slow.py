"""A client that asks for much and reads it slowly, or not at all, costs a shard no memory.

What is measured: how far the process of a shard grows over what it was with one row and each call
made once (the interpreter, and kernels that are loaded at their first use): at most 1.1 of its
``--ram``, rows and all. Others are served meanwhile, and afterwards.
"""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

import ps
from ps.client.client import PIECE_BYTES, Client
from ps.client.identity import Identity
from ps.client.link import OPTIONS
from ps.wire import terrace_pb2 as wire
from ps.wire.frame import Frame
from tests.ps.serving import wait_for
from tests.stress.proxy import Proxy, Way
from tests.stress.server import Server

TABLE = ps.Table("rows", dim=64, optimizer=ps.SGD(lr=1.0), init=ps.Zeros())
PULLED = PIECE_BYTES // (4 * TABLE.dim + 16)
STORED, ASKED = 150_000, 200
RAM = 128 << 20
PATH = "/terrace.v1.Shard/Pull"


def request(client: Client, seed: int) -> bytes:
    """A pull of 4 MiB."""
    keys = np.random.default_rng(seed).choice(STORED, PULLED, replace=False).astype(np.uint64)
    message = wire.PullRequest(table="rows", rows=PULLED)
    message.session.CopyFrom(client.identity.session)
    return Frame(message, keys).pack()


@pytest.mark.parametrize(
    ("rate", "seconds"),
    [
        pytest.param(0, 0.5, marks=pytest.mark.stress),
        pytest.param(0, 20.0, marks=pytest.mark.stress),
        pytest.param(1 << 20, 20.0, marks=pytest.mark.stress),
    ],
    ids=["not at all", "not at all, for long", "1 MiB a second"],
)
def test_memory_stays_within_the_budget(tmp_path: Path, rate: int, seconds: float) -> None:
    with (
        Server(tmp_path, "--ram", str(RAM)) as server,
        Proxy(("127.0.0.1", server.port)) as proxy,
        ThreadPoolExecutor(1) as threads,
        ExitStack() as undo,
    ):
        client = Client([server.address], [TABLE], Identity("slow"), grpc.insecure_channel)
        keys = np.arange(STORED, dtype=np.uint64)
        ones = np.ones((STORED, TABLE.dim), np.float32)
        client.write("rows", keys[:1], ones[:1])
        assert [len(piece.values) for piece in client.pull("rows", keys[:1], least=0, own=0)] == [1]
        client.stats()
        empty = server.rss
        client.write("rows", keys, ones)
        loaded = server.rss - empty
        over, peak, answers = threading.Event(), [0], Counter[str]()

        def watch() -> None:
            """Pull all the while, from the same shard, and see how large it is."""
            number = 0
            while not over.is_set():
                number += 1
                for piece in client.pull("rows", keys[number % 50 :: 50], least=0, own=0):
                    assert (piece.values == 1).all()
                answers["others"] += 1
                peak[0] = max(peak[0], server.rss)

        watching = threads.submit(watch)
        undo.callback(over.set)
        host, port = proxy.address
        with grpc.insecure_channel(f"{host}:{port}", OPTIONS) as channel:
            grpc.channel_ready_future(channel).result(20)
            if rate:
                proxy.limit(rate, way=Way.REPLY)
            pull = channel.unary_unary(PATH)
            data = request(client, 0)
            calls: list[Any] = [pull.future(data, timeout=120) for _ in range(ASKED)]
            if not rate:
                proxy.stall()
            over.wait(seconds)
            wait_for(lambda: answers["others"] > 2 or watching.done())
            for call in calls:
                if call.done():
                    answers[call.code().name] += 1
                else:
                    answers["waits"] += 1
                    call.cancel()
        if not rate:
            proxy.resume()
        proxy.cut()
        served = answers["others"]
        wait_for(lambda: answers["others"] > served + 2 or watching.done())  # and it goes on
        over.set()
        watching.result(20)
        client.close()
        grown = peak[0] - empty
        print(
            f"{ASKED} pulls of 4 MiB read at {rate} bytes/s for {seconds:.0f} s: {dict(answers)}, "
            f"grown by {loaded >> 20} MiB with rows, {grown >> 20} at most: {grown / RAM:.2f} of "
            f"--ram {RAM >> 20} MiB"
        )
        assert grown <= 1.1 * RAM
