"""Files of TLS: how they are called in the folder of ``--tls DIR``, and that they fit together.

``terrace certificate`` fills such a folder. A server needs server.pem and server-key.pem in its
copy; with ca.pem it asks clients for certificates too, with token for the token. A worker needs
ca.pem, and has client.pem with client-key.pem, and token, where servers ask for them. ca-key.pem
stays where it was made.
"""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass
from pathlib import Path

from storage.errors import ConfigError

CA, CA_KEY = "ca.pem", "ca-key.pem"
SERVER, SERVER_KEY = "server.pem", "server-key.pem"
CLIENT, CLIENT_KEY = "client.pem", "client-key.pem"
TOKEN = "token"


@dataclass(frozen=True)
class ServerFiles:
    """What a server shows, and what it asks of clients; nothing is read yet.

    client_ca: who signed the certificates that clients have to have; None asks for none.
    token: file with the tokens that clients have to have one of; None asks for none.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None
    token: Path | None = None

    @classmethod
    def in_folder(cls, folder: Path) -> ServerFiles:
        """The server's files in the folder of ``--tls DIR``."""
        return cls(
            folder / SERVER, folder / SERVER_KEY, present(folder / CA), present(folder / TOKEN)
        )

    @property
    def guarded(self) -> bool:
        """Whether clients have to show who they are: encryption alone keeps nobody out."""
        return self.client_ca is not None or self.token is not None


def present(path: Path) -> Path | None:
    """The path where something has that name, even a link that leads nowhere: that is an error to
    come, never a reason to ask less of clients."""
    return path if os.path.lexists(path) else None


def read_authority(path: Path) -> bytes:
    """A file of certificates to trust, PEM. Raises: ConfigError, naming the file."""
    content = _read(path, "certificates to trust")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=content.decode())
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError(
            f"{path}: expected certificates to trust in PEM, got something else; name the ca.pem "
            "that `terrace certificate` made, or another CA's"
        ) from error
    return content


def read_pair(certificate: Path, key: Path) -> tuple[bytes, bytes]:
    """A certificate (with those between it and the CA) and its private key, PEM, that belong
    together.

    Raises: ConfigError, naming the file.
    """
    pair = _read(certificate, "a certificate"), _read(key, "a private key")
    try:
        # Without a password of its own OpenSSL would ask the terminal for one.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, lambda: b"")
    except (ssl.SSLError, OSError, ValueError) as error:
        if getattr(error, "reason", None) == "KEY_VALUES_MISMATCH":
            raise ConfigError(
                f"{key}: expected the key of {certificate}, got another one's; copy both from the "
                "same folder"
            ) from error
        raise ConfigError(
            f"{certificate} and {key}: expected a certificate and its key in PEM, without a "
            f"password, got what cannot be read as such; make new ones with `terrace certificate`"
        ) from error
    return pair


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{path}: expected {what} in PEM, got {error.strerror}; make it with `terrace "
            "certificate`, or name another"
        ) from error
