from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import ps
from deploy.served import Served
from storage.errors import UnavailableError

TABLE = ps.Table("ads", dim=4, optimizer=ps.SGD(lr=1.0), init=ps.Zeros())


def test_servers_hold_rows_until_they_are_closed(tmp_path: Path) -> None:
    keys = np.arange(100)
    with Served(tmp_path, 2, ("--ram", "16MiB")) as served:
        assert len(set(served.ports)) == 2
        with ps.connect(served.addresses, [TABLE], ram="1MiB") as store:
            store.write("ads", keys, np.ones((100, 4)))
            assert (store.read("ads", keys) == 1).all()
    # A clean end made all of it durable.
    with (
        Served(tmp_path, 2, ("--ram", "16MiB")) as served,
        ps.connect(served.addresses, [TABLE], ram="1MiB") as store,
    ):
        assert (store.read("ads", keys) == 1).all()


def test_a_server_that_does_not_come_up_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="server 0: expected it to serve"):
        Served(tmp_path, 1, ("--policy", "none"))
