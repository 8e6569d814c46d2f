"""Tokens: the secrets that let a client in, from a file.

One token a line, two at most, so that one can take the other's place without a restart: add the new
one below, give it to the clients, remove the old one. Empty lines and lines from ``#`` are left
out. A client sends the first.

No token is ever part of a message, a log or a repr.

Threads: any.
"""

from __future__ import annotations

import hmac
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path

from ps.watch import Watch
from storage.errors import ConfigError

AUTHORIZATION = "authorization"
SCHEME = "Bearer"
LEAST_CHARACTERS = 16
MOST_TOKENS = 2
# What may stand in metadata of gRPC as it is.
_TOKEN = re.compile(rf"[!-~]{{{LEAST_CHARACTERS},}}")


class Tokens:
    """The tokens of a file, read anew when it changes.

    report: is told in one line of a change that could not be read; the tokens from before stay
    valid then. It must not raise.
    Raises: ConfigError for a file that others can read, that is not there, or has no good token.
    """

    def __init__(self, path: Path, *, report: Callable[[str], None]) -> None:
        self._path = path
        self._watch = Watch([path], lambda: _read(path), report)

    def __repr__(self) -> str:
        return f"Tokens({str(self._path)!r})"

    def first(self) -> str:
        """The token that a client sends."""
        return self._watch.value()[0].decode("ascii")

    def admits(self, token: str) -> bool:
        """Whether this is one of them. How long it takes does not tell which, or how nearly."""
        given = token.encode("utf-8", "surrogatepass")
        return any([hmac.compare_digest(given, valid) for valid in self._watch.value()])


def _read(path: Path) -> tuple[bytes, ...]:
    """The tokens of the file: one or two."""
    try:
        # Who may read it is asked of what was opened, not of what has its name by then.
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read()
    except OSError as error:
        raise ConfigError(
            f"token file {path}: expected a file with a token, got {error.strerror}; make one with "
            "`terrace certificate`"
        ) from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(
            f"token file {path}: expected a file for its owner alone, got mode "
            f"{stat.S_IMODE(mode):04o}; run: chmod 600 {path}"
        )
    # Latin-1 takes any byte: an error of decoding would carry the file's content along.
    lines = [line.strip() for line in content.decode("latin-1").splitlines()]
    tokens = [line for line in lines if line and not line.startswith("#")]
    if not 1 <= len(tokens) <= MOST_TOKENS:
        raise ConfigError(
            f"token file {path}: expected one or {MOST_TOKENS} tokens, one a line, got "
            f"{len(tokens)}"
        )
    if not all(_TOKEN.fullmatch(token) for token in tokens):
        raise ConfigError(
            f"token file {path}: expected tokens of {LEAST_CHARACTERS} and more visible ASCII "
            "characters without spaces, got another; make one with `terrace certificate`"
        )
    return tuple(token.encode("ascii") for token in tokens)
