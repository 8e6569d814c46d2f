"""Frame: plain protobuf on the wire, whatever wrote or read it; and nonsense is only refused."""

from __future__ import annotations

import tracemalloc
from typing import Any

import hypothesis
import numpy as np
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from ps.wire import terrace_pb2
from ps.wire.frame import LONG_FIELD, MOST_FIELDS, Frame, array_of, unpacker
from ps.wire.terrace_pb2 import LookReply, OpenRequest, PushRequest, Session
from storage.errors import RefusedError

MESSAGES = {
    descriptor.name: getattr(terrace_pb2, descriptor.name)
    for descriptor in terrace_pb2.DESCRIPTOR.message_types_by_name.values()
}
KINDS = sorted(MESSAGES)
SCALARS: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_BYTES: st.binary(max_size=40),
    FieldDescriptor.TYPE_DOUBLE: st.floats(allow_nan=False),
    FieldDescriptor.TYPE_FIXED64: st.integers(0, 2**64 - 1),
    FieldDescriptor.TYPE_STRING: st.text(max_size=20),
    FieldDescriptor.TYPE_UINT32: st.integers(0, 2**32 - 1),
    FieldDescriptor.TYPE_UINT64: st.integers(0, 2**64 - 1),
}


def fields_of(kind: type[Message], *, long: bool) -> list[FieldDescriptor]:
    fields = list(kind.DESCRIPTOR.fields)
    return [field for field in fields if long or field.number != LONG_FIELD]


@st.composite
def messages(draw: st.DrawFn, kind: type[Message], *, long: bool = False) -> Message:
    """Any message of this kind. long: with its long array."""
    message = kind()
    for field in fields_of(kind, long=long):
        if draw(st.booleans()):
            continue
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            inner = draw(messages(MESSAGES[field.message_type.name]))
            getattr(message, field.name).CopyFrom(inner)
        elif field.is_repeated:
            getattr(message, field.name).extend(draw(st.lists(SCALARS[field.type], max_size=4)))
        else:
            setattr(message, field.name, draw(SCALARS[field.type]))
    return message


def long_name(kind: type[Message]) -> str | None:
    field = kind.DESCRIPTOR.fields_by_number.get(LONG_FIELD)
    return None if field is None else field.name


@hypothesis.given(data=st.data(), kind=st.sampled_from(KINDS), array=st.binary(max_size=300))
def test_protobuf_reads_what_a_frame_writes(data: st.DataObject, kind: str, array: bytes) -> None:
    message = data.draw(messages(MESSAGES[kind]))
    name = long_name(MESSAGES[kind])
    packed = Frame(message, array if name else b"").pack()
    if name:
        setattr(message, name, array)
    read = MESSAGES[kind].FromString(packed)
    read.DiscardUnknownFields()  # what brings the array to a multiple of 8
    assert read == message


@hypothesis.given(data=st.data(), kind=st.sampled_from(KINDS))
def test_a_frame_reads_what_protobuf_writes(data: st.DataObject, kind: str) -> None:
    message = data.draw(messages(MESSAGES[kind], long=True))
    packed = message.SerializeToString()
    whole = MESSAGES[kind].FromString(packed)
    frame = unpacker(MESSAGES[kind])(packed)
    name = long_name(MESSAGES[kind])
    expected = getattr(message, name) if name else b""
    assert bytes(frame.array) == expected
    if name:
        message.ClearField(name)
    assert frame.message == message
    # And as it came, it goes on.
    again = MESSAGES[kind].FromString(Frame(frame.message, frame.array).pack())
    again.DiscardUnknownFields()
    assert again == whole


@hypothesis.given(
    npst.arrays(
        st.sampled_from([np.uint8, np.int32, np.uint32, np.uint64, np.float32, np.float64, bool]),
        npst.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=6),
    )
)
def test_an_array_comes_back_as_it_was_without_a_copy(array: np.ndarray) -> None:
    packed = Frame(PushRequest(rows=7), array).pack()
    frame = unpacker(PushRequest)(packed)
    found = array_of(frame.array, array.dtype, *array.shape, name="gradients")
    assert found.shape == array.shape and found.dtype == array.dtype
    assert found.tobytes() == array.tobytes()
    if array.size:
        whole = np.frombuffer(packed, np.uint8)
        assert np.shares_memory(found, whole)


def test_bytes_are_little_endian_whatever_the_array_is_called() -> None:
    found = array_of(b"\x01\x00\x00\x00\x02\x00\x00\x00", np.dtype(">i4"), 2, name="x")
    assert found.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("data", "shape"),
    [(b"", (1,)), (b"123", (1,)), (bytes(5), (1,)), (bytes(8), (1, 3)), (bytes(4), (0, 9)),
     (bytes(4), (2**32 - 1, 2**32 - 1)), (bytes(16), (2**31, 2**31))],
)  # fmt: skip
def test_an_array_of_another_length_is_refused(data: bytes, shape: tuple[int, ...]) -> None:
    with pytest.raises(RefusedError, match=rf"^keys: expected .*float32\), got {len(data)}; ") as e:
        array_of(data, np.float32, *shape, name="keys")
    assert "\n" not in str(e.value)


def test_no_rows_take_no_memory_however_wide() -> None:
    for shape in ((0,), (0, 2**32 - 1), (2**32 - 1, 0)):
        assert array_of(b"", np.float32, *shape, name="x").shape == shape


def mutated(draw: st.DrawFn, whole: bytes) -> bytes:
    """One or a few of: a byte changed, bytes cut out, repeated, or put in."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        end = draw(st.integers(at, min(len(data), at + 20)))
        way = draw(st.sampled_from(["change", "cut", "repeat", "insert"]))
        if way == "change" and at < len(data):
            data[at] = draw(st.integers(0, 255))
        elif way == "cut":
            del data[at:end]
        elif way == "repeat":
            data[at:at] = data[at:end]
        else:
            data[at:at] = draw(st.binary(max_size=11))
    return bytes(data)


@st.composite
def nonsense(draw: st.DrawFn) -> tuple[type[Message], bytes]:
    kind = MESSAGES[draw(st.sampled_from(KINDS))]
    whole = draw(messages(kind, long=True)).SerializeToString()
    data = mutated(draw, whole) if draw(st.booleans()) else draw(st.binary(max_size=60))
    return kind, data


@hypothesis.settings(max_examples=400)
@hypothesis.given(nonsense())
def test_whatever_comes_in_is_a_message_or_refused(
    case: tuple[type[Message], bytes],
) -> None:
    kind, data = case
    try:
        frame = unpacker(kind)(data)
    except RefusedError as error:
        assert "\n" not in str(error) and len(str(error)) < 200
        return
    assert frame.message.ByteSize() + len(frame.array) <= len(data)
    # What is taken is what protobuf takes it for.
    message = kind.FromString(data)
    if name := long_name(kind):
        assert bytes(frame.array) == getattr(message, name)
        message.ClearField(name)
    assert frame.message.SerializeToString(deterministic=True) == message.SerializeToString(
        deterministic=True
    )


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


LONG = bytes([LONG_FIELD << 3 | 2])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (LONG, "a number is cut short"),
        (LONG + b"\x80", "a number is cut short"),
        (LONG + b"\x05abcd", "not its last field, or is cut short"),
        (LONG + b"\x03abcd", "not its last field, or is cut short"),
        (LONG + b"\x01a" + LONG + b"\x01a", "not its last field"),
        (LONG + varint(2**63) + b"x", "not its last field, or is cut short"),
        (b"\xff" * 10 + b"\x01", "more than 64 bits"),
        (b"\x1a\x05abc", "a field is cut short"),
        (b"\x1a\x05abcd", "a field is cut short"),
        (b"\x1a" + varint(2**62), "a field is cut short"),
        (b"\x29\x00", "a field is cut short"),
        (b"\x1d\x00", "a field is cut short"),
        (b"\x0b\x0c", "wire type 3"),
        (b"\x0e", "wire type 6"),
        (b"\x02\x00", "no such message"),
        (b"\x1a\x02\xff\xff", "no such message"),
    ],
)
def test_what_is_malformed_is_named(data: bytes, words: str) -> None:
    with pytest.raises(RefusedError, match=f"expected one of terrace.v1, but .*{words}"):
        unpacker(PushRequest)(data)


def test_a_message_of_very_many_fields_is_refused_before_it_is_read() -> None:
    table = b"\x32\x01t"
    assert len(unpacker(OpenRequest)(MOST_FIELDS * table).message.tables) == MOST_FIELDS
    with pytest.raises(RefusedError, match=f"more than {MOST_FIELDS} fields"):
        unpacker(OpenRequest)((MOST_FIELDS + 1) * table)
    assert 1024 + len(OpenRequest.DESCRIPTOR.fields) <= MOST_FIELDS


@pytest.mark.parametrize(
    "data",
    [
        LONG + varint(2**40),
        b"\x4a" + varint(2**31 - 1) + b"x",
        b"\x4a" + varint(2**62) + b"x",
        (MOST_FIELDS // 2) * b"\x4a\x00",
        (1 << 20) * b"\x08\x01",
        b"\x0a" + varint(1 << 20) + (1 << 19) * b"\x08\x01",
    ],
    ids=range(6),
)
def test_a_message_that_lies_about_its_length_takes_no_memory(data: bytes) -> None:
    unpack = unpacker(PushRequest)
    tracemalloc.start()
    try:
        try:
            kept = [unpack(data)]
        except RefusedError:
            kept = []
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    del kept
    assert peak < 2 * len(data) + (1 << 16)


def test_a_long_array_is_copied_once_when_written_and_never_when_read() -> None:
    array = np.ones(1 << 22, np.float32)
    tracemalloc.start()
    try:
        packed = Frame(PushRequest(session=Session(client="job-0")), array).pack()
        _, written = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        frame = unpacker(PushRequest)(packed)
        _, read = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert written < 1.1 * array.nbytes
    assert read - before < 1 << 16
    assert frame.message.session.client == "job-0"
    assert len(frame.array) == array.nbytes


def test_a_frame_without_an_array_is_the_message_alone() -> None:
    message = LookReply(text="{}")
    for nothing in (b"", np.empty((0, 3), np.float32), memoryview(b"")):
        assert Frame(message, nothing).pack() == message.SerializeToString()
