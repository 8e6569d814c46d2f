"""Connection: what `ps.connect` takes and refuses, in one line, before it takes anything."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ps
from ps.launch import Launch
from storage.errors import ConfigError, FencedError, MismatchError, UnavailableError
from tests.ps.client.shards import SUMS, addresses, connect, serving

NOBODY = "127.0.0.1:1"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "both"}, "mode: expected one of sync, async, got 'both'"),
        ({"staleness": -1, "mode": "async"}, "staleness: expected 0 or more"),
        ({"staleness": 1}, "0 in mode sync, got 1"),
        ({"job": "a b"}, "job: expected 1 to 48 of A-Z a-z 0-9 _ . -, got 'a b'"),
        ({"job": ""}, "job: expected 1 to 48"),
        ({"job": "x" * 49}, "job: expected 1 to 48"),
        ({"timeout_seconds": 0}, "timeout_seconds: expected more than 0"),
        ({"timeout_seconds": float("nan")}, "timeout_seconds: expected more than 0"),
        ({"timeout_seconds": 1e9}, "at most a day"),
        ({"ram": "much"}, "hbm|ram"),
        ({"push": "much"}, "push"),
        ({"device": "tpu"}, "device: expected 'cpu' or 'cuda'"),
        ({"policy": "none"}, "policy"),
        ({"launch": Launch(0, 2)}, "mode sync: expected one worker, got 2"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anybody_is_called(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        ps.connect(NOBODY, [SUMS], **{"launch": Launch(), **options})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("servers", ["", " , ", [], f"{NOBODY},{NOBODY}"])
def test_servers_are_one_or_more_each_once(servers: Any) -> None:
    with pytest.raises(ConfigError, match="servers: expected one or more, each once"):
        ps.connect(servers, [SUMS], launch=Launch())


@pytest.mark.parametrize("tables", [[], [SUMS, SUMS]])
def test_tables_are_one_or_more_with_names_of_their_own(tables: Any) -> None:
    with pytest.raises(ConfigError, match="tables: expected one or more with names of their own"):
        ps.connect(NOBODY, tables, launch=Launch())


def test_nobody_there_is_one_error_that_names_the_shard() -> None:
    with pytest.raises(UnavailableError, match=r"shard 0 at 127.0.0.1:1: .* is the server") as one:
        ps.connect(NOBODY, [SUMS], launch=Launch(), timeout_seconds=0.3)
    assert "\n" not in str(one.value)


def test_a_tier_too_small_leaves_nothing_open(tmp_path: Path) -> None:
    with serving(tmp_path) as served:
        with pytest.raises(ConfigError, match="give the worker's top tier more memory"):
            connect(served, ram="100")
        with connect(served) as store:  # and the next one gets in
            assert not store.read("sums", np.array([1])).any()


def test_blanks_and_a_list_are_taken(tmp_path: Path) -> None:
    with serving(tmp_path, 2) as served:
        for servers in (addresses(served).replace(",", " , "), [s.address for s in served]):
            with ps.connect(servers, [SUMS], ram="1MiB", launch=Launch()) as store:
                assert store.digest() == 0


def test_servers_in_a_wrong_order_are_named_at_once(tmp_path: Path) -> None:
    with serving(tmp_path, 2) as served:
        with pytest.raises(MismatchError, match="in the order of their shards"):
            connect(served[::-1])
        with pytest.raises(MismatchError, match=re.escape("number of shards 2")):
            connect(served[:1])
        # Though the other one is away and would be waited for.
        served[1].deafen()
        with pytest.raises(MismatchError, match="in the order of their shards"):
            connect(served[::-1])
        served[1].listen()


def test_other_tables_are_refused_and_another_rate_is_not(tmp_path: Path) -> None:
    with serving(tmp_path) as served:
        connect(served).close()
        other = ps.Table("sums", dim=5, optimizer=ps.SGD(lr=1.0), init=ps.Zeros())
        for tables in ([other], [SUMS, ps.Table("more", dim=4)]):
            with pytest.raises(MismatchError):
                connect(served, tables)
        rate = ps.Table("sums", dim=4, optimizer=ps.SGD(lr=2.0), init=ps.Zeros())
        connect(served, [rate]).close()


def test_a_second_process_of_the_job_shuts_the_first_one_out(tmp_path: Path) -> None:
    with serving(tmp_path) as served:
        first = connect(served)
        with connect(served) as second:
            second.write("sums", np.array([1]), np.ones((1, 4)))
            with pytest.raises(FencedError, match="client 'train-0'"):
                first.write("sums", np.array([1]), np.zeros((1, 4)))
            with pytest.raises(FencedError):
                first.read("sums", np.array([1]))
            first.abandon()
            assert second.read("sums", np.array([1])).all()
        with connect(served, job="other") as third:
            assert third.read("sums", np.array([1])).all()
