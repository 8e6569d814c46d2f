"""Generated code of the wire: it is what protos/ says, and that keeps to the rules of the house."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ps.wire import terrace_pb2
from ps.wire.frame import LONG_FIELD

ROOT = Path(__file__).resolve().parents[3]
PROTO = "ps/wire/terrace.proto"
TEXT = (ROOT / "protos" / PROTO).read_text("utf-8")
MESSAGES = dict(re.findall(r"^message (\w+) \{\n(.*?)^\}", TEXT, re.MULTILINE | re.DOTALL))
FIELD = re.compile(r"  (repeated )?(\w+) (\w+) = (\d+);( +// \S.*)?")
RESERVED = re.compile(r"  reserved (\d+(?:, \d+)*);( +// \S.*)?")


def fields(message: str) -> Iterator[tuple[str, int, str]]:
    """Name, number and comment of each field, in the order of the file."""
    for line in MESSAGES[message].splitlines():
        if found := FIELD.fullmatch(line):
            yield found[3], int(found[4]), (found[5] or "").strip()
        else:
            assert RESERVED.fullmatch(line) or not line.strip(), f"{message}: {line!r} is no field"


def reserved(message: str) -> set[int]:
    found = (RESERVED.fullmatch(line) for line in MESSAGES[message].splitlines())
    return {int(number) for match in found if match for number in match[1].split(", ")}


def test_generated_code_is_what_the_proto_says(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools")
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'protos'}",
         f"--python_out={tmp_path}", f"--pyi_out={tmp_path}", PROTO],
        check=True, timeout=60, cwd=tmp_path,
    )  # fmt: skip
    for name in ("ps/wire/terrace_pb2.py", "ps/wire/terrace_pb2.pyi"):
        made, committed = (tmp_path / name).read_bytes(), (ROOT / name).read_bytes()
        assert made == committed, f"{name} is not what protos/ gives: make protos"


def test_the_text_that_the_rules_are_read_from_is_the_whole() -> None:
    known = terrace_pb2.DESCRIPTOR.message_types_by_name
    assert set(MESSAGES) == set(known)
    for message, descriptor in known.items():
        numbers = {field.name: field.number for field in descriptor.fields}
        assert {name: number for name, number, _ in fields(message)} == numbers
    assert terrace_pb2.DESCRIPTOR.package == "terrace.v1"
    assert len(TEXT.split("\nenum ")) == len(TEXT.split("\noneof ")) == 1


@pytest.mark.parametrize("message", MESSAGES)
def test_every_field_has_a_comment(message: str) -> None:
    assert [name for name, _, comment in fields(message) if not comment] == []


@pytest.mark.parametrize("message", MESSAGES)
def test_the_long_array_is_the_last_field_and_all_numbers_are_accounted_for(message: str) -> None:
    numbers = [number for _, number, _ in fields(message)]
    assert numbers == sorted(set(numbers))
    assert numbers[-1] <= LONG_FIELD
    gone = reserved(message)
    assert not gone & set(numbers)
    short = [number for number in numbers if number != LONG_FIELD]
    assert set(range(1, max([*short, *gone], default=0) + 1)) == {*short, *gone}


def test_what_is_in_the_last_field_is_bytes() -> None:
    for descriptor in terrace_pb2.DESCRIPTOR.message_types_by_name.values():
        field = descriptor.fields_by_number.get(LONG_FIELD)
        assert field is None or (field.type == field.TYPE_BYTES and not field.is_repeated)


def test_every_method_has_messages_of_its_own_and_a_comment() -> None:
    service = terrace_pb2.DESCRIPTOR.services_by_name["Shard"]
    lines = re.findall(r"^  rpc (\w+)\((\w+)\) returns \((\w+)\); +// \S", TEXT, re.MULTILINE)
    assert [name for name, _, _ in lines] == [method.name for method in service.methods]
    for name, asked, _ in lines:
        assert asked == f"{name}Request"
