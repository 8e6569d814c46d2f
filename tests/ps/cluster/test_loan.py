"""Loan: holds the owner's rows until it is let go of, however that comes about."""

from __future__ import annotations

import numpy as np

from ps.cluster.loan import Loan
from ps.cluster.route import Route
from ps.workingset import Asked, Hold, WorkingSet


def make() -> tuple[Loan, list[str]]:
    ended: list[str] = []
    own = WorkingSet({}, lambda _: ended.append("own"))
    keys = np.array([2**63 + 1, 5], np.uint64)
    asked = {"t": Asked(keys, np.array([1, 2], np.int32), [np.array([0, 1, 1], np.int32)])}

    def release(loan: WorkingSet) -> None:
        assert isinstance(loan, Loan)
        ended.append("loan")
        loan.give_back()

    return Loan(asked, Route({}, {}), own, release), ended


def test_parts_name_rows_by_their_keys() -> None:
    loan, _ = make()
    part = loan.parts["t"]
    assert part.positions.view(np.uint64).tolist() == part.keys.tolist()
    assert loan.version == -1 and not loan.rows


def test_the_last_holder_gives_the_owners_rows_back() -> None:
    loan, ended = make()
    holds: list[Hold] = [loan.hold(), loan.hold()]
    holds[0].drop()
    assert ended == []
    holds[1].drop()
    assert ended == ["loan", "own"]
    loan.give_back()
    assert ended == ["loan", "own"]


def test_one_that_nobody_ever_held_gives_them_back_as_well() -> None:
    loan, ended = make()
    del loan
    assert ended == ["loan", "own"]
