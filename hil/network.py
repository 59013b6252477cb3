"""Build the network of an experiment, on a tester or in floating point, with the same initial weights."""

from itertools import pairwise

import numpy as np
import torch
from torch import nn

from hil.config import Settings
from hil.instruments.tester import ArrayTester
from hil.layers import AnalogLinear
from hil.mapping import Floorplan
from hil.products import gain_for
from hil.protocols.messages import Capabilities, MvmMode

ACTIVATIONS: dict[str, type[nn.Module]] = {"sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "relu": nn.ReLU}


def build(
    settings: Settings, features: int, classes: int, seed: np.random.SeedSequence, tester: ArrayTester | None
) -> nn.Sequential:
    """The network; without a tester its layers are `nn.Linear`."""
    sizes = [features, *settings.hidden, classes]
    rng = np.random.default_rng(seed)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        weights = torch.from_numpy(
            rng.standard_normal((inputs + 1, outputs), np.float32) * np.float32(settings.initial_spread)
        )
        layers += [_linear(settings, weights, tester), ACTIVATIONS[settings.activation]()]
    layers[-1:] = [nn.Sigmoid()] if settings.output == "sigmoid" else []
    return nn.Sequential(*layers)


def _linear(settings: Settings, weights: torch.Tensor, tester: ArrayTester | None) -> nn.Module:
    inputs, outputs = weights.shape[0] - 1, weights.shape[1]
    if tester is None:
        layer = nn.Linear(inputs, outputs)
        layer.weight.data = weights[:-1].T.contiguous()
        layer.bias.data = weights[-1].clone()
        return layer
    return AnalogLinear(
        inputs,
        outputs,
        tester,
        scale=settings.weight_scale,
        initial_weights=weights,
        forward_range=settings.forward_range,
        backward_range=settings.backward_range,
        reread_images=settings.reread_images,
    )


def analog_layers(model: nn.Module) -> list[AnalogLinear]:
    """The layers of a model that lie on a tester, in order."""
    return [layer for layer in model.modules() if isinstance(layer, AnalogLinear)]


def check(settings: Settings, features: int, classes: int, capabilities: Capabilities) -> None:
    """Raise `InputError` if the network does not fit a tester, before anything is sent to it."""
    plan = Floorplan(capabilities)
    sizes = [features, *settings.hidden, classes]
    for inputs, outputs in pairwise(sizes):
        plan.place(inputs + 1, outputs)
    if capabilities.mvm == MvmMode.ANALOG:
        gain_for(settings.forward_range, settings.weight_scale, capabilities)
        gain_for(settings.backward_range, settings.weight_scale, capabilities)
