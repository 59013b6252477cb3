"""One training step and one evaluation, through torch's graph or without it."""

from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from hil.feedforward import FeedForward
from hil.kernels import F32
from hil.mixed_precision import MixedPrecisionSGD


class Passes(Protocol):
    """What the loop asks of a network; the loss is half the sum of squares over outputs and batch, whose gradient by
    the outputs is what they are above their targets.
    """

    def train(self, images: F32, targets: F32) -> F32:
        """Outputs (batch, classes) for images (batch, features), after which the weights have been updated.

        Outputs are contiguous, and valid until the next call.
        """

    def evaluate(self, images: F32) -> F32:
        """Outputs (batch, classes), valid until the next call."""


class DirectPasses:
    """For a plain stack of layers: no graph."""

    def __init__(self, model: nn.Sequential, optimizer: MixedPrecisionSGD) -> None:
        self._network = FeedForward(model)
        self._optimizer = optimizer

    def train(self, images: F32, targets: F32) -> F32:
        outputs = self._network.forward(images)
        np.subtract(outputs, targets, self._network.gradient)
        self._network.backward()
        self._optimizer.take_gradients()
        return outputs

    def evaluate(self, images: F32) -> F32:
        return self._network.forward(images)


class AutogradPasses:
    """For any torch module and optimizer."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._model = model
        self._zero_grad = optimizer.zero_grad
        self._step: Callable[[], object] = optimizer.step
        if isinstance(optimizer, MixedPrecisionSGD):
            self._step = optimizer.take_gradients

    def train(self, images: F32, targets: F32) -> F32:
        self._zero_grad()
        outputs = self._model(torch.from_numpy(images))
        result: F32 = outputs.detach().numpy()
        outputs.backward(torch.from_numpy(result - targets))
        self._step()
        return np.ascontiguousarray(result, np.float32)

    @torch.no_grad()
    def evaluate(self, images: F32) -> F32:
        result: F32 = self._model(torch.from_numpy(images)).numpy()
        return result


def passes(model: nn.Sequential, optimizer: torch.optim.Optimizer) -> Passes:
    """The quickest way to train a model."""
    if isinstance(optimizer, MixedPrecisionSGD) and FeedForward.supports(model):
        return DirectPasses(model, optimizer)
    return AutogradPasses(model, optimizer)


def accuracy(evaluate: Callable[[F32], F32], images: F32, labels: npt.NDArray[np.int64], batch: int = 500) -> float:
    """Fraction of images whose largest output is the right one; `evaluate` gives outputs (batch, classes)."""
    right = 0
    for start in range(0, len(images), batch):
        part = slice(start, start + batch)
        right += int((evaluate(images[part]).argmax(1) == labels[part]).sum())
    return right / len(images)
