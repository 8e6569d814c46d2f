"""What every test gets: a check that nothing leaked, hypothesis profiles, and the real click logs.

The leak check runs after a test's fixtures were torn down, so what a fixture closes is no leak.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import hypothesis
import psutil
import pytest

# Benchmarks are programs: the doctest collector would import them and the peers they compare with.
collect_ignore = ["benchmarks"]

REPOSITORY = Path(__file__).resolve().parent.parent
# What a closed thing may still take to be gone: a thread past its last statement, a child past its
# exit. Nothing waits this long unless it leaks.
GRACE_SECONDS = 5.0

_STARTS_PROCESSES = {"stress", "cluster", "deploy", "test_docs.py", "test_transparency.py"}

hypothesis.settings.register_profile("local", deadline=None, print_blob=True)
hypothesis.settings.register_profile(
    # The same examples in every run, so that a red run is the change's doing.
    "ci",
    deadline=None,
    print_blob=True,
    max_examples=50,
    derandomize=True,
)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test marked `cuda` where there is no such device."""
    if item.get_closest_marker("cuda"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that start processes first: they take long, and would be waited for at the end."""
    items.sort(key=lambda item: not _STARTS_PROCESSES & set(item.path.parts))


def own_threads() -> set[threading.Thread]:
    """The live threads that Terrace started: it names them all, so others are torch's or grpc's."""
    return {thread for thread in threading.enumerate() if thread.name.startswith("terrace")}


def own_children() -> set[psutil.Process]:
    """All descendants of this process but Python's resource tracker, which lives as long as it."""
    return {child for child in psutil.Process().children(recursive=True) if not is_tracker(child)}


def is_tracker(process: psutil.Process) -> bool:
    """Whether this is the resource tracker that multiprocessing starts once and keeps."""
    try:
        return any("multiprocessing.resource_tracker" in word for word in process.cmdline())
    except psutil.Error:  # gone, or a zombie that has no command line left
        return False


def files_below(folder: Path) -> list[str]:
    """Paths of the files below the folder that this process has open."""
    opened = (Path(file.path) for file in psutil.Process().open_files())
    return sorted(str(path) for path in opened if folder.resolve() in path.parents)


@contextmanager
def no_leaks(folder: Path | None = None) -> Iterator[None]:
    """Fail where the block leaves a thread of ours, a child, or a file open below the folder."""
    threads, children = own_threads(), own_children()
    yield
    deadline = time.monotonic() + GRACE_SECONDS
    leaks = []
    for thread in own_threads() - threads:
        thread.join(max(0.0, deadline - time.monotonic()))
        if thread.is_alive():
            leaks.append(f"thread {thread.name!r}")
    _, alive = psutil.wait_procs(
        own_children() - children, timeout=max(0.0, deadline - time.monotonic())
    )
    leaks += [f"process {child.pid}" for child in alive]
    leaks += [f"open file {path}" for path in files_below(folder)] if folder else []
    if leaks:
        pytest.fail(f"leaked: {', '.join(leaks)}; close() what the test opened", pytrace=False)


@pytest.fixture(autouse=True, scope="session")
def _no_leaks_in_session() -> Iterator[None]:
    """What a fixture of a module or of the session leaves is found when the run ends."""
    with no_leaks():
        yield


@pytest.fixture(autouse=True)
def _no_leaks(request: pytest.FixtureRequest, _no_leaks_in_session: None) -> Iterator[None]:
    """Asked for tmp_path here, pytest removes it after the check and not before."""
    uses_folder = "tmp_path" in request.fixturenames
    with no_leaks(request.getfixturevalue("tmp_path") if uses_folder else None):
        yield


@pytest.fixture(autouse=True, scope="session")
def _few_threads() -> None:
    """Two torch threads at most, so that a large machine runs what a small one does."""
    import torch

    torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real click logs and traces; skips where it is not there.

    It is too large for the repository: TERRACE_SHARED_DATA names it, else it lies beside it.
    """
    named = os.environ.get("TERRACE_SHARED_DATA")
    folder = Path(named) if named else REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real click logs: {folder} is no folder; set TERRACE_SHARED_DATA")
    return folder
