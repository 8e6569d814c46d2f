"""Relay: each fault does what it says, and all else of a call goes through as it was."""

from __future__ import annotations

import threading
import time
from collections import Counter as Tally
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from tests.stress.counter import ECHO, HASTY, REFUSE, Counter, serving
from tests.stress.relay import Fault, Relay

DEADLINE = 10.0
Making = Callable[..., tuple[Relay, grpc.Channel]]


@pytest.fixture
def counter() -> Counter:
    return Counter()


@pytest.fixture
def make(counter: Counter) -> Iterator[Making]:
    """Makes a relay before the counter, with a channel to it."""
    made: list[Any] = []
    with serving(counter) as port:

        def make(chances: dict[Fault, float], **more: Any) -> tuple[Relay, grpc.Channel]:
            relay = Relay(f"127.0.0.1:{port}", chances, seed=7, **more)
            channel = grpc.insecure_channel(relay.address, options=HASTY)
            made.extend([relay, channel])
            return relay, channel

        yield make
        for each in reversed(made):
            each.close()


def call(channel: grpc.Channel, request: bytes, method: str = ECHO) -> bytes:
    return channel.unary_unary(method)(request, timeout=DEADLINE)


def code_of(channel: grpc.Channel, request: bytes) -> grpc.StatusCode:
    try:
        call(channel, request)
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def test_a_call_passes_with_metadata_and_deadline(make: Making, counter: Counter) -> None:
    relay, channel = make({})
    metadata = (("x-token", "secret"), ("x-raw-bin", b"\x00\x01"))
    reply, sent = channel.unary_unary(ECHO).with_call(b"one", timeout=DEADLINE, metadata=metadata)
    assert reply == b"one"
    assert counter.metadata["x-token"] == "secret"
    assert counter.metadata["x-raw-bin"] == b"\x00\x01"
    assert 0 < counter.seconds_left <= 1.05 * DEADLINE  # gRPC rounds up, a hundredth a hop
    assert ("x-times", "1") in sent.trailing_metadata()
    assert relay.counts == {Fault.NONE: 1}
    large = bytes(16 << 20)
    assert call(channel, large) == large


def test_a_call_without_a_deadline_passes(make: Making) -> None:
    _, channel = make({})
    assert channel.unary_unary(ECHO)(b"one") == b"one"


def test_an_error_passes_with_its_details(make: Making) -> None:
    _, channel = make({})
    with pytest.raises(grpc.RpcError) as raised:
        call(channel, b"one", REFUSE)
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert raised.value.details() == "too much"
    assert ("x-hint-bin", b"\x00\xff") in raised.value.trailing_metadata()
    with pytest.raises(grpc.RpcError) as raised:
        call(channel, b"one", "/terrace.test.Counter/Other")
    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_lost_request_never_comes(make: Making, counter: Counter) -> None:
    relay, channel = make({Fault.LOST_REQUEST: 1})
    assert code_of(channel, b"one") is grpc.StatusCode.UNAVAILABLE
    assert counter.times(b"one") == 0
    assert relay.counts == {Fault.LOST_REQUEST: 1}


def test_a_lost_reply_is_of_a_request_that_came(make: Making, counter: Counter) -> None:
    _, channel = make({Fault.LOST_REPLY: 1})
    assert code_of(channel, b"one") is grpc.StatusCode.UNAVAILABLE
    assert counter.times(b"one") == 1


def test_twice_gives_back_the_second_reply(make: Making, counter: Counter) -> None:
    _, channel = make({Fault.TWICE: 1})
    reply, sent = channel.unary_unary(ECHO).with_call(b"one", timeout=DEADLINE)
    assert reply == b"one"
    assert ("x-times", "2") in sent.trailing_metadata()
    assert counter.times(b"one") == 2


def test_others_overtake_a_delayed_call(make: Making, counter: Counter) -> None:
    relay, channel = make({Fault.DELAY: 1}, delay_seconds=2.0)
    slow = channel.unary_unary(ECHO).future(b"slow", timeout=DEADLINE)
    deadline = time.monotonic() + DEADLINE
    while not relay.counts:
        assert time.monotonic() < deadline
    relay.change({})
    assert call(channel, b"fast") == b"fast"
    assert counter.times(b"slow") == 0
    assert slow.result(DEADLINE) == b"slow"


def test_a_late_duplicate_comes_after_its_reply(make: Making, counter: Counter) -> None:
    _, channel = make({Fault.LATE: 1}, late_seconds=0.5)
    assert call(channel, b"one") == b"one"
    assert counter.times(b"one") == 1
    assert counter.await_times(b"one", 2)


def test_late_duplicates_are_sent_when_asked(make: Making, counter: Counter) -> None:
    relay, channel = make({Fault.LATE: 1}, late_seconds=1000.0)
    token = (("x-token", "secret"),)
    for number in range(20):
        channel.unary_unary(ECHO)(b"%d" % number, timeout=DEADLINE, metadata=token)
    assert [counter.times(b"%d" % number) for number in range(20)] == [1] * 20
    assert relay.send_late(DEADLINE)
    assert [counter.times(b"%d" % number) for number in range(20)] == [2] * 20
    assert counter.metadata["x-token"] == "secret"


def test_silence_is_a_deadline(make: Making, counter: Counter) -> None:
    relay, channel = make({Fault.SILENCE: 1})
    begun = time.monotonic()
    with pytest.raises(grpc.RpcError) as raised:
        channel.unary_unary(ECHO)(b"one", timeout=0.3)
    assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - begun >= 0.25
    assert counter.times(b"one") == 0
    relay.change({})
    assert call(channel, b"two") == b"two"


def test_only_some_methods_meet_faults(make: Making) -> None:
    relay, channel = make({Fault.LOST_REQUEST: 1}, faulty=lambda method: method == REFUSE)
    assert call(channel, b"one") == b"one"
    with pytest.raises(grpc.RpcError) as raised:
        call(channel, b"one", REFUSE)
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    assert relay.counts == {Fault.NONE: 1, Fault.LOST_REQUEST: 1}


CHANCES = {
    Fault.LOST_REQUEST: 0.05, Fault.LOST_REPLY: 0.05, Fault.TWICE: 0.05, Fault.DELAY: 0.05,
    Fault.LATE: 0.05,
}  # fmt: skip


def test_a_seed_gives_the_same_faults_again(make: Making, counter: Counter) -> None:
    seen = []
    for _ in range(2):
        relay, channel = make(CHANCES, delay_seconds=0.01, late_seconds=1000.0)
        codes = [code_of(channel, b"%d" % number) for number in range(200)]
        seen.append((codes, relay.counts))
    assert seen[0] == seen[1]
    assert set(seen[0][1]) == {*CHANCES, Fault.NONE}
    assert sum(seen[0][1][fault] for fault in CHANCES) in range(30, 70)  # a quarter of 200


def test_what_the_target_sees_adds_up_with_many_callers(make: Making, counter: Counter) -> None:
    relay, channel = make(CHANCES, delay_seconds=0.02, late_seconds=0.1)
    with ThreadPoolExecutor(8, thread_name_prefix="terrace-test") as pool:
        codes = list(pool.map(lambda n: code_of(channel, b"%d" % n), range(400)))
    assert relay.send_late(DEADLINE)
    counts = relay.counts
    assert sum(counts.values()) == 400
    tally = Tally(counter.times(b"%d" % number) for number in range(400))
    assert tally[0] == counts[Fault.LOST_REQUEST]
    assert tally[2] == counts[Fault.TWICE] + counts[Fault.LATE]
    lost = counts[Fault.LOST_REQUEST] + counts[Fault.LOST_REPLY]
    assert codes.count(grpc.StatusCode.UNAVAILABLE) == lost
    assert codes.count(grpc.StatusCode.OK) == 400 - lost


def test_close_ends_what_is_silent_delayed_and_late(counter: Counter) -> None:
    chances = {Fault.SILENCE: 1 / 3, Fault.DELAY: 1 / 3, Fault.LATE: 1 / 3}
    with serving(counter) as port:
        relay = Relay(
            f"127.0.0.1:{port}", chances, seed=1, delay_seconds=1000.0, late_seconds=1000.0
        )
        with grpc.insecure_channel(relay.address, options=HASTY) as channel:
            calls = [channel.unary_unary(ECHO).future(b"x", timeout=100.0) for _ in range(30)]
            deadline = time.monotonic() + DEADLINE
            while sum(relay.counts.values()) < 30:
                assert time.monotonic() < deadline
            begun = time.monotonic()
            relay.close()
            relay.close()
            assert time.monotonic() - begun < DEADLINE
            for each in calls:
                each.exception(DEADLINE)
    assert not [t for t in threading.enumerate() if t.name.startswith("terrace-late")]
