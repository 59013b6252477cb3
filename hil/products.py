"""Products of vectors with the weights of a layer: by the array itself, or on the host with what it reads there."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from hil.kernels import (
    F32,
    I64,
    MATRIX,
    VECTOR,
    Index,
    all_finite,
    combine,
    product,
    quantise_deltas,
    quantise_inputs,
    transposed_product,
)
from hil.mock_hw.compiled import code_for
from hil.pairs import SLICE, UNIT, DifferentialPairs
from hil.protocols.errors import DivergedError, InputError, TesterError
from hil.protocols.messages import Capabilities, Codes, Direction, MvmMode, Readout, Vectors


@dataclass
class Conversions:
    """ADC codes of one direction so far."""

    converted: int = 0
    saturated: int = 0  # of these, at the end of the range


class Products(ABC):
    """Forward and backward products of a layer, in weight units.

    The last row of the weights is the bias: its input, always 1, is left out of x, and so is what would come back to
    it. Results are written to `out` where it is given.
    """

    def __init__(self) -> None:
        self.conversions = {direction: Conversions() for direction in Direction}
        self.calibration = Conversions()
        """Of the last `calibrate`."""

    @abstractmethod
    def forward(self, x: F32, out: F32 | None = None) -> F32:
        """(batch, rows - 1) to (batch, columns)."""

    @abstractmethod
    def backward(self, delta: F32, out: F32 | None = None) -> F32:
        """(batch, columns) to (batch, rows - 1)."""

    @abstractmethod
    def calibrate(self, x: F32) -> F32:
        """As `forward`, for vectors whose outputs may be larger than those of any image."""

    @abstractmethod
    def changed(self, index: Index) -> None:
        """These weights were just programmed."""

    @abstractmethod
    def forget(self) -> None:
        """Whatever is known about the cells is too old, as before an evaluation."""

    @abstractmethod
    def rescale(self, factor: float) -> None:
        """From now on, multiply what the array gives by this: a digital correction of drift."""

    def state(self) -> dict[str, Any]:
        """What has been counted, and is known about the cells, for `restore`."""
        ways = self.conversions.values()
        return {"saturated": [way.saturated for way in ways], "converted": [way.converted for way in ways]}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state()` gave."""
        counts = zip(self.conversions.values(), state["converted"], state["saturated"], strict=True)
        for way, converted, saturated in counts:
            way.converted, way.saturated = converted, saturated


@dataclass(frozen=True)
class Way:
    """How a layer is multiplied in one direction."""

    direction: Direction
    gain: int  # of the converter
    inputs: int  # values of a vector
    lines: int  # DAC codes per vector
    answers: int  # ADC codes per vector
    outputs: int  # sums per vector
    places: I64  # (blocks, 2): first output and number of outputs of each block
    pairwise: bool  # two codes come for each output
    quantise: Callable[..., bool]  # compiled
    count: Conversions


@cache
def combining(dtype: np.dtype[Any]) -> Callable[..., None]:
    """What adds up ADC codes of this type; raises `TesterError` where they are no integers as this machine has them."""
    if dtype.kind not in "iu" or not dtype.isnative:
        raise TesterError(f"the tester gave codes of type {dtype.str}: integers in this machine's order are due")
    return code_for(combine, np.empty((1, 1), dtype), np.empty((1, 2), np.int64), True, 1.0, VECTOR, MATRIX)


class AnalogProducts(Products):
    """The array multiplies.

    The host scales each vector by its largest magnitude to DAC codes and picks the smallest converter range that covers
    `forward_range` weight units of output per unit of input, and `backward_range` going back.
    """

    def __init__(self, pairs: DifferentialPairs, forward_range: float, backward_range: float) -> None:
        super().__init__()
        self._tester = pairs.tester
        self._region = self._tester.register(pairs.placement.blocks)
        c = self._tester.capabilities()
        self._factor = self._plain = weight_per_ampere(pairs.scale, c) * c.dac_top
        self._top, self._dtype = c.dac_top, np.dtype(c.dac_dtype)
        self._gains = range(len(c.mvm_ranges))
        single, (rows, columns) = c.readout == Readout.SINGLE, pairs.shape
        width = 2 if single else 1  # lines of a column
        blocks, codes = self._region.blocks, np.empty((1, 1), self._dtype)
        self._forward = Way(
            Direction.FORWARD,
            gain_for(forward_range, pairs.scale, c),
            inputs=rows - 1,
            lines=rows,
            answers=self._region.outputs(Direction.FORWARD),
            outputs=columns,
            places=np.array(
                [(block.column_offset // width, len(block.columns) // width) for block in blocks], np.int64
            ),
            pairwise=single,
            quantise=code_for(quantise_inputs, MATRIX, 1, codes, VECTOR),
            count=self.conversions[Direction.FORWARD],
        )
        self._backward = Way(
            Direction.BACKWARD,
            gain_for(backward_range, pairs.scale, c),
            inputs=columns,
            lines=width * columns,
            answers=self._region.outputs(Direction.BACKWARD),
            outputs=rows - 1,
            places=np.array([(block.row_offset, len(block.rows)) for block in blocks], np.int64),
            pairwise=False,
            quantise=code_for(quantise_deltas, MATRIX, 1, codes, VECTOR),
            count=self.conversions[Direction.BACKWARD],
        )

    def forward(self, x: F32, out: F32 | None = None) -> F32:
        return self._converted(*self._quantised(x, self._forward), self._forward, out)

    def calibrate(self, x: F32) -> F32:
        """By the smallest range, from the usual one on, in which no output meets the end."""
        codes, scale = self._quantised(x, self._forward)
        for gain in self._gains[self._forward.gain :]:
            self.calibration = Conversions()
            out = self._converted(codes, scale, replace(self._forward, gain=gain, count=self.calibration), None)
            if not self.calibration.saturated:
                break
        return out

    def backward(self, delta: F32, out: F32 | None = None) -> F32:
        return self._converted(*self._quantised(delta, self._backward), self._backward, out)

    def changed(self, index: Index) -> None:
        """Nothing is remembered that could be stale."""

    def forget(self) -> None:
        """Nothing is remembered that could be stale."""

    def rescale(self, factor: float) -> None:
        self._factor = self._plain * factor

    def _quantised(self, x: F32, way: Way) -> tuple[Codes, F32]:
        """DAC codes (batch, lines) of vectors, and what one code of each stands for."""
        x = as_vectors(x, way.inputs, way.direction)
        codes, scale = np.empty((len(x), way.lines), self._dtype), np.empty(len(x), np.float32)
        if not way.quantise(x, self._top, codes, scale):
            raise not_finite(way.direction)
        return codes, scale

    def _converted(self, codes: Codes, scale: F32, way: Way, out: F32 | None) -> F32:
        out = room_for(len(codes), way.outputs, out)
        readings = self._tester.mvm(self._region, Vectors(codes, scale), way.direction, way.gain)
        answer = np.ascontiguousarray(readings.codes)
        if answer.shape != (len(codes), way.answers):
            raise TesterError(
                f"the tester gave codes of shape {answer.shape} for {len(codes)} vectors of {way.answers}"
            )
        add_up = combining(answer.dtype)
        way.count.saturated += readings.saturated
        way.count.converted += answer.size
        add_up(answer, way.places, way.pairwise, readings.scale * self._factor, scale, out)
        return out


def as_vectors(x: F32, inputs: int, direction: Direction) -> F32:
    """Vectors (batch, inputs) as compiled code takes them; raises `InputError` for another shape."""
    x = np.ascontiguousarray(x, np.float32)
    if x.ndim != 2 or x.shape[1] != inputs:
        raise InputError(f"vectors of shape {x.shape}: a {direction.name.lower()} product takes (batch, {inputs})")
    return x


def room_for(batch: int, outputs: int, out: F32 | None) -> F32:
    """Where products (batch, outputs) go: `out`, or a new array. Raises `InputError` where it cannot take them."""
    shape = batch, outputs
    if out is None:
        return np.empty(shape, np.float32)
    if out.shape != shape or out.dtype != VECTOR.dtype or not out.flags.c_contiguous:
        raise InputError(f"products {shape} go to a contiguous array of float32, not {out.dtype} {out.shape}")
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


def covered(output: float, scale: float, capabilities: Capabilities) -> float:
    """`output`, or what the tester's largest range covers for a layer of this scale, if that is less and the tester
    multiplies.
    """
    if capabilities.mvm != MvmMode.ANALOG:
        return output
    return min(output, capabilities.mvm_ranges[-1] * weight_per_ampere(scale, capabilities))


def weight_per_ampere(scale: float, capabilities: Capabilities) -> float:
    """Weight units of output per A, at full-scale input, for a layer of this scale."""
    return scale / (UNIT * capabilities.read_voltage)


class HostProducts(Products):
    """The host multiplies with the conductances it has read.

    Programmed cells are read again before their next use, and all cells after `reread_images` vectors, because one
    noisy reading held for ever costs accuracy and hides drift.
    """

    def __init__(self, pairs: DifferentialPairs, reread_images: int) -> None:
        super().__init__()
        self._pairs = pairs
        self._per_siemens = self._plain = np.float32(pairs.scale / UNIT)
        self._reread_images = reread_images
        self._weight = np.zeros(pairs.shape, np.float32)
        self._stale: list[Index] | None = None  # weights to be read before their next use; None is all
        self._since_read = 0

    def forward(self, x: F32, out: F32 | None = None) -> F32:
        rows, columns = self._pairs.shape
        x, out = as_vectors(x, rows - 1, Direction.FORWARD), room_for(len(x), columns, out)
        if not all_finite(x):
            raise not_finite(Direction.FORWARD)
        if self._since_read >= self._reread_images:
            self.forget()
        self._since_read += len(x)
        self._read_stale()
        product(x, self._weight, out)
        return out

    def calibrate(self, x: F32) -> F32:
        return self.forward(x)

    def backward(self, delta: F32, out: F32 | None = None) -> F32:
        rows, columns = self._pairs.shape
        delta, out = as_vectors(delta, columns, Direction.BACKWARD), room_for(len(delta), rows - 1, out)
        if not all_finite(delta):
            raise not_finite(Direction.BACKWARD)
        self._read_stale()
        transposed_product(delta, self._weight, out)
        return out

    def changed(self, index: Index) -> None:
        if self._stale is not None:
            self._stale.append(index)

    def forget(self) -> None:
        self._stale = None
        self._since_read = 0

    def rescale(self, factor: float) -> None:
        """The cells are read again, so that the correction and what it corrects are of one time."""
        self._per_siemens = self._plain * np.float32(factor)
        self.forget()

    def state(self) -> dict[str, Any]:
        known = {"weight": self._weight, "stale": self._stale, "since_read": self._since_read}
        return super().state() | known

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self._weight, self._stale, self._since_read = state["weight"], state["stale"], state["since_read"]

    def _read_stale(self) -> None:
        if self._stale is None:
            for index in self._pairs.slices():
                self._read(index)
        elif len(self._stale) == 1:
            self._read(self._stale[0])
        elif self._stale:
            index = np.unique(np.concatenate(self._stale))
            for start in range(0, len(index), SLICE):
                self._read(index[start : start + SLICE])
        self._stale = []

    def _read(self, index: Index) -> None:
        plus, minus = self._pairs.measure(index)
        self._weight.reshape(-1)[index] = (plus - minus) * self._per_siemens


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
