"""The caller's state in a checkpoint: tensors and JSON values, to bytes and back, no code in it.

Tensors go into safetensors; everything else, and where each tensor belongs, into JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save

from storage.errors import ConfigError, CorruptError

_MARK = "__tensor__"
_PLAIN = (str, int, float, bool, type(None))


def pack_state(state: Mapping[str, Any]) -> tuple[str, bytes]:
    """(JSON, safetensors bytes) of a tree of dicts, lists, tuples, JSON values and tensors.

    NumPy arrays count as tensors. Raises: ConfigError naming the path of a value that is neither.
    """
    tensors: dict[str, torch.Tensor] = {}
    tree = _strip(state, "state", tensors)
    return json.dumps(tree), save(tensors)


def unpack_state(tree: str, tensors: bytes) -> dict[str, Any]:
    """The state that `pack_state` packed; tuples come back as lists, tensors on the CPU.

    Raises: CorruptError when the bytes are not what was packed.
    """
    try:
        return dict(_fill(json.loads(tree), load(tensors)))
    except (ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        raise CorruptError(f"checkpoint: the caller's state cannot be read ({error})") from error


def _strip(value: Any, path: str, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, np.ndarray | torch.Tensor):
        name = str(len(tensors))
        tensors[name] = _plain_tensor(value, path)
        return {_MARK: name}
    if isinstance(value, Mapping):
        return {_name(key, path): _strip(v, f"{path}.{key}", tensors) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_strip(part, f"{path}[{i}]", tensors) for i, part in enumerate(value)]
    if isinstance(value, _PLAIN):
        return value
    raise ConfigError(
        f"checkpoint: {path} is a {type(value).__name__}, expected tensors and JSON values; "
        f"convert it or leave it out"
    )


def _plain_tensor(value: NDArray[Any] | torch.Tensor, path: str) -> torch.Tensor:
    """A copy on the CPU: safetensors refuses tensors that share memory, and the caller goes on."""
    try:
        tensor = torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value
        copy = tensor.detach().cpu().contiguous().clone()
        save({path: copy.flatten()[:0]})
    except (TypeError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ConfigError(
            f"checkpoint: {path} is a tensor that cannot be stored ({error}); make it a dense "
            f"one of a plain dtype, or leave it out"
        ) from error
    return copy


def _name(key: Any, path: str) -> str:
    """Dict keys as JSON has them: int keys (torch.optim's state) are marked to come back as int."""
    if isinstance(key, bool) or not isinstance(key, str | int) or key == _MARK:
        raise ConfigError(f"checkpoint: {path} has the key {key!r}, expected a string or an int")
    return f"#{key}" if isinstance(key, int) else f"${key}" if key[:1] in "#$" else key


def _fill(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(value, dict):
        if _MARK in value:
            return tensors[value[_MARK]]
        return {_key(key): _fill(part, tensors) for key, part in value.items()}
    return [_fill(part, tensors) for part in value] if isinstance(value, list) else value


def _key(name: str) -> str | int:
    return int(name[1:]) if name[:1] == "#" else name[1:] if name[:1] == "$" else name
