"""Forward and backward passes of a plain stack of layers without torch's graph, which at batch 1 costs more than they.

They leave at each `AnalogWeight` what autograd would have left there, bit for bit: any optimizer works on both.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from hil.layers import AnalogLinear, multiply, multiply_back
from hil.products import F32

Activation = tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]
aten = torch.ops.aten

# Each activation with its derivative as a function of (gradient, output): the operators that autograd itself uses.
ACTIVATIONS: dict[type[nn.Module], Activation] = {
    nn.Sigmoid: (torch.sigmoid, aten.sigmoid_backward.default),
    nn.Tanh: (torch.tanh, aten.tanh_backward.default),
    nn.ReLU: (torch.relu, lambda gradient, output: aten.threshold_backward.default(gradient, output, 0)),
}


class FeedForward:
    """A `nn.Sequential` of analog layers and activations; see `supports`."""

    def __init__(self, model: nn.Sequential) -> None:
        self._layers = list(model)
        self._first = next(layer for layer in self._layers if isinstance(layer, AnalogLinear))
        self._saved: list[F32] = []

    @staticmethod
    def supports(model: nn.Module) -> bool:
        """Whether the model starts with an analog layer and holds nothing but analog layers and known activations."""
        if not isinstance(model, nn.Sequential) or not len(model) or not isinstance(model[0], AnalogLinear):
            return False
        return all(isinstance(layer, AnalogLinear) or type(layer) in ACTIVATIONS for layer in model)

    def forward(self, x: F32) -> F32:
        """(batch, features) to (batch, outputs)."""
        self._saved.clear()
        for layer in self._layers:
            if isinstance(layer, AnalogLinear):
                x, saved = multiply(x, layer.weight)
            else:
                x = saved = ACTIVATIONS[type(layer)][0](torch.from_numpy(x)).numpy()
            self._saved.append(saved)
        return x

    def backward(self, gradient: F32) -> None:
        """From the gradient (batch, outputs) of the loss by the outputs of the last `forward`."""
        for layer, saved in zip(reversed(self._layers), reversed(self._saved), strict=True):
            if isinstance(layer, AnalogLinear):
                inputs = multiply_back(gradient, saved, layer.weight, layer is not self._first)
                if inputs is None:
                    return
                gradient = inputs
            else:
                derivative = ACTIVATIONS[type(layer)][1]
                gradient = derivative(torch.from_numpy(gradient), torch.from_numpy(saved)).numpy()
