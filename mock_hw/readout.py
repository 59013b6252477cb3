"""What reads and products see of PCM cells: pure formulas, and the compiled loops that apply them.

The formulas (from `drift_factor` to `next_change`) take scalars, the first two arrays as well, and the model's
constants as a record (see `records.constants`). All loops that call them are in this file, because the compiler's
cache on disk follows changes of the caller's file only.

Flicker is a sum of components of equal variance: a white one, new at each read, and one for each time TAU, 4 TAU, 16
TAU and so on up to the age of the cell, which is drawn anew whenever that time has passed again. Together their
spectrum is 1/f, and their variance grows with the logarithm of the age. Their values are hashes of the chip's key, the
cell, its last pulse and the time, so that they need no memory. In products, components from SLOW on are part of the
weight; the faster ones are white noise of the same variance, drawn on the outputs.

A matrix keeps the weight and the noise variance of its crossings ready for products. All devices of a class of ages
drift by the factor of its middle age. A group of crossings knows when the first of its devices will outgrow its class,
and a word line when the first of its groups is due: a product looks at what is due on the word lines that it drives.

The noise of an output of a product is Gaussian with the variance that its cells' read noises add up to: the same
distribution as drawing each cell's, at a fraction of the cost. It is never clamped before the converter.
"""

from typing import Any

import numpy as np
from numba import njit

from hil.mock_hw.hashes import hashed, normal_of
from hil.mock_hw.records import F32, I64, U16, U64, Records, counted
from hil.protocols.messages import Codes

Crossings = tuple[F32, F32, I64, I64, Records, Records, Records, U16, U64, Records, F32, Records]
"""What products of a matrix work on: weight and variance (crossings,), due (word lines, 1 + groups) in ns, `lookup` and
age classes (AGE_CLASS), word lines (WORD_LINE), blocks (BLOCK), the bit lines of the devices of each block, counted
reads of the driven lines (arrays, lines), the chip's cells (CELL), its drift exponents (one or one per cell), and the
model's constants.

A word line is due when the first of its groups is; `lookup` (64,) has for each exponent of 2 the age class from which
to look for an age of that size (ns).
"""

NEVER = np.iinfo(np.int64).max // 2
GROUP = 4  # crossings of a word line that are due together
TOGETHER = 256
"""Rows that a batch is multiplied with at a time: few enough to stay in a fast cache for all its vectors."""
TAU = 1000  # ns, the time after which the fastest component of flicker is drawn anew; CHOSEN: that of a read
RATIO = 4  # of these times from one component to the next; CHOSEN
SLOW = TAU * RATIO**12  # ns (16.8 s): of the components that are part of a weight

# Sums may be reassociated so that they vectorise; no value is assumed finite.
FAST = {"reassoc", "contract", "nsz"}


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


@njit(inline="always")
def class_of(age_ns: int, lookup: I64, classes: Records) -> int:
    """The number of ends of age classes that an age (ns) has reached."""
    k = lookup[(np.float64(max(age_ns, 1)).view(np.int64) >> 52) - 1023]  # by the exponent of the float
    while age_ns >= classes[k].end:
        k += 1
    return k  # type: ignore[no-any-return]


@njit(cache=True)
def age(
    weight: F32,
    variance: F32,
    due: I64,
    lookup: I64,
    classes: Records,
    word_lines: Records,
    lines: U16,
    cells: Records,
    nu: F32,
    parameters: Records,
    r: int,
    now_ns: int,
) -> None:
    """Bring what is due on word line `r` to device time `now_ns`: weights and variances, and when they are due next."""
    line, p = word_lines[r], parameters[0]
    earliest = np.int64(NEVER)
    for group in range(1, due.shape[1]):
        if now_ns >= due[r, group]:
            first, next_due = GROUP * (group - 1), np.int64(NEVER)
            for j in range(first, min(first + GROUP, line.columns)):
                total = spread = 0.0
                for device in range(line.devices):
                    flat = line.base + lines[line.lines + line.devices * j + device]
                    cell = cells[flat]
                    age_ns = now_ns - cell.pulsed_ns
                    ages = classes[class_of(age_ns, lookup, classes)]
                    next_due = min(next_due, cell.pulsed_ns + ages.end)
                    g = np.float64(cell.conductance)
                    g *= ages.factor if nu.size == 1 else drift_factor(ages.middle, np.float64(nu[flat]), p)
                    deviation = read_spread(g, np.float64(cell.conductance), ages.middle, p)
                    white = 1
                    if p.flicker and p.read_noise:
                        next_due = min(next_due, cell.pulsed_ns + next_change(age_ns))
                        deviation = component_spread(deviation, age_ns, p)
                        g += deviation * flicker(flat, cell.pulsed_ns, age_ns, SLOW, p)
                        white = components(min(age_ns, SLOW - 1))
                    total += -g if device else g
                    spread += white * deviation**2
                weight[line.start + j] = total
                variance[line.start + j] = spread
            due[r, group] = next_due
        earliest = min(earliest, due[r, group])
    due[r, 0] = earliest


@njit(inline="always")
def drive(codes: Codes, n: int, offset: int, first: int, stop: int, volt: float, rows: I64, volts: F32) -> int:
    """Write which of a block's word lines from `first` to before `stop` vector `n` drives, and their voltages; returns
    how many. `offset` is the block's first input.
    """
    driven = 0
    for i in range(first, stop):
        code = codes[n, offset + i]
        rows[driven], volts[driven] = i, code * volt
        driven += int(code != 0)  # not an `if`, which the processor would often guess wrong
    for k in range(driven, driven + 3):  # the last four are made full
        rows[k], volts[k] = 0, 0
    return driven


@njit(inline="always")
def add_lines(w: F32, s: F32, rows: I64, volts: F32, driven: int, noisy: bool, n: int, total: F32, spread: F32) -> None:
    """Add the currents of driven word lines, and their variances, to row `n` of `total` and `spread`: four lines
    together, which spares the sums three of four passes.
    """
    for k in range(0, driven, 4):
        a, b, c, d = rows[k], rows[k + 1], rows[k + 2], rows[k + 3]
        p, q, r, t = volts[k], volts[k + 1], volts[k + 2], volts[k + 3]
        for j in range(w.shape[1]):
            total[n, j] += p * w[a, j] + q * w[b, j] + r * w[c, j] + t * w[d, j]
        for j in range(w.shape[1] if noisy else 0):
            spread[n, j] += p * p * s[a, j] + q * q * s[b, j] + r * r * s[c, j] + t * t * s[d, j]


@njit(inline="always")
def convert(
    current: F32, spread: F32, k: int, normals: F32, drawn: int, step: float, top: int, out: Codes, n: int, at: int
) -> int:
    """ADC codes of row `k` of the currents with noise of variance `spread`, to row `n` of `out` from column `at` on;
    returns how many met an end of the range. The normals from `drawn` on belong to them, unless there are none.
    """
    saturated = 0
    for j in range(current.shape[1]):
        code = current[k, j] + np.sqrt(spread[k, j]) * normals[drawn + j] if normals.size else current[k, j]
        code = np.rint(code / np.float32(step))
        saturated += abs(code) > top
        out[n, at + j] = np.int32(min(max(code, np.float32(-top)), np.float32(top)))
    return saturated


@njit(cache=True, fastmath=FAST, error_model="numpy")
def forward(
    crossings: Crossings, codes: Codes, now_ns: int, normals: F32, volt: float, step: float, top: int, out: Codes
) -> int:
    """Product at device time `now_ns` of a batch of DAC codes (batch, inputs), which drive word lines, to ADC codes
    `out` (batch, outputs) of bit lines, block beside block; returns how many met an end of the converter's range.

    `volt` is V per DAC code, `step` A per ADC code, `normals` one per output, flat, or none without read noise. Lines
    without input cost nothing; the others are counted, and their drift is followed.
    """
    weight, variance, due, lookup, classes, word_lines, blocks, lines, reads, cells, nu, parameters = crossings
    rows, volts = np.empty(TOGETHER + 3, np.int64), np.empty(TOGETHER + 3, np.float32)
    saturated = at = 0
    for b in range(blocks.size):
        block = blocks[b]
        columns, crossed = block.columns, slice(block.start, block.start + block.rows * block.columns)
        w, s = weight[crossed].reshape(block.rows, columns), variance[crossed].reshape(block.rows, columns)
        total, spread = np.zeros((len(codes), columns), np.float32), np.zeros((len(codes), columns), np.float32)
        for first in range(0, block.rows, TOGETHER):
            stop = min(first + TOGETHER, block.rows)
            for n in range(len(codes)):
                driven = drive(codes, n, block.row_offset, first, stop, volt, rows, volts)
                for k in range(driven):
                    r = block.first_row + rows[k]
                    reads[block.array, word_lines[r].number] += np.uint64(1)
                    if now_ns >= due[r, 0]:
                        age(weight, variance, due, lookup, classes, word_lines, lines, cells, nu, parameters, r, now_ns)
                add_lines(w, s, rows, volts, driven, normals.size > 0, n, total, spread)
        for n in range(len(codes)):
            saturated += convert(total, spread, n, normals, n * out.shape[1] + at, step, top, out, n, at)
        at += columns
    return saturated


@njit(cache=True, fastmath=FAST, error_model="numpy")
def backward(
    crossings: Crossings, codes: Codes, now_ns: int, normals: F32, volt: float, step: float, top: int, out: Codes
) -> int:
    """As `forward`, from bit lines, all devices of an input being driven, to word lines."""
    weight, variance, due, lookup, classes, word_lines, blocks, lines, reads, cells, nu, parameters = crossings
    saturated = at = 0
    for b in range(blocks.size):
        block = blocks[b]
        rows, columns = block.rows, block.columns
        crossed = slice(block.start, block.start + rows * columns)
        w, s = weight[crossed].reshape(rows, columns), variance[crossed].reshape(rows, columns)
        for r in range(block.first_row, block.first_row + rows):
            if now_ns >= due[r, 0]:
                age(weight, variance, due, lookup, classes, word_lines, lines, cells, nu, parameters, r, now_ns)
        v = np.empty(columns, np.float32)
        total, spread = np.empty((1, rows), np.float32), np.empty((1, rows), np.float32)
        for n in range(len(codes)):
            for j in range(columns):
                code = codes[n, block.column_offset + j]
                v[j] = code * np.float32(volt)
                for device in range(block.devices if code else 0):
                    reads[block.array, lines[block.first_line + j * block.devices + device]] += np.uint64(1)
            for i in range(rows):
                current = noise = np.float32(0)
                for j in range(columns):
                    current += v[j] * w[i, j]
                    noise += v[j] * v[j] * s[i, j]
                total[0, i], spread[0, i] = current, noise
            saturated += convert(total, spread, 0, normals, n * out.shape[1] + at, step, top, out, n, at)
        at += rows
    return saturated


@njit(cache=True)
def largest(codes: Codes) -> int:
    """The largest magnitude among integer codes."""
    top = 0
    for b in range(codes.shape[0]):
        for i in range(codes.shape[1]):
            top = max(top, int(abs(np.int64(codes[b, i]))))
    return top
