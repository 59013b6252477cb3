"""What a tester's firmware does with a request: check it, run it once, answer it."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from hil.mock_hw.array import Chip
from hil.mock_hw.products import largest
from hil.protocols import limits
from hil.protocols.errors import LimitError, OperationIdError
from hil.protocols.messages import (
    MVM_KIND,
    Block,
    Capabilities,
    Cells,
    Codes,
    Direction,
    Operation,
    PulseBatch,
    Readings,
    Receipt,
    Region,
    Status,
    Vectors,
)

Reply = TypeVar("Reply", Readings, Receipt)
MOST_PULSES = 2**22
"""Pulses in one operation, so that their noise fits into memory. CHOSEN."""
LONGEST_LIFE = 3.2e9
"""Device time (s) beyond which nothing waits: a hundred years."""


class Firmware:
    """Runs operations on a chip. Each has an id above all before it; the last id gets its stored reply again, a lower
    one is refused.

    Limits are checked before the id is taken, so a refused request leaves no trace.
    """

    def __init__(self, chip: Chip) -> None:
        self.chip = chip
        chip.forget_regions()
        self.capabilities: Capabilities = chip.parameters.capabilities()
        self.regions: list[Region] = []
        self.last_op_id = 0
        self.last_operation: Operation | None = None
        self.last_reply: Readings | Receipt | None = None

    def register(self, blocks: Sequence[Block]) -> Region:
        """A region of cells to be multiplied; raises `LimitError` if the chip cannot."""
        limits.check_blocks(self.capabilities, blocks)
        region = Region(len(self.regions), tuple(blocks))
        self.regions.append(region)
        return region

    def read(self, op_id: int, cells: Cells) -> Readings:
        """Conductances of single cells."""
        flat = self._locate(cells)

        def run() -> Readings:
            chip = self.chip
            codes, saturated = chip.read(flat)
            self._spend(len(flat), self.capabilities.durations.read)
            return Readings(op_id, chip.now_ns, codes, "S", chip.read_step, chip.read_offset, saturated)

        return self._once(op_id, Operation.READ, Readings, run)

    def mvm(self, op_id: int, region: Region, vectors: Vectors, direction: Direction, gain: int) -> Readings:
        """Products of a batch of vectors with a region."""
        codes = self._check_vectors(region, vectors, direction, gain)
        full_scale = self.capabilities.mvm_ranges[gain]
        kind = MVM_KIND[direction]

        def run() -> Readings:
            out, saturated = self.chip.multiply(region, codes, direction, full_scale)
            self._spend(len(codes), self.capabilities.durations.mvm)
            return Readings(op_id, self.chip.now_ns, out, "A", full_scale / self.capabilities.adc_top, 0, saturated)

        return self._once(op_id, kind, Readings, run)

    def program(self, op_id: int, pulses: PulseBatch) -> Receipt:
        """SET or RESET pulses."""
        self._check_pulses(pulses)
        flat = self._locate(pulses.cells)
        total = int(pulses.counts.sum())
        durations = self.capabilities.durations
        duration = durations.set_pulse if pulses.kind == Operation.SET else durations.reset_pulse

        def run() -> Receipt:
            self._spend(total, duration)
            saturated = self.chip.program(pulses, flat)
            return Receipt(op_id, self.chip.now_ns, Status.COMPLETE, total, saturated)

        return self._once(op_id, pulses.kind, Receipt, run)

    def wait(self, op_id: int, seconds: float) -> Receipt:
        """Device time passes."""
        left = LONGEST_LIFE - (self.chip.now_ns * 1e-9 if op_id > self.last_op_id else 0)
        limits.check_wait(seconds, left)

        def run() -> Receipt:
            self._spend(1, seconds)
            return Receipt(op_id, self.chip.now_ns, Status.COMPLETE, 0)

        return self._once(op_id, Operation.WAIT, Receipt, run)

    def _once(self, op_id: int, operation: Operation, kind: type[Reply], run: Callable[[], Reply]) -> Reply:
        if op_id <= self.last_op_id:
            again = op_id == self.last_op_id and operation == self.last_operation
            if again and isinstance(self.last_reply, kind):
                return self.last_reply
            raise OperationIdError(f"operation id {op_id} was used before; the last was {self.last_op_id}")
        # An operation that is cut short keeps its id and has no reply to repeat.
        self.last_op_id, self.last_operation, self.last_reply = op_id, operation, None
        reply = run()
        self.last_reply = reply
        return reply

    def _spend(self, count: int, seconds: float) -> None:
        self.chip.advance(round(count * seconds * 1e9))

    def _locate(self, cells: Cells) -> npt.NDArray[np.int64]:
        limits.check_cell_count(self.capabilities, cells)
        return self.chip.locate(cells)

    def _check_vectors(self, region: Region, vectors: Vectors, direction: Direction, gain: int) -> Codes:
        if region.handle >= len(self.regions) or self.regions[region.handle] is not region:
            raise LimitError(f"region {region.handle} is not registered here")
        limits.check_vectors(self.capabilities, region, vectors, direction, gain)
        limits.check_codes(self.capabilities, largest(vectors.codes))
        return np.ascontiguousarray(vectors.codes, self.capabilities.dac_dtype)

    def _check_pulses(self, pulses: PulseBatch) -> None:
        limits.check_pulses(self.capabilities, pulses)
        total = int(pulses.counts.sum())
        if total > MOST_PULSES:
            raise LimitError(
                f"{total} pulses in one operation are beyond the limit of {MOST_PULSES}; send fewer at once"
            )
        c = self.capabilities
        nominal = c.set_pulse if pulses.kind == Operation.SET else c.reset_pulse
        if pulses.shape != nominal:
            raise LimitError(f"the twin has no data for a {pulses.kind.name} pulse of {pulses.shape}; only {nominal}")
