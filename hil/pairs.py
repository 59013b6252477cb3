"""Weights on differential pairs of devices: W = alpha (G+ - G-) / 8 uS, with alpha the digital scale of the layer."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from hil.instruments.tester import ArrayTester
from hil.kernels import F32, U16, Bools, Index, address, address_pairs
from hil.mapping import floorplan
from hil.mock_hw.compiled import code_for
from hil.programming import Convergence, Progress, Verify, program_and_verify, reach_of
from hil.protocols.errors import InputError
from hil.protocols.messages import COMPLETE, RESET, SET, Cells, Operation, PulseBatch

UNIT = 8e-6
"""S of difference for one device unit. RECALLED (W in [-1, 1] is G+ - G- in [-8, 8] uS; Nandakumar 2020)."""

SLICE = 2**20
"""Weights that are written or measured at a time. CHOSEN: some 100 MB while it is done."""


class DifferentialPairs:
    """A (rows, columns) matrix of weights on pairs of devices; a weight's flat index is row * columns + column."""

    def __init__(self, tester: ArrayTester, rows: int, columns: int, scale: float) -> None:
        plan = floorplan(tester)
        self.tester = tester
        self.shape = (rows, columns)
        self.scale = scale
        self.placement = plan.place(rows, columns)
        self._stuck = _stuck(plan.stuck, self.placement.places)
        index = np.empty(1, np.int32)
        places, lines = self.placement.places, np.empty((4, 1), np.uint16)
        self._address: Callable[..., tuple[int, int]] = code_for(address, index, index, places, self._stuck, lines)
        self._capabilities = tester.capabilities()
        self._staircase = np.array(self._capabilities.staircase, np.float32)
        self._reset = self._staircase[0] if len(self._staircase) else np.float32(0)  # S, of a device that is RESET
        self.sent = {SET: 0, RESET: 0}  # pulses so far
        self.in_doubt = 0  # operations of which nobody knows what they did
        self.at_limit = 0  # of these, pulses that met an end of the conductance range, as far as the tester can tell

    def __len__(self) -> int:
        return self.shape[0] * self.shape[1]

    def slices(self) -> Iterator[Index]:
        """The flat indices of all weights, in slices that bound the memory that measuring them takes."""
        for start in range(0, len(self), SLICE):
            yield np.arange(start, min(start + SLICE, len(self)), dtype=np.int32)

    def pulse(self, index: Index, pulses: Index) -> int:
        """Send SET pulses, blind, that raise (positive) or lower (negative) weights; stuck devices get none.

        Returns how many were sent.
        """
        return self._send(SET, index, pulses)

    def measure(self, index: Index) -> tuple[F32, F32]:
        """One reading of G+ and G- (S) of each named weight."""
        cells = np.empty((3, 2 * len(index)), np.uint16)
        address_pairs(index, self.placement.places, cells)
        values = self.tester.read(Cells(cells[0], cells[1], cells[2])).values()
        return values[: len(index)], values[len(index) :]

    def write(self, index: Index, difference: F32) -> None:
        """RESET both devices of each named weight, then set G+ - G- (S) open loop by the inverse of the mean staircase.

        Where one device is stuck, the other one carries the weight. Nothing is verified: the result scatters with the
        programming noise.
        """
        if not len(self._staircase):
            raise InputError("the tester knows no staircase (capabilities), so weights cannot be written open loop")
        largest = max(float(difference.max(initial=0)), -float(difference.min(initial=0)))
        reach = float(self._staircase[-1] - self._reset)
        if not largest <= reach:
            raise InputError(f"a difference of {largest:.3g} S is beyond the {reach:.3g} S that SET pulses reach")
        for start in range(0, len(index), SLICE):
            self._write(index[start : start + SLICE], difference[start : start + SLICE])

    def write_verified(
        self, index: Index, difference: F32, how: Verify, progress: Progress | None = None
    ) -> Convergence:
        """As `write`, but each device is programmed to its conductance by reading it and pulsing again; see
        `program_and_verify`.
        """
        levels = np.concatenate(self._levels(index, difference)) + self._reset
        devices = np.concatenate([index, index + len(self)])
        if self._stuck.size:
            free = ~self._stuck[devices]
            reach = reach_of(self._capabilities)
            devices, levels = devices[free], np.clip(levels[free], 0, reach)  # the partner of a stuck one does its best
        report = program_and_verify(self.tester, Cells(*self.placement.places[:, devices]), levels, how, progress)
        self.sent[SET] += int(report.set_pulses.sum())
        self.sent[RESET] += int(report.reset_pulses.sum())
        self.in_doubt += report.in_doubt
        self.at_limit += report.at_limit
        return report

    def _write(self, index: Index, difference: F32) -> None:
        both = np.concatenate([index, index])
        signs = np.repeat(np.array([1, -1], np.int32), len(index))
        self._send(RESET, both, signs)
        middles = (self._staircase[1:] + self._staircase[:-1]) / 2 - self._reset
        steps = np.searchsorted(middles, np.concatenate(self._levels(index, difference))).astype(np.int32)
        self._send(SET, both, signs * steps)

    def _levels(self, index: Index, difference: F32) -> tuple[F32, F32]:
        """How far (S) G+ and G- of each named weight have to be above their RESET state: one of them, unless that one
        or its partner is stuck.
        """
        up, down = np.maximum(difference, 0), np.maximum(-difference, 0)
        if self._stuck.size:
            plus_stuck, minus_stuck = self._stuck[index], self._stuck[index + len(self)]
            if plus_stuck.any() or minus_stuck.any():
                plus, minus = self.measure(index)
                up = np.where(minus_stuck, minus - self._reset + difference, up)
                down = np.where(plus_stuck, plus - self._reset - difference, down)
        return up, down

    def state(self) -> dict[str, Any]:
        """What has been counted so far, for `restore`; the devices keep the weights."""
        sent = {"set": self.sent[SET], "reset": self.sent[RESET]}
        return sent | {"at_limit": self.at_limit, "in_doubt": self.in_doubt}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on counting from what `state()` gave."""
        self.sent = {SET: state["set"], RESET: state["reset"]}
        self.at_limit = state["at_limit"]
        self.in_doubt = state.get("in_doubt", 0)

    def _send(self, kind: Operation, index: Index, pulses: Index) -> int:
        """Pulse G+ (positive) or G- (negative) of weights where it is not stuck, once, whatever comes back."""
        lines = np.empty((4, len(index)), np.uint16)
        index, pulses = np.ascontiguousarray(index, np.int32), np.ascontiguousarray(pulses, np.int32)
        count, total = self._address(index, pulses, self.placement.places, self._stuck, lines)
        if not count:
            return 0
        if count < len(index):
            lines = lines[:, :count]
        cells = Cells(lines[0], lines[1], lines[2])
        shape = self._capabilities.set_pulse if kind == SET else self._capabilities.reset_pulse
        receipt = self.tester.program(PulseBatch(cells, kind, lines[3], shape))
        if receipt.status != COMPLETE:
            self.in_doubt += 1
            self.tester.read(cells)  # they count as pulsed; the log says what became of them
        self.sent[kind] += total
        self.at_limit += receipt.saturated
        return total


def _stuck(chip: Bools, places: U16) -> Bools:
    """Which of these cells are stuck; empty where none is."""
    stuck = np.zeros(places.shape[1] if chip.any() else 0, np.bool_)
    for start in range(0, stuck.size, SLICE):
        array, row, column = places[:, start : start + SLICE]
        stuck[start : start + SLICE] = chip[array, row, column]
    return stuck if stuck.any() else np.zeros(0, np.bool_)
