"""Files of TLS: their names in a folder, and that a key belongs to its certificate."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from ps.tls import ServerFiles, present, read_authority, read_pair
from storage.errors import ConfigError
from tests.ps.securing import write_ca, write_pair


def test_a_server_asks_for_what_is_in_the_folder(tmp_path: Path) -> None:
    files = ServerFiles.in_folder(tmp_path)
    assert files == ServerFiles(tmp_path / "server.pem", tmp_path / "server-key.pem")
    assert not files.guarded
    (tmp_path / "ca.pem").touch()
    assert ServerFiles.in_folder(tmp_path).client_ca == tmp_path / "ca.pem"
    assert ServerFiles.in_folder(tmp_path).guarded
    (tmp_path / "ca.pem").unlink()
    (tmp_path / "token").touch()
    assert ServerFiles.in_folder(tmp_path).token == tmp_path / "token"
    assert ServerFiles.in_folder(tmp_path).guarded


def test_a_link_to_nowhere_is_there(tmp_path: Path) -> None:
    os.symlink(tmp_path / "absent", tmp_path / "token")
    assert present(tmp_path / "token") and not present(tmp_path / "absent")


def test_a_pair_and_a_ca_come_as_they_are(tmp_path: Path) -> None:
    ca = trustme.CA()
    certificate, key = write_pair(tmp_path, "server", ca, "ps-0")
    assert read_pair(certificate, key) == (certificate.read_bytes(), key.read_bytes())
    assert read_authority(write_ca(tmp_path / "ca.pem", ca)) == ca.cert_pem.bytes()


def test_the_key_of_another_certificate_is_refused(tmp_path: Path) -> None:
    ca = trustme.CA()
    certificate, _ = write_pair(tmp_path, "one", ca, "ps-0")
    _, key = write_pair(tmp_path, "two", ca, "ps-0")
    with pytest.raises(ConfigError, match=rf"{key}: expected the key of {certificate}, got"):
        read_pair(certificate, key)


@pytest.mark.parametrize("broken", ["server.pem", "server-key.pem"])
@pytest.mark.parametrize(
    "content", [b"", b"no PEM", b"\xff\xfe\0", b"-----BEGIN CERTIFICATE-----\n"]
)
def test_what_is_no_pair_is_refused_in_one_line(
    broken: str, content: bytes, tmp_path: Path
) -> None:
    certificate, key = write_pair(tmp_path, "server", trustme.CA(), "ps-0")
    (tmp_path / broken).write_bytes(content)
    with pytest.raises(ConfigError, match=rf"{broken}.*: expected a certificate and its key") as c:
        read_pair(certificate, key)
    assert "\n" not in str(c.value)


@pytest.fixture
def locked(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate, and its key behind a password."""
    certificate, key = write_pair(tmp_path, "server", trustme.CA(), "ps-0")
    plain = serialization.load_pem_private_key(key.read_bytes(), None)
    key.write_bytes(
        plain.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    return certificate, key


def test_a_key_with_a_password_is_refused(locked: tuple[Path, Path]) -> None:
    with pytest.raises(ConfigError, match="without a password"):
        read_pair(*locked)


def test_no_password_is_asked_for_at_a_terminal(locked: tuple[Path, Path]) -> None:
    code = (
        "import os, sys; from pathlib import Path; from ps.tls import read_pair\n"
        # The first terminal that the leader of a session opens is the one it is asked at.
        "os.open(sys.argv[1], os.O_RDWR)\n"
        "try: read_pair(Path(sys.argv[2]), Path(sys.argv[3]))\n"
        "except ValueError as error: print(error)"
    )
    ours, theirs = os.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, os.ttyname(theirs), *map(str, locked)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            start_new_session=True,
        )
    finally:
        os.close(ours)
        os.close(theirs)
    assert "without a password" in done.stdout and done.stderr == ""


@pytest.mark.parametrize("content", [b"", b"no PEM", b"\xff\xfe"])
def test_what_is_no_ca_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_bytes(content)
    with pytest.raises(ConfigError, match=r"ca\.pem: expected certificates to trust"):
        read_authority(tmp_path / "ca.pem")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    certificate, key = write_pair(tmp_path, "server", trustme.CA(), "ps-0")
    for missing in (certificate, key):
        content = missing.read_bytes()
        missing.unlink()
        with pytest.raises(ConfigError, match=rf"{missing}: .* No such file"):
            read_pair(certificate, key)
        missing.write_bytes(content)
    with pytest.raises(ConfigError, match="absent: expected certificates to trust"):
        read_authority(tmp_path / "absent")
