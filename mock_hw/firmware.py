"""What a tester's firmware does with a request: check it, run it once, answer it."""

import zlib
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from hil.mock_hw.array import Chip, Product
from hil.mock_hw.compiled import LINES, code_for
from hil.mock_hw.pulses import total_of
from hil.mock_hw.readout import largest
from hil.protocols import limits
from hil.protocols.errors import LimitError, OperationIdError
from hil.protocols.messages import (
    COMPLETE,
    MVM_KIND,
    READ,
    SET,
    WAIT,
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
    Vectors,
)
from hil.protocols.requests import CutShortError, NoRegionError, State

Reply = TypeVar("Reply", Readings, Receipt)
MOST_PULSES = 2**22
"""Pulses in one operation, so that their noise fits into memory. CHOSEN."""
MOST_REGIONS = 1024
"""Regions that are known at one time. CHOSEN."""
LONGEST_LIFE = 3.2e9
"""Device time (s) beyond which nothing waits: a hundred years."""


class Firmware:
    """Runs operations on a chip. Each has an id above all before it; the last id gets its stored reply again, a lower
    one is refused.

    Limits are checked before the id is taken, so a refused request leaves no trace. Ids, the last reply and the count
    of boots outlive a loss of power, as the chip's cells do; regions do not.
    """

    def __init__(self, chip: Chip) -> None:
        self.chip = chip
        self.capabilities: Capabilities = chip.parameters.capabilities()
        self._dac_dtype = np.dtype(self.capabilities.dac_dtype)
        self._total = code_for(total_of, LINES)
        self._largest = code_for(largest, np.empty((1, 1), self._dac_dtype))
        self.last_op_id = 0
        self.last_operation: Operation | None = None
        self.last_reply: Readings | Receipt | None = None
        self.last_content: tuple[Any, ...] | int = 0
        """What the last operation was asked to do, or `fingerprint` of that."""
        self.boots = 0
        self.boot()

    def boot(self) -> None:
        """Power comes on."""
        self.forget_regions()
        self.grounded = True
        self.boots += 1

    def forget_regions(self) -> None:
        """Know no region any more."""
        self.chip.forget_regions()
        self.regions: dict[int, Region] = {}
        self._products: dict[tuple[Any, ...], Product] = {}  # those found valid, by all that is checked of them

    def ground(self) -> None:
        """Ground all lines, until the next operation."""
        self.grounded = True

    def state(self) -> State:
        """Where the chip stands."""
        return State(self.last_op_id, self.chip.now_ns, self.boots, self.grounded)

    def define(self, region: Region) -> None:
        """Take a region of cells to be multiplied; raises `LimitError` if the chip cannot."""
        limits.check_blocks(self.capabilities, region.blocks)
        if not 0 <= region.handle < MOST_REGIONS:
            raise LimitError(f"region {region.handle} is outside 0 to {MOST_REGIONS - 1}")
        known = self.regions.get(region.handle)
        if known is not None and fingerprint(known.blocks) == fingerprint(region.blocks):
            return
        self.chip.forget_region(region.handle)
        self._products = {asked: product for asked, product in self._products.items() if asked[0] != region.handle}
        self.regions[region.handle] = region

    def read(self, op_id: int, cells: Cells) -> Readings:
        """Conductances of single cells."""
        flat = self._locate(cells)
        if self._repeated(op_id, READ, (cells,)):
            return self._again(Readings)
        chip = self.chip
        codes, saturated = chip.read(flat)
        self._spend(len(flat), self.capabilities.durations.read)
        return self._answer(Readings(op_id, chip.now_ns, codes, "S", chip.read_step, chip.read_offset, saturated))

    def mvm(self, op_id: int, handle: int, vectors: Vectors, direction: Direction, gain: int) -> Readings:
        """Products of a batch of vectors with a region."""
        codes = vectors.codes
        asked = (handle, direction, gain, codes.shape[1:], codes.dtype)
        product = self._products.get(asked) or self._product(asked, vectors)
        limits.check_batch(self.capabilities, len(codes), "vectors")
        codes = self._in_range(codes)
        if self._repeated(op_id, MVM_KIND[direction], (handle, gain, codes)):
            return self._again(Readings)
        out, saturated = product.multiply(codes)
        self._spend(len(codes), self.capabilities.durations.mvm)
        return self._answer(Readings(op_id, self.chip.now_ns, out, "A", product.step, 0, saturated))

    def program(self, op_id: int, pulses: PulseBatch, power_fails_after: int | None = None) -> Receipt:
        """SET or RESET pulses. Power may fail after the first so many cells: then it boots, and raises
        `CutShortError`.
        """
        total = self._check_pulses(pulses)
        flat = self._locate(pulses.cells)
        if self._repeated(op_id, pulses.kind, (pulses.cells, pulses.counts)):
            return self._again(Receipt)
        if power_fails_after is not None:
            part = pulses[:power_fails_after]
            self._pulse(part, flat[:power_fails_after], int(part.counts.sum()))
            self.boot()
            raise CutShortError("power failed")
        saturated = self._pulse(pulses, flat, total)
        return self._answer(Receipt(op_id, self.chip.now_ns, COMPLETE, total, saturated))

    def wait(self, op_id: int, seconds: float) -> Receipt:
        """Device time passes."""
        left = LONGEST_LIFE - (self.chip.now_ns * 1e-9 if op_id > self.last_op_id else 0)
        limits.check_wait(seconds, left)
        if self._repeated(op_id, WAIT, (seconds,)):
            return self._again(Receipt)
        self._spend(1, seconds)
        return self._answer(Receipt(op_id, self.chip.now_ns, COMPLETE, 0))

    def _repeated(self, op_id: int, operation: Operation, content: tuple[Any, ...]) -> bool:
        """Whether this was the last operation. If not, it begins now: if it is cut short, it keeps its id and has no
        reply to repeat.
        """
        if op_id <= self.last_op_id:
            self._check_same(op_id, operation, content)
            return True
        self.last_op_id, self.last_operation, self.last_reply = op_id, operation, None
        self.last_content = content
        self.grounded = False
        return False

    def _answer(self, reply: Reply) -> Reply:
        """Keep the reply for the case that it is asked for again."""
        self.last_reply = reply
        return reply

    def _check_same(self, op_id: int, operation: Operation, content: tuple[Any, ...]) -> None:
        if op_id < self.last_op_id:
            raise OperationIdError(f"operation id {op_id} was used before; the last was {self.last_op_id}")
        if operation != self.last_operation or fingerprint(content) != fingerprint(self.last_content):
            raise OperationIdError(f"operation id {op_id} was used for another operation")

    def _again(self, kind: type[Reply]) -> Reply:
        if not isinstance(self.last_reply, kind):
            raise CutShortError(f"operation {self.last_op_id} was cut short: how far it got is not known")
        return self.last_reply

    def _pulse(self, pulses: PulseBatch, flat: npt.NDArray[np.int64], total: int) -> int:
        durations = self.capabilities.durations
        self._spend(total, durations.set_pulse if pulses.kind == SET else durations.reset_pulse)
        return self.chip.program(pulses, flat, total)

    def _spend(self, count: int, seconds: float) -> None:
        self.chip.advance(round(count * seconds * 1e9))

    def _locate(self, cells: Cells) -> npt.NDArray[np.int64]:
        limits.check_cell_count(self.capabilities, cells)
        return self.chip.locate(cells)

    def _product(self, asked: tuple[Any, ...], vectors: Vectors) -> Product:
        """What is asked for the first time since its region was defined; raises where it cannot be done."""
        handle, direction, gain, _, _ = asked
        region = self.regions.get(handle)
        if region is None:
            raise NoRegionError(f"region {handle} is not defined here")
        limits.check_vectors(self.capabilities, region, vectors, direction, gain)
        product = self.chip.product(region, direction, self.capabilities.mvm_ranges[gain])
        self._products[asked] = product
        return product

    def _in_range(self, codes: Codes) -> Codes:
        """DAC codes (batch, inputs) as products take them; raises `LimitError` where one is out of range."""
        fits = codes.dtype is self._dac_dtype and codes.flags.c_contiguous
        top = self._largest(codes) if fits else max(int(codes.max()), -int(codes.min()))
        limits.check_codes(self.capabilities, top)
        return codes if fits else np.ascontiguousarray(codes, self._dac_dtype)

    def _check_pulses(self, pulses: PulseBatch) -> int:
        """How many pulses there are; raises `LimitError` where they cannot be sent."""
        limits.check_pulses(self.capabilities, pulses)
        total: int = self._total(pulses.counts)
        if total > MOST_PULSES:
            raise LimitError(
                f"{total} pulses in one operation are beyond the limit of {MOST_PULSES}; send fewer at once"
            )
        c = self.capabilities
        nominal = c.set_pulse if pulses.kind == SET else c.reset_pulse
        if pulses.shape is not nominal and pulses.shape != nominal:
            raise LimitError(f"the twin has no data for a {pulses.kind.name} pulse of {pulses.shape}; only {nominal}")
        return total


def fingerprint(content: Any) -> int:
    """CRC-32 of what an operation was asked to do; a number is taken for one."""
    return content if isinstance(content, int) else zlib.crc32(_flat(content))


def _flat(content: Any) -> bytes:
    """Everything in nested tuples and messages, as bytes."""
    if isinstance(content, np.ndarray):
        return content.tobytes()
    if isinstance(content, Cells):
        return content.array.tobytes() + content.row.tobytes() + content.column.tobytes()
    if isinstance(content, Block):
        lines = (content.rows, content.columns, content.partners)
        return _flat((*lines, content.array, content.row_offset, content.column_offset))
    if isinstance(content, tuple):
        return b"".join(_flat(item) + b";" for item in content)
    return repr(content).encode()
