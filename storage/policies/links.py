"""Links: nodes in doubly linked rings.

``links`` is (n, 2) int32: the `BEFORE` and `AFTER` of each node, side by side, so that a step costs
one cache line a node. A *head* is a node that stands for its list: after it is the newest, before
it the oldest, the next to leave; going ``BEFORE`` leads from the oldest to newer ones.
"""

from __future__ import annotations

from typing import Any

from storage.kernel import inlined

BEFORE, AFTER = 0, 1


@inlined
def unlink(links: Any, node: Any) -> None:
    """Take a node out of its list."""
    left, right = links[node, BEFORE], links[node, AFTER]
    links[left, AFTER] = right
    links[right, BEFORE] = left


@inlined
def link(links: Any, node: Any, left: Any) -> None:
    """Put a node that is in no list behind ``left``."""
    right = links[left, AFTER]
    links[left, AFTER], links[node, BEFORE] = node, left
    links[node, AFTER], links[right, BEFORE] = right, node


@inlined
def replace(links: Any, node: Any, other: Any) -> None:
    """Put ``other``, which is in no list, where ``node`` stands."""
    left = links[node, BEFORE]
    unlink(links, node)
    link(links, other, left)
