"""Products of vectors with the weights of a layer: by the array itself, or on the host with what it reads there."""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt

from hil.kernels import I64, all_finite, combine, product, quantise, transposed_product
from hil.pairs import UNIT, DifferentialPairs, Index
from hil.protocols.errors import DivergedError, InputError
from hil.protocols.messages import Capabilities, Direction, MvmMode, Readout, Vectors

F32 = npt.NDArray[np.float32]


class Products(ABC):
    """Forward and backward products of a layer, in weight units."""

    saturated: dict[Direction, int]  # ADC codes at the end of the range, so far
    converted: dict[Direction, int]  # ADC codes, so far

    @abstractmethod
    def forward(self, x: F32) -> F32:
        """(batch, rows) to (batch, columns)."""

    @abstractmethod
    def backward(self, delta: F32) -> F32:
        """(batch, columns) to (batch, rows)."""

    @abstractmethod
    def changed(self, index: Index) -> None:
        """These weights were just programmed."""

    @abstractmethod
    def forget(self) -> None:
        """Whatever is known about the cells is too old, as before an evaluation."""

    def state(self) -> dict[str, Any]:
        """What has been counted, and is known about the cells, for `restore`."""
        counts = {"saturated": self.saturated, "converted": self.converted}
        return {name: [by_direction[way] for way in Direction] for name, by_direction in counts.items()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state()` gave."""
        self.saturated = dict(zip(Direction, state["saturated"], strict=True))
        self.converted = dict(zip(Direction, state["converted"], strict=True))


class AnalogProducts(Products):
    """The array multiplies.

    The host scales each vector by its largest magnitude to DAC codes and picks the smallest converter range that covers
    `forward_range` weight units of output per unit of input, and `backward_range` going back.
    """

    def __init__(self, pairs: DifferentialPairs, forward_range: float, backward_range: float) -> None:
        self._tester = pairs.tester
        self._capabilities = pairs.tester.capabilities()
        self._region = self._tester.register(pairs.placement.blocks)
        self._single = self._capabilities.readout == Readout.SINGLE
        self._columns = pairs.shape[1]
        c = self._capabilities
        self._factor = weight_per_ampere(pairs.scale, c) * c.dac_top
        self._gain = {
            Direction.FORWARD: gain_for(forward_range, pairs.scale, c),
            Direction.BACKWARD: gain_for(backward_range, pairs.scale, c),
        }
        width = 2 if self._single else 1
        self._forward_places = np.array(
            [(block.column_offset // width, len(block.columns) // width) for block in self._region.blocks], np.int64
        )
        self._backward_places = np.array(
            [(block.row_offset, len(block.rows)) for block in self._region.blocks], np.int64
        )
        self._rows = pairs.shape[0]
        self.saturated = dict.fromkeys(Direction, 0)
        self.converted = dict.fromkeys(Direction, 0)

    def forward(self, x: F32) -> F32:
        return self._multiply(x, Direction.FORWARD, self._forward_places, self._columns)

    def backward(self, delta: F32) -> F32:
        return self._multiply(delta, Direction.BACKWARD, self._backward_places, self._rows)

    def changed(self, index: Index) -> None:
        """Nothing is remembered that could be stale."""

    def forget(self) -> None:
        """Nothing is remembered that could be stale."""

    def _multiply(self, x: F32, direction: Direction, places: I64, outputs: int) -> F32:
        batch, single = len(x), self._single
        paired_inputs = single and direction == Direction.BACKWARD
        codes = np.empty((batch, x.shape[1] * (2 if paired_inputs else 1)), self._capabilities.dac_dtype)
        scale = np.empty(batch, np.float32)
        if not quantise(x, self._capabilities.dac_top, codes, scale, paired_inputs):
            raise not_finite(direction)
        readings = self._tester.mvm(self._region, Vectors(codes, scale), direction, self._gain[direction])
        self.saturated[direction] += readings.saturated
        self.converted[direction] += readings.codes.size
        out = np.empty((batch, outputs), np.float32)
        pairwise = single and direction == Direction.FORWARD
        combine(readings.codes, places, pairwise, readings.scale * self._factor, scale, out)
        return out


def gain_for(output: float, scale: float, capabilities: Capabilities) -> int:
    """The smallest converter range that covers `output` weight units per unit of input, for a layer of this scale.

    Raises `InputError` if there is none.
    """
    full_scale = output / weight_per_ampere(scale, capabilities)
    enough = np.flatnonzero(np.array(capabilities.mvm_ranges) >= full_scale * (1 - 1e-9))
    if not len(enough):
        most = capabilities.mvm_ranges[-1] * weight_per_ampere(scale, capabilities)
        raise InputError(
            f"outputs of {output:g} weight units are beyond the tester's largest range of {most:g}; "
            "lower the layer's range"
        )
    return int(enough[0])


def weight_per_ampere(scale: float, capabilities: Capabilities) -> float:
    """Weight units of output per A, at full-scale input, for a layer of this scale."""
    return scale / (UNIT * capabilities.read_voltage)


class HostProducts(Products):
    """The host multiplies with the conductances it has read.

    Programmed cells are read again before their next use, and all cells after `reread_images` vectors, because one
    noisy reading held for ever costs accuracy and hides drift.
    """

    def __init__(self, pairs: DifferentialPairs, reread_images: int) -> None:
        self._pairs = pairs
        self._per_siemens = pairs.scale / UNIT
        self._reread_images = reread_images
        self._weight = np.zeros(pairs.shape, np.float32)
        self._stale: list[Index] = []
        self._since_read = 0
        self.forget()
        self.saturated = dict.fromkeys(Direction, 0)
        self.converted = dict.fromkeys(Direction, 0)

    def forward(self, x: F32) -> F32:
        if not all_finite(x):
            raise not_finite(Direction.FORWARD)
        if self._since_read >= self._reread_images:
            self.forget()
        self._since_read += len(x)
        self._read_stale()
        out = np.empty((len(x), self._pairs.shape[1]), np.float32)
        product(x, self._weight, out)
        return out

    def backward(self, delta: F32) -> F32:
        if not all_finite(delta):
            raise not_finite(Direction.BACKWARD)
        self._read_stale()
        out = np.empty((len(delta), self._pairs.shape[0]), np.float32)
        transposed_product(delta, self._weight, out)
        return out

    def changed(self, index: Index) -> None:
        self._stale.append(index)

    def forget(self) -> None:
        self._stale = [np.arange(len(self._pairs))]
        self._since_read = 0

    def state(self) -> dict[str, Any]:
        known = {"weight": self._weight, "stale": self._stale, "since_read": self._since_read}
        return super().state() | known

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self._weight, self._stale, self._since_read = state["weight"], list(state["stale"]), state["since_read"]

    def _read_stale(self) -> None:
        if self._stale:
            index = self._stale[0] if len(self._stale) == 1 else np.unique(np.concatenate(self._stale))
            plus, minus = self._pairs.measure(index)
            self._weight.reshape(-1)[index] = (plus - minus) * np.float32(self._per_siemens)
            self._stale = []


def not_finite(direction: Direction) -> DivergedError:
    """The error for a vector that no converter can take."""
    return DivergedError(
        f"a {direction.name.lower()} product was asked of a vector that is not finite: training has diverged; "
        "lower the rate"
    )


def products(pairs: DifferentialPairs, forward_range: float, backward_range: float, reread_images: int) -> Products:
    """The products that the pairs' tester can do."""
    if pairs.tester.capabilities().mvm == MvmMode.ANALOG:
        return AnalogProducts(pairs, forward_range, backward_range)
    return HostProducts(pairs, reread_images)
