"""Addresses: what is one, and which are loopback."""

from __future__ import annotations

import socket

import pytest

from ps.address import host_of, names_loopback, resolves_to_loopback
from storage.errors import ConfigError


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("127.0.0.1:7000", "127.0.0.1"), ("[::1]:0", "::1"), ("ps-0.ps_svc:65535", "ps-0.ps_svc"),
        ("unix:/run/terrace", None), ("unix:///run/terrace", None),
    ],
)  # fmt: skip
def test_the_host_of_an_address(address: str, host: str | None) -> None:
    assert host_of(address) == host


@pytest.mark.parametrize(
    "address",
    [
        "", "7000", ":7000", "ps-0", "ps-0:", "ps-0:65536", "ps-0:-1", "ps-0:x", "::1:7000",
        "[::1]", "[::g]:1", "[127.0.0.1]:1", "unix:", "dns:///127.0.0.1:7000",
        "ipv4:127.0.0.1:1,10.0.0.5:1",
        "http://127.0.0.1:1", "127.0.0.1:7000\n", "a b:1", "127.0.0.1:7000 ", "127.0.0.1:٣",
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused_in_one_line(address: str) -> None:
    for asked in (host_of, names_loopback, resolves_to_loopback):
        with pytest.raises(ConfigError, match="expected HOST:PORT") as caught:
            asked(address)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "is_loopback"),
    [
        ("127.0.0.1:1", True), ("127.255.0.9:1", True), ("[::1]:1", True), ("LocalHost.:1", True),
        ("unix:x", True), ("128.0.0.1:1", False), ("[::2]:1", False), ("0.0.0.0:1", False),
        ("[::]:1", False), ("localhost.example:1", False), ("[::ffff:10.0.0.5]:1", False),
    ],
)  # fmt: skip
def test_loopback_by_its_name(address: str, is_loopback: bool) -> None:
    assert names_loopback(address) == is_loopback


def test_a_name_counts_as_what_it_is_looked_up_as() -> None:
    # Both are read by the system's resolver without asking anybody.
    assert resolves_to_loopback("127.1:7000") and not names_loopback("127.1:7000")
    assert not resolves_to_loopback("10.1:7000")


@pytest.mark.parametrize("name", ["no-such-host.invalid", "a..b", "x" * 70])
def test_a_name_nobody_knows_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be looked up"):
        resolves_to_loopback(f"{name}:7000")


def test_a_name_of_several_addresses_is_loopback_only_if_all_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def known(*hosts: str) -> None:
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, 0)) for host in hosts]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)

    known("127.0.0.1", "127.0.0.2")
    assert resolves_to_loopback("ps-0:7000")
    known("127.0.0.1", "10.0.0.5")
    assert not resolves_to_loopback("ps-0:7000")
