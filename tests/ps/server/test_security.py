"""Every call with every bad credential is refused before its handler runs; good ones get in."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
import trustme

from ps.client.credentials import Credentials
from ps.server.security import check_address, server_credentials
from ps.tls import ServerFiles
from storage.errors import ConfigError
from tests.ps.securing import (
    ALONE,
    GOOD,
    METHODS,
    OTHER,
    TIMEOUT_SECONDS,
    WRONG,
    Served,
    call,
    serving,
    stranger,
    write_ca,
    write_pair,
    write_token,
)

HEALTH = "/grpc.health.v1.Health/"
OK, UNAUTHENTICATED = grpc.StatusCode.OK, grpc.StatusCode.UNAUTHENTICATED
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


@dataclass(frozen=True)
class House:
    """Files of two CAs: the one that servers and clients have, and a stranger's."""

    folder: Path

    def server(self, *, client_ca: bool = False, token: bool = False) -> ServerFiles:
        return ServerFiles(
            self.folder / "server.pem",
            self.folder / "server-key.pem",
            self.folder / "ca.pem" if client_ca else None,
            self.folder / "token" if token else None,
        )

    def client(self, ca: str = "ca", pair: str | None = None, token: str | None = None,
               name: str | None = None) -> Credentials:  # fmt: skip
        return Credentials(
            self.folder / f"{ca}.pem",
            pair and self.folder / f"{pair}.pem",
            pair and self.folder / f"{pair}-key.pem",
            token and self.folder / token,
            name,
        )


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> House:
    folder = tmp_path_factory.mktemp("tls")
    ours, theirs = trustme.CA(), trustme.CA()
    write_ca(folder / "ca.pem", ours)
    write_ca(folder / "theirs.pem", theirs)
    write_pair(folder, "server", ours, "127.0.0.1", "ps-0")
    write_pair(folder, "expired-server", ours, "127.0.0.1", expired=True)
    write_pair(folder, "client", ours, "worker")
    write_pair(folder, "their-client", theirs, "worker")
    write_pair(folder, "expired-client", ours, "worker", expired=True)
    write_token(folder / "token", GOOD)
    write_token(folder / "wrong", WRONG)
    return House(folder)


@contextlib.contextmanager
def connected(credentials: Credentials, served: Served) -> Iterator[grpc.Channel]:
    with credentials.channel(served.target, ALONE) as channel:
        yield channel


# server's files, client's credentials, how each call ends
REFUSED = {
    "no token": (dict(token=True), dict(), UNAUTHENTICATED),
    "wrong token": (dict(token=True), dict(token="wrong"), UNAUTHENTICATED),
    "wrong CA": (dict(token=True), dict(ca="theirs", token="token"), UNAVAILABLE),
    "wrong host name": (dict(token=True), dict(token="token", name="ps-1"), UNAVAILABLE),
    "no client certificate": (dict(client_ca=True), dict(), UNAVAILABLE),
    "another CA's client": (dict(client_ca=True), dict(pair="their-client"), UNAVAILABLE),
    "expired client": (dict(client_ca=True), dict(pair="expired-client"), UNAVAILABLE),
    "token, no client certificate":
        (dict(client_ca=True, token=True), dict(token="token"), UNAVAILABLE),
    "client certificate, no token":
        (dict(client_ca=True, token=True), dict(pair="client"), UNAUTHENTICATED),
}  # fmt: skip
ADMITTED = {
    "token": (dict(token=True), dict(token="token")),
    "host name": (dict(token=True), dict(token="token", name="ps-0")),
    "client certificate": (dict(client_ca=True), dict(pair="client")),
    "both": (dict(client_ca=True, token=True), dict(pair="client", token="token")),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_credentials_are_refused_at_every_call(case: str, house: House) -> None:
    server, client, code = REFUSED[case]
    with serving(house.server(**server)) as served, connected(house.client(**client), served) as on:
        assert {method: call(on, method) for method in METHODS} == dict.fromkeys(METHODS, code)
    assert served.ran == [] and len(METHODS) == 11
    assert len(served.refused) == (len(METHODS) if code is UNAUTHENTICATED else 0)


def test_plain_to_tls_is_refused_at_every_call(house: House) -> None:
    with serving(house.server(token=True)) as served, connected(Credentials(), served) as on:
        sent = ("authorization", f"Bearer {GOOD}")
        assert {call(on, method, sent) for method in METHODS} == {UNAVAILABLE}
    assert served.ran == []


def test_an_expired_server_is_refused_at_every_call(house: House) -> None:
    files = ServerFiles(
        house.folder / "expired-server.pem", house.folder / "expired-server-key.pem"
    )
    with serving(files) as served, connected(house.client(), served) as on:
        assert {call(on, method) for method in METHODS} == {UNAVAILABLE}
    assert served.ran == []


@pytest.mark.parametrize("case", ADMITTED)
def test_good_credentials_are_let_in_at_every_call(case: str, house: House) -> None:
    server, client = ADMITTED[case]
    with serving(house.server(**server)) as served, connected(house.client(**client), served) as on:
        assert {call(on, method) for method in METHODS} == {OK}
    assert served.ran == METHODS and served.refused == []


@pytest.mark.parametrize(
    "metadata",
    [
        [], [("authorization", GOOD)], [("authorization", "Bearer ")],
        [("authorization", "Bearer")],
        [("authorization", f"Basic {GOOD}")], [("authorization", f"Bearer {GOOD}x")],
        [("authorization", f"Bearer {GOOD[:-1]}")],
        [("authorization", f"Bearer {GOOD} {GOOD}")],
        [("authorization", f"Bearer {WRONG}"), ("authorization", f"Bearer {GOOD}")],
        [("authorization", f"Bearer  {GOOD}")], [("token", GOOD)],
        [("authorization", f"Bearer {GOOD},Bearer {WRONG}")],
    ],
)  # fmt: skip
def test_what_is_not_exactly_one_token_is_none(
    metadata: list[tuple[str, str]], house: House
) -> None:
    with serving(token=house.folder / "token") as served, connected(Credentials(), served) as on:
        codes = {call(on, method, *metadata) for method in METHODS}
    assert codes == {UNAUTHENTICATED} and served.ran == []


def test_the_scheme_is_written_as_one_likes(house: House) -> None:
    with serving(token=house.folder / "token") as served, connected(Credentials(), served) as on:
        assert call(on, METHODS[0], ("authorization", f"bearer {GOOD}")) is OK


def test_two_tokens_are_valid_and_rotate_without_a_restart(tmp_path: Path) -> None:
    path = write_token(tmp_path / "token", GOOD)
    good, other = (("authorization", f"Bearer {token}") for token in (GOOD, OTHER))
    with serving(token=path) as served, connected(Credentials(), served) as on:
        seen = []
        for tokens in ([GOOD], [GOOD, OTHER], [OTHER]):
            write_token(path, *tokens)
            seen.append([call(on, METHODS[0], token) for token in (good, other)])
    assert seen == [[OK, UNAUTHENTICATED], [OK, OK], [UNAUTHENTICATED, OK]]
    assert served.reports == [] and len(served.refused) == 2


def test_a_lost_token_file_lets_in_those_from_before(tmp_path: Path) -> None:
    path = write_token(tmp_path / "token", GOOD)
    with serving(token=path) as served, connected(Credentials(), served) as on:
        path.unlink()
        codes = [call(on, METHODS[0], ("authorization", f"Bearer {t}")) for t in (GOOD, WRONG)]
    assert codes == [OK, UNAUTHENTICATED]
    assert len(served.reports) == 1 and str(path) in served.reports[0]


def test_an_unknown_method_says_nothing_to_strangers(house: House) -> None:
    with serving(token=house.folder / "token") as served, connected(Credentials(), served) as on:
        assert call(on, "/terrace.v1.Shard/Nothing") is UNAUTHENTICATED
        known = ("authorization", f"Bearer {GOOD}")
        assert call(on, "/terrace.v1.Shard/Nothing", known) is grpc.StatusCode.UNIMPLEMENTED


def test_open_methods_need_no_token(house: House) -> None:
    token = house.folder / "token"
    with (
        serving(token=token, open_methods=(METHODS[0], HEALTH)) as served,
        connected(Credentials(), served) as on,
    ):
        assert call(on, METHODS[0]) is OK
        assert call(on, HEALTH + "Check") is grpc.StatusCode.UNIMPLEMENTED
        assert {call(on, method) for method in METHODS[1:]} == {UNAUTHENTICATED}


def test_a_stranger_holds_no_thread_by_sending_nothing(house: House) -> None:
    with (
        serving(token=house.folder / "token", threads=1) as served,
        connected(Credentials(), served) as on,
    ):
        assert {stranger(on, method) for method in METHODS[:3]} == {UNAUTHENTICATED}
        assert call(on, METHODS[0], ("authorization", f"Bearer {GOOD}")) is OK


def test_a_long_message_is_refused_with_the_same_status(house: House) -> None:
    with (
        serving(token=house.folder / "token") as served,
        connected(Credentials(), served) as on,
        pytest.raises(grpc.RpcError) as caught,
    ):
        on.unary_unary(METHODS[0])(bytes(32 << 20), timeout=TIMEOUT_SECONDS)
    assert caught.value.code() is UNAUTHENTICATED and served.ran == []


def test_certificates_are_renewed_without_a_restart(tmp_path: Path) -> None:
    old, new = trustme.CA(), trustme.CA()
    trusts = [Credentials(write_ca(tmp_path / f"{n}.pem", ca)) for n, ca in enumerate((old, new))]
    files = ServerFiles(*write_pair(tmp_path, "server", old, "127.0.0.1"))

    def codes(served: Served) -> list[grpc.StatusCode]:
        found = []
        for credentials in trusts:
            with connected(credentials, served) as on:
                found.append(call(on, METHODS[0]))
        return found

    with serving(files) as served, connected(trusts[0], served) as lasting:
        assert call(lasting, METHODS[0]) is OK
        assert codes(served) == [OK, UNAVAILABLE]
        certificate, key = write_pair(tmp_path, "renewed", new, "127.0.0.1")
        certificate.replace(files.certificate)
        # Half renewed: the key is still the old one.
        assert codes(served) == [OK, UNAVAILABLE]
        assert len(served.reports) == 1 and "server-key.pem: expected the key" in served.reports[0]
        key.replace(files.key)
        assert codes(served) == [UNAVAILABLE, OK]
        assert call(lasting, METHODS[0]) is OK
    assert len(served.reports) == 1


def test_another_client_ca_is_taken_up_without_a_restart(tmp_path: Path) -> None:
    old, new = trustme.CA(), trustme.CA()
    ca = write_ca(tmp_path / "ca.pem", old)
    client_ca = write_ca(tmp_path / "clients.pem", old)
    pairs = [write_pair(tmp_path, f"client-{n}", c, "worker") for n, c in enumerate((old, new))]
    files = ServerFiles(*write_pair(tmp_path, "server", old, "127.0.0.1"), client_ca)
    with serving(files) as served:
        seen = []
        for trusted in (old, new):
            write_ca(client_ca, trusted)
            for pair in pairs:
                with connected(Credentials(ca, *pair), served) as on:
                    seen.append(call(on, METHODS[0]))
    assert seen == [OK, UNAVAILABLE, UNAVAILABLE, OK] and served.reports == []


@pytest.mark.parametrize("missing", ["server.pem", "server-key.pem", "ca.pem"])
def test_a_missing_file_is_named(missing: str, house: House, tmp_path: Path) -> None:
    names = [
        (tmp_path if name == missing else house.folder) / name
        for name in ("server.pem", "server-key.pem", "ca.pem")
    ]
    with pytest.raises(ConfigError, match=rf"{missing}: expected .* No such file") as caught:
        server_credentials(*names, report=pytest.fail)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1:7000", "127.8.9.1:0", "[::1]:7000", "localhost:0", "unix:/run/s", "LOCALHOST:1"],
)
def test_loopback_needs_nothing(address: str) -> None:
    check_address(address, secure=False)


@pytest.mark.parametrize(
    "address", ["0.0.0.0:7000", "10.0.0.5:0", "[::]:7000", "[fe80::1]:1", "0:1"]
)
def test_other_addresses_need_tls_and_a_secret(address: str) -> None:
    with pytest.raises(ConfigError, match="terrace certificate") as caught:
        check_address(address, secure=False)
    assert "\n" not in str(caught.value) and address in str(caught.value)
    check_address(address, secure=True)
