"""Authority: what its certificates say, against cryptography's own verifier."""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from deploy.authority import Authority, Pair
from storage.errors import ConfigError


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.new()


def loaded(pair: Pair) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pair.certificate)


def policy(authority: Authority) -> PolicyBuilder:
    return PolicyBuilder().store(Store([loaded(authority.pair)]))


def test_a_server_is_verified_by_its_hosts_and_its_own(authority: Authority) -> None:
    pair = authority.server(["ps-0", "*.ps.default.svc", "10.0.0.5", "fd00::5", "ps-0"], 30)
    names = [x509.DNSName(n) for n in ("ps-0", "ps-3.ps.default.svc", "localhost")]
    addresses = [x509.IPAddress(ipaddress.ip_address(a)) for a in ("10.0.0.5", "fd00::5",
                                                                   "127.0.0.1", "::1")]  # fmt: skip
    for name in [*names, *addresses]:
        policy(authority).build_server_verifier(name).verify(loaded(pair), [])
    for other in ("ps-1", "default.svc"):
        with pytest.raises(VerificationError):
            policy(authority).build_server_verifier(x509.DNSName(other)).verify(loaded(pair), [])
    found = loaded(pair).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert len(found.value) == 7


def test_a_client_is_no_server_and_a_server_no_client(authority: Authority) -> None:
    client, server = authority.client(30), authority.server(["ps-0"], 30)
    usage = x509.ExtendedKeyUsage
    kinds = [
        loaded(pair).extensions.get_extension_for_class(usage).value for pair in (client, server)
    ]
    assert kinds == [
        usage([x509.ExtendedKeyUsageOID.CLIENT_AUTH]),
        usage([x509.ExtendedKeyUsageOID.SERVER_AUTH]),
    ]


def test_only_the_ca_can_sign(authority: Authority) -> None:
    for pair, ca in [(authority.pair, True), (authority.client(1), False),
                     (authority.server(["ps-0"], 1), False)]:  # fmt: skip
        extensions = loaded(pair).extensions
        constraints = extensions.get_extension_for_class(x509.BasicConstraints)
        usage = extensions.get_extension_for_class(x509.KeyUsage)
        assert constraints.critical and usage.critical
        assert constraints.value.ca == usage.value.key_cert_sign == usage.value.crl_sign == ca
        assert usage.value.digital_signature != ca
    assert loaded(authority.pair).extensions.get_extension_for_class(
        x509.BasicConstraints
    ).value == x509.BasicConstraints(True, 0)


def test_keys_are_p256_and_none_is_used_twice(authority: Authority) -> None:
    pairs = [authority.pair, authority.client(1), authority.client(1), authority.server(["a"], 1)]
    keys = [loaded(pair).public_key() for pair in pairs]
    assert all(isinstance(key, ec.EllipticCurvePublicKey) for key in keys)
    assert {key.curve.name for key in keys} == {"secp256r1"}  # type: ignore[union-attr]
    assert len({pair.key for pair in pairs}) == len(pairs)
    assert len({loaded(pair).serial_number for pair in pairs}) == len(pairs)


def test_a_certificate_lasts_its_days_and_no_longer_than_the_ca(authority: Authority) -> None:
    before = datetime.now(UTC)
    pair = authority.client(3650)
    left = loaded(pair).not_valid_after_utc - before
    assert loaded(pair).not_valid_after_utc == pair.expires and 3649 <= left.days <= 3650
    assert loaded(pair).not_valid_before_utc < before
    with pytest.raises(ConfigError, match=r"--days 3652: .*give --days 36\d\d at most"):
        authority.client(3652)


def test_a_ca_signs_again_when_it_is_read(authority: Authority) -> None:
    again = Authority(authority.pair.certificate, authority.pair.key)
    assert again.pair == authority.pair
    verifier = policy(authority).build_server_verifier(x509.DNSName("ps-9"))
    verifier.verify(loaded(again.server(["ps-9"], 1)), [])


def test_what_is_no_ca_is_refused(authority: Authority) -> None:
    good = authority.pair
    with pytest.raises(ConfigError, match="the key of another one"):
        Authority(good.certificate, Authority.new().pair.key)
    for certificate, key in [(b"x", good.key), (good.certificate, b"x"), (good.key, good.key)]:
        with pytest.raises(ConfigError, match="expected the certificate and the key of a CA"):
            Authority(certificate, key)
    leaf = authority.client(30)
    with pytest.raises(ConfigError, match="expected a CA's certificate, got another"):
        Authority(leaf.certificate, leaf.key)
    rsa = trustme.CA(key_type=trustme.KeyType.RSA)
    with pytest.raises(ConfigError, match="with an EC key"):
        Authority(rsa.cert_pem.bytes(), rsa.private_key_pem.bytes())


@pytest.mark.parametrize(
    "host",
    ["", "ps-0:7000", "[::1]", "10.0.0", "10.0.0.256", "-a", "a..b", "a b", "ключ", "http://a",
     "a" * 64, ".".join(["a" * 60] * 5), "*", "*.", "a.*.b", "a\n", "10.0.0.5/8"],
)  # fmt: skip
def test_what_is_no_host_is_refused(host: str, authority: Authority) -> None:
    with pytest.raises(ConfigError, match=r"--hosts .*: expected names and IP addresses") as caught:
        authority.server([host], 1)
    assert "\n" not in str(caught.value)
