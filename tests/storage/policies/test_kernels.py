"""Kernels: the policy's own run, whoever drives them; the rest is told by tests of policies."""

from __future__ import annotations

from typing import Any

import numpy as np

from storage.kernel import kernel
from storage.policies.kernels import run
from storage.policy import make_policy


@kernel
def _use(state: Any, positions: Any) -> None:
    run(state, "touch", positions)


def test_a_kernel_that_drives_a_policy_gets_that_policys_own() -> None:
    lru, fifo = make_policy("lru", 3), make_policy("fifo", 3)
    for policy in (lru, fifo):
        policy.insert(np.arange(3))
        _use(policy.state, np.array([0]))
    assert lru.order().tolist() == [1, 2, 0]
    assert fifo.order().tolist() == [0, 1, 2]
    run(fifo.state, "demote", np.array([2]))
    assert fifo.order().tolist() == [2, 0, 1]
