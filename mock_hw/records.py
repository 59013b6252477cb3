"""Records that compiled code works on: a cell, its carries, what a matrix keeps, and the constants of the model."""

import numpy as np
import numpy.typing as npt
from numba import njit

from hil.mock_hw.parameters import InferenceParameters, PcmParameters

F32 = npt.NDArray[np.float32]
U16 = npt.NDArray[np.uint16]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
Records = npt.NDArray[np.void]

# One record per cell, so that a pulse touches one line of the processor's cache; packed, as there may be 10^8.
CELL = np.dtype(
    [
        ("pulsed_ns", np.int64),  # device time of the last pulse
        ("conductance", np.float32),  # S, undrifted: at t0 after the last pulse
        ("since_reset", np.uint16),  # SET pulses since the last RESET; stays at 65535
        ("stuck", np.bool_),  # no pulse changes the cell
        ("set_count", np.uint8),  # SET pulses ever, modulo 256
        ("reset_count", np.uint8),  # RESET pulses ever, modulo 256
        ("read_count", np.uint8),  # single reads ever, modulo 256
    ]
)
# How often each count of a cell has passed 256: memory that is not taken up before it is written to.
CARRY = np.dtype([("set_count", np.uint32), ("reset_count", np.uint32), ("read_count", np.uint32)])
WORD_LINE = np.dtype(
    [
        ("base", np.int64),  # place on the chip of the line's first cell
        ("start", np.int64),  # its first crossing in the matrix
        ("lines", np.int32),  # where the bit lines of its devices begin, in the matrix's `lines`
        ("columns", np.int32),  # its crossings
        ("devices", np.int32),  # of each crossing
        ("number", np.int32),  # on the array
    ],
    align=True,
)
BLOCK = np.dtype(
    [
        ("start", np.int64),  # its first crossing
        ("first_row", np.int32),  # its first word line
        ("first_line", np.int32),  # its first bit line
        ("rows", np.int32),  # word lines
        ("columns", np.int32),  # outputs forward, inputs backward
        ("devices", np.int32),  # bit lines of each of these
        ("array", np.int32),
        ("row_offset", np.int32),  # its first input forward
        ("column_offset", np.int32),  # its first input backward
    ],
    align=True,
)
AGE_CLASS = np.dtype(
    [
        ("end", np.int64),  # ns, the first age beyond it
        ("middle", np.float64),  # s, the age that stands for it
        ("factor", np.float64),  # drift at that age, where all cells have the same exponent
    ]
)


def constants(p: PcmParameters, key: int = 0) -> Records:
    """The parameters, those of inference and the `key` of the chip's own noise as one record, shape (1,): what compiled
    code takes fastest.
    """
    values = p._asdict() | InferenceParameters()._asdict()
    kinds = [(name, np.bool_ if isinstance(value, bool) else np.float64) for name, value in values.items()]
    return np.array([(*values.values(), key)], np.dtype([*kinds, ("key", np.uint64)], align=True))


@njit(cache=True)
def counted(count: int, more: int) -> tuple[int, int]:
    """A count modulo 256 after so many more, and how often it has passed 256."""
    total = np.int64(count) + np.int64(more)
    return total & 255, total >> 8  # type: ignore[return-value]
