"""PCM device physics: pure steps, and the compiled loops that apply them to batches of cells.

The formulas (`set_step`, `reset_level`, `drift_factor`, `read_spread`) take scalars or arrays, and the model's
constants as a record (`constants`). The loops go over the cells of a batch in order, so that a cell that occurs twice
is pulsed twice. All compiled code that calls a formula is in this file, because the compiler's cache on disk follows
changes of the caller's file only.

A matrix keeps, for the crossings of a region's lines, the weight and the noise variance ready for products. The age of
each device puts it into a class, and all devices of a class drift by the factor of the class's middle age. A group of
crossings knows when the first of its devices will outgrow its class, and a word line when the first of its groups is
due: what is not due is not looked at.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from hil.mock_hw.parameters import PcmParameters
from hil.protocols.messages import Codes

F32 = npt.NDArray[np.float32]
U16 = npt.NDArray[np.uint16]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
Records = npt.NDArray[np.void]

Crossings = tuple[F32, F32, Records, Records, U16, Records, F32]
"""A matrix: weight and variance (crossings,), age classes (AGE_CLASS), word lines (WORD_LINE), the bit lines of the
devices of each block, the chip's cells (CELL) and drift exponents."""

NONE = -1  # a line that is not in a block
NEVER = np.iinfo(np.int64).max // 2
GROUP = 4  # crossings of a word line that are due together

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
        ("lines", np.int32),  # where the bit lines of its devices begin, in `lines`
        ("columns", np.int32),  # its crossings
        ("input", np.int32),  # of a forward product, which drives it
    ],
    align=True,
)
AGE_CLASS = np.dtype(
    [
        ("end_ns", np.int64),  # first age beyond the class
        ("middle", np.float64),  # s, the age that stands for it
        ("factor", np.float64),  # drift factor at that age, where all cells have the same exponent
    ],
    align=True,
)


def constants(p: PcmParameters) -> Records:
    """The parameters as one record, shape (1,): what compiled code takes fastest."""
    kinds = [(name, np.bool_ if isinstance(value, bool) else np.float64) for name, value in p._asdict().items()]
    return np.array([tuple(p)], np.dtype(kinds, align=True))


@njit(cache=True)
def set_step(g: Any, pulses: Any, step_scale: Any, normal: Any, p: Any) -> Any:
    """Conductance (S) after one SET pulse on undrifted `g`: the `pulses`-th since the RESET, counted from 1.

    The memory of the RESET, P = exp(-pulses / memory), has decayed before the step is computed. `normal` is standard
    normal, or 0 for the mean. Source: Nandakumar 2018. Not yet limited to the conductance range.
    """
    memory = np.exp(-pulses / p.memory)
    mean = p.mean_slope * g + p.mean_offset + p.mean_memory * memory
    spread = p.spread_slope * g + p.spread_offset + p.spread_memory * memory
    return g + step_scale * mean + normal * spread


@njit(cache=True)
def reset_level(normal: Any, p: Any) -> Any:
    """Conductance (S) after a RESET pulse; `normal` is standard normal, or 0 for the mean. Never negative."""
    return np.maximum(p.reset_mean + normal * p.reset_spread, 0.0)


@njit(cache=True)
def drift_factor(age: Any, nu: Any, p: Any) -> Any:
    """What drift has made of the conductance at `age` (s) after the last pulse: (max(age, t_min) / t0)^-nu. Source:
    Nandakumar 2018.
    """
    return (np.maximum(age, p.t_min) / p.t0) ** -nu


@njit(cache=True)
def read_spread(g: Any, p: Any) -> Any:
    """Standard deviation (S) of one read of a cell whose drifted conductance is `g` (S). Source: Nandakumar 2018."""
    return p.read_slope * g + p.read_offset


@njit(cache=True)
def locate(array: U16, row: U16, column: U16, arrays: int, rows: int, columns: int, flat: I64) -> int:
    """Write each cell's place on the chip into `flat` (n,); returns the index of the first cell the chip does not have,
    or -1.
    """
    for i in range(flat.size):
        if array[i] >= arrays or row[i] >= rows or column[i] >= columns:
            return i
        flat[i] = (np.int64(array[i]) * rows + row[i]) * columns + column[i]
    return -1


@njit(cache=True)
def counted(count: int, more: int) -> tuple[int, int]:
    """A count modulo 256 after so many more, and how often it has passed 256."""
    total = np.int64(count) + np.int64(more)
    return total & 255, total >> 8  # type: ignore[return-value]


@njit(cache=True)
def apply_set(
    cells: Records,
    carries: Records,
    step_scale: F32,
    flat: I64,
    counts: U16,
    now_ns: int,
    normals: F32,
    parameters: Records,
) -> int:
    """Send `counts[i]` SET pulses to cell `flat[i]`, in order; returns how many met an end of the conductance range.

    `step_scale` holds one value per cell or one for all. `normals` holds one standard normal per pulse, or none without
    programming noise.
    """
    p = parameters[0]
    saturated = 0
    drawn = 0
    for i in range(flat.size):
        cell = cells[flat[i]]
        cell.set_count, carry = counted(cell.set_count, counts[i])
        if carry:
            carries[flat[i]].set_count += carry
        if cell.stuck:
            drawn += counts[i]
            continue
        scale = step_scale[flat[i] if step_scale.size > 1 else 0]
        g = np.float64(cell.conductance)
        n = np.int64(cell.since_reset)
        for _ in range(counts[i]):
            n += 1
            normal = np.float64(normals[drawn]) if normals.size else 0.0
            drawn += 1
            g = set_step(g, np.float64(n), scale, normal, p)
            if g < p.g_min or g > p.g_max:
                saturated += 1
                g = min(max(g, p.g_min), p.g_max)
        cell.conductance = g
        cell.since_reset = min(n, 65535)
        cell.pulsed_ns = now_ns
    return saturated


@njit(cache=True)
def apply_reset(
    cells: Records, carries: Records, flat: I64, counts: U16, now_ns: int, normals: F32, parameters: Records
) -> None:
    """Send `counts[i]` RESET pulses to cell `flat[i]`; only the last one decides where it ends. One normal per entry,
    or none.
    """
    p = parameters[0]
    for i in range(flat.size):
        cell = cells[flat[i]]
        cell.reset_count, carry = counted(cell.reset_count, counts[i])
        if carry:
            carries[flat[i]].reset_count += carry
        if cell.stuck:
            continue
        cell.conductance = reset_level(np.float64(normals[i]) if normals.size else 0.0, p)
        cell.since_reset = 0
        cell.pulsed_ns = now_ns


@njit(cache=True)
def read_cells(
    cells: Records,
    carries: Records,
    nu: F32,
    flat: I64,
    now_ns: int,
    normals: F32,
    codes: Codes,
    step: float,
    offset: int,
    top: int,
    parameters: Records,
) -> int:
    """Convert the conductance of each cell to a code = value / step + offset, from 0 to `top`; returns how many met an
    end.

    `nu` holds one value per cell or one for all; `normals` (n,), or none without read noise.
    """
    p = parameters[0]
    saturated = 0
    for i in range(flat.size):
        cell = cells[flat[i]]
        cell.read_count, carry = counted(cell.read_count, 1)
        if carry:
            carries[flat[i]].read_count += carry
        g = np.float64(cell.conductance)
        if p.drift:
            exponent = np.float64(nu[flat[i] if nu.size > 1 else 0])
            g *= drift_factor((now_ns - cell.pulsed_ns) * 1e-9, exponent, p)
        if normals.size:
            g += normals[i] * read_spread(g, p)
        code = np.rint(g / step) + offset
        if code < 0.0 or code > top:
            saturated += 1
            code = min(max(code, 0.0), np.float64(top))
        codes[i] = np.int64(code)
    return saturated


@njit(cache=True)
def touch(
    due: tuple[I64, I64], places: tuple[I32, I32, I32], devices: int, arrays: U16, rows: U16, columns: U16
) -> bool:
    """Make those cells of a batch due that are in the matrix, because they were just pulsed; False if there are none.

    `places` are the blocks on each array, (arrays, most) or NONE, and for each block its word line in the matrix on
    each word line of the array, and its device on each bit line, or NONE. A crossing has so many `devices`.
    """
    group_due, line_due = due
    blocks, row_of, device_of = places
    found = False
    for n in range(rows.size):
        for block in blocks[arrays[n]]:
            if block == NONE or row_of[block, rows[n]] == NONE or device_of[block, columns[n]] == NONE:
                continue
            r = row_of[block, rows[n]]
            group_due[r, device_of[block, columns[n]] // devices // GROUP] = 0
            line_due[r] = 0
            found = True
    return found


@njit(cache=True)
def age(
    crossings: Crossings, due: tuple[I64, I64], devices: int, codes: Codes, now_ns: int, parameters: Records
) -> int:
    """Bring what is due to device time `now_ns`; returns when the next will be.

    Word lines that none of a batch of forward `codes` (batch, inputs) drives stay due; without codes all are driven.
    """
    group_due, line_due = due
    first = np.int64(NEVER)
    for r in range(line_due.size):
        if now_ns >= line_due[r] and _driven(codes, crossings[3][r].input):
            line_due[r] = NEVER
            for group in range(-(-crossings[3][r].columns // GROUP)):
                if now_ns >= group_due[r, group]:
                    group_due[r, group] = _age_group(crossings, devices, r, group, now_ns, parameters)
                line_due[r] = min(line_due[r], group_due[r, group])
        first = min(first, line_due[r])
    return first  # type: ignore[return-value]


@njit(cache=True)
def _driven(codes: Codes, line: int) -> bool:
    for b in range(codes.shape[0]):
        if codes[b, line]:
            return True
    return not codes.shape[0]


@njit(cache=True)
def _age_group(crossings: Crossings, devices: int, r: int, group: int, now_ns: int, parameters: Records) -> int:
    """Weights and variances of a group of crossings on word line `r`; returns when the first of its devices will
    outgrow its class.
    """
    weight, variance, classes, word_lines, lines, cells, nu = crossings
    line, p = word_lines[r], parameters[0]
    due, k = np.int64(NEVER), 0  # the search for a device's class begins at that of the device before
    for j in range(GROUP * group, min(GROUP * (group + 1), line.columns)):
        total = spread = 0.0
        for device in range(devices):
            flat = line.base + lines[line.lines + devices * j + device]
            cell = cells[flat]
            age_ns = now_ns - cell.pulsed_ns
            while age_ns >= classes[k].end_ns:
                k += 1
            while k > 0 and age_ns < classes[k - 1].end_ns:
                k -= 1
            due = min(due, cell.pulsed_ns + classes[k].end_ns)
            g = np.float64(cell.conductance)
            g *= classes[k].factor if nu.size == 1 else drift_factor(classes[k].middle, np.float64(nu[flat]), p)
            total += -g if device else g
            spread += read_spread(g, p) ** 2
        weight[line.start + j] = total
        variance[line.start + j] = spread
    return due  # type: ignore[return-value]
