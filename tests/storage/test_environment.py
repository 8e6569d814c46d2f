"""Environment: facts are whole or named as damaged; there always is room to free others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from storage.environment import Environment
from storage.errors import ClosedError, DiskFullError

RESERVE = "terrace.reserve"


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[Environment]:
    with closing(
        Environment(tmp_path, databases=[], disk_bytes=8 << 20, transactions=2)
    ) as environment:
        yield environment


def test_facts_have_a_size_and_can_be_forgotten(environment: Environment) -> None:
    environment.commit({"a/1": b"x" * 100, "a/2": b"y", "b": b"z"})
    assert environment.size("a/1") >= 100 and environment.size("c") == 0
    environment.forget(["a/1", "c"])
    assert environment.names("") == ["a/2", "b"]


def test_what_would_not_fit_is_refused_with_the_numbers(environment: Environment) -> None:
    environment.ensure_room(1 << 20)
    with pytest.raises(DiskFullError, match=r"room for 9.00 MiB.*--disk 8.00 MiB has"):
        environment.ensure_room(9 << 20)
    assert 0 < environment.room() < 8 << 20


def test_room_for_freeing_is_kept_and_comes_back(tmp_path: Path, environment: Environment) -> None:
    reserve = tmp_path / RESERVE
    assert reserve.stat().st_size == 1 << 19
    calls = []

    def change(txn: object) -> None:
        calls.append(reserve.exists())
        if len(calls) == 1:
            raise DiskFullError("full")

    environment.freely(change)
    assert calls == [True, False]
    assert reserve.exists()


def test_a_closed_environment_says_so(environment: Environment) -> None:
    environment.close()
    environment.close()
    with pytest.raises(ClosedError):
        environment.fact("a")


def test_a_data_file_that_was_never_finished_is_no_obstacle(tmp_path: Path) -> None:
    """As a power cut leaves it while a store is made."""
    (tmp_path / "data.new").write_bytes(b"torn" * 2048)
    with closing(Environment(tmp_path, databases=[], disk_bytes=8 << 20, transactions=2)) as made:
        made.commit({"a": b"x"})
        assert made.fact("a") == b"x"
    assert not (tmp_path / "data.new").exists()
