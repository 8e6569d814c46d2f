"""Credentials: what a client trusts, and what it shows to be let in.

Threads: a value; channels may be used from any thread.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import grpc

from ps.address import names_loopback
from ps.bearer import AUTHORIZATION, SCHEME, Tokens
from ps.tls import CA, CLIENT, CLIENT_KEY, TOKEN, present, read_authority, read_pair
from storage.errors import ConfigError

_Options = Sequence[tuple[str, Any]]


@dataclass(frozen=True)
class Credentials:
    """Paths of files, all of which may be left out; nothing is read before `channel`.

    ca: whose servers are trusted; with it, connections are encrypted. certificate, key: the
    client's own, for servers that ask. token: file whose first token is sent with every call.
    name: what the server's certificate has to be made out to, where that is not the target's host.
    Raises: ConfigError for what cannot be meant together.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    token: Path | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            there = self.certificate or self.key
            raise ConfigError(
                f"{there}: expected a client's certificate and its key, got one without the other; "
                "name both or neither"
            )
        if self.ca is None and (self.certificate or self.name):
            raise ConfigError(
                "expected a CA with a client's certificate or a server's name, got none; name the "
                "ca.pem that signed the servers' certificates"
            )

    @classmethod
    def in_folder(cls, folder: Path, *, name: str | None = None) -> Credentials:
        """A worker's files in the folder of ``--tls DIR``.

        The CA is taken to be there, so that this never means a connection in plain. Raises:
        ConfigError.
        """
        certificate, key = present(folder / CLIENT), present(folder / CLIENT_KEY)
        return cls(folder / CA, certificate, key, present(folder / TOKEN), name)

    def channel(self, target: str, options: _Options = ()) -> grpc.Channel:
        """A channel to ``target``, which connects when it is used; the caller closes it.

        Certificates are read now, and hold for the channel's life; the token's file is looked at
        for each call.
        Raises: ConfigError for files that cannot be used, and for a token that would be sent in
        plain to another host.
        """
        tokens = None if self.token is None else Tokens(self.token, report=_warn)
        if self.ca is not None:
            channel = grpc.secure_channel(target, self._tls(self.ca), self._named(options))
        elif tokens is not None:
            channel = grpc.insecure_channel(target, _staying_here(target, options))
        else:
            channel = grpc.insecure_channel(target, list(options))
        if tokens is None:
            return channel
        # Not as call credentials: grpc starts a thread for each call to ask for those, so that a
        # small call over mTLS took 0.49 ms instead of 0.28.
        return grpc.intercept_channel(channel, _Bearer(tokens))

    def _tls(self, ca: Path) -> grpc.ChannelCredentials:
        trusted = read_authority(ca)
        if self.certificate is None or self.key is None:
            return grpc.ssl_channel_credentials(trusted)
        chain, secret = read_pair(self.certificate, self.key)
        return grpc.ssl_channel_credentials(trusted, secret, chain)

    def _named(self, options: _Options) -> list[tuple[str, Any]]:
        if self.name is None:
            return list(options)
        return _with(options, "grpc.ssl_target_name_override", self.name)


def _staying_here(target: str, options: _Options) -> list[tuple[str, Any]]:
    """The options of a channel that has a token and no TLS: it must not leave this host."""
    if not names_loopback(target):
        raise ConfigError(
            f"{target}: expected TLS, or 127.0.0.1, for a connection with a token, which anybody "
            "on the way could read; give the servers' ca.pem (--tls DIR)"
        )
    # http_proxy holds for localhost too, unless no_proxy says otherwise.
    return _with(options, "grpc.enable_http_proxy", 0)


def _with(options: _Options, name: str, value: Any) -> list[tuple[str, Any]]:
    return [option for option in options if option[0] != name] + [(name, value)]


def _warn(text: str) -> None:
    warnings.warn(text, RuntimeWarning, stacklevel=2)


class _Details(NamedTuple):
    """grpc.ClientCallDetails, which has no constructor."""

    method: str
    timeout: float | None
    metadata: list[tuple[str, str | bytes]]
    credentials: Any
    wait_for_ready: bool | None
    compression: Any


class _Bearer(
    grpc.UnaryUnaryClientInterceptor,  # type: ignore[misc]  # grpc has no types
    grpc.UnaryStreamClientInterceptor,  # type: ignore[misc]
    grpc.StreamUnaryClientInterceptor,  # type: ignore[misc]
    grpc.StreamStreamClientInterceptor,  # type: ignore[misc]
):
    """Sends the token with every call, of whichever kind."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    def intercept_unary_unary(
        self, continuation: Callable[[_Details, Any], Any], details: Any, request: Any
    ) -> Any:
        return continuation(self._signed(details), request)

    intercept_unary_stream = intercept_unary_unary
    intercept_stream_unary = intercept_unary_unary
    intercept_stream_stream = intercept_unary_unary

    def _signed(self, details: Any) -> _Details:
        others = [pair for pair in details.metadata or () if pair[0] != AUTHORIZATION]
        return _Details(
            details.method,
            details.timeout,
            [*others, (AUTHORIZATION, f"{SCHEME} {self._tokens.first()}")],
            details.credentials,
            details.wait_for_ready,
            details.compression,
        )
