"""Weights of a stack of linear layers in a safetensors file, as torch's `state_dict` names them."""

import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from hil.convert import check_finite, with_bias
from hil.data.columns import Values
from hil.data.run import Run
from hil.protocols.errors import InputError, StorageError


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """A matrix (inputs + 1, outputs) for each layer of the file, by name and in the order of their numbers.

    `NAME.weight` (outputs, inputs) is a layer, `NAME.bias` (outputs,) its bias, zero where there is none. Raises
    `InputError` for a file without layers, other tensors, values that are not finite, and shapes that do not fit.
    """
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read as a safetensors file: {error}") from error
    names = sorted((key.removesuffix(".weight") for key in tensors if key.endswith(".weight")), key=_natural)
    if not names:
        raise InputError(f"{path} holds no layer: tensors NAME.weight and NAME.bias are expected")
    known = {f"{name}.{part}" for name in names for part in ("weight", "bias")}
    for key in tensors.keys() - known:
        raise InputError(f"{path}: tensor {key!r} belongs to no linear layer; NAME.weight and NAME.bias are expected")
    layers = {name: _matrix(path, name, tensors) for name in names}
    _check_chain(path, layers)
    return layers


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """2 before 10."""
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", name)]


def _matrix(path: Path, name: str, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    weight, bias = tensors[f"{name}.weight"], tensors.get(f"{name}.bias")
    if weight.dim() != 2 or 0 in weight.shape:
        raise InputError(
            f"{path}: {name}.weight has shape {tuple(weight.shape)}; a matrix (outputs, inputs) is expected"
        )
    if bias is not None and bias.shape != (len(weight),):
        raise InputError(f"{path}: {name}.bias has shape {tuple(bias.shape)}; ({len(weight)},) is expected")
    matrix = with_bias(weight, bias)
    check_finite(name, matrix)
    return matrix


def _check_chain(path: Path, layers: Mapping[str, torch.Tensor]) -> None:
    for before, after in pairwise(layers):
        given, taken = layers[before].shape[1], layers[after].shape[0] - 1
        if given != taken:
            raise InputError(f"{path}: layer {before} gives {given} outputs, layer {after} takes {taken} inputs")


def write_weights(run: Run, path: Path) -> None:
    """The weights that a run ended with, for `nn.Sequential` of linear layers and activations in turn.

    Of a run on a tester, as last read from the devices. Raises `InputError` where the run holds none, or `path` exists.
    """
    if path.exists():
        raise InputError(f"{path} exists: choose another name")
    tensors = {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in _final(run).items()}
    try:
        save_file(tensors, path)
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{path} cannot be written: {error}") from error


def _final(run: Run) -> dict[str, Values]:
    if run.identity is None:
        if "final" not in run.snapshots:
            raise InputError(f"{run.path} did not end: there are no final weights")
        return dict(run.snapshot("final").arrays)
    tensors: dict[str, Values] = {}
    for number, layer in enumerate(run.layers):
        matrix = run.weights(layer)
        if not np.isfinite(matrix).all():
            raise InputError(f"{run.path}: not all devices of {layer} were read, so its weights are not known")
        tensors |= {f"{2 * number}.weight": matrix[:-1].T, f"{2 * number}.bias": matrix[-1]}
    if not tensors:
        raise InputError(f"{run.path} holds no layers: there are no weights")
    return tensors
