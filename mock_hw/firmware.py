"""What a tester's firmware does with a request: check it, run it once, answer it."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from hil.mock_hw.array import Chip
from hil.mock_hw.products import largest
from hil.protocols.errors import LimitError, OperationIdError
from hil.protocols.messages import (
    Block,
    Capabilities,
    Cells,
    Codes,
    Direction,
    MvmMode,
    Operation,
    PulseBatch,
    PulseShape,
    Readings,
    Readout,
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
        if self.capabilities.mvm == MvmMode.NONE:
            raise LimitError("this array does no matrix-vector products (mvm: none): read its cells instead")
        if not blocks:
            raise LimitError("a region needs at least one block")
        for block in blocks:
            self._check_block(block)
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
        kind = Operation.MVM_FORWARD if direction == Direction.FORWARD else Operation.MVM_BACKWARD

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
        if not 0 <= seconds <= left:
            raise LimitError(f"wait of {seconds} s is outside 0 to {left:g} s")

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
        if not len(cells.array) == len(cells.row) == len(cells.column):
            sizes = (len(cells.array), len(cells.row), len(cells.column))
            raise LimitError(f"cells have {sizes} arrays, rows and columns; all three must be as many")
        self._check_batch(len(cells), "cells")
        return self.chip.locate(cells)

    def _check_batch(self, count: int, what: str) -> None:
        if not 0 < count <= self.capabilities.largest_batch:
            raise LimitError(f"a batch of {count} {what} is outside 1 to {self.capabilities.largest_batch}")

    def _check_vectors(self, region: Region, vectors: Vectors, direction: Direction, gain: int) -> Codes:
        if region.handle >= len(self.regions) or self.regions[region.handle] is not region:
            raise LimitError(f"region {region.handle} is not registered here")
        expected, shape = region.inputs(direction), vectors.codes.shape
        if len(shape) != 2 or shape[1] != expected:
            way = direction.name.lower()
            raise LimitError(f"codes of shape {shape}: region {region.handle} takes (batch, {expected}) {way}")
        self._check_batch(shape[0], "vectors")
        if not 0 <= gain < len(self.capabilities.mvm_ranges):
            raise LimitError(f"gain {gain} is outside 0 to {len(self.capabilities.mvm_ranges) - 1}")
        if vectors.codes.dtype.kind != "i":
            raise LimitError(f"DAC codes must be signed integers, not {vectors.codes.dtype}")
        top = largest(vectors.codes)
        if top > self.capabilities.dac_top:
            raise LimitError(
                f"DAC code {top} is outside +-{self.capabilities.dac_top} ({self.capabilities.dac_bits} bits)"
            )
        return np.ascontiguousarray(vectors.codes, self.capabilities.dac_dtype)

    def _check_block(self, block: Block) -> None:
        c = self.capabilities
        partners = np.empty(0, np.uint16) if block.partners is None else block.partners
        if (block.partners is None) != (c.readout == Readout.SINGLE):
            need = "no" if block.partners is not None else "a"
            raise LimitError(f"readout is {c.readout}: a block needs {need} partner line per column")
        if block.partners is not None and len(partners) != len(block.columns):
            raise LimitError(f"{len(block.columns)} columns have {len(partners)} partner lines")
        lines = np.concatenate([block.columns, partners])
        for name, index, count in (("row", block.rows, c.rows), ("column", lines, c.columns)):
            if not len(index) or index.max() >= count or len(np.unique(index)) != len(index):
                raise LimitError(f"a block's {name}s must be different lines from 0 to {count - 1}, at least one")
        if not 0 <= block.array < c.arrays:
            raise LimitError(f"array {block.array} is outside 0 to {c.arrays - 1}")
        if block.row_offset < 0 or block.column_offset < 0:
            raise LimitError(f"a block's offsets {block.row_offset} and {block.column_offset} must not be negative")

    def _check_pulses(self, pulses: PulseBatch) -> None:
        if pulses.kind not in (Operation.SET, Operation.RESET):
            raise LimitError(f"pulses are SET or RESET, not {pulses.kind!r}")
        if pulses.counts.shape != (len(pulses.cells),) or pulses.counts.dtype != np.uint16 or not pulses.counts.all():
            got = f"{pulses.counts.dtype} {pulses.counts.shape}"
            raise LimitError(f"pulse counts must be one uint16 of at least 1 per cell; got {got}")
        total = int(pulses.counts.sum())
        if total > MOST_PULSES:
            raise LimitError(
                f"{total} pulses in one operation are beyond the limit of {MOST_PULSES}; send fewer at once"
            )
        self._check_shape(pulses.kind, pulses.shape)

    def _check_shape(self, kind: Operation, shape: PulseShape) -> None:
        limits = self.capabilities.pulse_limits
        if not 0 < shape.amplitude <= limits.amplitude_max:
            raise LimitError(f"pulse amplitude {shape.amplitude:g} is outside 0 to {limits.amplitude_max:g} A")
        if not limits.width_min <= shape.width <= limits.width_max:
            raise LimitError(f"pulse width {shape.width:g} s is outside {limits.width_min:g} to {limits.width_max:g} s")
        nominal = self.capabilities.set_pulse if kind == Operation.SET else self.capabilities.reset_pulse
        if shape != nominal:
            raise LimitError(f"the twin has no data for a {kind.name} pulse of {shape}; only for {nominal}")
