"""PCM device physics: pure steps, and the compiled loops that apply them to batches of cells.

The formulas (from `set_step` to `read_spread`) take scalars or arrays, and the model's constants as a record (see
`records.constants`). The loops go over cells in order, so that a cell that occurs twice is pulsed twice. All compiled
code that calls a formula is here, because the compiler's cache on disk follows changes of the caller's file only.

A matrix keeps the weight and the noise variance of its crossings ready for products. All devices of a class of ages
drift by the factor of its middle age. A group of crossings knows when the first of its devices will outgrow its class,
and a word line when the first of its groups is due: what is not due is not looked at.

Flicker is a sum of components of equal variance: a white one, new at each read, and one for each time TAU, 4 TAU, 16
TAU and so on up to the age of the cell, which is drawn anew whenever that time has passed again. Together their
spectrum is 1/f, and their variance grows with the logarithm of the age. Their values are hashes of the chip's key, the
cell, its last pulse and the time, so that they need no memory. In products, components from SLOW on are part of the
weight; the faster ones are white noise of the same variance, drawn on the outputs.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from hil.mock_hw.records import CELL as CELL
from hil.mock_hw.records import Records
from hil.protocols.messages import Codes

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
U16 = npt.NDArray[np.uint16]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]

AgeClasses = tuple[I64, I64, F64, F64]
"""For each exponent of 2 the class from which to look for an age of that size (ns). Of each class: the first age beyond
it (ns), the age that stands for it (s), and the drift factor at that age where all cells have the same exponent."""
Crossings = tuple[F32, F32, AgeClasses, Records, U16, Records, F32]
"""A matrix: weight and variance (crossings,), age classes, word lines (WORD_LINE), the bit lines of the devices of each
block, the chip's cells (CELL) and drift exponents."""

NEVER = np.iinfo(np.int64).max // 2
GROUP = 4  # crossings of a word line that are due together
STUCK_HIGH = 0.8
"""Conductance of a cell stuck in the SET state over `g_max`. CHOSEN."""
TAU = 1000  # ns, the time after which the fastest component of flicker is drawn anew; CHOSEN: that of a read
RATIO = 4  # of these times from one component to the next; CHOSEN
SLOW = TAU * RATIO**12  # ns (16.8 s): of the components that are part of a weight
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


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
def drift_factor(age: Any, nu: Any, p: Any) -> Any:
    """What drift has made of the conductance at `age` (s) after the last pulse: (max(age, t_min) / t0)^-nu. Source:
    Nandakumar 2018.
    """
    return (np.maximum(age, p.t_min) / p.t0) ** -nu


@njit(cache=True)
def read_spread(g: Any, programmed: Any, age: Any, p: Any) -> Any:
    """Standard deviation (S) of one read of a cell whose drifted conductance is `g` (S) at `age` (s) after the last
    pulse, which left it `programmed` (S). Sources: Nandakumar 2018; with `inference`, Joshi 2020.
    """
    if p.inference:
        strength = p.read_scale / np.maximum((programmed / p.g_max) ** p.read_power, p.read_power_floor)
        growth = np.log(np.maximum((age + p.t_read) / (2 * p.t_read), 1.0))
        return g * np.minimum(strength, p.read_max) * np.sqrt(growth)
    return p.read_slope * g + p.read_offset


@njit(cache=True)
def hashed(state: Any, number: Any) -> Any:
    """64 bits that follow from 64 bits and a number: SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    x = state + GOLDEN * (np.uint64(number) + np.uint64(1))
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@njit(cache=True)
def normal_of(bits: Any) -> Any:
    """A standard normal made of 64 bits, by Box and Muller's method."""
    u, v = np.float64(bits >> np.uint64(32)) + 0.5, np.float64(bits & np.uint64(0xFFFFFFFF))
    return np.sqrt(-2 * np.log(u * 2.0**-32)) * np.cos(2 * np.pi * 2.0**-32 * v)


@njit(cache=True)
def components(age_ns: int) -> int:
    """How many components flicker has at this age, with the white one."""
    count, tau = 1, TAU
    while tau <= age_ns:
        count += 1
        tau *= RATIO
    return count


@njit(cache=True)
def component_spread(spread: float, age_ns: int, p: Any) -> float:
    """Standard deviation of each component, where all have `spread`: in the 2018 model at `t0`, else at this age."""
    return spread / np.sqrt(components(age_ns if p.inference else int(p.t0 * 1e9)))  # type: ignore[no-any-return]


@njit(cache=True)
def flicker(place: int, pulsed_ns: int, age_ns: int, fastest: int, p: Any) -> float:
    """Sum of a cell's components from that of the time `fastest` (ns) on, each with a standard deviation of 1."""
    state, total, tau = hashed(hashed(p.key, place), pulsed_ns), 0.0, fastest
    while tau <= age_ns:
        total += normal_of(hashed(hashed(state, tau), age_ns // tau))
        tau *= RATIO
    return total


@njit(cache=True)
def next_change(age_ns: int) -> int:
    """The age (ns) at which the flicker of a weight, or the number of its components, changes next."""
    if age_ns >= SLOW:
        return (age_ns // SLOW + 1) * SLOW
    tau = TAU
    while tau <= age_ns:
        tau *= RATIO
    return tau


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
        cell.set_count, carry = counted(cell.set_count, counts[i])
        if carry:
            carries[flat[i]].set_count += carry
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
        g, age_ns = np.float64(cell.conductance), now_ns - cell.pulsed_ns
        if p.drift:
            g *= drift_factor(age_ns * 1e-9, np.float64(nu[flat[i] if nu.size > 1 else 0]), p)
        if normals.size:
            noise, spread = np.float64(normals[i]), read_spread(g, np.float64(cell.conductance), age_ns * 1e-9, p)
            if p.flicker:
                noise += flicker(flat[i], cell.pulsed_ns, age_ns, TAU, p)
                spread = component_spread(spread, age_ns, p)
            g += noise * spread
        code = np.rint(g / step) + offset
        if code < 0.0 or code > top:
            saturated += 1
            code = min(max(code, 0.0), np.float64(top))
        codes[i] = np.int64(code)
    return saturated


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


@njit(inline="always")
def class_of(age_ns: int, starts: I64, ends: I64) -> int:
    """The number of ends that an age (ns) has reached."""
    k = starts[(np.float64(max(age_ns, 1)).view(np.int64) >> 52) - 1023]  # by the exponent of the float
    while age_ns >= ends[k]:
        k += 1
    return k  # type: ignore[no-any-return]


@njit(cache=True)
def _age_group(crossings: Crossings, devices: int, r: int, group: int, now_ns: int, parameters: Records) -> int:
    """Weights and variances of a group of crossings on word line `r`; returns when the first of its devices will
    outgrow its class, or its flicker change.
    """
    weight, variance, (starts, ends, middles, factors), word_lines, lines, cells, nu = crossings
    line, p = word_lines[r], parameters[0]
    due = np.int64(NEVER)
    for j in range(GROUP * group, min(GROUP * (group + 1), line.columns)):
        total = spread = 0.0
        for device in range(devices):
            flat = line.base + lines[line.lines + devices * j + device]
            cell = cells[flat]
            age_ns = now_ns - cell.pulsed_ns
            k = class_of(age_ns, starts, ends)
            due = min(due, cell.pulsed_ns + ends[k])
            g = np.float64(cell.conductance)
            g *= factors[k] if nu.size == 1 else drift_factor(middles[k], np.float64(nu[flat]), p)
            deviation = read_spread(g, np.float64(cell.conductance), middles[k], p)
            white = 1
            if p.flicker and p.read_noise:
                due = min(due, cell.pulsed_ns + next_change(age_ns))
                deviation = component_spread(deviation, age_ns, p)
                g += deviation * flicker(flat, cell.pulsed_ns, age_ns, SLOW, p)
                white = components(min(age_ns, SLOW - 1))
            total += -g if device else g
            spread += white * deviation**2
        weight[line.start + j] = total
        variance[line.start + j] = spread
    return due  # type: ignore[return-value]
