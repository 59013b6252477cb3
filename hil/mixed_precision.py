"""Mixed-precision in-memory training: Nandakumar et al., Front. Neurosci. 14, 406 (2020).

The host accumulates the gradient steps of each weight in chi. Where |chi| reaches the device granularity, the devices
get SET pulses, blind, and chi gives up what they stand for. Pairs that have run out of range are refreshed: RESET, and
their difference written again.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hil.kernels import F32, I32, MATRIX, NOT_FINITE, accumulate
from hil.layers import AnalogWeight
from hil.mock_hw.compiled import code_for
from hil.pairs import SLICE
from hil.protocols.errors import DivergedError, InputError

GRANULARITY = 0.096
"""epsilon, in device units of 8 uS: what one SET pulse changes on average. FOUND (quoted from Nandakumar 2020)."""
MOST_PULSES = 65535
"""Pulses per weight and step that one message can carry."""


@dataclass(frozen=True)
class Refresh:
    """Which pairs are refreshed every `images`: those with a device above `above` and a difference below `below` (S).

    RECALLED (100 images; above 8 uS; below 6 uS). `watch` is the fraction of `above` from which on a pair is measured
    again at each check even without pulses. CHOSEN.
    """

    images: int = 100
    above: float = 8e-6
    below: float = 6e-6
    watch: float = 0.95


@dataclass
class LayerCounts:
    """What happened to one layer's weights so far."""

    crossings: int = 0  # times a weight's chi reached the granularity
    set_pulses: int = 0  # pulses sent for crossings, without those of refreshes
    refreshes: int = 0  # pairs refreshed


class _Layer:
    """The optimizer's state for one analog weight; chi (rows, columns) is shared with torch's."""

    def __init__(self, weight: AnalogWeight, chi: Tensor) -> None:
        self.weight = weight
        self.chi: F32 = chi.numpy()
        self.suspects = np.zeros(chi.numel(), np.bool_)  # pairs to be measured at the next refresh check
        self.counts = LayerCounts()
        rows, columns = chi.shape
        self._rows = range(0, rows, max(SLICE // columns, 1))
        self._index = np.empty(min(self._rows.step, rows) * columns, np.int32)
        self._pulses = np.empty_like(self._index)
        places = self._index, self._pulses, self.suspects
        self._accumulate = code_for(accumulate, self.chi, MATRIX, MATRIX, 0, 0, 1.0, 1.0, 1, *places)

    def update(self, lr: float, granularity: float, max_pulses: int | None) -> int:
        """Take the gradient into chi and send the pulses that this asks for; returns the number of images."""
        factors = self.weight.factors
        if not factors:
            return 0
        x, delta = factors[0] if len(factors) == 1 else map(np.concatenate, zip(*factors, strict=True))
        factors.clear()
        rate = lr / self.weight.pairs.scale  # chi is in device units
        for first in self._rows:
            end = min(first + self._rows.step, self._rows.stop)
            most, index, pulses = max_pulses or MOST_PULSES, self._index, self._pulses
            count = self._accumulate(
                self.chi, x, delta, first, end, rate, granularity, most, index, pulses, self.suspects
            )
            if count == NOT_FINITE:
                raise DivergedError("a gradient is not finite: training has diverged; lower the rate")
            if count:
                self._pulse(self._index[:count].copy(), self._pulses[:count])
        return len(x)

    def _pulse(self, index: I32, pulses: I32) -> None:
        self.counts.crossings += len(index)
        self.counts.set_pulses += self.weight.pairs.pulse(index, pulses)
        self.weight.products.changed(index)

    def refresh(self, rule: Refresh) -> None:
        """Measure the suspects and rewrite those that have run out of range; chi is left as it is."""
        index = np.flatnonzero(self.suspects).astype(np.int32)
        if not len(index):
            return
        plus, minus = self.weight.pairs.measure(index)
        larger = np.maximum(plus, minus)
        worn = (larger > rule.above) & (np.abs(plus - minus) < rule.below)
        self.suspects[index] = (larger > rule.watch * rule.above) & ~worn
        if worn.any():
            self.weight.pairs.write(index[worn], (plus - minus)[worn])
            self.weight.products.changed(index[worn])
            self.counts.refreshes += int(worn.sum())


class MixedPrecisionSGD(torch.optim.Optimizer):
    """SGD whose analog weights are updated by blind SET pulses; other parameters of the model are updated by plain SGD.

    `granularity` is epsilon in device units; `max_pulses` limits the pulses per weight and step (1 as on the paper's
    chip, None for no limit); `refresh=None` never refreshes.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        granularity: float = GRANULARITY,
        max_pulses: int | None = None,
        refresh: Refresh | None = Refresh(),
    ) -> None:
        if not lr > 0 or not granularity > 0 or (max_pulses is not None and max_pulses < 1):
            raise InputError(f"lr={lr}, granularity={granularity} and max_pulses={max_pulses} must be above 0")
        self._layer_of: dict[Tensor, _Layer] = {}
        self._members: list[tuple[list[_Layer], list[Tensor]]] = []  # of each group: analog weights, other parameters
        super().__init__(params, {"lr": lr})
        self.granularity = granularity
        self.max_pulses = max_pulses
        self.refresh = refresh
        self._since_refresh = 0

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch; analog weights among the parameters get their chi."""
        super().add_param_group(param_group)
        layers: list[_Layer] = []
        others: list[Tensor] = []
        for parameter in self.param_groups[-1]["params"]:
            if isinstance(parameter, AnalogWeight):
                chi = self.state[parameter]["chi"] = torch.zeros(parameter.pairs.shape)
                self._layer_of[parameter] = _Layer(parameter, chi)
                layers.append(self._layer_of[parameter])
            else:
                others.append(parameter)
        self._members.append((layers, others))

    def state_dict(self) -> dict[str, Any]:
        """As in torch, with what else is known of each analog weight under `analog`."""
        analog = [{"suspects": layer.suspects, "counts": asdict(layer.counts)} for layer in self._layer_of.values()]
        return super().state_dict() | {"analog": analog, "since_refresh": self._since_refresh}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what `state_dict` of an optimizer of the same weights gave."""
        ours = ("analog", "since_refresh")
        super().load_state_dict({key: value for key, value in state_dict.items() if key not in ours})
        self._since_refresh = state_dict["since_refresh"]
        for (weight, layer), kept in zip(self._layer_of.items(), state_dict["analog"], strict=True):
            layer.chi[:] = self.state[weight]["chi"].numpy()
            self.state[weight]["chi"] = torch.from_numpy(layer.chi)  # one memory, as before
            layer.suspects[:] = kept["suspects"]
            layer.counts = LayerCounts(**kept["counts"])

    def counts(self, weight: AnalogWeight) -> LayerCounts:
        """What happened to a weight matrix so far."""
        return self._layer_of[weight].counts

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget gradients, those of analog weights too, which have nothing that torch knows of."""
        for layer in self._layer_of.values():
            layer.weight.factors.clear()
        if any(others for _, others in self._members):
            super().zero_grad(set_to_none)

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take the gradients of the last backward passes into chi, send pulses, and refresh when it is time."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.take_gradients()
        return loss

    def take_gradients(self) -> None:
        """What `step` does, without torch's bookkeeping around it."""
        self._since_refresh += self._update()
        if self.refresh is not None and self._since_refresh >= self.refresh.images:
            self._since_refresh = 0
            for layer in self._layer_of.values():
                layer.refresh(self.refresh)

    def _update(self) -> int:
        """Update all parameters; returns how many images the analog ones have seen."""
        images = 0
        for group, (layers, others) in zip(self.param_groups, self._members, strict=True):
            for layer in layers:
                images = max(images, layer.update(group["lr"], self.granularity, self.max_pulses))
            for parameter in others:
                if parameter.grad is not None:
                    with torch.no_grad():
                        parameter.add_(parameter.grad, alpha=-group["lr"])
        return images
