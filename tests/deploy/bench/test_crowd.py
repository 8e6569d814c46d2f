"""Crowd: clients in processes of their own, counted together; none outlives it."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.bench.crowd import Crowd, Task
from deploy.served import Served
from storage.errors import UnavailableError


def test_rows_of_all_clients_are_counted(tmp_path: Path) -> None:
    with Served(tmp_path, 1, ("--ram", "64MiB")) as served:
        with Crowd(2, Task(served.addresses, "bench", 8, 100, 1000, 0.2)) as crowd:
            assert crowd.rows_per_s("push") > 0
            assert crowd.rows_per_s("pull") > 0
        # They know one another's table: it is another one.
        with pytest.raises(UnavailableError, match="client 0 of 1 ended"):
            Crowd(1, Task(served.addresses, "bench", 16, 100, 1000, 0.2))
