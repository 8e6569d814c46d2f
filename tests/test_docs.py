"""What README.md says to type is run: every block below the comment `<!-- test -->`.

The blocks run in order in one folder, so that a later one may use the store an earlier one made.
Output shown in a `console` block is there to be read; what counts is that no command fails.
"""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

README = Path(__file__).resolve().parent.parent / "README.md"
TIMEOUT_SECONDS = 600

BLOCK = re.compile(
    r"^<!-- test -->[ \t]*\n+"  # the mark, then blank lines at most
    r"^```(?P<language>\w*)[ \t]*\n(?P<body>.*?)^```[ \t]*$",
    re.MULTILINE | re.DOTALL,
)
MARK = re.compile(r"^<!-- test -->", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """One marked block: the line its fence is on, its language, what it says."""

    line: int
    language: str
    body: str

    def command(self) -> list[str]:
        """The arguments of a process that runs the block; ValueError for a language we cannot."""
        if self.language in ("python", "py"):
            return [sys.executable, "-W", "error", "-c", self.body]
        if self.language in ("sh", "bash"):
            return ["bash", "-euo", "pipefail", "-c", self.body]
        if self.language == "console":
            return ["bash", "-euo", "pipefail", "-c", typed(self.body)]
        raise ValueError(f"line {self.line}: expected sh, console or python, got {self.language!r}")


def typed(session: str) -> str:
    """What a person typed in a console session: lines after `$ `, continued by `> ` or a `\\`."""
    lines: list[str] = []
    continues = False
    for line in session.splitlines():
        if line.startswith("$ ") or continues or (lines and line.startswith("> ")):
            lines.append(line.removeprefix("$ ").removeprefix("> "))
            continues = line.endswith("\\")
    return "\n".join(lines)


def marked(text: str) -> list[Block]:
    """The blocks of a Markdown text that the mark stands before."""
    return [
        Block(text.count("\n", 0, found.start("language")) + 1, found["language"], found["body"])
        for found in BLOCK.finditer(text)
    ]


def run(block: Block, folder: Path) -> subprocess.CompletedProcess[str]:
    """The block's outcome in the folder, stderr beside stdout; its leftover processes are killed.

    This interpreter's folder is first on PATH, so `terrace` and `python` are those under test.
    """
    # Not resolved: the link in .venv/bin is what makes it the environment's interpreter.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    with subprocess.Popen(
        block.command(),
        cwd=folder,
        env={**os.environ, "PATH": path},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=TIMEOUT_SECONDS)
        finally:
            # The whole session: a server left in the background would outlive bash.
            kill_session(process.pid)
    return subprocess.CompletedProcess(process.args, process.returncode, output)


def kill_session(leader: int) -> None:
    """End what is left of a process group; nothing where it is gone."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        return


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all blocks of the README."""
    return tmp_path_factory.mktemp("readme")


BLOCKS = marked(README.read_text("utf-8")) if README.exists() else []


@pytest.mark.skipif(not README.exists(), reason="there is no README.md")
@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"line-{block.line}")
def test_the_readme_block_runs(block: Block, folder: Path) -> None:
    outcome = run(block, folder)
    assert outcome.returncode == 0, f"README.md line {block.line}:\n{outcome.stdout}"


@pytest.mark.skipif(not README.exists(), reason="there is no README.md")
def test_every_mark_in_the_readme_has_its_block() -> None:
    text = README.read_text("utf-8")
    assert len(BLOCKS) == len(MARK.findall(text)) > 0


def test_only_marked_blocks_are_found() -> None:
    text = (
        "# T\n\n```sh\nno\n```\n\n<!-- test -->\n```sh\nyes\n```\n\n"
        "<!-- test -->\n\n```python\nx = 1\n```\n<!-- test --> words\n```sh\nno\n```\n"
    )
    assert marked(text) == [Block(8, "sh", "yes\n"), Block(14, "python", "x = 1\n")]


def test_a_console_block_runs_what_was_typed() -> None:
    session = "$ echo a \\\n    b\na b\n$ cat <<'X'\n> in\n> X\nin\n"
    assert typed(session) == "echo a \\\n    b\ncat <<'X'\nin\nX"


@pytest.mark.parametrize(
    "block",
    [
        Block(1, "sh", "false\ntrue\n"),
        Block(1, "sh", "false | true\n"),
        Block(1, "console", "$ false\n$ true\n"),
        Block(1, "python", "import warnings\nwarnings.warn('old')\n"),
    ],
    ids=lambda block: f"{block.language}-{block.body.splitlines()[0]}",
)
def test_a_failing_block_fails(block: Block, tmp_path: Path) -> None:
    assert run(block, tmp_path).returncode != 0


def test_commands_come_from_the_environment_under_test(tmp_path: Path) -> None:
    outcome = run(Block(1, "sh", "command -v python\n"), tmp_path)
    assert Path(outcome.stdout.strip()).parent == Path(sys.executable).parent


def test_a_server_left_running_is_ended(tmp_path: Path) -> None:
    # Whoever has the pipe's other end is alive; when the last one is gone, it reads as ended.
    os.mkfifo(tmp_path / "alive")
    alive = os.open(tmp_path / "alive", os.O_RDONLY | os.O_NONBLOCK)
    try:
        outcome = run(Block(1, "sh", "exec 3>alive\nsleep 600 >/dev/null 2>&1 &\n"), tmp_path)
        assert outcome.returncode == 0
        assert select.select([alive], [], [], 10)[0], "sleep is still running"
    finally:
        os.close(alive)


def test_an_unknown_language_is_refused() -> None:
    with pytest.raises(ValueError, match="line 3: expected sh, console or python, got 'rust'"):
        Block(3, "rust", "").command()
