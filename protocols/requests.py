"""What a host asks of a tester, and what the tester answers: the messages that every codec carries."""

from dataclasses import dataclass
from enum import IntEnum

from hil.protocols.errors import HilError, InputError, LimitError, OperationIdError, TesterError
from hil.protocols.messages import (
    Capabilities,
    Cells,
    Codes,
    Direction,
    Identity,
    PulseBatch,
    PulseTrains,
    Readings,
    Receipt,
    Region,
)


@dataclass(frozen=True, slots=True)
class Describe:
    """Who answers, and what it can do. Answer: `Description`."""


@dataclass(frozen=True, slots=True)
class GetState:
    """Where the chip stands. Answer: `State`."""


@dataclass(frozen=True, slots=True)
class Define:
    """Name the cells of an MVM; the host chooses the handle. Repeating it changes nothing. Answer: `Done`."""

    region: Region


@dataclass(frozen=True, slots=True)
class Ground:
    """Put the tester into its safe state: every line grounded. Answer: `Done`."""


@dataclass(frozen=True, slots=True)
class Echo:
    """Give the data back. Answer: `Echoed`."""

    data: bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Read:
    """Read single cells. Answer: `Readings` with codes (n,)."""

    op_id: int
    cells: Cells


@dataclass(frozen=True, slots=True)
class Multiply:
    """Products of DAC codes (batch, inputs) with a region. Answer: `Readings` with codes (batch, outputs)."""

    op_id: int
    region: int
    direction: Direction
    gain: int
    codes: Codes


@dataclass(frozen=True, slots=True)
class Program:
    """SET or RESET pulses. Answer: `Receipt`."""

    op_id: int
    pulses: PulseBatch


@dataclass(frozen=True, slots=True)
class Update:
    """Parallel update of a region by pulse trains. Answer: `Receipt`."""

    op_id: int
    region: int
    trains: PulseTrains


@dataclass(frozen=True, slots=True)
class Wait:
    """Let device time pass (s). Answer: `Receipt`."""

    op_id: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Description:
    """Who answers, and what it can do."""

    identity: Identity
    capabilities: Capabilities


@dataclass(frozen=True, slots=True)
class State:
    """The chip's last operation id, its device time (ns), how often the tester was switched on, and whether all lines
    are grounded.
    """

    last_op_id: int
    time_ns: int
    boot: int
    grounded: bool


@dataclass(frozen=True, slots=True)
class Done:
    """It was done."""


@dataclass(frozen=True, slots=True)
class Echoed:
    """The data of an `Echo`."""

    data: bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Failure:
    """It was not done, and why: a number of `Fault` or of SCPI, and a text of one line."""

    code: int
    text: str


OperationRequest = Read | Multiply | Program | Update | Wait
Request = Describe | GetState | Define | Ground | Echo | OperationRequest
Reply = Description | State | Done | Echoed | Readings | Receipt | Failure
PROGRAMMING = (Program, Update)
"""Requests that change cells."""


class Fault(IntEnum):
    """Why a tester refuses. Negative numbers are those of SCPI-99, volume 2, chapter 21; positive ones are ours."""

    INVALID_CHARACTER = -101
    SYNTAX = -102
    DATA_TYPE = -104
    TOO_MANY = -108
    MISSING_PARAMETER = -109
    UNDEFINED_HEADER = -113
    SUFFIX = -138
    INVALID_BLOCK = -161
    BLOCK_NOT_ALLOWED = -168
    BUSY = -213
    OUT_OF_RANGE = -222
    ILLEGAL_VALUE = -224
    CORRUPT = -230
    HARDWARE = -240
    QUEUE_OVERFLOW = -350
    INPUT_OVERRUN = -363
    TIMED_OUT = -365
    USED_ID = 1
    CUT_SHORT = 2
    NO_REGION = 3


FAULT_TEXT = {
    Fault.INVALID_CHARACTER: "Invalid character",
    Fault.SYNTAX: "Syntax error",
    Fault.DATA_TYPE: "Data type error",
    Fault.TOO_MANY: "Parameter not allowed",
    Fault.MISSING_PARAMETER: "Missing parameter",
    Fault.UNDEFINED_HEADER: "Undefined header",
    Fault.SUFFIX: "Suffix not allowed",
    Fault.INVALID_BLOCK: "Invalid block data",
    Fault.BLOCK_NOT_ALLOWED: "Block data not allowed",
    Fault.BUSY: "Init ignored",
    Fault.OUT_OF_RANGE: "Data out of range",
    Fault.ILLEGAL_VALUE: "Illegal parameter value",
    Fault.CORRUPT: "Data corrupt or stale",
    Fault.HARDWARE: "Hardware error",
    Fault.QUEUE_OVERFLOW: "Queue overflow",
    Fault.INPUT_OVERRUN: "Input buffer overrun",
    Fault.TIMED_OUT: "Time out error",
    Fault.USED_ID: "Operation id used",
    Fault.CUT_SHORT: "Operation cut short",
    Fault.NO_REGION: "Region not defined",
}
"""What each number means, as in the SCPI standard where it is of the standard."""


class ProtocolError(TesterError):
    """Bytes that are no message; `fault` says why."""

    def __init__(self, fault: Fault, text: str) -> None:
        super().__init__(text)
        self.fault = fault


class CutShortError(TesterError):
    """An operation was begun and never ended (a reboot): how far it got is not known."""


class NoRegionError(LimitError):
    """A product with a region that was not defined since the tester was switched on."""


class BusyError(TesterError):
    """The tester cannot begin anything now; ask again later."""


ERROR_OF: dict[int, type[HilError]] = {
    Fault.OUT_OF_RANGE: LimitError,
    Fault.USED_ID: OperationIdError,
    Fault.CUT_SHORT: CutShortError,
    Fault.NO_REGION: NoRegionError,
    Fault.BUSY: BusyError,
}
"""The error that a host raises for each fault; any other is a `TesterError`."""


def failure_of(error: HilError) -> Failure:
    """What a tester answers when its firmware raised `error`."""
    if isinstance(error, ProtocolError):
        return Failure(error.fault, str(error))
    for code, kind in reversed(ERROR_OF.items()):  # the more special kinds come last
        if isinstance(error, kind):
            return Failure(code, str(error))
    return Failure(Fault.OUT_OF_RANGE if isinstance(error, InputError) else Fault.HARDWARE, str(error))


def error_of(failure: Failure) -> HilError:
    """What a host raises for a failure."""
    return ERROR_OF.get(failure.code, TesterError)(failure.text)
