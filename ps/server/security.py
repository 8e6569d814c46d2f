"""Who may talk to a shard: where it listens, whom it lets in, and what it shows of itself.

A server that others can reach asks for TLS and for a token or a client's certificate. Tokens and
certificates are read anew when their files change, so both can be renewed without a restart.

Threads: gRPC calls `Guard` and what `server_credentials` holds from its own threads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import grpc

from ps.address import resolves_to_loopback
from ps.bearer import AUTHORIZATION, SCHEME, Tokens
from ps.tls import read_authority, read_pair
from ps.watch import Watch
from storage.errors import ConfigError

__all__ = ["Guard", "Tokens", "check_address", "server_credentials"]


def check_address(address: str, *, secure: bool) -> None:
    """Refuse an address that others can reach, unless the server is secure.

    secure: the server has TLS, and asks for a token or client certificates. Loopback is
    127.0.0.0/8, ::1, localhost, ``unix:PATH``, and a name that means only such.
    Raises: ConfigError, also for what is no address.
    """
    if not resolves_to_loopback(address) and not secure:
        raise ConfigError(
            f"address {address}: expected TLS with a token or client certificates where other "
            "hosts can connect, got a server that lacks them; make them with `terrace certificate "
            "DIR --hosts ...` and give --tls DIR, or listen on 127.0.0.1"
        )


class Guard(grpc.ServerInterceptor):  # type: ignore[misc]  # grpc has no types
    """Refuses calls that bring no valid token in the metadata: ``authorization: Bearer TOKEN``.

    They end with UNAUTHENTICATED before their message is even received. refused: called for each,
    from gRPC's thread; it must not block or raise. open_methods: prefixes of what anybody may call,
    such as "/grpc.health.v1.Health/".
    """

    def __init__(
        self, tokens: Tokens, *, refused: Callable[[], None], open_methods: Sequence[str] = ()
    ) -> None:
        self._tokens = tokens
        self._refused = refused
        self._open = tuple(open_methods)
        # As a call whose client streams, whatever the method is: a unary one would hold a thread of
        # the pool until its message is there, for as long as a stranger likes. The status that ends
        # a call is the same for all kinds.
        self._refusal = grpc.stream_unary_rpc_method_handler(_refuse)

    def intercept_service(
        self, continuation: Callable[[Any], Any], handler_call_details: Any
    ) -> Any:
        """gRPC's call: the method's handler, or one that refuses, unknown methods too."""
        method = handler_call_details.method
        if method.startswith(self._open) or self._admits(handler_call_details.invocation_metadata):
            return continuation(handler_call_details)
        self._refused()
        return self._refusal

    def _admits(self, metadata: Sequence[tuple[str, str | bytes]]) -> bool:
        given = [value for name, value in metadata if name == AUTHORIZATION]
        if len(given) != 1 or not isinstance(given[0], str):
            return False
        scheme, _, token = given[0].partition(" ")
        return scheme.lower() == SCHEME.lower() and self._tokens.admits(token)


def _refuse(_requests: object, context: Any) -> NoReturn:
    context.abort(
        grpc.StatusCode.UNAUTHENTICATED,
        "expected a valid token in the call's metadata; give this client the server's token file",
    )
    raise AssertionError("abort returned")


def server_credentials(
    certificate: Path, key: Path, client_ca: Path | None, *, report: Callable[[str], None]
) -> grpc.ServerCredentials:
    """TLS for a server's port. The files are looked at for each new connection.

    client_ca: clients have to have a certificate signed by it; None asks for none. report: is told
    in one line of renewed files that cannot be used (those from before stay in use then), from
    gRPC's threads; it must not raise.
    Raises: ConfigError, naming the file.
    """
    paths = [certificate, key] + ([] if client_ca is None else [client_ca])
    renewals = _Renewals(Watch(paths, lambda: _load(certificate, key, client_ca), report))
    return grpc.dynamic_ssl_server_credentials(
        renewals.in_use, renewals.next, require_client_authentication=client_ca is not None
    )


class _Renewals:
    """What gRPC asks before each handshake: a new configuration, or None for no change."""

    def __init__(self, watch: Watch[grpc.ServerCertificateConfiguration]) -> None:
        self._watch = watch
        self._lock = threading.Lock()
        self.in_use = watch.value()

    def next(self) -> grpc.ServerCertificateConfiguration | None:
        with self._lock:
            found = self._watch.value()
            if found is self.in_use:
                return None
            self.in_use = found
            return found


def _load(
    certificate: Path, key: Path, client_ca: Path | None
) -> grpc.ServerCertificateConfiguration:
    chain, secret = read_pair(certificate, key)
    trusted = None if client_ca is None else read_authority(client_ca)
    return grpc.ssl_server_certificate_configuration([(secret, chain)], root_certificates=trusted)
