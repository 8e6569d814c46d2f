"""The caller's state: what goes in comes out, and what cannot is refused by its path."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ps.state import pack_state, unpack_state
from storage.errors import ConfigError, CorruptError


def again(state: dict[Any, Any]) -> dict[str, Any]:
    return unpack_state(*pack_state(state))


def assert_same(a: Any, b: Any) -> None:
    assert type(a) is type(b), (a, b)
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert (
            torch.equal(a.nan_to_num(7), b.nan_to_num(7))
            if a.dtype.is_floating_point
            else (torch.equal(a, b))
        )
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_same(one, other)
    else:
        assert a == b


DTYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32,
    torch.int16, torch.int8, torch.uint8, torch.bool,
)  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 4), (2, 3)], ids=str)
def test_tensors_of_every_dtype_and_shape_come_back(
    dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    state = {"x": (torch.arange(6)[: int(np.prod(shape))].reshape(shape) * 0.7).to(dtype)}
    assert_same(again(state), state)


def test_a_tree_comes_back_as_it_was() -> None:
    state = {
        "n": None, "t": True, "i": 2**70, "f": 0.1, "s": "#not a number", "inf": float("inf"),
        "list": [1, [2.5, {"x": torch.ones(2)}], []], "empty": {},
        1: "int", -3: "int", "1": "text", "#1": "text", "$#1": "text", "": "empty",
    }  # fmt: skip
    assert_same(again(state), state)


def test_tensors_that_share_memory_come_back_apart() -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    state = {"whole": whole, "row": whole[1], "turned": whole.t(), "again": whole}
    found = again(state)
    assert_same(found, {name: tensor.contiguous() for name, tensor in state.items()})


def test_the_state_is_of_the_moment_it_was_packed() -> None:
    tensor = torch.zeros(3)
    packed = pack_state({"x": tensor})
    tensor.fill_(9)
    assert unpack_state(*packed)["x"].tolist() == [0, 0, 0]


def test_tuples_come_back_as_lists_and_arrays_as_tensors() -> None:
    readonly = np.arange(3)
    readonly.flags.writeable = False
    found = again({"pair": (1, (2,)), "array": readonly, "zero": np.float32(1)[None]})
    assert_same(found, {"pair": [1, [2]], "array": torch.arange(3), "zero": torch.ones(1)})


def test_a_torch_optimizer_goes_on_as_if_nothing_had_been() -> None:
    def make() -> tuple[torch.nn.Linear, torch.optim.Adam]:
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2)
        return model, torch.optim.Adam(model.parameters(), lr=0.1, amsgrad=True)

    def step(model: torch.nn.Linear, adam: torch.optim.Adam) -> None:
        adam.zero_grad()
        model(torch.ones(4, 3)).square().sum().backward()
        adam.step()

    model, adam = make()
    step(model, adam)
    found = again({"model": model.state_dict(), "adam": adam.state_dict()})
    other, its_adam = make()
    other.load_state_dict(found["model"])
    its_adam.load_state_dict(found["adam"])
    for _ in range(3):
        step(model, adam)
        step(other, its_adam)
    assert_same(dict(other.state_dict()), dict(model.state_dict()))
    assert_same(its_adam.state_dict()["state"], adam.state_dict()["state"])


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"a": [0, object()]}, r"state\.a\[1\]"),
        ({"a": {"b": {1, 2}}}, r"state\.a\.b"),
        ({"a": np.int64(3)}, r"state\.a"),
        ({"a": b"bytes"}, r"state\.a"),
        ({"a": {1.5: 0}}, r"state\.a .*1\.5"),
        ({"a": {True: 0}}, r"state\.a .*True"),
        ({"a": {"__tensor__": "0"}}, r"state\.a .*__tensor__"),
        ({"a": torch.ones(2, device="meta")}, r"state\.a"),
        ({"a": torch.eye(2).to_sparse()}, r"state\.a"),
        ({"a": np.array(["x"])}, r"state\.a"),
    ],
)
def test_what_cannot_be_stored_is_refused_by_its_path(value: Any, path: str) -> None:
    with pytest.raises(ConfigError, match=path) as caught:
        pack_state(value)
    assert "\n" not in str(caught.value)


def test_damaged_state_is_said_to_be_damaged() -> None:
    tree, tensors = pack_state({"x": torch.ones(4), "y": 1})
    for bad in ((tree[:-3], tensors), (tree, tensors[:-1]), (tree, b"nonsense"), ("[1]", b"")):
        with pytest.raises(CorruptError, match="checkpoint"):
            unpack_state(*bad)
