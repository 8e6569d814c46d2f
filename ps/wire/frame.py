"""Frame: a message and its one long array, written and read with as few copies as Python allows.

Every message that carries much has its array in field 15, the last. protobuf itself would copy it
twice on each side (10 MB: 7 ms of a call's 20); here it is written once where it will be sent from
(`reserve`), without the interpreter's lock, and read as a view of what came in. A field 14, which
nobody reads, brings the array to a multiple of 8 bytes. On the wire it is plain protobuf:
`FromString` reads it too.

Threads: pure functions.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import numpy as np
from google.protobuf.message import DecodeError, Message
from numpy.typing import NDArray

from storage.errors import RefusedError

M = TypeVar("M", bound=Message)

LONG_FIELD = 15
MOST_FIELDS = 2048
"""Of a message, an Open with 1024 tables among them; bounds the work on one of small fields."""

_LONG_TAG, _PADDING_TAG = bytes([LONG_FIELD << 3 | 2]), bytes([(LONG_FIELD - 1) << 3 | 2])
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_ALIGNMENT = 8
# bytes(n) would be filled with zeros first.
_uninitialized: Any = ctypes.pythonapi.PyBytes_FromStringAndSize
_uninitialized.restype, _uninitialized.argtypes = ctypes.py_object, (
    ctypes.c_char_p, ctypes.c_ssize_t,
)  # fmt: skip


class Frame(Generic[M]):
    """A message without its long array, the array's bytes: (n,) uint8, a view, and ``raw``: both as
    on the wire, where they were read from that or laid out for it, else empty.
    """

    __slots__ = ("array", "message", "raw")

    def __init__(
        self, message: M, array: NDArray[Any] | memoryview | bytes = b"", raw: bytes = b""
    ) -> None:
        self.message = message
        self.array = array
        self.raw = raw

    @property
    def size(self) -> int:
        """Bytes of the array."""
        return memoryview(self.array).nbytes  # type: ignore[arg-type]

    def pack(self) -> bytes:
        """As on the wire; the array is copied once, or not at all where it is there already."""
        if self.raw:
            return self.raw
        array = self.array
        if not isinstance(array, np.ndarray):
            array = np.frombuffer(array, np.uint8)
        frame = reserve(self.message, array.dtype, *array.shape)
        np.copyto(np.asarray(frame.array), array)
        return frame.raw


def reserve(message: M, dtype: Any, *shape: int) -> Frame[M]:
    """A frame laid out as on the wire, whose array the caller fills in before it is sent.

    The message must be complete. The array is in ``raw``, a bytes object that nobody else has yet:
    the one moment in which it may be written to.
    """
    kind = np.dtype(dtype).newbyteorder("<")
    head: bytes = message.SerializePartialToString()
    size = kind.itemsize * int(np.prod(shape, dtype=np.int64))
    if not size:
        return Frame(message, np.zeros(shape, kind), head)
    long = _LONG_TAG + _varint(size)
    padding = -(len(head) + 2 + len(long)) % _ALIGNMENT
    head = b"".join((head, _PADDING_TAG, bytes([padding]), bytes(padding), long))
    start = len(head)
    raw: bytes = _uninitialized(None, start + size)
    everything = np.asarray(_Unguarded(np.frombuffer(raw, np.uint8)))
    everything[:start] = np.frombuffer(head, np.uint8)
    return Frame(message, everything[start:].view(kind).reshape(shape), raw)


def unpacker(kind: type[M]) -> Callable[[bytes], Frame[M]]:
    """A function that reads messages of this kind. It raises: RefusedError.

    What it gives holds a view of the bytes it was given.
    """

    def unpack(data: bytes) -> Frame[M]:
        start, body = _find_long(data)
        try:
            message = kind.FromString(data if start == len(data) else data[:start])
        except DecodeError as error:
            raise _malformed(kind.__name__, "it is no such message") from error
        return Frame(message, memoryview(data)[body:], data)

    return unpack


def array_of(
    data: bytes | memoryview | NDArray[Any], dtype: Any, *shape: int, name: str
) -> NDArray[Any]:
    """A view of ``data`` as an array, not to be written to, whatever its flags say.

    Raises: RefusedError when the length is another.
    """
    kind = np.dtype(dtype).newbyteorder("<")
    expected = kind.itemsize * int(np.prod(shape, dtype=np.int64))
    given = memoryview(data).nbytes  # type: ignore[arg-type]
    if given != expected:
        raise RefusedError(
            f"{name}: expected {expected} bytes ({' x '.join(map(str, shape))} {kind.name}), got "
            f"{given}; are client and server of one version?"
        )
    if not expected:
        return np.zeros(shape, kind)
    array = np.frombuffer(data, kind).reshape(shape)
    # Another client than ours may not have padded.
    return np.asarray(_Unguarded(array)) if array.flags.aligned else array.copy()


class _Unguarded:
    """A read-only array without that mark, for kernels that only read: numba would compile each a
    second time for arrays that have it (5 s for those of the optimizers).
    """

    def __init__(self, array: NDArray[Any]) -> None:
        self._array = array  # keeps the memory
        interface = dict(array.__array_interface__)
        interface["data"] = (interface["data"][0], False)
        self.__array_interface__ = interface


def _find_long(data: bytes) -> tuple[int, int]:
    """Where the field with the long array begins, and its bytes; both the end without one."""
    at = 0
    for _ in range(MOST_FIELDS + 1):
        if at >= len(data):
            return len(data), len(data)
        start = at
        tag, at = _read_varint(data, at)
        if tag >> 3 == LONG_FIELD and tag & 7 == _BYTES:
            size, at = _read_varint(data, at)
            if at + size != len(data):
                raise _malformed("message", "its array is not its last field, or is cut short")
            return start, at
        at = _skip(data, at, tag & 7)
    raise _malformed("message", f"it has more than {MOST_FIELDS} fields")


def _skip(data: bytes, at: int, kind: int) -> int:
    if kind == _VARINT:
        return _read_varint(data, at)[1]
    if kind == _BYTES:
        size, at = _read_varint(data, at)
        at += size
    elif kind in (_FIXED64, _FIXED32):
        at += 8 if kind == _FIXED64 else 4
    else:
        raise _malformed("message", f"it has a field of wire type {kind}")
    if at > len(data):
        raise _malformed("message", "a field is cut short")
    return at


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 64, 7):
        if at >= len(data):
            raise _malformed("message", "a number is cut short")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise _malformed("message", "a number has more than 64 bits")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _malformed(what: str, why: str) -> RefusedError:
    return RefusedError(f"{what}: expected one of terrace.v1, but {why}")
