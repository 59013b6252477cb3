"""Forward and backward passes of a plain stack of layers without torch's graph, which at batch 1 costs more than they.

They leave at each `AnalogWeight` what autograd would have left there, bit for bit: any optimizer works on both.
"""

from collections.abc import Callable
from functools import cache
from operator import attrgetter

import numpy as np
import torch
from torch import nn

from hil.kernels import F32, MATRIX, sigmoid_backward
from hil.layers import AnalogLinear
from hil.mock_hw.compiled import code_for
from hil.protocols.errors import InputError

aten = torch.ops.aten
FACTORS = attrgetter("factors")


class Buffer:
    """Floats (batch, features), seen as an array and as a tensor: making either of the other takes a microsecond."""

    def __init__(self, batch: int, features: int) -> None:
        self.tensor = torch.empty(batch, features, dtype=torch.float32)
        self.array: F32 = self.tensor.numpy()


@cache
def _sigmoid_code() -> Callable[..., None]:
    return code_for(sigmoid_backward, MATRIX, MATRIX)


def tanh_backward(gradient: Buffer, output: Buffer) -> None:
    """As torch's graph does it."""
    aten.tanh_backward.grad_input(gradient.tensor, output.tensor, grad_input=gradient.tensor)


def relu_backward(gradient: Buffer, output: Buffer) -> None:
    """As torch's graph does it."""
    aten.threshold_backward.grad_input(gradient.tensor, output.tensor, 0, grad_input=gradient.tensor)


Forward = Callable[[torch.Tensor], torch.Tensor]
Backward = Callable[[Buffer, Buffer], None]
ACTIVATIONS: dict[type[nn.Module], tuple[Forward, Backward]] = {
    nn.Sigmoid: (torch.sigmoid_, lambda gradient, output: _sigmoid_code()(gradient.array, output.array)),
    nn.Tanh: (torch.tanh_, tanh_backward),
    nn.ReLU: (torch.relu_, relu_backward),
}
"""By the torch module: from inputs to outputs, and from the gradient by these outputs to that by the inputs, both in
place and with the bits of torch.
"""


class Layer:
    """An analog layer with what activates its outputs, for one batch size."""

    def __init__(self, layer: AnalogLinear, activation: nn.Module | None, batch: int) -> None:
        self._weight, self._products = layer.weight, layer.weight.products
        self._activate: Forward | None = None
        self._derive: Backward | None = None
        if activation is not None:
            self._activate, self._derive = ACTIVATIONS[type(activation)]
        self._y = Buffer(batch, layer.out_features)
        self.gradient = Buffer(batch, layer.out_features)
        """Of the loss by the outputs; `backward` takes it and overwrites it."""

    def forward(self, x: F32) -> F32:
        """(batch, inputs) to (batch, outputs), which are valid until the next call."""
        self._x, y = x, self._y
        self._products.forward(x, y.array)
        if self._activate is not None:
            self._activate(y.tensor)
        return y.array

    def backward(self, x_gradient: F32 | None) -> None:
        """Leave the factors of the gradient by the weight there, and write the gradient by x where it is wanted."""
        gradient = self.gradient
        if self._derive is not None:
            self._derive(gradient, self._y)
        if self._weight.requires_grad:
            self._weight.factors.append((self._x, gradient.array))
        if x_gradient is not None:
            self._products.backward(gradient.array, x_gradient)


class FeedForward:
    """A `nn.Sequential` of analog layers, each with a known activation behind it or none: see `supports`.

    Values between layers lie in buffers that the next `forward` uses again, unless a weight still holds some of them.
    """

    def __init__(self, model: nn.Module) -> None:
        """Raises `InputError` for a model that is not supported."""
        stack = _stack(model)
        if stack is None:
            raise InputError("only a stack of analog layers and sigmoid, tanh or ReLU between them has direct passes")
        self._stack = stack
        self._weights = [layer.weight for layer, _ in stack]
        self._batch = 0
        self._layers: list[Layer] = []

    @staticmethod
    def supports(model: nn.Module) -> bool:
        """Whether the model is such a stack."""
        return _stack(model) is not None

    def forward(self, x: F32) -> F32:
        """(batch, features) to (batch, outputs), which are valid until the next call."""
        if len(x) != self._batch or any(map(FACTORS, self._weights)):
            self._batch = len(x)
            self._layers = [Layer(*layer, len(x)) for layer in self._stack]
        x = np.ascontiguousarray(x, np.float32)
        for layer in self._layers:
            x = layer.forward(x)
        return x

    @property
    def gradient(self) -> F32:
        """Where the gradient (batch, outputs) of the loss by the outputs of the last `forward` goes."""
        return self._layers[-1].gradient.array

    def backward(self) -> None:
        """From what was written to `gradient`, which is overwritten."""
        after = self._layers[-1]
        for layer in self._layers[-2::-1]:
            after.backward(layer.gradient.array)
            after = layer
        after.backward(None)


def _stack(model: nn.Module) -> list[tuple[AnalogLinear, nn.Module | None]] | None:
    """The analog layers of a model, each with its activation; None where it is anything but a stack of them."""
    stack: list[tuple[AnalogLinear, nn.Module | None]] = []
    for module in model if isinstance(model, nn.Sequential) else ():
        if isinstance(module, AnalogLinear):
            stack.append((module, None))
        elif stack and stack[-1][1] is None and type(module) in ACTIVATIONS:
            stack[-1] = (stack[-1][0], module)
        else:
            return None
    return stack or None
