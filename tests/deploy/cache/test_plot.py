"""The plot: written as asked for, or refused before any work."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.cache.plot import check_plot, plot
from deploy.cache.study import Result
from storage.errors import ConfigError

RESULTS = [
    Result(policy, size, 100, hits, 10, 1e6)
    for policy in ("lru", "belady")
    for size, hits in ((10, 40), (20, 60))
]


@pytest.mark.parametrize(("name", "head"), [("p.png", b"\x89PNG"), ("p.svg", b"<?xml")])
def test_it_is_drawn(tmp_path: Path, name: str, head: bytes) -> None:
    check_plot(tmp_path / name)
    plot(tmp_path / name, "a trace", RESULTS, 30)
    assert (tmp_path / name).read_bytes().startswith(head)


def test_lines_axes_and_the_ceiling_are_named(tmp_path: Path) -> None:
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none"}):
        plot(tmp_path / "p.svg", "a trace", RESULTS, 30)
    text = (tmp_path / "p.svg").read_text()
    for said in ("belady (best possible)", "lru", "hit rate, % of accesses", "90.0 %", "a trace"):
        assert said in text


@pytest.mark.parametrize(
    ("name", "message"),
    [("p.jpg", r"expected a name ending in \.png or \.svg"), ("none/p.png", "its folder is not")],
)
def test_what_cannot_be_drawn_is_refused(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_plot(tmp_path / name)
