"""Replay: what the policies' tests count one access at a time, in one loop."""

from __future__ import annotations

import numpy as np
import pytest

from storage.policy import POLICIES
from storage.replay import Replay
from tests.storage.replaying import hits, skewed


@pytest.mark.parametrize("name", POLICIES)
def test_hits_are_those_of_the_policy_driven_one_access_at_a_time(name: str) -> None:
    keys = skewed(5, 3000, 150)
    replay, array = Replay(name, 40), np.array(keys, np.uint64)
    found = np.concatenate((replay.trace(array[:1000]), replay.trace(array[1000:])))
    assert found.tolist() == hits(name, 40, keys)
    assert (replay.hits, replay.accesses) == (found.sum(), 3000)
    assert Replay(name, 40).run(array) == found.sum()
