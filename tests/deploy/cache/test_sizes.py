"""Sizes: rows and shares."""

from __future__ import annotations

import pytest

from deploy.cache.sizes import note_large, parse_rows, parse_sizes, spread
from storage.errors import ConfigError


def test_rows_and_shares_are_understood() -> None:
    assert parse_sizes("10%, 50,2k,0.5%,50", 1000) == (5, 50, 100, 2000)
    assert parse_rows(".1G", 1, "--ram") == 10**8


@pytest.mark.parametrize("text", ["", "x", "-1", "10 %%", "5e3", "1T"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--size: expected rows such as 1000 or 10k, or 10%"):
        parse_sizes(text, 1000)


@pytest.mark.parametrize("text", ["0", "0%", "0.01%"])
def test_no_rows_at_all_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--size: expected at least 1 row"):
        parse_sizes(text, 1000)


def test_a_spread_goes_from_a_thousandth_to_all() -> None:
    sizes = spread(100_000, 13)
    assert (sizes[0], sizes[-1], len(sizes)) == (100, 100_000, 13)
    assert spread(1, 5) == (1,)


def test_sizes_above_all_keys_are_named() -> None:
    assert note_large([10, 99], 100) is None
    assert "hold all 100 different keys" in str(note_large([10, 100], 100))
