"""What pulses do to PCM cells: pure steps, and the compiled loops that apply them to batches of cells.

The formulas (from `set_step` to `worn_level`) take scalars, all but the last arrays as well, and the model's constants
as a record (see `records.constants`). The loops go over cells in order, so that a cell that occurs twice is pulsed
twice. They are in the file of the formulas that they call, because the compiler's cache on disk follows changes of the
caller's file only.
"""

from typing import Any

import numpy as np
from numba import njit

from hil.mock_hw.hashes import hashed, normal_of
from hil.mock_hw.records import F32, I64, U16, Records, counted

STUCK_HIGH = 0.8
"""Conductance of a cell stuck in the SET state over `g_max`. CHOSEN."""


@njit(cache=True)
def set_step(g: Any, pulses: Any, step_scale: Any, normal: Any, p: Any) -> Any:
    """Conductance (S) after one SET pulse on undrifted `g`: the `pulses`-th since the RESET, counted from 1.

    The memory of the RESET, P = exp(-pulses / memory), has decayed before the step is computed. `normal` is standard
    normal, or 0 for the mean. Source: Nandakumar 2018, and for steps that decay with `g` aihwkit's ExpStepDevice. Not
    yet limited to the conductance range.
    """
    memory = np.exp(-pulses / p.memory)
    mean = p.mean_slope * g + p.mean_offset + p.mean_memory * memory
    if p.mean_decaying:  # spares an exponential
        mean = mean + p.mean_decaying * np.exp(-g / p.decay)
    step = step_scale * mean
    spread = p.spread_slope * g + p.spread_offset + p.spread_memory * memory + p.spread_step * np.abs(step)
    return g + step + normal * spread


@njit(cache=True)
def target(pulses: Any, p: Any) -> Any:
    """Conductance (S) that program-and-verify aims at after so many SET pulses since the RESET."""
    return np.minimum(pulses * p.mean_offset, p.g_max)


@njit(cache=True)
def verified_level(aim: Any, normal: Any, p: Any) -> Any:
    """Conductance (S) at which program-and-verify stops that aims at `aim` (S). Never negative. Source: Joshi 2020."""
    x = aim / p.g_max
    spread = p.programming_constant + p.programming_linear * x + p.programming_square * x * x
    return np.maximum(aim + normal * p.g_max * spread, 0.0)


@njit(cache=True)
def exponent(aim: Any, normal: Any, p: Any) -> Any:
    """Drift exponent of a cell that was programmed to `aim` (S); 0 without drift. Source: Joshi 2020."""
    log = np.log(np.maximum(aim / p.g_max, p.target_floor))
    mean = np.minimum(np.maximum(p.nu_mean_slope * log + p.nu_mean_offset, p.nu_mean_min), p.nu_mean_max)
    spread = np.minimum(np.maximum(p.nu_spread_slope * log + p.nu_spread_offset, p.nu_spread_min), p.nu_spread_max)
    return np.abs(mean + normal * spread) * p.drift


@njit(cache=True)
def reset_level(normal: Any, p: Any) -> Any:
    """Conductance (S) after a RESET pulse; `normal` is standard normal, or 0 for the mean. Never negative."""
    return np.maximum(p.reset_mean + normal * p.reset_spread, 0.0)


@njit(cache=True)
def worn_level(place: int, resets: int, p: Any) -> float:
    """Conductance (S) in which so many RESET pulses have left a cell stuck, or -1 while it works.

    Half of those that fail are open, half SET for ever. RECALLED: voids leave cells open, segregation leaves them SET.
    """
    state = hashed(hashed(p.key, place), -1)  # a number that no time is
    if p.endurance == 0 or resets <= p.endurance * np.exp(p.endurance_spread * normal_of(state)):
        return -1.0
    return p.g_min if hashed(state, 0) & np.uint64(1) else STUCK_HIGH * p.g_max  # type: ignore[no-any-return]


@njit(cache=True)
def total_of(counts: U16) -> int:
    """How many pulses there are."""
    total = 0
    for count in counts:
        total += count
    return total


@njit(cache=True)
def count_set(cells: Records, carries: Records, place: int, pulses: int) -> None:
    """Count so many SET pulses more on a cell."""
    cell = cells[place]
    cell.set_count, carry = counted(cell.set_count, pulses)
    if carry:
        carries[place].set_count += carry


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
        count_set(cells, carries, flat[i], counts[i])
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
    """Send `counts[i]` RESET pulses to cell `flat[i]`; only the last one decides where it ends, if it survives. One
    normal per entry, or none.
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
        if p.endurance:
            level = worn_level(flat[i], cell.reset_count + 256 * np.int64(carries[flat[i]].reset_count), p)
            if level >= 0:
                cell.conductance, cell.stuck = level, True


@njit(cache=True)
def apply_targets(
    cells: Records, carries: Records, flat: I64, counts: U16, now_ns: int, normals: F32, parameters: Records
) -> int:
    """Raise the target of cell `flat[i]` by `counts[i]` SET pulses, and program and verify it; returns how many pulses
    met the end of the conductance range. One normal per entry, or none.
    """
    p = parameters[0]
    most, saturated = np.int64(p.g_max / p.mean_offset + 1e-6), 0
    for i in range(flat.size):
        cell = cells[flat[i]]
        count_set(cells, carries, flat[i], counts[i])
        if cell.stuck:
            continue
        before, n = np.int64(cell.since_reset), np.int64(cell.since_reset) + np.int64(counts[i])
        saturated += max(n - max(before, most), 0)  # type: ignore[operator]
        cell.conductance = verified_level(target(n, p), np.float64(normals[i]) if normals.size else 0.0, p)
        cell.since_reset = min(n, 65535)
        cell.pulsed_ns = now_ns
    return saturated


@njit(cache=True)
def draw_exponents(cells: Records, nu: F32, flat: I64, normals: F32, parameters: Records) -> None:
    """New drift exponents of cells that were just programmed, of one normal per entry."""
    p = parameters[0]
    for i in range(flat.size):
        if not cells[flat[i]].stuck:
            nu[flat[i]] = exponent(target(cells[flat[i]].since_reset, p), np.float64(normals[i]), p)
