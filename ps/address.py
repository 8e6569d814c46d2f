"""Addresses of shards: ``HOST:PORT``, ``[IPV6]:PORT`` or ``unix:PATH``, and which are loopback.

gRPC understands more spellings (``dns:///``, ``ipv4:`` with several addresses, proxies). They are
refused here, so that what was checked is what is listened on or connected to.
"""

from __future__ import annotations

import ipaddress
import re
import socket

from storage.errors import ConfigError

_UNIX = "unix:"
_PATTERN = re.compile(
    r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<name>[A-Za-z0-9._-]+)):(?P<port>[0-9]{1,5})"
)
_HIGHEST_PORT = 65535


def host_of(address: str) -> str | None:
    """The host of an address, an IPv6 one without its brackets; None for ``unix:PATH``.

    Port 0 is an address too: the system chooses.
    Raises: ConfigError for what is no address.
    """
    if address.startswith(_UNIX) and len(address) > len(_UNIX):
        return None
    found = _PATTERN.fullmatch(address)
    if found is None or int(found["port"]) > _HIGHEST_PORT or not _is_ipv6(found["v6"]):
        raise ConfigError(
            f"address {address!r}: expected HOST:PORT, [IPV6]:PORT or unix:PATH with a port up to "
            f"{_HIGHEST_PORT}, such as 127.0.0.1:7000"
        )
    return str(found["v6"] or found["name"])


def names_loopback(address: str) -> bool:
    """Whether the address says so itself: 127.0.0.0/8, ::1, localhost or a Unix socket.

    No name is looked up: who asks on behalf of a connection made later would be told of another.
    Raises: ConfigError for what is no address.
    """
    host = host_of(address)
    return host is None or host.lower().rstrip(".") == "localhost" or _is_loopback(host)


def resolves_to_loopback(address: str) -> bool:
    """Whether the address is loopback, or a name that is looked up now and means nothing else.

    Raises: ConfigError for what is no address, and for a name nobody knows.
    """
    host = host_of(address)
    if host is None or names_loopback(address):
        return True
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ConfigError(
            f"address {address!r}: expected a host that is known here, but it cannot be looked up "
            f"({error}); use an IP address or mend the name"
        ) from error
    return all(_is_loopback(str(entry[4][0])) for entry in found)


def _is_ipv6(text: str | None) -> bool:
    """Whether what stood in brackets may: None is, nothing having stood there."""
    try:
        return text is None or bool(ipaddress.IPv6Address(text))
    except ValueError:
        return False


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
