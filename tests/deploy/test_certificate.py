"""`terrace certificate`: files that real gRPC takes, who may read them, and what it never does."""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path

import grpc
import pytest

from deploy.command import run
from ps.client.credentials import Credentials
from ps.server.security import Tokens
from ps.tls import ServerFiles
from tests.ps.securing import ALONE, METHODS, call, serving

PUBLIC = {"ca.pem", "server.pem", "client.pem"}
PRIVATE = {"ca-key.pem", "server-key.pem", "client-key.pem", "token"}
OK, UNAVAILABLE = grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE


def make(folder: Path, *more: str) -> int:
    return run(["certificate", str(folder), "--hosts", "ps-0,10.0.0.5", *more])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_server_and_a_worker_meet_with_the_files(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "tls"
    assert make(folder) == 0
    with serving(ServerFiles.in_folder(folder)) as served:
        for name in (None, "ps-0", "10.0.0.5", "localhost"):
            with Credentials.in_folder(folder, name=name).channel(served.target, ALONE) as on:
                assert {call(on, method) for method in METHODS} == {OK}
        with Credentials.in_folder(folder, name="ps-1").channel(served.target, ALONE) as on:
            assert call(on, METHODS[0]) is UNAVAILABLE
    assert served.reports == [] and len(served.ran) == 4 * len(METHODS)


def test_no_worker_can_pass_for_a_server_nor_a_server_for_a_worker(tmp_path: Path) -> None:
    assert make(tmp_path / "t") == 0
    pairs = {
        who: (tmp_path / "t" / f"{who}.pem", tmp_path / "t" / f"{who}-key.pem")
        for who in ("client", "server")
    }
    ca = tmp_path / "t" / "ca.pem"
    with (
        serving(ServerFiles(*pairs["client"])) as served,
        Credentials(ca).channel(served.target, ALONE) as on,
    ):
        assert call(on, METHODS[0]) is UNAVAILABLE
    with serving(ServerFiles(*pairs["server"], client_ca=ca)) as served:
        for who, code in (("server", UNAVAILABLE), ("client", OK)):
            with Credentials(ca, *pairs[who]).channel(served.target, ALONE) as on:
                assert call(on, METHODS[0]) is code


def test_secrets_are_their_owners_alone(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir(mode=0o755)
    for folder in (tmp_path / "new", tmp_path / "empty"):
        assert make(folder) == 0
        assert contents(folder).keys() == PUBLIC | PRIVATE
        assert mode(folder) == 0o700
        assert {name: mode(folder / name) for name in PRIVATE} == dict.fromkeys(PRIVATE, 0o600)
        token = Tokens(folder / "token", report=pytest.fail).first()
        assert len(token) == 43  # 32 bytes in base 64
    assert (tmp_path / "new/token").read_bytes() != (tmp_path / "empty/token").read_bytes()


def test_what_it_says_is_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, report = tmp_path / "t", tmp_path / "r.json"
    assert make(folder, "--days", "30", "--json", str(report)) == 0
    out, found = capsys.readouterr().out, json.loads(report.read_text())
    assert found.keys() == {"directory", "hosts", "files", "renewed", "expires", "ca_expires"}
    assert found["hosts"] == ["ps-0", "10.0.0.5"] and not found["renewed"]
    assert set(found["files"]) == PUBLIC | PRIVATE
    assert f"good until {found['expires'][:10]}" in out
    assert f"terrace serve --tls {folder} " in out
    assert f"terrace train --tls {folder} --servers ps-0:7000,10.0.0.5:7000 " in out
    token = (folder / "token").read_text().strip()
    assert token not in out and token not in report.read_text()


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "t"
    assert make(folder) == 0
    before = contents(folder)
    capsys.readouterr()
    assert make(folder) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "--renew" in err
    (folder / "ca.pem").unlink()
    assert make(folder) == 1
    (folder / "ca-key.pem").unlink()
    assert make(folder) == 1
    assert "expected an empty folder" in capsys.readouterr().err
    assert contents(folder).items() <= before.items()


def test_renewal_keeps_the_ca_and_the_token(tmp_path: Path) -> None:
    folder = tmp_path / "t"
    assert make(folder) == 0
    before = contents(folder)
    with serving(ServerFiles.in_folder(folder)) as served:
        assert run(["certificate", str(folder), "--hosts", "ps-7", "--renew"]) == 0
        changed = {name for name, content in contents(folder).items() if content != before[name]}
        assert changed == {"server.pem", "server-key.pem", "client.pem", "client-key.pem"}
        assert mode(folder / "server-key.pem") == 0o600
        for name, code in (("ps-7", OK), ("ps-0", UNAVAILABLE)):
            with Credentials.in_folder(folder, name=name).channel(served.target, ALONE) as on:
                assert call(on, METHODS[0]) is code


def test_renewal_makes_no_token_where_there_is_none(tmp_path: Path) -> None:
    assert make(tmp_path / "t") == 0
    (tmp_path / "t/token").unlink()
    assert make(tmp_path / "t", "--renew") == 0
    assert not (tmp_path / "t/token").exists()


def test_renewal_needs_the_ca(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert make(tmp_path / "t", "--renew") == 1
    assert not (tmp_path / "t").exists()
    assert make(tmp_path / "t") == 0
    (tmp_path / "t/ca-key.pem").write_text("torn")
    before = contents(tmp_path / "t")
    capsys.readouterr()
    assert make(tmp_path / "t", "--renew") == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "ca-key.pem" in err
    assert contents(tmp_path / "t") == before


@pytest.mark.parametrize(
    "arguments", [["--hosts", "ps-0:7000"], ["--hosts", ","], ["--hosts", "ps-0,a b"]]
)
def test_bad_hosts_are_refused_before_anything_is_made(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["certificate", str(tmp_path / "t"), *arguments]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize("days", ["0", "3651", "-1", "x"])
def test_days_have_bounds(days: str, tmp_path: Path) -> None:
    assert make(tmp_path / "t", "--days", days) == 2
    assert not (tmp_path / "t").exists()


def test_a_file_in_the_folders_place_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t").write_text("")
    for folder in (tmp_path / "t", tmp_path / "t" / "below"):
        assert make(folder) == 1
        assert capsys.readouterr().err.count("\n") == 1


def test_without_cryptography_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "cryptography", None)
    monkeypatch.delitem(sys.modules, "deploy.authority", raising=False)
    assert make(tmp_path / "t") == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "pip install 'terrace-ps[tls]'" in err
    assert not (tmp_path / "t").exists()
