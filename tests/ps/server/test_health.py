"""Health: what real clients of grpc.health.v1 are told in each state."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ps.server.health import SHARD, WRITES, Health, State

DEADLINE = 10.0
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
def health() -> Health:
    return Health()


@pytest.fixture
def client(health: Health) -> Iterator[health_pb2_grpc.HealthStub]:
    with ThreadPoolExecutor(2, thread_name_prefix="terrace-test") as pool:
        server = grpc.server(pool, options=[("grpc.so_reuseport", 0)])
        health.add_to(server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield health_pb2_grpc.HealthStub(channel)
        assert server.stop(None).wait(DEADLINE)


def told(client: health_pb2_grpc.HealthStub) -> list[int]:
    """Of the server, the shard, and its writes."""
    return [
        client.Check(health_pb2.HealthCheckRequest(service=service), timeout=DEADLINE).status
        for service in ("", SHARD, WRITES)
    ]


def test_a_new_shard_is_loading(health: Health, client: health_pb2_grpc.HealthStub) -> None:
    assert health.state is State.LOADING
    assert told(client) == [NOT_SERVING] * 3


@pytest.mark.parametrize(
    ("state", "reads", "writes"),
    [
        (State.LOADING, NOT_SERVING, NOT_SERVING),
        (State.SERVING, SERVING, SERVING),
        (State.DISK_FULL, SERVING, NOT_SERVING),
        (State.DRAINING, NOT_SERVING, NOT_SERVING),
    ],
)
def test_each_state_is_told(
    health: Health, client: health_pb2_grpc.HealthStub, state: State, reads: int, writes: int
) -> None:
    health.change(State.SERVING)
    health.change(state)
    assert told(client) == [reads, reads, writes]
    assert [state.reads, state.writes] == [reads == SERVING, writes == SERVING]


def test_a_disk_with_room_again_takes_writes(
    health: Health, client: health_pb2_grpc.HealthStub
) -> None:
    health.change(State.DISK_FULL)
    health.change(State.SERVING)
    assert told(client) == [SERVING] * 3


def test_nothing_comes_after_draining(health: Health, client: health_pb2_grpc.HealthStub) -> None:
    health.change(State.DRAINING)
    health.change(State.SERVING)
    assert health.state is State.DRAINING
    assert told(client) == [NOT_SERVING] * 3


def test_who_watches_hears_of_changes(health: Health, client: health_pb2_grpc.HealthStub) -> None:
    heard: queue.Queue[int] = queue.Queue(8)
    watching = client.Watch(health_pb2.HealthCheckRequest(service=WRITES), timeout=DEADLINE)
    with ThreadPoolExecutor(1, thread_name_prefix="terrace-test") as pool:

        def listen() -> None:
            try:
                for answer in watching:
                    heard.put(answer.status, timeout=DEADLINE)
            except grpc.RpcError as error:
                assert error.code() is grpc.StatusCode.CANCELLED

        done = pool.submit(listen)
        for state, status in (
            (State.LOADING, NOT_SERVING),
            (State.SERVING, SERVING),
            (State.DISK_FULL, NOT_SERVING),
        ):
            health.change(state)
            while heard.get(timeout=DEADLINE) != status:
                pass
        watching.cancel()
        done.result(DEADLINE)


def test_an_unknown_service_is_not_found(client: health_pb2_grpc.HealthStub) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        client.Check(health_pb2.HealthCheckRequest(service="other"), timeout=DEADLINE)
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND
