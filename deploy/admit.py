"""Admit: which keys earn a row in a training run, as options, as a report, and for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ps.admission import Admission, CountMin, ExactCount, Probability
from storage.budget import parse_size
from storage.errors import ConfigError

KINDS: dict[str, type[CountMin] | type[ExactCount]] = {
    CountMin.kind: CountMin, ExactCount.kind: ExactCount,
}  # fmt: skip
"""Those that count, by their name in ``--admit-by``; the other is ``probability``."""


def admission(
    times: int | None, by: str, *, decay: int | None, size: str | None
) -> Admission | None:
    """What the options mean: ``--admit``, ``--admit-by``, ``--admit-decay``, ``--admit-bytes``.

    By probability, a key is admitted after ``times`` uses on average. None without ``--admit``.
    Raises: ConfigError naming the option.
    """
    counts = by in KINDS
    given = {"--admit-decay": decay, "--admit-bytes": size}
    for option, value in given.items():
        if value is not None and (times is None or not counts):
            wanted = "--admit-by sketch or exact" if times is not None else "--admit as well"
            raise ConfigError(f"{option} {value}: expected {wanted}; give it, or leave this out")
    if times is None:
        return None
    if times < 1:
        raise ConfigError(f"--admit: expected 1 use or more, got {times}")
    if not counts:
        return Probability(1 / times)
    options: dict[str, Any] = {"decay": decay}
    if size is not None:
        options["bytes"] = parse_size(size, "--admit-bytes")
    return KINDS[by](times, **options)


def report(stats: Mapping[str, Any], table: str) -> dict[str, Any] | None:
    """What was declared and what came of it in this run, as JSON values; None when it is off.

    stats: of the store; servers, or workers, are counted together. threshold: uses, or the
    probability of each. keys_admitted, keys_refused: of each step, summed up. gradients_dropped:
    uses of keys refused.
    rows: of the table.
    """
    each = stats.get("shards") or stats.get("workers") or [stats]
    parts = [one["tables"][table] for one in each]
    if "admission" not in parts[0]:
        return None
    found = dict(parts[0]["admission"])
    for name in ("keys_admitted", "keys_refused", "gradients_dropped"):
        found[name] = sum(part["admission"][name] for part in parts)
    threshold = found.pop("times", found.pop("probability", None))
    rows = sum(part["tiers"][-1]["rows"] for part in parts)
    return {**found, "threshold": threshold, "rows": rows}


def shown(found: dict[str, Any]) -> dict[str, str]:
    """Lines of the closing table."""
    chance = found["kind"] == Probability.kind
    how = f"{found['threshold']:.3g} a use" if chance else f"from {found['threshold']} uses on"
    decay = "" if found.get("decay") is None else f", halved every {found['decay']:,} steps"
    keys = f"{found['keys_admitted']:,} / {found['keys_refused']:,}"
    return {
        "keys get a row": f"{found['kind']}, {how}{decay}",
        "keys admitted / refused": keys,
        "gradients dropped": f"{found['gradients_dropped']:,}",
    }
