"""``terrace certificate``: a CA, certificates and a token, for those who have none."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from storage.errors import ConfigError

if TYPE_CHECKING:
    from deploy.authority import Authority, Pair

_PRIVATE, _PUBLIC = 0o600, 0o644
_TOKEN_BYTES = 32


def certificate(
    directory: Annotated[Path, typer.Argument(help="Folder for the files; new, or empty.")],
    hosts: Annotated[
        str,
        typer.Option(help="Names and IP addresses that workers reach servers by: ps-0,10.0.0.5"),
    ],
    days: Annotated[
        int, typer.Option(min=1, max=3650, help="How long the certificates are good.")
    ] = 365,
    renew: Annotated[
        bool, typer.Option("--renew", help="New certificates under the CA that is there.")
    ] = False,
    json: Annotated[Path | None, typer.Option(help="Write the report as one JSON object.")] = None,
) -> int:
    """Make what shard servers and workers need to know each other: TLS certificates and a token.

    The folder gets a CA (ca.pem, ca-key.pem), certificates with keys for servers and for workers,
    and a token. Nothing is overwritten, but for certificates with --renew; running servers take
    those up by themselves. Keep ca-key.pem to yourself: whoever has it can make more.

    Example: terrace certificate run/tls --hosts ps-0,ps-1,10.0.0.5
    """
    from deploy.report import write_json
    from ps import tls

    names = [host.strip() for host in hosts.split(",") if host.strip()]
    if not names:
        raise ConfigError("--hosts: expected at least one name or IP address, such as ps-0,ps-1")
    authority = _renewed(directory) if renew else _begun(directory)
    server, client = authority.server(names, days), authority.client(days)
    files = _of(tls.CLIENT, tls.CLIENT_KEY, client) | _of(tls.SERVER, tls.SERVER_KEY, server)
    if not renew:
        files[tls.TOKEN] = (secrets.token_urlsafe(_TOKEN_BYTES) + "\n").encode()
        # Last: a folder with a CA is one that is whole.
        files |= _of(tls.CA, tls.CA_KEY, authority.pair)
    _fill(directory, files)
    _explain(directory, names, server)
    report = {"directory": str(directory), "hosts": names, "files": sorted(files), "renewed": renew,
              "expires": server.expires.isoformat(),
              "ca_expires": authority.pair.expires.isoformat()}  # fmt: skip
    write_json(json, report)
    return 0


def _authority() -> type[Authority]:
    try:
        from deploy.authority import Authority
    except ImportError as error:
        raise ConfigError(
            "terrace certificate needs cryptography, which is not installed; run: "
            "pip install 'terrace-ps[tls]'"
        ) from error
    return Authority


def _begun(directory: Path) -> Authority:
    """A new CA, for a folder where nothing is yet."""
    from ps import tls
    from ps.folder import check_empty

    if tls.present(directory / tls.CA) or tls.present(directory / tls.CA_KEY):
        raise ConfigError(
            f"{directory}: expected a new folder, got one with a CA; --renew makes new "
            "certificates under it, or choose another folder"
        )
    check_empty(directory)
    return _authority().new()


def _renewed(directory: Path) -> Authority:
    """The CA of the folder."""
    from ps import tls

    certificate, key = directory / tls.CA, directory / tls.CA_KEY
    try:
        pair = certificate.read_bytes(), key.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{error.filename}: expected the CA's file to renew with, got {error.strerror}; give "
            "the folder where the CA was made, or make one without --renew"
        ) from error
    try:
        return _authority()(*pair)
    except ConfigError as error:
        raise ConfigError(f"{certificate} and {key}: {error}") from error


def _of(certificate: str, key: str, pair: Pair) -> dict[str, bytes]:
    return {key: pair.key, certificate: pair.certificate}


def _fill(directory: Path, files: dict[str, bytes]) -> None:
    """Write the files, each whole or not at all, and all but certificates for the owner alone."""
    try:
        if not directory.is_dir() or not any(directory.iterdir()):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            directory.chmod(0o700)
        for name, content in files.items():
            public = name.endswith(".pem") and not name.endswith("-key.pem")
            _write(directory / name, content, _PUBLIC if public else _PRIVATE)
    except OSError as error:
        raise ConfigError(
            f"{error.filename or directory}: expected a folder that takes files, got "
            f"{error.strerror}; choose another folder"
        ) from error


def _write(path: Path, content: bytes, mode: int) -> None:
    from ps.folder import sync

    beside = path.with_name(path.name + ".new")
    # Made anew with its mode, so that at no moment anybody else could open a key.
    beside.unlink(missing_ok=True)
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
    sync(beside)
    beside.replace(path)
    sync(path.parent)


def _explain(directory: Path, hosts: list[str], server: Pair) -> None:
    from ps import tls

    names = ",".join(f"{host}:7000" for host in hosts)
    typer.echo(
        f"{directory}: certificates for {', '.join(hosts)}, good until {server.expires:%Y-%m-%d}\n"
        f"to each server: {tls.SERVER} {tls.SERVER_KEY} {tls.CA} {tls.TOKEN}\n"
        f"to each worker: {tls.CLIENT} {tls.CLIENT_KEY} {tls.CA} {tls.TOKEN}\n"
        f"nowhere:        {tls.CA_KEY}\n"
        f"  terrace serve --tls {directory} --listen 0.0.0.0:7000 ...\n"
        f"  terrace train --tls {directory} --servers {names} ..."
    )
