"""A launch is what torchrun says, or one worker alone; what cannot be meant names the variable."""

from __future__ import annotations

import pytest

from ps.launch import Launch
from storage.errors import ConfigError

TORCHRUN = {
    "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "29500",
    "TORCHELASTIC_RUN_ID": "night", "TORCHELASTIC_RESTART_COUNT": "2",
}  # fmt: skip


def test_without_torchrun_one_worker_is_alone() -> None:
    assert Launch.of({"PATH": "/bin"}) == Launch(rank=0, world=1, local_rank=0, round="")
    assert Launch.of({"RANK": "0", "WORLD_SIZE": "1", "TORCHELASTIC_RUN_ID": "x"}) == Launch()
    assert Launch().leads


def test_torchrun_tells_each_worker_its_place_and_round() -> None:
    assert Launch.of(TORCHRUN) == Launch(3, 4, 1, "night/2")
    assert not Launch.of(TORCHRUN).leads
    assert Launch.of({**TORCHRUN, "LOCAL_WORLD_SIZE": "2"}) == Launch(3, 4, 1, "night/2", 2)


def test_other_launchers_need_not_name_the_run() -> None:
    given = {name: TORCHRUN[name] for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")}
    assert Launch.of(given) == Launch(3, 4, 3, "a:29500/0")


def test_each_worker_has_a_gpu_of_its_own() -> None:
    assert Launch(1, 2, 1).device("cuda") == "cuda:1"
    assert Launch(1, 2, 1).device("cpu") == "cpu"
    assert Launch().device("cuda") == "cuda"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"RANK": None}, ("RANK", "torchrun")),
        ({"WORLD_SIZE": None}, ("WORLD_SIZE", "torchrun")),
        ({"MASTER_ADDR": None}, ("MASTER_ADDR",)),
        ({"MASTER_PORT": None}, ("MASTER_PORT",)),
        ({"RANK": "one"}, ("RANK", "'one'")),
        ({"RANK": "4"}, ("RANK", "0 to 3", "4")),
        ({"WORLD_SIZE": "0"}, ("WORLD_SIZE", "0")),
        ({"LOCAL_RANK": "-1"}, ("LOCAL_RANK", "-1")),
        ({"LOCAL_WORLD_SIZE": "5"}, ("LOCAL_WORLD_SIZE", "1 to 4", "5")),
        ({"TORCHELASTIC_RESTART_COUNT": "x"}, ("TORCHELASTIC_RESTART_COUNT",)),
    ],
)
def test_what_cannot_be_meant_names_the_variable(
    change: dict[str, str | None], words: tuple[str, ...]
) -> None:
    given = {k: v for k, v in {**TORCHRUN, **change}.items() if v is not None}
    with pytest.raises(ConfigError) as caught:
        Launch.of(given)
    assert all(word in str(caught.value) for word in words), caught.value
