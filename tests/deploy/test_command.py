"""The `terrace` command: help everywhere, exit codes, one line for an error."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from deploy.command import run

COMMANDS = ["train", "launch", "check", "stats", "backup", "export", "import", "certificate"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([command, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"terrace {command}" in out.replace("\n", " ")
    assert "--json" in out


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(command in out for command in COMMANDS)


def test_unknown_option_is_a_usage_error() -> None:
    assert run(["train", "--data", "flights", "--colour", "red"]) == 2


def test_error_is_one_line_and_no_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["check", str(tmp_path / "absent")]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "absent" in err


def test_help_does_not_wait_for_torch() -> None:
    code = (
        "import sys; from deploy.command import run; run(['--help']); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("False")
