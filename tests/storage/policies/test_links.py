"""Links: rings against a list."""

from __future__ import annotations

import numpy as np

from storage.policies.links import AFTER, BEFORE, link, replace, unlink


def ring(links: np.ndarray) -> list[int]:
    """From the newest to the oldest."""
    found, node = [], int(links[0, AFTER])
    while node != 0:
        assert links[links[node, BEFORE], AFTER] == node
        found.append(node)
        node = int(links[node, AFTER])
    return found


def test_nodes_stand_where_they_were_put() -> None:
    links = np.zeros((6, 2), np.int32)
    for node in (1, 2, 3):
        link(links, node, 0)
    link(links, 4, 2)
    assert ring(links) == [3, 2, 4, 1]
    unlink(links, 2)
    replace(links, 4, 5)
    assert ring(links) == [3, 5, 1]
