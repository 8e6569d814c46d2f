"""A number for all that a cache holds."""

from __future__ import annotations

from storage.cache import CacheTier


def digest(cache: CacheTier) -> int:
    """Changes when content, order, dirty marks or pins change."""
    order = cache.policy.order()
    marks = (cache._keys, cache.steps, cache.dirty, cache._pins)
    parts = (order, *(mark[order] for mark in marks), cache.array.gather(order))
    return hash(tuple(part.tobytes() for part in parts))
