"""Layout: bytes are those of the arrays that a policy gets."""

from __future__ import annotations

import pytest

from storage.policy import POLICIES, layout_of, make_policy


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("capacity", [1, 100, 5000])
def test_bytes_are_those_of_the_arrays(name: str, capacity: int) -> None:
    policy, layout = make_policy(name, capacity), layout_of(name, capacity)
    state = policy.state._asdict()
    state.pop("owners", None)  # the cache's
    held = sum(array.nbytes for array in state.values())
    assert held == capacity * layout.bytes_per_position + layout.fixed_bytes
