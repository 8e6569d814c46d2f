"""That what reads the manifests' command lines finds what is wrong with them."""

from __future__ import annotations

import pytest

from storage.errors import ConfigError
from tests.deploy.commands import in_shell, terrace


def test_commands_are_found_in_a_shell_script() -> None:
    script = '# terrace train\nx=1 || terrace serve --dir "$A" \\\n  --ram 1GiB && y\ncd /terrace\n'
    assert in_shell(script) == [["serve", "--dir", "$A", "--ram", "1GiB"]]


@pytest.mark.parametrize(
    "words",
    [["serve"], ["serve", "--dir=a", "--shards=2"], ["train", "--data=a", "--mode=none"]],
    ids=" ".join,
)
def test_options_that_are_not_there_are_found(words: list[str]) -> None:
    # Its type is click's, of which typer may have a copy of its own.
    with pytest.raises(Exception, match=r"(?i)missing|no such|is not one of"):
        terrace(words)


@pytest.mark.parametrize(
    "words", [["serve", "--dir=a", "--ram=8G8"], ["train", "--data=a", "--servers=ps-0"]]
)
def test_sizes_and_addresses_are_read(words: list[str]) -> None:
    with pytest.raises(ConfigError):
        terrace(words)
