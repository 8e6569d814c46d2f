"""Command lines in manifests: where they are, and whether the programs that they name take them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import Any

import typer
from torch.distributed.run import get_args_parser

from deploy.command import app
from ps.address import host_of
from storage.budget import parse_size

_SHELL = re.compile(r"(?<![\w./:-])terrace (?:serve|train|launch|certificate)\b[^\n;&|']*")
_SIZES, _ADDRESSES = ("ram", "disk"), ("listen", "metrics", "servers")


def in_shell(text: str) -> list[list[str]]:
    """The words of each `terrace` command of a shell script; variables stay as they are."""
    lines = "\n".join(
        line for line in text.replace("\\\n", " ").splitlines() if not line.lstrip().startswith("#")
    )
    return [shlex.split(found)[1:] for found in _SHELL.findall(lines)]


def terrace(words: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """The command and its parameters, as the real one would get them.

    Raises: what click raises for options it does not know, ConfigError for a size or an address.
    """
    name, *rest = words
    group: Any = typer.main.get_command(app)
    command = group.commands[name]
    values = dict(command.make_context(name, rest).params)
    for each in _SIZES:
        if values.get(each) and "$" not in values[each]:
            parse_size(values[each], each)
    for each in _ADDRESSES:
        # `terrace launch` has a number of servers, not where they are.
        if isinstance(values.get(each), str) and "$" not in values[each]:
            for address in values[each].split(","):
                host_of(address)
    return name, values


def torchrun(words: Sequence[str]) -> tuple[Any, list[str]]:
    """What torchrun makes of its words, and those of `terrace` that it starts."""
    arguments = get_args_parser().parse_args(list(words))
    assert arguments.no_python
    assert arguments.training_script == "terrace"
    return arguments, list(arguments.training_script_args)
