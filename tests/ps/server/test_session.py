from __future__ import annotations

import json

import pytest

from ps.server.session import FENCE, SAVED, Session, check_name, describe, fenced_out, read_sessions
from storage.errors import CorruptError, RefusedError


@pytest.mark.parametrize("names", [SAVED, FENCE])
def test_what_is_described_is_read_again(names: tuple[str, ...]) -> None:
    sessions = [Session("train-0", 3, 77, applied=5, clock=2), Session("train-1", 1, 2, rank=1)]
    saved = json.dumps([describe(session, names) for session in sessions]).encode()
    assert [Session(**entry).client for entry in read_sessions(saved, names)] == [
        "train-0",
        "train-1",
    ]
    assert read_sessions(saved, names) == [describe(session, names) for session in sessions]
    assert read_sessions(None, names) == []


@pytest.mark.parametrize("saved", [b"", b"{", b"7", b'[{"client": "a"}]', b"[7]"])
def test_what_cannot_be_read_is_damage(saved: bytes) -> None:
    with pytest.raises(CorruptError, match="restore a backup"):
        read_sessions(saved)


@pytest.mark.parametrize("name", ["", "a b", "ä", "x" * 65, "a/b", "a\n"])
def test_names_that_cannot_be_are_refused(name: str) -> None:
    with pytest.raises(RefusedError):
        check_name(name)


@pytest.mark.parametrize(
    ("client", "job"), [("train-0", "train"), ("my-job-12", "my-job"), ("alone", "alone")]
)
def test_the_job_is_the_name_without_its_last_part(client: str, job: str) -> None:
    check_name(client)
    assert Session(client, 1, 1).job == job


def test_who_is_out_is_told_who_is_in() -> None:
    assert "is 4, this one 3 is not" in str(fenced_out(Session("a-0", 4, 1), 3))
    assert "is 4" not in str(fenced_out(Session("a-0", 4, 1, fenced=True), 4))
