"""Build the network of an experiment, on a tester or in floating point, with the same initial weights."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import nn

from hil.config import Settings
from hil.instruments.tester import ArrayTester
from hil.layers import AnalogLinear
from hil.mapping import Floorplan
from hil.pairs import UNIT
from hil.products import gain_for
from hil.protocols.errors import InputError
from hil.protocols.messages import Capabilities, MvmMode
from hil.writing import Verified, blind

ACTIVATIONS: dict[str, type[nn.Module]] = {"sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "relu": nn.ReLU}


def initial_weights(
    settings: Settings, sizes: Sequence[int], seed: np.random.SeedSequence, capabilities: Capabilities | None
) -> list[torch.Tensor]:
    """A matrix (inputs + 1, outputs) for each layer between `sizes`, drawn from the seed.

    Raises `InputError` if a tester with these capabilities cannot hold them, before anything is sent to it.
    """
    if capabilities is not None:
        _check_size(settings, sizes, capabilities)
    rng, spread = np.random.default_rng(seed), np.float32(settings.initial_spread)
    shapes = [(inputs + 1, outputs) for inputs, outputs in pairwise(sizes)]
    weights = [torch.from_numpy(rng.standard_normal(shape, np.float32) * spread) for shape in shapes]
    if capabilities is not None:
        _check_reach(settings, weights, capabilities)
    return weights


def build(settings: Settings, weights: Sequence[torch.Tensor], tester: ArrayTester | None) -> nn.Sequential:
    """The network with these initial weights; without a tester its layers are `nn.Linear`."""
    return stack(settings, [_linear(settings, matrix, tester) for matrix in weights])


def stack(settings: Settings, linear: Sequence[nn.Module]) -> nn.Sequential:
    """Linear layers with the activations of the settings between them."""
    layers: list[nn.Module] = []
    for layer in linear:
        layers += [layer, ACTIVATIONS[settings.activation]()]
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
        write=Verified() if settings.initial_writing == "verified" else blind,
    )


def analog_layers(model: nn.Module) -> list[AnalogLinear]:
    """The layers of a model that lie on a tester, in order."""
    return [layer for layer in model.modules() if isinstance(layer, AnalogLinear)]


def _check_size(settings: Settings, sizes: Sequence[int], capabilities: Capabilities) -> None:
    plan = Floorplan(capabilities)
    for inputs, outputs in pairwise(sizes):
        plan.place(inputs + 1, outputs)
    if capabilities.mvm == MvmMode.ANALOG:
        gain_for(settings.forward_range, settings.weight_scale, capabilities)
        gain_for(settings.backward_range, settings.weight_scale, capabilities)


def _check_reach(settings: Settings, weights: Sequence[torch.Tensor], capabilities: Capabilities) -> None:
    """What is written open loop: the initial weights, and what a refresh leaves of a pair."""
    largest = max(float(matrix.abs().max()) for matrix in weights) * UNIT / settings.weight_scale
    written = {
        f"initial_spread={settings.initial_spread:g} with weight_scale={settings.weight_scale:g}": largest,
        f"refresh_below={settings.refresh_below:g} with refresh_images={settings.refresh_images}": (
            settings.refresh_below if settings.refresh_images else 0.0
        ),
    }
    reach = capabilities.staircase[-1] - capabilities.staircase[0] if capabilities.staircase else 0.0
    for setting, difference in written.items():
        if difference > reach:
            raise InputError(
                f"setting {setting}: writes differences of {difference:.3g} S, but SET pulses reach {reach:.3g} S; "
                "set it lower"
            )
