"""PCM device physics: pure steps, and the compiled loops that apply them to batches of cells.

The formulas (`set_step`, `reset_level`, `drift_factor`, `read_spread`) take scalars or arrays, and the model's
constants as a record (`constants`). The loops go over the cells of a batch in order, so that a cell that occurs twice
is pulsed twice. All compiled code that calls a formula is in this file, because the compiler's cache on disk follows
changes of the caller's file only.

A tile keeps, for one block of a region, the weight and the noise variance of each crossing ready for products. Each of
its cells belongs to an age class, and all cells of a class drift by the one factor of the class's middle age. The cells
of a class form a list ordered by the time of their last pulse, so that those that have outgrown the class are always at
its head.
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

NONE = -1  # no cell: the end of a list, a line that is not on a tile
NEVER = np.iinfo(np.int64).max // 2

# One record per cell, so that a pulse touches one line of the processor's cache.
CELL = np.dtype(
    [
        ("pulsed_ns", np.int64),  # device time of the last pulse
        ("conductance", np.float32),  # S, undrifted: at t0 after the last pulse
        ("set_count", np.uint32),  # SET pulses ever
        ("reset_count", np.uint32),  # RESET pulses ever
        ("read_count", np.uint32),  # single reads ever
        ("since_reset", np.uint16),  # SET pulses since the last RESET; stays at 65535
        ("stuck", np.bool_),  # no pulse changes the cell
    ],
    align=True,
)
MEMBER = np.dtype(
    [
        ("flat", np.int32),  # the cell's place on the chip
        ("following", np.int32),  # next in the list of its age class
        ("preceding", np.int32),
        ("age_class", np.int32),
    ]
)
AGE_CLASS = np.dtype(
    [
        ("end_ns", np.int64),  # first age beyond the class
        ("middle", np.float64),  # s, the age that stands for it
        ("factor", np.float64),  # drift factor at that age, where all cells have the same exponent
        ("head", np.int32),  # the member pulsed longest ago
        ("tail", np.int32),  # the member pulsed last
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
def apply_set(
    cells: Records, step_scale: F32, flat: I64, counts: U16, now_ns: int, normals: F32, parameters: Records
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
        cell.set_count += counts[i]
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
def apply_reset(cells: Records, flat: I64, counts: U16, now_ns: int, normals: F32, parameters: Records) -> None:
    """Send `counts[i]` RESET pulses to cell `flat[i]`; only the last one decides where it ends. One normal per entry,
    or none.
    """
    p = parameters[0]
    for i in range(flat.size):
        cell = cells[flat[i]]
        cell.reset_count += counts[i]
        if cell.stuck:
            continue
        cell.conductance = reset_level(np.float64(normals[i]) if normals.size else 0.0, p)
        cell.since_reset = 0
        cell.pulsed_ns = now_ns


@njit(cache=True)
def read_cells(
    cells: Records,
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
        cell.read_count += 1
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
def _unlink(members: Records, classes: Records, index: int) -> None:
    member = members[index]
    group = classes[member.age_class]
    if group.head == index:  # the new head's `preceding` is left stale: nobody looks at it
        group.head = member.following
        if group.head == NONE:
            group.tail = NONE
        return
    members[member.preceding].following = member.following
    if group.tail == index:
        group.tail = member.preceding
    else:
        members[member.following].preceding = member.preceding


@njit(cache=True)
def _append(members: Records, classes: Records, index: int, k: int) -> None:
    member, last = members[index], classes[k].tail
    member.age_class = k
    member.preceding = last
    member.following = NONE
    if last == NONE:
        classes[k].head = index
    else:
        members[last].following = index
    classes[k].tail = index


@njit(cache=True)
def _class_of(classes: Records, age_ns: int, k: int) -> int:
    """The class of an age, which is `k` or an older one."""
    while age_ns >= classes[k].end_ns:
        k += 1
    return k


@njit(cache=True)
def _drifted(cells: Records, nu: F32, member: Any, classes: Records, p: Any) -> Any:
    g = np.float64(cells[member.flat].conductance)
    if nu.size > 1:
        return g * drift_factor(classes[member.age_class].middle, np.float64(nu[member.flat]), p)
    return g * classes[member.age_class].factor


@njit(cache=True)
def _recompute(
    weight: F32, variance: F32, members: Records, classes: Records, cells: Records, nu: F32, crossing: int, p: Any
) -> None:
    """Weight and variance of one crossing, from its one device or its two."""
    columns = weight.shape[1]
    devices = members.size // weight.size
    g = _drifted(cells, nu, members[crossing * devices], classes, p)
    total, spread = g, read_spread(g, p) ** 2
    if devices == 2:
        g = _drifted(cells, nu, members[crossing * devices + 1], classes, p)
        total -= g
        spread += read_spread(g, p) ** 2
    weight[crossing // columns, crossing % columns] = total
    variance[crossing // columns, crossing % columns] = spread


@njit(cache=True)
def fill(
    weight: F32,
    variance: F32,
    members: Records,
    classes: Records,
    cells: Records,
    nu: F32,
    order: I64,
    now_ns: int,
    parameters: Records,
) -> None:
    """Build lists, weights and variances from the chip's cells; `order` names all members by the time of their last
    pulse.
    """
    for k in range(classes.size):
        classes[k].head = NONE
        classes[k].tail = NONE
    for index in order:
        _append(members, classes, index, _class_of(classes, now_ns - cells[members[index].flat].pulsed_ns, 0))
    for crossing in range(weight.size):
        _recompute(weight, variance, members, classes, cells, nu, crossing, parameters[0])


@njit(cache=True)
def touch(
    weight: F32,
    variance: F32,
    members: Records,
    classes: Records,
    cells: Records,
    nu: F32,
    row_of: I32,
    line_of: I32,
    array: int,
    arrays: U16,
    rows: U16,
    columns: U16,
    parameters: Records,
) -> None:
    """Take up cells that were just pulsed: those of the batch that lie on this tile, in `array`, start again as the
    youngest.

    `row_of` and `line_of` give the tile's row on each word line and its device line on each bit line of the array, or
    -1.
    """
    devices = members.size // weight.size
    lines = members.size // weight.shape[0]
    for n in range(rows.size):
        if arrays[n] != array:
            continue
        row, line = row_of[rows[n]], line_of[columns[n]]
        if row == NONE or line == NONE:
            continue
        index = row * lines + line
        if cells[members[index].flat].stuck:
            continue
        _unlink(members, classes, index)
        _append(members, classes, index, 0)
        _recompute(weight, variance, members, classes, cells, nu, index // devices, parameters[0])


@njit(cache=True)
def age(
    weight: F32,
    variance: F32,
    members: Records,
    classes: Records,
    cells: Records,
    nu: F32,
    now_ns: int,
    parameters: Records,
) -> int:
    """Move the cells that have outgrown their age class; returns the device time at which the next one will.

    Oldest class first: a cell that skips classes then lands behind all older cells of its new class.
    """
    devices = members.size // weight.size
    for k in range(classes.size - 2, -1, -1):
        index = classes[k].head
        while index != NONE:
            age_ns = now_ns - cells[members[index].flat].pulsed_ns
            if age_ns < classes[k].end_ns:
                break
            _unlink(members, classes, index)
            _append(members, classes, index, _class_of(classes, age_ns, k))
            _recompute(weight, variance, members, classes, cells, nu, index // devices, parameters[0])
            index = classes[k].head
    due = np.int64(NEVER)
    for k in range(classes.size - 1):
        if classes[k].head != NONE:
            due = min(due, cells[members[classes[k].head].flat].pulsed_ns + classes[k].end_ns)
    return due  # type: ignore[return-value]
