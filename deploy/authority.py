"""Authority: a certificate authority of one's own, and the certificates it signs.

Needs the package ``cryptography``. Keys are EC P-256; nothing is written here.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from storage.errors import ConfigError

# Ten years, and a day more than the longest certificate that is made along with it.
_AUTHORITY_DAYS = 3651
# Clocks of servers and workers may differ from the one here.
_EARLIER = timedelta(hours=1)
_DNS_NAME = re.compile(r"(\*\.)?(?!-)[A-Za-z0-9_-]{1,63}(\.(?!-)[A-Za-z0-9_-]{1,63})*")
_LONGEST_NAME = 253
_OWN_HOSTS = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Pair:
    """A certificate and its private key, both PEM, and when the certificate ends."""

    certificate: bytes
    key: bytes
    expires: datetime


class Authority:
    """A CA that can sign: ``certificate`` and ``key`` in PEM, from `new` or from its files.

    Raises: ConfigError for what is no CA or not its key.
    """

    def __init__(self, certificate: bytes, key: bytes) -> None:
        try:
            self._certificate = x509.load_pem_x509_certificate(certificate)
            secret = serialization.load_pem_private_key(key, password=None)
        except (ValueError, TypeError) as error:
            raise ConfigError(
                "expected the certificate and the key of a CA in PEM, without a password, got what "
                "cannot be read as such; make a new CA in another folder"
            ) from error
        _check_signs(self._certificate)
        self._key = _own_kind(secret)
        if self._key.public_key() != self._certificate.public_key():
            raise ConfigError("expected a CA's key and certificate, got the key of another one")
        self.pair = Pair(certificate, key, self._certificate.not_valid_after_utc)

    @classmethod
    def new(cls) -> Authority:
        """A CA that lasts ten years."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name("Terrace CA")
        builder = (
            _builder(name, name, key.public_key(), _end(_AUTHORITY_DAYS))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
        )
        return cls(_pem(builder.sign(key, hashes.SHA256())), _key_pem(key))

    def server(self, hosts: Sequence[str], days: int) -> Pair:
        """A certificate for servers that are reached as one of ``hosts``, or on their own host.

        Raises: ConfigError for a host that is none, and when the CA ends before ``days`` are over.
        """
        names = list(dict.fromkeys(_general(host) for host in (*hosts, *_OWN_HOSTS)))
        return self._sign(
            "terrace server",
            days,
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]),
            x509.SubjectAlternativeName(names),
        )

    def client(self, days: int) -> Pair:
        """A certificate for workers. Raises: ConfigError as `server` does."""
        return self._sign(
            "terrace client", days, x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
        )

    def _sign(self, title: str, days: int, *extensions: x509.ExtensionType) -> Pair:
        end, last = _end(days), self.pair.expires
        if end > last:
            left = (last - datetime.now(UTC)).days
            raise ConfigError(
                f"--days {days}: expected an end before the CA's on {last:%Y-%m-%d}; "
                + (f"give --days {left} at most, or " if left > 0 else "")
                + "make a new CA in another folder"
            )
        key = ec.generate_private_key(ec.SECP256R1())
        builder = (
            _builder(_name(title), self._certificate.subject, key.public_key(), end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        signed = builder.sign(self._key, hashes.SHA256())
        return Pair(_pem(signed), _key_pem(key), end)


def _own_kind(key: object) -> ec.EllipticCurvePrivateKey:
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(
            f"expected a CA that was made here, with an EC key, got {type(key).__name__}; make a "
            "new CA in another folder"
        )
    return key


def _check_signs(certificate: x509.Certificate) -> None:
    """What another certificate signs would look right here, and be refused by everybody."""
    kind = x509.BasicConstraints
    if not any(isinstance(e.value, kind) and e.value.ca for e in certificate.extensions):
        raise ConfigError(
            "expected a CA's certificate, got another one; put the CA's back, or make a new CA in "
            "another folder"
        )


def _general(host: str) -> x509.GeneralName:
    """The host as a certificate names it: an IP address, or a DNS name."""
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    # A last label of digits is an address that went wrong, never a name.
    digits = host.rpartition(".")[2].isdigit()
    if len(host) > _LONGEST_NAME or digits or not _DNS_NAME.fullmatch(host):
        raise ConfigError(
            f"--hosts {host!r}: expected names and IP addresses without ports or brackets, "
            "separated by commas, such as ps-0,ps-1,10.0.0.5"
        )
    return x509.DNSName(host)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - _EARLIER)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _end(days: int) -> datetime:
    return datetime.now(UTC).replace(microsecond=0) + timedelta(days=days)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
