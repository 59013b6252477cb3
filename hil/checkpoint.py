"""A run's state as JSON and arrays, and back: nested dicts, lists, numbers, texts, numpy arrays and torch tensors."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from hil.data.columns import Values


def pack(state: Any) -> tuple[Any, dict[str, Values]]:
    """What is JSON-able of the state, and its arrays by the names that stand for them there."""
    arrays: dict[str, Values] = {}
    return _pack(state, "state", arrays), arrays


def _pack(value: Any, name: str, arrays: dict[str, Values]) -> Any:
    if isinstance(value, torch.Tensor | np.ndarray):
        arrays[name] = value.detach().numpy() if isinstance(value, torch.Tensor) else value
        return {"tensor" if isinstance(value, torch.Tensor) else "array": name}
    if isinstance(value, Mapping):
        return {"dict": [[key, _pack(item, f"{name}.{key}", arrays)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return [_pack(item, f"{name}.{number}", arrays) for number, item in enumerate(value)]
    return value.item() if isinstance(value, np.generic) else value


def unpack(value: Any, arrays: Mapping[str, Values]) -> Any:
    """The state that was packed; tuples have become lists."""
    if isinstance(value, list):
        return [unpack(item, arrays) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "dict":
        return {key: unpack(item, arrays) for key, item in content}
    return torch.from_numpy(arrays[content].copy()) if kind == "tensor" else arrays[content].copy()
