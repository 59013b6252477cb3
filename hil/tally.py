"""What has been done to the devices so far, counted on the host."""

import torch
from torch import nn

from hil.diagnosis import LayerTally
from hil.layers import AnalogLinear
from hil.mixed_precision import MixedPrecisionSGD
from hil.network import analog_layers
from hil.protocols.messages import Operation


class Tally:
    """Counts pulses, refreshes and saturation of a model's analog layers; a model without any counts nothing."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._layers = analog_layers(model)

    @property
    def devices(self) -> int:
        """Devices that hold weights."""
        return sum(2 * len(layer.weight.pairs) for layer in self._layers)

    @property
    def set_pulses(self) -> int:
        """All SET pulses, those of initial weights and refreshes too."""
        return sum(layer.weight.pairs.sent[Operation.SET] for layer in self._layers)

    @property
    def reset_pulses(self) -> int:
        """All RESET pulses."""
        return sum(layer.weight.pairs.sent[Operation.RESET] for layer in self._layers)

    @property
    def refreshes(self) -> int:
        """Pairs refreshed."""
        if not isinstance(self._optimizer, MixedPrecisionSGD):
            return 0
        return sum(self._optimizer.counts(layer.weight).refreshes for layer in self._layers)

    @property
    def in_doubt(self) -> int:
        """Programming operations of which nobody knows what they did."""
        return sum(layer.weight.pairs.in_doubt for layer in self._layers)

    def layers(self) -> list[LayerTally]:
        """The counts by layer."""
        if not isinstance(self._optimizer, MixedPrecisionSGD):
            return []
        return [self._layer(n, layer, self._optimizer) for n, layer in enumerate(self._layers, 1)]

    def _layer(self, number: int, layer: AnalogLinear, optimizer: MixedPrecisionSGD) -> LayerTally:
        pairs, counts = layer.weight.pairs, optimizer.counts(layer.weight)
        conversions = {direction.name.lower(): way for direction, way in layer.weight.products.conversions.items()}
        return LayerTally(
            name=f"layer {number}",
            weights=len(pairs),
            crossings=counts.crossings,
            set_pulses=counts.set_pulses,
            refreshes=counts.refreshes,
            sent=pairs.sent[Operation.SET],
            at_limit=pairs.at_limit,
            converted={direction: way.converted for direction, way in conversions.items()},
            saturated={direction: way.saturated for direction, way in conversions.items()},
        )

    def totals(self) -> dict[str, int]:
        """All counts, flat, for a row of metrics."""
        row = {"set_pulses": self.set_pulses, "reset_pulses": self.reset_pulses, "refreshes": self.refreshes}
        for n, tally in enumerate(self.layers(), 1):
            row[f"layer{n}_crossings"] = tally.crossings
            row[f"layer{n}_set_pulses"] = tally.set_pulses
            row[f"layer{n}_refreshes"] = tally.refreshes
            row[f"layer{n}_conductance_saturated"] = tally.at_limit
            row |= {f"layer{n}_{direction}_saturated": count for direction, count in tally.saturated.items()}
        return row
