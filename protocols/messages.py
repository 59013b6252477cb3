"""The values that hosts and testers exchange; codecs, drivers, the twin and the log all share them.

SI units throughout; device time is integer nanoseconds. Messages are never changed, nor are the numpy arrays that they
hold. Those that are made for every operation are not frozen all the same: making them would take five times as long.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from hil.protocols.errors import InputError

LineIndex = npt.NDArray[np.uint16]
Codes = npt.NDArray[np.integer[Any]]


class TesterKind(StrEnum):
    """What answers; a run file always says which, so that twin data never passes for hardware data."""

    HARDWARE = "hardware"
    TWIN = "twin"
    REPLAY = "replay"


class MvmMode(StrEnum):
    """How an array multiplies: with analog inputs, with on/off inputs, or not at all (it is read cell by cell)."""

    ANALOG = "analog"
    BINARY = "binary"
    NONE = "none"


class Readout(StrEnum):
    """Whether two bit lines are subtracted before the converter, or each bit line is converted by itself."""

    DIFFERENTIAL = "differential"
    SINGLE = "single"


class Direction(IntEnum):
    """Forward drives word lines and reads bit lines; backward is the transposed product."""

    FORWARD = 0
    BACKWARD = 1


class Operation(IntEnum):
    """The operations that touch the array; each has an operation id and a row in the log."""

    READ = 1
    MVM_FORWARD = 2
    MVM_BACKWARD = 3
    SET = 4
    RESET = 5
    WAIT = 6
    UPDATE = 7


READ, SET, RESET, WAIT, UPDATE = (
    Operation.READ,
    Operation.SET,
    Operation.RESET,
    Operation.WAIT,
    Operation.UPDATE,
)
"""By themselves, for code that runs for each operation: Python 3.11 takes seven times as long for a member of an
enumeration as for a name.
"""

MVM_KIND = {Direction.FORWARD: Operation.MVM_FORWARD, Direction.BACKWARD: Operation.MVM_BACKWARD}
"""The operation that a product in each direction is."""

MVM_DIRECTION = {kind: direction for direction, kind in MVM_KIND.items()}
"""The direction of each operation that is a product."""


class Status(IntEnum):
    """How far an operation got: all of it, its first `done` parts, or nobody knows."""

    COMPLETE = 0
    PARTIAL = 1
    UNKNOWN = 2


COMPLETE = Status.COMPLETE


@dataclass(frozen=True, slots=True)
class Identity:
    """Who answers. `chip` names the array itself, which outlives the tester it sits in."""

    vendor: str
    model: str
    serial: str
    firmware: str
    chip: str
    kind: TesterKind


@dataclass(frozen=True, slots=True)
class PulseShape:
    """A trapezoidal pulse: amplitude (A or V, by the pulse source), width, rise and fall (s)."""

    amplitude: float
    width: float
    rise: float = 0.0
    fall: float = 0.0


@dataclass(frozen=True, slots=True)
class PulseLimits:
    """What the pulse source can do: `source` is current or voltage; amplitudes in A or V, times in s."""

    source: str
    amplitude_max: float
    width_min: float
    width_max: float
    edges: bool


@dataclass(frozen=True, slots=True)
class Durations:
    """Device time of each operation (s): per cell read, per MVM vector, per SET and per RESET pulse."""

    read: float
    mvm: float
    set_pulse: float
    reset_pulse: float


@dataclass(frozen=True)
class Capabilities:
    """What a tester can do and the nominal figures of its devices.

    Converter codes are signed and symmetric for MVMs (an 8-bit converter has codes -127 to 127); cell reads carry their
    own offset.
    """

    arrays: int
    rows: int
    columns: int
    mvm: MvmMode
    readout: Readout
    parallel_update: bool
    dac_bits: int
    adc_bits: int
    read_voltage: float  # V on a line driven with the largest DAC code
    mvm_ranges: tuple[float, ...]  # A, full scale of each ADC gain, ascending
    set_pulse: PulseShape  # the nominal SET pulse
    reset_pulse: PulseShape  # the nominal RESET pulse
    pulse_limits: PulseLimits
    exactly_once: bool  # a repeated operation id is answered, not repeated
    verify: bool  # the tester can program-and-verify by itself
    durations: Durations
    largest_batch: int  # cells, pulses or vectors in one operation
    staircase: tuple[float, ...]  # S, nominal mean conductance after 0, 1, 2, ... SET pulses from RESET; () if unknown

    @cached_property
    def dac_top(self) -> int:
        """The largest DAC code."""
        return int(2 ** (self.dac_bits - 1) - 1)

    @cached_property
    def adc_top(self) -> int:
        """The largest MVM output code."""
        return int(2 ** (self.adc_bits - 1) - 1)

    @property
    def dac_dtype(self) -> type[np.integer[Any]]:
        """The narrowest signed integer that holds a DAC code."""
        return np.int8 if self.dac_bits <= 8 else np.int16


def line_index(name: str, values: npt.ArrayLike) -> LineIndex:
    """Line or array numbers as uint16 (n,); a value that does not fit is an error, never wrapped."""
    wide = np.asarray(values)
    if wide.dtype == np.uint16 and wide.ndim == 1:
        return wide
    wide = np.atleast_1d(wide)
    if wide.ndim != 1 or not (np.issubdtype(wide.dtype, np.integer) or wide.size == 0):
        raise InputError(f"{name}: expected a vector of integers, got shape {wide.shape} of {wide.dtype}")
    if wide.size and (wide.min() < 0 or wide.max() > 0xFFFF):
        raise InputError(f"{name}: {wide.min()} to {wide.max()} is outside 0 to 65535")
    return wide.astype(np.uint16)


@dataclass(slots=True)
class Cells:
    """Cells by array, row (word line) and column (bit line): three index vectors of shape (n,)."""

    array: LineIndex
    row: LineIndex
    column: LineIndex

    @classmethod
    def of(cls, array: npt.ArrayLike, row: npt.ArrayLike, column: npt.ArrayLike) -> "Cells":
        """From anything that broadcasts to integer vectors; raises `InputError` on a value that is no line number."""
        parts = np.broadcast_arrays(line_index("array", array), line_index("row", row), line_index("column", column))
        return cls(*(np.ascontiguousarray(part) for part in parts))

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, part: "slice | npt.NDArray[Any]") -> "Cells":
        return Cells(self.array[part], self.row[part], self.column[part])

    @classmethod
    def concatenate(cls, parts: "Sequence[Cells]") -> "Cells":
        """One batch from several."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            np.concatenate([part.array for part in parts]),
            np.concatenate([part.row for part in parts]),
            np.concatenate([part.column for part in parts]),
        )


@dataclass(slots=True)
class PulseBatch:
    """SET or RESET pulses: `counts` (n,) equal pulses of one `shape` on each of n cells; a cell may occur more than
    once.
    """

    cells: Cells
    kind: Operation  # SET or RESET
    counts: npt.NDArray[np.uint16]
    shape: PulseShape

    def __getitem__(self, part: slice) -> "PulseBatch":
        return PulseBatch(self.cells[part], self.kind, self.counts[part], self.shape)


@dataclass(frozen=True, slots=True)
class Block:
    """The crossing of some word lines with some bit lines of one array.

    A block takes the region's inputs from `row_offset` on and belongs to the region's outputs from `column_offset` on.
    `partners` are the bit lines subtracted from `columns` before the converter (differential readout), or None.
    """

    array: int
    rows: LineIndex
    columns: LineIndex
    partners: LineIndex | None
    row_offset: int
    column_offset: int


@dataclass(frozen=True)
class Region:
    """Cells that are multiplied together, registered once and then named by `handle`.

    A forward MVM takes (batch, rows) codes and returns each block's columns side by side; a backward MVM takes (batch,
    columns) codes and returns each block's rows side by side. Where blocks share outputs, the host adds them.
    """

    handle: int
    blocks: tuple[Block, ...]

    @cached_property
    def rows(self) -> int:
        """Inputs of a forward MVM."""
        return max(block.row_offset + len(block.rows) for block in self.blocks)

    @cached_property
    def columns(self) -> int:
        """Inputs of a backward MVM."""
        return max(block.column_offset + len(block.columns) for block in self.blocks)

    @cached_property
    def _outputs(self) -> tuple[int, int]:
        return sum(len(block.columns) for block in self.blocks), sum(len(block.rows) for block in self.blocks)

    def inputs(self, direction: Direction) -> int:
        """Codes per vector that go in."""
        return self.rows if direction == Direction.FORWARD else self.columns

    def outputs(self, direction: Direction) -> int:
        """Codes per vector that come out, over all blocks."""
        return self._outputs[direction]


@dataclass(slots=True)
class Vectors:
    """MVM inputs: DAC `codes` (batch, lines) and what one code stands for on the host, `scale` (batch,). The tester
    ignores the scale.
    """

    codes: Codes
    scale: npt.NDArray[np.float32]

    def __getitem__(self, part: slice) -> "Vectors":
        return Vectors(self.codes[part], self.scale[part])


@dataclass(slots=True)
class PulseTrains:
    """Coincident trains of an RPU update: `rows` (slots, rows / 8) and `columns` (slots, columns / 8) hold one bit per
    line and slot.

    A cell gets one SET pulse for each slot in which both its lines fire; `polarity` +1 or -1 picks the device of the
    pair. Bits are packed as by `numpy.packbits`.
    """

    rows: npt.NDArray[np.uint8]
    columns: npt.NDArray[np.uint8]
    polarity: int


@dataclass(slots=True)
class Readings:
    """What the instrument gave, without loss: value = (code - offset) * scale, in `unit` (S for cells, A for MVMs).

    Codes have shape (n,) for cells and (batch, outputs) for MVMs. `saturated` counts the values beyond the
    converter's range.
    """

    op_id: int
    time_ns: int  # device time at the end of the operation
    codes: Codes
    unit: str
    scale: float
    offset: int
    saturated: int
    status: Status = Status.COMPLETE

    def values(self) -> npt.NDArray[np.float32]:
        """The codes in `unit`."""
        return (self.codes.astype(np.float32) - np.float32(self.offset)) * np.float32(self.scale)


@dataclass(slots=True)
class Receipt:
    """What became of a programming operation or a wait: `done` of its pulses were applied.

    `saturated` counts pulses that met an end of the conductance range, where the tester can know (a twin can, hardware
    cannot).
    """

    op_id: int
    time_ns: int
    status: Status
    done: int
    saturated: int = 0
