"""Weights on differential pairs of devices: W = alpha (G+ - G-) / 8 uS, with alpha the digital scale of the layer."""

from typing import Any

import numpy as np
import numpy.typing as npt

from hil.instruments.tester import ArrayTester
from hil.mapping import floorplan
from hil.protocols.errors import InputError
from hil.protocols.messages import Cells, Operation, PulseBatch, Status

UNIT = 8e-6
"""S of difference for one device unit. RECALLED (W in [-1, 1] is G+ - G- in [-8, 8] uS; Nandakumar 2020)."""

F32 = npt.NDArray[np.float32]
Index = npt.NDArray[np.integer[Any]]


class DifferentialPairs:
    """A (rows, columns) matrix of weights on pairs of devices; a weight's flat index is row * columns + column."""

    def __init__(self, tester: ArrayTester, rows: int, columns: int, scale: float) -> None:
        plan = floorplan(tester)
        self.tester = tester
        self.shape = (rows, columns)
        self.scale = scale
        self.placement = plan.place(rows, columns)
        self._devices = Cells.concatenate([self.placement.plus, self.placement.minus])
        self._stuck = plan.stuck[self._devices.array, self._devices.row, self._devices.column]
        self._any_stuck = bool(self._stuck.any())
        self._capabilities = tester.capabilities()
        self._staircase = np.array(self._capabilities.staircase, np.float32)
        self.sent = {Operation.SET: 0, Operation.RESET: 0}  # pulses so far
        self.in_doubt = 0  # operations of which nobody knows what they did
        self.at_limit = 0  # of these, pulses that met an end of the conductance range, as far as the tester can tell

    def __len__(self) -> int:
        return self.shape[0] * self.shape[1]

    def pulse(self, index: Index, pulses: Index) -> None:
        """Send SET pulses, blind, that raise (positive) or lower (negative) weights; stuck devices get none."""
        self._send(Operation.SET, index + len(self) * (pulses < 0), np.abs(pulses))

    def measure(self, index: Index) -> tuple[F32, F32]:
        """One reading of G+ and G- (S) of each named weight."""
        values = self.tester.read(self._devices[np.concatenate([index, index + len(self)])]).values()
        return values[: len(index)], values[len(index) :]

    def write(self, index: Index, difference: F32) -> None:
        """RESET both devices of each named weight, then set G+ - G- (S) open loop by the inverse of the mean staircase.

        Where one device is stuck, the other one carries the weight. Nothing is verified: the result scatters with the
        programming noise.
        """
        if not len(self._staircase):
            raise InputError("the tester knows no staircase (capabilities), so weights cannot be written open loop")
        largest, reach = float(np.abs(difference).max(initial=0)), float(self._staircase[-1] - self._staircase[0])
        if not largest <= reach:
            raise InputError(f"a difference of {largest:.3g} S is beyond the {reach:.3g} S that SET pulses reach")
        devices = np.concatenate([index, index + len(self)])
        self._send(Operation.RESET, devices, np.ones(len(devices), np.int64))
        plus, minus = np.maximum(difference, 0), np.maximum(-difference, 0)
        if self._stuck[devices].any():
            g_plus, g_minus = self.measure(index)
            up, down = np.split(self._stuck[devices], 2)
            plus = np.where(down, difference + g_minus, plus)
            minus = np.where(up, g_plus - difference, minus)
        middles = (self._staircase[1:] + self._staircase[:-1]) / 2 - self._staircase[0]
        self._send(Operation.SET, devices, np.searchsorted(middles, np.concatenate([plus, minus])))

    def state(self) -> dict[str, Any]:
        """What has been counted so far, for `restore`; the devices keep the weights."""
        sent = {"set": self.sent[Operation.SET], "reset": self.sent[Operation.RESET]}
        return sent | {"at_limit": self.at_limit, "in_doubt": self.in_doubt}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on counting from what `state()` gave."""
        self.sent = {Operation.SET: state["set"], Operation.RESET: state["reset"]}
        self.at_limit = state["at_limit"]
        self.in_doubt = state.get("in_doubt", 0)

    def _send(self, kind: Operation, devices: Index, counts: Index) -> None:
        """Pulse the devices that need it and can take it, once, whatever comes back."""
        keep = counts > 0
        if self._any_stuck:
            keep &= ~self._stuck[devices]
        if not keep.all():
            devices, counts = devices[keep], counts[keep]
        if not len(devices):
            return
        shape = self._capabilities.set_pulse if kind == Operation.SET else self._capabilities.reset_pulse
        cells = self._devices[devices]
        receipt = self.tester.program(PulseBatch(cells, kind, counts.astype(np.uint16), shape))
        if receipt.status != Status.COMPLETE:
            self.in_doubt += 1
            self.tester.read(cells)  # they count as pulsed; the log says what became of them
        self.sent[kind] += int(counts.sum())
        self.at_limit += receipt.saturated
