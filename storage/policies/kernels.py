"""Kernels over any policy: numba takes the policy's own by the type of its state.

Python calls `insert`, `touch` and the others; a kernel that drives a policy, such as a replay,
calls `run`, and is compiled into one loop with it. States come in without owners: counted
references to a dozen arrays made a miss take 1.5 microseconds where it takes 0.2.
"""

from __future__ import annotations

from typing import Any

from numba.extending import overload

from storage.kernel import kernel, unowned


def run(state: Any, name: str, *arguments: Any) -> Any:
    """The policy's kernel of that name on the state and the arguments. For kernels only."""
    return getattr(type(state), name)(state, *arguments)


@overload(run, strict=False, prefer_literal=True, jit_options={"forceinline": True})
def _run(state: Any, name: Any, *arguments: Any) -> Any:
    own = getattr(state.instance_class, name.literal_value)
    return lambda state, name, *arguments: own(state, *arguments)


@kernel
def begin(state: Any, capacity: Any) -> None:
    """Set up the arrays, all zero, of an empty policy."""
    run(unowned(state), "begin", capacity)


@kernel
def expect(state: Any, keys: Any) -> None:
    """`storage.policy.Policy.expect`."""
    run(unowned(state), "expect", keys)


@kernel
def insert(state: Any, positions: Any) -> None:
    """`storage.policy.Policy.insert`."""
    run(unowned(state), "insert", positions)


@kernel
def touch(state: Any, positions: Any) -> None:
    """`storage.policy.Policy.touch`."""
    run(unowned(state), "touch", positions)


@kernel
def demote(state: Any, positions: Any) -> None:
    """`storage.policy.Policy.demote`."""
    run(unowned(state), "demote", positions)


@kernel
def remove(state: Any, positions: Any) -> None:
    """`storage.policy.Policy.remove`."""
    run(unowned(state), "remove", positions)


@kernel
def move(state: Any, sources: Any, targets: Any) -> None:
    """`storage.policy.Policy.move`."""
    run(unowned(state), "move", sources, targets)


@kernel
def resize(state: Any, capacity: Any) -> None:
    """`storage.policy.Policy.resize`, but for the memory."""
    run(unowned(state), "resize", capacity)


@kernel
def victims(state: Any, pins: Any, out: Any) -> Any:
    """Fill ``out``, (n,) int64, with who leaves: how many were found."""
    return run(unowned(state), "victims", pins, out)
