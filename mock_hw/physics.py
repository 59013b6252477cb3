"""PCM device physics: pure steps, and the compiled loops that apply them to batches of cells.

The formulas (`set_step`, `reset_level`, `drift_factor`, `read_spread`) take scalars or arrays. The loops go over the cells of a batch
in order, so that a cell that occurs twice is pulsed twice. All compiled code that calls a formula is in this file, because the compiler's
cache on disk follows changes of the caller's file only.

A tile keeps, for one block of a region, the weight and the noise variance of each crossing ready for products. Each of its cells belongs
to an age class: class k holds the ages from `bounds[k]` to `bounds[k + 1]`, and all cells in it drift by the one factor of the
class's middle age. The cells of a class form a list ordered by the time of their last pulse, so that those that have outgrown the class
are always at its head.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from hil.mock_hw.parameters import PcmParameters

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
U16 = npt.NDArray[np.uint16]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]


class CellIndex(NamedTuple):
    """Cells of a batch, (n,) each; the compiled counterpart of `Cells`."""

    array: U16
    row: U16
    column: U16


class CellState(NamedTuple):
    """State of all cells of a chip, flat over (array, row, column)."""

    conductance: F32  # (n,) S, undrifted: at t0 after the last pulse
    pulsed_ns: npt.NDArray[np.int64]  # (n,) device time of the last pulse
    since_reset: U16  # (n,) SET pulses since the last RESET
    set_count: npt.NDArray[np.uint32]  # (n,) SET pulses ever
    reset_count: npt.NDArray[np.uint32]  # (n,) RESET pulses ever
    read_count: npt.NDArray[np.uint32]  # (n,) serial reads ever
    stuck: npt.NDArray[np.bool_]  # (n,) no pulse changes the cell
    step_scale: F32  # (n,) or (1,): the cell's mean step over the model's
    nu: F32  # (n,) or (1,): the cell's drift exponent


NONE = -1  # the end of a list


class TileState(NamedTuple):
    """State of a tile with R rows and C columns of k = 1 or 2 devices; a local cell is (row, column, device), flat."""

    weight: F32  # (R, C) S, drifted: first device less second device
    variance: F32  # (R, C) S^2, of one read of all devices at the crossing
    flat: I64  # (R * C * k,) the cell's place in the chip's state
    row_of: I32  # (chip rows,) the tile's row on a word line, or -1
    line_of: I32  # (chip columns,) column * k + device on a bit line, or -1
    age_class: npt.NDArray[np.int16]  # (R * C * k,)
    following: I32  # (R * C * k,) next in the class's list
    preceding: I32  # (R * C * k,) previous in the class's list
    head: I32  # (classes,) oldest cell of each class
    tail: I32  # (classes,) youngest cell of each class
    bounds: I64  # (classes + 1,) ns, ages at which a class begins; the last is beyond all ages
    middle: F64  # (classes,) s, the age that stands for the class


@njit(cache=True)
def set_step(g: Any, pulses: Any, step_scale: Any, normal: Any, p: PcmParameters) -> Any:
    """Conductance (S) after one SET pulse on undrifted `g`: the `pulses`-th since the RESET, counted from 1.

    The memory of the RESET, P = exp(-pulses / memory), has decayed before the step is computed. `normal` is standard normal, or 0 for
    the mean. Source: Nandakumar 2018. Not yet limited to the conductance range.
    """
    memory = np.exp(-pulses / p.memory)
    mean = p.mean_slope * g + p.mean_offset + p.mean_memory * memory
    spread = p.spread_slope * g + p.spread_offset + p.spread_memory * memory
    return g + step_scale * mean + normal * spread


@njit(cache=True)
def reset_level(normal: Any, p: PcmParameters) -> Any:
    """Conductance (S) after a RESET pulse; `normal` is standard normal, or 0 for the mean. Never negative."""
    return np.maximum(p.reset_mean + normal * p.reset_spread, 0.0)


@njit(cache=True)
def drift_factor(age: Any, nu: Any, p: PcmParameters) -> Any:
    """What drift has made of the conductance at `age` (s) after the last pulse: (max(age, t_min) / t0)^-nu. Source: Nandakumar 2018."""
    return (np.maximum(age, p.t_min) / p.t0) ** -nu


@njit(cache=True)
def read_spread(g: Any, p: PcmParameters) -> Any:
    """Standard deviation (S) of one read of a cell whose drifted conductance is `g` (S). Source: Nandakumar 2018."""
    return p.read_slope * g + p.read_offset


@njit(cache=True)
def locate(cells: CellIndex, arrays: int, rows: int, columns: int, flat: I64) -> int:
    """Write each cell's place in the chip's state into `flat`; returns the index of the first cell the chip does not have, or -1."""
    for i in range(flat.size):
        if cells.array[i] >= arrays or cells.row[i] >= rows or cells.column[i] >= columns:
            return i
        flat[i] = (np.int64(cells.array[i]) * rows + cells.row[i]) * columns + cells.column[i]
    return -1


@njit(cache=True)
def apply_set(state: CellState, flat: I64, counts: U16, now_ns: int, normals: F32, p: PcmParameters) -> int:
    """Send `counts[i]` SET pulses to cell `flat[i]`, in order; returns how many met an end of the conductance range.

    `normals` holds one standard normal per pulse, or nothing without programming noise.
    """
    saturated = 0
    drawn = 0
    for i in range(flat.size):
        cell = flat[i]
        state.set_count[cell] += counts[i]
        if state.stuck[cell]:
            drawn += counts[i]
            continue
        scale = state.step_scale[cell if state.step_scale.size > 1 else 0]
        g = np.float64(state.conductance[cell])
        n = np.int64(state.since_reset[cell])
        for _ in range(counts[i]):
            n += 1
            normal = np.float64(normals[drawn]) if normals.size else 0.0
            drawn += 1
            g = set_step(g, np.float64(n), scale, normal, p)
            if g < p.g_min or g > p.g_max:
                saturated += 1
                g = min(max(g, p.g_min), p.g_max)
        state.conductance[cell] = g
        state.since_reset[cell] = min(n, 65535)
        state.pulsed_ns[cell] = now_ns
    return saturated


@njit(cache=True)
def apply_reset(state: CellState, flat: I64, counts: U16, now_ns: int, normals: F32, p: PcmParameters) -> None:
    """Send `counts[i]` RESET pulses to cell `flat[i]`; only the last one decides where the cell ends. One normal per entry, or none."""
    for i in range(flat.size):
        cell = flat[i]
        state.reset_count[cell] += counts[i]
        if state.stuck[cell]:
            continue
        state.conductance[cell] = reset_level(np.float64(normals[i]) if normals.size else 0.0, p)
        state.since_reset[cell] = 0
        state.pulsed_ns[cell] = now_ns


@njit(cache=True)
def read_cells(
    state: CellState, flat: I64, now_ns: int, normals: F32, codes: U16, step: float, offset: int, top: int, p: PcmParameters
) -> int:
    """Convert the conductance of each cell to a code = value / step + offset, from 0 to `top`; returns how many met an end."""
    saturated = 0
    for i in range(flat.size):
        cell = flat[i]
        state.read_count[cell] += 1
        g = np.float64(state.conductance[cell])
        if p.drift:
            nu = np.float64(state.nu[cell if state.nu.size > 1 else 0])
            g *= drift_factor((now_ns - state.pulsed_ns[cell]) * 1e-9, nu, p)
        if normals.size:
            g += normals[i] * read_spread(g, p)
        code = np.rint(g / step) + offset
        if code < 0.0 or code > top:
            saturated += 1
            code = min(max(code, 0.0), np.float64(top))
        codes[i] = np.int64(code)
    return saturated


@njit(cache=True)
def _unlink(tile: TileState, cell: int) -> None:
    before, after, k = tile.preceding[cell], tile.following[cell], tile.age_class[cell]
    if before == NONE:
        tile.head[k] = after
    else:
        tile.following[before] = after
    if after == NONE:
        tile.tail[k] = before
    else:
        tile.preceding[after] = before


@njit(cache=True)
def _append(tile: TileState, cell: int, k: int) -> None:
    tile.age_class[cell] = k
    tile.preceding[cell] = tile.tail[k]
    tile.following[cell] = NONE
    if tile.tail[k] == NONE:
        tile.head[k] = cell
    else:
        tile.following[tile.tail[k]] = cell
    tile.tail[k] = cell


@njit(cache=True)
def _class_of(tile: TileState, age: int) -> int:
    k = 0
    while age >= tile.bounds[k + 1]:
        k += 1
    return k


@njit(cache=True)
def _drifted(tile: TileState, state: CellState, cell: int, p: PcmParameters) -> float:
    flat = tile.flat[cell]
    g = np.float64(state.conductance[flat])
    if p.drift:
        nu = np.float64(state.nu[flat if state.nu.size > 1 else 0])
        g *= drift_factor(tile.middle[tile.age_class[cell]], nu, p)
    return g


@njit(cache=True)
def _recompute(tile: TileState, state: CellState, cell: int, p: PcmParameters) -> None:
    """Weight and variance of the crossing that `cell` belongs to."""
    columns = tile.weight.shape[1]
    devices = tile.flat.size // tile.weight.size
    crossing = cell // devices
    i, j = crossing // columns, crossing % columns
    g = _drifted(tile, state, crossing * devices, p)
    variance = read_spread(g, p) ** 2
    weight = g
    if devices == 2:
        g = _drifted(tile, state, crossing * devices + 1, p)
        variance += read_spread(g, p) ** 2
        weight -= g
    tile.weight[i, j] = weight
    tile.variance[i, j] = variance


@njit(cache=True)
def fill(tile: TileState, state: CellState, order: I64, now_ns: int, p: PcmParameters) -> None:
    """Build lists, weights and variances from the chip's state; `order` names all cells of the tile by time of last pulse."""
    tile.head[:] = NONE
    tile.tail[:] = NONE
    for cell in order:
        _append(tile, cell, _class_of(tile, now_ns - state.pulsed_ns[tile.flat[cell]]))
    devices = tile.flat.size // tile.weight.size
    for crossing in range(tile.weight.size):
        _recompute(tile, state, crossing * devices, p)


@njit(cache=True)
def touch(tile: TileState, state: CellState, cells: CellIndex, array: int, p: PcmParameters) -> None:
    """Take up cells that were just pulsed: those of the batch that lie on this tile start again as the youngest."""
    lines = tile.flat.size // tile.weight.shape[0]
    for n in range(cells.row.size):
        if cells.array[n] != array:
            continue
        row, line = tile.row_of[cells.row[n]], tile.line_of[cells.column[n]]
        if row < 0 or line < 0:
            continue
        cell = row * lines + line
        if state.stuck[tile.flat[cell]]:
            continue
        _unlink(tile, cell)
        _append(tile, cell, 0)
        _recompute(tile, state, cell, p)


@njit(cache=True)
def age(tile: TileState, state: CellState, now_ns: int, p: PcmParameters) -> int:
    """Move the cells that have outgrown their age class; returns the time at which the next one will.

    Oldest class first: a cell that skips classes then lands behind all older cells of its new class.
    """
    for k in range(tile.head.size - 2, -1, -1):
        cell = tile.head[k]
        while cell != NONE and state.pulsed_ns[tile.flat[cell]] + tile.bounds[k + 1] <= now_ns:
            _unlink(tile, cell)
            _append(tile, cell, _class_of(tile, now_ns - state.pulsed_ns[tile.flat[cell]]))
            _recompute(tile, state, cell, p)
            cell = tile.head[k]
    due = np.int64(0x7FFFFFFFFFFFFFFF)
    for k in range(tile.head.size - 1):
        if tile.head[k] != NONE:
            due = min(due, state.pulsed_ns[tile.flat[tile.head[k]]] + tile.bounds[k + 1])
    return due
