"""Client: all shards as one: what is cut by shard is joined in order, however large."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ps
from ps.client import client as module
from ps.client.client import Client, Step
from storage.errors import ClosedError, ConfigError, FencedError, StoreError, UnavailableError
from tests.ps.client.shards import SECONDS, SUMS, keys_of, make_client, serving, wait_until

STEP = Step(1.0, 1, 1.0)


def pulled(client: Client, keys: Any, table: str = "sums", **fields: int) -> Any:
    values = np.full((len(keys), 4), np.nan, np.float32)
    pieces = (
        client.pull(table, keys, **fields) if fields else client.peek(table, keys)  # type: ignore[arg-type]
    )
    for piece in pieces:
        values[piece.indices] = piece.values
    return values


def push(client: Client, keys: Any, value: float = 1.0) -> None:
    gradients = np.full((len(keys), 4), -value, np.float32)
    client.push("sums", keys, gradients, np.ones(len(keys), np.int32), STEP)


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_rows_are_joined_in_the_order_of_their_keys(
    tmp_path: Path, shards: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PIECE_BYTES", 1000)  # many pieces on the way
    rng = np.random.default_rng(0)
    keys = rng.choice(2**62, 3000, replace=False).astype(np.uint64)
    with serving(tmp_path, shards) as served:
        client = make_client(served)
        try:
            values = rng.random((3000, 4), np.float32)
            client.write("sums", keys, values)
            np.testing.assert_array_equal(pulled(client, keys), values)
            order = rng.permutation(3000)
            found = pulled(client, keys[order], least=0, own=0)
            np.testing.assert_array_equal(found, values[order])
            client.delete("sums", keys[:100])
            assert not pulled(client, keys[:100]).any()
            assert sum(one.shard is not None for one in served) == shards
            push(client, keys)
            client.advance(1)
            client.flush()
            np.testing.assert_array_equal(pulled(client, keys[100:]), values[100:] + 1)
            assert len(list(client.pull("sums", keys[:0], least=0, own=0))) == 0
        finally:
            client.close()


def test_every_shard_hears_of_every_step_and_the_clock_comes_with_the_last_change(
    tmp_path: Path,
) -> None:
    with serving(tmp_path, 2) as served:
        client = make_client(served)
        one_sided = keys_of(*range(40))
        one_sided = one_sided[next(iter(client.partition.split(one_sided)))]
        for step in range(1, 6):
            push(client, one_sided)  # of shard 0 only
            push(client, one_sided)
            client.advance(step)
        client.flush()
        for shard, one in enumerate(served):
            assert one.shard is not None
            session = one.shard.sessions.get("job-0", 1)
            assert session.clock == 5
            assert session.applied == (10 if shard == 0 else 5)
        client.close()


def test_servers_are_one_or_more_each_once(tmp_path: Path) -> None:
    with serving(tmp_path) as served, pytest.raises(ConfigError, match="each once"):
        make_client([*served, *served])


def test_processes_that_start_together_agree_on_one(tmp_path: Path) -> None:
    """The last one in is in; the others are told so, on all shards."""
    with serving(tmp_path, 2) as served, ThreadPoolExecutor(4) as threads:
        futures = [threads.submit(make_client, served) for _ in range(4)]
        clients = [future.result(SECONDS) for future in futures]
        inside = []
        for client in clients:
            try:
                client.write("sums", keys_of(*range(9)), np.ones((9, 4), np.float32))
                inside.append(client.identity.incarnation)
            except FencedError:
                pass
        assert inside == [max(client.identity.incarnation for client in clients)]
        for client in clients:
            client.close()


def test_each_raises_at_once_what_one_shard_says(tmp_path: Path) -> None:
    with serving(tmp_path, 2) as served:
        client, gate = make_client(served), threading.Event()

        def call(shard: int) -> None:
            if shard == 1:
                raise LookupError
            gate.wait(SECONDS)

        began = time.monotonic()
        with pytest.raises(LookupError):
            client.each(call)
        assert time.monotonic() - began < SECONDS / 2
        gate.set()
        client.close()


def test_a_shard_that_comes_back_is_none_of_the_callers_business(tmp_path: Path) -> None:
    keys = np.arange(200, dtype=np.uint64)
    with serving(tmp_path, 2, durability="strict") as served:
        client = make_client(served)
        for step in range(1, 9):
            push(client, keys)
            client.advance(step)
            if step % 3 == 0:
                served[step % 2].crash()
                served[step % 2].start()
            assert (pulled(client, keys, least=step, own=step) == step).all()
        client.close()


def test_an_interrupted_change_is_not_gone_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C between the shares of two shards."""
    keys = np.arange(64, dtype=np.uint64)
    with serving(tmp_path, 2) as served:
        client = make_client(served)
        push(client, keys)
        client.advance(1)
        hold = client._hold

        def interrupt(shard: int, *others: Any) -> None:
            hold(shard, *others)
            if shard == 0:
                raise KeyboardInterrupt

        monkeypatch.setattr(client, "_hold", interrupt)
        with pytest.raises(KeyboardInterrupt):
            push(client, keys)
        monkeypatch.undo()
        for call in (lambda: push(client, keys), lambda: client.advance(2), client.flush):
            with pytest.raises(StoreError, match=r"KeyboardInterrupt.*go back to a checkpoint"):
                call()
        client.open()
        push(client, keys)
        client.advance(1)
        client.flush()
        client.close()


def test_close_ends_calls_that_are_under_way(tmp_path: Path) -> None:
    with serving(tmp_path, 2) as served:
        client = make_client(served)
        with ThreadPoolExecutor(1) as threads:
            # Nobody will make these steps.
            waiting = threads.submit(pulled, client, keys_of(1, 2, 3), least=9, own=0)
            for one in served:
                assert one.shard is not None
            wait_until(
                lambda: any(one.shard and one.shard.sessions._waiting for one in served), "a wait"
            )
            began = time.monotonic()
            client.close()
            with pytest.raises((UnavailableError, ClosedError)):  # as far as it had come
                waiting.result(SECONDS)
            assert time.monotonic() - began < SECONDS / 2
        client.close()


def test_a_table_with_admission_tells_uses(tmp_path: Path) -> None:
    table = ps.Table(
        "sums", dim=4, optimizer=ps.SGD(lr=1.0), init=ps.Zeros(), admission=ps.ExactCount(3)
    )
    with serving(tmp_path) as served:
        client = make_client(served, [table])
        uses = np.array([1, 3, 2], np.int32)
        gradients = np.full((3, 4), -1.0, np.float32)
        client.push("sums", keys_of(1, 2, 3), gradients, uses, STEP)
        client.advance(1)
        client.flush()
        assert pulled(client, keys_of(1, 2, 3))[:, 0].tolist() == [0, 1, 0]
        client.close()


def test_large_sets_come_in_pieces_that_fit_a_message(tmp_path: Path) -> None:
    wide = ps.Table("sums", dim=64, optimizer=ps.SGD(lr=1.0), init=ps.Zeros())
    keys = np.arange(100_000, dtype=np.uint64)
    with serving(tmp_path, ram=64 << 20) as served:
        client = make_client(served, [wide])
        gradients = np.full((len(keys), 64), -1.0, np.float32)
        client.push("sums", keys, gradients, np.ones(len(keys), np.int32), STEP)
        client.advance(1)
        total = sum(
            float(piece.values.sum(dtype=np.float64))
            for piece in client.pull("sums", keys, least=1, own=1)
        )
        assert total == 64 * len(keys)
        client.close()
    assert SUMS.dim == 4
