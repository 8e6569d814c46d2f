"""Messages that nobody would send: each is refused and its status says so, or does what it says.

Good messages of every method are changed at random, bytes and fields, and given to the methods
themselves; gRPC would only carry them. A refused one leaves the rows as they were.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import google_crc32c
import grpc
import numpy as np
import psutil
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError

import ps
from ps.server.calls import Calls
from ps.server.flight import Flight
from ps.server.health import Health
from ps.server.metrics import Metrics
from ps.server.refusal import Refusal
from ps.server.service import Service
from ps.shard import Shard
from ps.state import pack_state
from ps.wire import terrace_pb2 as wire
from ps.wire.frame import Frame
from storage.errors import FencedError, TerraceError
from tests.ps.serving import ADS, SERVICE, TABLES, gradients, opening, shard_at, soon

METHODS = [method.name for method in SERVICE.methods]
INPUTS = {method.name: getattr(wire, method.input_type.name) for method in SERVICE.methods}
CHANGING = {"Push", "Write", "Delete", "Rewind", "Prepare", "Commit", "Cut"}
ALLOWED = {"OK", "INVALID_ARGUMENT", "FAILED_PRECONDITION", "ABORTED"}
COUNTED = ps.Table("counted", dim=2, admission=ps.ExactCount(times=2, bytes=1 << 14))
SPECS = (*TABLES, COUNTED)
MOST_GROWTH = 48 << 20
NUMBERS = (0, 1, 2, 3, 255, 2**31 - 1, 2**32 - 1, 2**32, 2**63, 2**64 - 1)
FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-320, 1e39, 1e308, -1e308, np.inf, -np.inf, np.nan)
TEXTS = ("", "ads", "users", "none", "..", "\0", "x" * 5000, "\U0001f600", "stats", "state", "[")


class AbortedError(Exception):
    """What `abort` raises."""


class Call:
    """As much of a `grpc.ServicerContext` as the service asks of it."""

    def __init__(self, seconds: float) -> None:
        self.code, self.details = "OK", ""
        self._seconds = seconds
        self._ended: list[Any] = []

    def time_remaining(self) -> float:
        return self._seconds

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    def add_callback(self, ended: Any) -> bool:
        self._ended.append(ended)
        return True

    def set_trailing_metadata(self, trailing: Any) -> None:
        assert sum(len(key) + len(value) for key, value in trailing) < 500

    def abort(self, code: grpc.StatusCode, details: str) -> None:
        self.code, self.details = code.name, details
        raise AbortedError

    def end(self) -> None:
        for ended in self._ended:
            ended()


class Fuzzer:
    """A shard, and messages for it. seen: by method and status, how often."""

    def __init__(self, shard: Shard, seed: int) -> None:
        self.seen: Counter[tuple[str, str]] = Counter()
        self.flight = Flight(32 << 20)
        self._shard = shard
        self._rng = np.random.default_rng(seed)
        calls = Calls(lambda: 0)
        refusal = Refusal(calls, 32 << 20, lambda: 0.0, lambda: None)
        self._service = Service(shard, Metrics(), Health(), self.flight, calls, refusal)
        self._people = 0
        self.begin()

    def begin(self) -> None:
        """A session of a client that nobody has shut out."""
        self._people += 1
        self._name = f"fuzz{self._people}-0"
        request = opening(self._shard, self._name, 5, tables=SPECS)
        call = self.send("Open", Frame(request).pack(), 20.0)
        assert call.code == "OK", call.details

    def step(self) -> None:
        """One changed message."""
        try:
            self._session = self._shard.sessions.get(self._name, 5)
        except FencedError:
            self.begin()  # a changed message shut it out
            self._session = self._shard.sessions.get(self._name, 5)
        method = METHODS[self._rng.integers(len(METHODS))]
        message, array = self._good(method)
        data = self._changed(Frame(message, array), method)
        if self._rng.random() < 0.05:
            method = METHODS[self._rng.integers(len(METHODS))]
        before = self._rows() if method in CHANGING else 0
        waits = self._waits(method, data)
        call = self.send(method, data, 0.001 if waits else 20.0)
        if call.code == "UNAVAILABLE":
            # Its time may have passed while it was worked on: that ends before the next begins.
            self._shard.owner.run(int, size=0, deadline=soon())
        self.seen[method, call.code] += 1
        fine = ALLOWED | ({"UNAVAILABLE", "RESOURCE_EXHAUSTED"} if waits else set())
        assert call.code in fine, (method, call.code, call.details, data.hex()[:2000])
        assert "\n" not in call.details and len(call.details) <= 1000
        if method in CHANGING and call.code != "OK":
            assert self._rows() == before, (method, call.code, call.details, data.hex()[:2000])

    def send(self, method: str, data: bytes, seconds: float) -> Call:
        """How the call ends."""

        class Details:
            method = ""

        details, call = Details(), Call(seconds)
        details.method = f"/{SERVICE.full_name}/{method}"
        try:
            self._service.service(details).unary_unary(data, call)
        except AbortedError:
            pass
        finally:
            call.end()
        return call

    def _waits(self, method: str, data: bytes) -> bool:
        """Whether this message may wait for another that never comes."""
        try:
            message = INPUTS[method].FromString(data)
        except DecodeError:
            return False
        try:
            told = message.session
            session = self._shard.sessions.get(told.client, told.incarnation)
        except (AttributeError, TerraceError):
            return False
        ahead = getattr(message, "sequence", 0) > session.applied + 1
        return ahead or method == "Meet" or getattr(message, "least_clock", 0) > 0

    def _rows(self) -> int:
        """A checksum of the rows in RAM, where nearly all are."""
        total = 0
        for stack in self._shard.store.stacks.values():
            rows = stack.top.rows_at(stack.top.occupied())
            for array in (rows.keys, rows.values, rows.steps):
                total = google_crc32c.extend(total, array.tobytes())
        return total

    def _good(self, method: str) -> tuple[Any, Any]:
        rng, table = self._rng, SPECS[self._rng.integers(3)]
        told = wire.Session(client=self._name, incarnation=5)
        some = gradients(int(rng.integers(1000)), table, rows=12, among=60)
        sequence, keys = self._session.applied + 1, some.keys
        head = {"session": told, "table": table.name, "rows": len(keys)}
        if method == "Push":
            return some.frame(told, sequence).message, some.values
        if method == "Pull":
            return wire.PullRequest(**head, whole=rng.random() < 0.3, peek=rng.random() < 0.3), keys
        if method == "Write":
            width = table.width if rng.random() < 0.5 else table.dim
            steps = np.ones(12, np.uint32).tobytes() if width != table.dim else b""
            more = {"width": width, "keys": keys.tobytes(), "steps": steps}
            return wire.WriteRequest(**head, sequence=sequence, **more), np.ones((12, width), "f4")
        if method == "Delete":
            return wire.DeleteRequest(**head, sequence=sequence), keys
        if method == "Prepare":
            tree, tensors = pack_state({"t": np.arange(4), "n": [1, {"a": None}]})
            whole = {"step": int(rng.integers(50)), "size": len(tensors), "tree": tree}
            return wire.PrepareRequest(session=told, last=True, marker=True, **whole), tensors
        if method == "Open":
            return opening(self._shard, self._name, 5, tables=SPECS), b""
        if method == "Meet":
            return wire.MeetRequest(session=told, round="r", number=int(rng.integers(9))), b"word"
        if method == "Look":
            what = ("stats", "digest", "tables", "state")[rng.integers(4)]
            return wire.LookRequest(what=what, step=int(rng.integers(50))), b""
        return INPUTS[method](session=told, **({} if method == "Cut" else {"step": 1})), b""

    def _changed(self, frame: Frame[Any], method: str) -> bytes:
        rng, kind = self._rng, self._rng.integers(8)
        if kind < 4:
            self._set_field(frame.message)
            return frame.pack()
        data = bytearray(frame.pack())
        head = max(1, len(data) - (frame.size if rng.random() < 0.7 else 0))
        at = int(rng.integers(head))
        if kind == 4:
            for _ in range(rng.integers(1, 5)):
                data[rng.integers(head)] ^= 1 << int(rng.integers(8))
        elif kind == 5:
            del data[at : at + int(rng.integers(1, 40)) if rng.random() < 0.5 else len(data)]
        elif kind == 6:
            data[at:at] = rng.bytes(rng.integers(1, 40))
        else:
            data += data[at : at + int(rng.integers(1, 40))]
        return bytes(data)

    def _set_field(self, message: Any) -> None:
        rng = self._rng
        fields = [f for f in message.DESCRIPTOR.fields if f.number != 15]
        field = fields[rng.integers(len(fields))]
        if field.message_type is not None:
            self._set_field(getattr(message, field.name))
        elif field.is_repeated:
            values = getattr(message, field.name)
            if len(values) and rng.random() < 0.5:
                del values[rng.integers(len(values))]
            else:
                values.append(TEXTS[rng.integers(len(TEXTS))])
        elif field.type == FieldDescriptor.TYPE_STRING:
            setattr(message, field.name, TEXTS[rng.integers(len(TEXTS))])
        elif field.type == FieldDescriptor.TYPE_BYTES:
            setattr(message, field.name, rng.bytes(rng.integers(0, 200)))
        elif field.type == FieldDescriptor.TYPE_DOUBLE:
            setattr(message, field.name, float(FLOATS[rng.integers(len(FLOATS))]))
        elif field.type == FieldDescriptor.TYPE_BOOL:
            setattr(message, field.name, not getattr(message, field.name))
        else:
            value = NUMBERS[rng.integers(len(NUMBERS))]
            most = 2**32 if field.type == FieldDescriptor.TYPE_UINT32 else 2**64
            setattr(message, field.name, value % most)


MESSAGES = 20_000


@pytest.mark.parametrize(
    ("seed", "rounds"),
    [(0, 1), *(pytest.param(seed, 10, marks=pytest.mark.stress) for seed in range(1, 6))],
)
def test_changed_messages_are_refused_or_meant(tmp_path: Path, seed: int, rounds: int) -> None:
    """A round has a shard of its own: names of clients that were made up stay known to it."""
    process, then = psutil.Process(), 0
    for number in range(rounds):
        fuzz(tmp_path / str(number), seed=1000 * seed + number)
        then = then or process.memory_info().rss
    assert process.memory_info().rss - then < MOST_GROWTH


def fuzz(path: Path, seed: int) -> None:
    process = psutil.Process()
    with shard_at(path, ram=12 << 20, disk=256 << 20) as shard:
        fuzzer = Fuzzer(shard, seed)
        for _ in range(MESSAGES // 4):
            fuzzer.step()
        then = process.memory_info().rss
        for _ in range(MESSAGES - MESSAGES // 4):
            fuzzer.step()
        assert process.memory_info().rss - then < MOST_GROWTH
        assert fuzzer.flight.held == 0
        codes = {code for _, code in fuzzer.seen}
        assert {"OK", "INVALID_ARGUMENT", "FAILED_PRECONDITION", "ABORTED"} <= codes
        # Each method has let some through and refused some: or it was not tried.
        for method in METHODS:
            assert fuzzer.seen[method, "OK"], fuzzer.seen
            assert fuzzer.seen[method, "INVALID_ARGUMENT"], fuzzer.seen
        fuzzer.begin()
        assert shard.check() == []
        assert ADS.name in shard.stats()["tables"]
