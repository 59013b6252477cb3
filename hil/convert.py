"""Put a trained torch model onto a tester."""

import copy

import torch
from torch import nn

from hil.instruments.tester import ArrayTester
from hil.layers import BACKWARD_RANGE, FORWARD_RANGE, AnalogLinear
from hil.mapping import floorplan
from hil.products import covered
from hil.protocols.errors import InputError
from hil.writing import Verified, Writer


def convert(
    model: nn.Module,
    tester: ArrayTester,
    *,
    write: Writer | None = None,
    forward_range: float = FORWARD_RANGE,
    backward_range: float = BACKWARD_RANGE,
) -> nn.Module:
    """A copy of the model with an `AnalogLinear` in place of each `nn.Linear`, its weights programmed and verified.

    The largest weight of a layer becomes 8 uS; what no tester computes (activations, convolutions) stays on the host.
    `write` is another way to write; a `Verified` of your own keeps the reports. `forward_range` and `backward_range`
    are those of `AnalogLinear`, or the tester's largest for a layer of small weights. Raises `InputError`, before
    anything is sent, for a model without linear layers, with weights that are not finite, or too large for the chip.
    """
    linear = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    if not linear:
        raise InputError("the model has no nn.Linear: there is nothing to convert")
    plan = copy.deepcopy(floorplan(tester))
    for name, layer in linear:
        check_finite(name, matrix_of(layer))
        plan.place(layer.in_features + 1, layer.out_features)
    memo: dict[int, object] = {}
    for _, layer in linear:
        memo[id(layer)] = analog(matrix_of(layer), tester, write or Verified(), forward_range, backward_range)
    return copy.deepcopy(model, memo)


def matrix_of(layer: nn.Linear) -> torch.Tensor:
    """Weights and bias as (inputs + 1, outputs)."""
    return with_bias(layer.weight.detach(), None if layer.bias is None else layer.bias.detach())


def with_bias(weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """A weight (outputs, inputs) and a bias (outputs,), zero unless there is one, as (inputs + 1, outputs)."""
    last = torch.zeros(len(weight)) if bias is None else bias
    return torch.cat([weight.float().T, last.float()[None]]).contiguous()


def check_finite(name: str, matrix: torch.Tensor) -> None:
    """Raise `InputError` for weights that no device can hold."""
    if not bool(torch.isfinite(matrix).all()):
        raise InputError(f"layer {name!r} has weights that are not finite: no device can hold them")


def scale_of(matrix: torch.Tensor) -> float:
    """The weight that becomes 8 uS: the largest one."""
    return float(matrix.abs().max()) or 1.0


def analog(
    matrix: torch.Tensor, tester: ArrayTester, write: Writer, forward_range: float, backward_range: float
) -> AnalogLinear:
    """The layer with these weights (inputs + 1, outputs) on a tester, whose ranges are as large as it can."""
    scale, c = scale_of(matrix), tester.capabilities()
    return AnalogLinear(
        matrix.shape[0] - 1,
        matrix.shape[1],
        tester,
        scale=scale,
        initial_weights=matrix,
        forward_range=covered(forward_range, scale, c),
        backward_range=covered(backward_range, scale, c),
        write=write,
    )
