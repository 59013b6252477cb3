"""Forward and backward passes of a plain stack of layers without torch's graph, which at batch 1 costs more than they.

They leave at each `AnalogWeight` what autograd would have left there, bit for bit: any optimizer works on both.
"""

from abc import ABC, abstractmethod

import torch
from torch import nn

from hil.kernels import F32, sigmoid_backward
from hil.layers import AnalogLinear, AnalogWeight

aten = torch.ops.aten


class Buffer:
    """Floats (batch, features), seen as an array and as a tensor: making either of the other takes a microsecond."""

    def __init__(self, batch: int, features: int) -> None:
        self.tensor = torch.empty(batch, features)
        self.array: F32 = self.tensor.numpy()


class Values:
    """What passes between two layers, with room for the gradient of the loss by it."""

    def __init__(self, batch: int, features: int) -> None:
        self.value, self.gradient = Buffer(batch, features), Buffer(batch, features)


class Step(ABC):
    """A layer between its inputs and its outputs, for one batch size."""

    def __init__(self, before: Values, after: Values) -> None:
        self.x, self.x_gradient = before.value, before.gradient
        self.y, self.y_gradient = after.value, after.gradient

    @abstractmethod
    def forward(self) -> None:
        """From x to y."""

    @abstractmethod
    def backward(self) -> None:
        """From the gradient by y to that by x."""


class Sigmoid(Step):
    """As in torch, bit for bit; the other activations call the operators that autograd calls."""

    def forward(self) -> None:
        torch.sigmoid(self.x.tensor, out=self.y.tensor)

    def backward(self) -> None:
        sigmoid_backward(self.y_gradient.array, self.y.array, self.x_gradient.array)


class Tanh(Step):
    """As in torch."""

    def forward(self) -> None:
        torch.tanh(self.x.tensor, out=self.y.tensor)

    def backward(self) -> None:
        aten.tanh_backward.grad_input(self.y_gradient.tensor, self.y.tensor, grad_input=self.x_gradient.tensor)


class ReLU(Step):
    """As in torch."""

    def forward(self) -> None:
        aten.relu.out(self.x.tensor, out=self.y.tensor)

    def backward(self) -> None:
        gradient, result = self.y_gradient.tensor, self.x_gradient.tensor
        aten.threshold_backward.grad_input(gradient, self.y.tensor, 0, grad_input=result)


class Product(Step):
    """An analog layer."""

    def __init__(self, before: Values, after: Values, weight: AnalogWeight, first: bool) -> None:
        super().__init__(before, after)
        self._weight, self._products, self._first = weight, weight.products, first

    def forward(self) -> None:
        self._products.forward(self.x.array, self.y.array)

    def backward(self) -> None:
        if self._weight.requires_grad:
            self._weight.factors.append((self.x.array, self.y_gradient.array))
        if not self._first:
            self._products.backward(self.y_gradient.array, self.x_gradient.array)


ACTIVATIONS: dict[type[nn.Module], type[Step]] = {nn.Sigmoid: Sigmoid, nn.Tanh: Tanh, nn.ReLU: ReLU}


class FeedForward:
    """A `nn.Sequential` of analog layers and activations; see `supports`.

    Values between layers lie in buffers that the next `forward` uses again, unless a weight still holds some of them.
    """

    def __init__(self, model: nn.Sequential) -> None:
        self._layers = list(model)
        self._weights = [layer.weight for layer in self._layers if isinstance(layer, AnalogLinear)]
        self._batch = 0
        self._steps: list[Step] = []

    @staticmethod
    def supports(model: nn.Module) -> bool:
        """Whether the model starts with an analog layer and holds nothing but analog layers and known activations."""
        if not isinstance(model, nn.Sequential) or not len(model) or not isinstance(model[0], AnalogLinear):
            return False
        return all(isinstance(layer, AnalogLinear) or type(layer) in ACTIVATIONS for layer in model)

    def forward(self, x: F32) -> F32:
        """(batch, features) to (batch, outputs), which are valid until the next call."""
        if len(x) != self._batch or any(weight.factors for weight in self._weights):
            self._batch, self._steps = len(x), self._made(len(x))
        self._steps[0].x.array = x
        for step in self._steps:
            step.forward()
        return self._steps[-1].y.array

    def backward(self, gradient: F32) -> None:
        """From the gradient (batch, outputs) of the loss by the outputs of the last `forward`."""
        self._steps[-1].y_gradient.array[:] = gradient
        for step in reversed(self._steps):
            step.backward()

    def _made(self, batch: int) -> list[Step]:
        """The layers with new buffers."""
        steps: list[Step] = []
        values = Values(batch, 0)  # the first layer takes x itself, and gives no gradient by it
        for layer in self._layers:
            before = values
            if isinstance(layer, AnalogLinear):
                values = Values(batch, layer.out_features)
                steps.append(Product(before, values, layer.weight, first=not steps))
            else:
                values = Values(batch, before.value.array.shape[1])
                steps.append(ACTIVATIONS[type(layer)](before, values))
        return steps
