"""Compiled matrix-vector products of a region, with read noise drawn on the outputs.

The noise of an output is Gaussian with the variance that its cells' read noises add up to: the same distribution as
drawing each cell's, at a fraction of the cost. It is never clamped before the converter.

Each block converts its own outputs. `weight` and `variance` (crossings,) hold the blocks one after the other, and so
does `lines` the numbers of the lines that are driven. `codes` (batch, inputs); `volt` is V per DAC code, `step` A per
ADC code; `out` (batch, outputs) and as many `normals`, flat, or none without read noise. Lines without input cost
nothing; those with input are counted in `reads` (arrays, lines). The number of outputs that met an end of the
converter's range is returned.
"""

import numpy as np
import numpy.typing as npt
from numba import njit

from hil.protocols.messages import Codes

F32 = npt.NDArray[np.float32]
U16 = npt.NDArray[np.uint16]
U64 = npt.NDArray[np.uint64]
Records = npt.NDArray[np.void]

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

TOGETHER = 256
"""Rows that a batch is multiplied with at a time: few enough to stay in a fast cache for all its vectors."""

# Sums may be reassociated so that they vectorise; no value is assumed finite.
FAST = {"reassoc", "contract", "nsz"}


@njit(cache=True, fastmath=FAST, error_model="numpy")
def _convert(current: F32, spread: F32, normals: F32, step: float, top: int, codes: Codes) -> int:
    """ADC codes of currents (outputs,) with noise of variance `spread`; returns how many met an end of the range."""
    saturated = 0
    for j in range(current.size):
        code = current[j] + np.sqrt(spread[j]) * normals[j] if normals.size else current[j]
        code = np.rint(code / np.float32(step))
        saturated += abs(code) > top
        codes[j] = np.int32(min(max(code, np.float32(-top)), np.float32(top)))
    return saturated


@njit(cache=True)
def _count_reads(codes: Codes, lines: U16, devices: int, reads: U64) -> None:
    """Add to the counts of the lines the vectors of `codes` (batch, inputs) that drove them: those other than 0. An
    input drives so many lines.
    """
    for i in range(codes.shape[1]):
        count = 0
        for b in range(codes.shape[0]):
            count += codes[b, i] != 0
        for device in range(devices):
            reads[lines[i * devices + device]] += np.uint64(count)


@njit(inline="always")
def _add_rows(w: F32, s: F32, codes: Codes, volt: float, total: F32, spread: F32) -> None:
    """Currents and their variances of vectors `codes` (batch, rows) into `total` and `spread` (batch, columns); `s` is
    empty without noise. Four driven rows at a time, which spares the sums three of four passes.
    """
    total[:] = 0
    spread[:] = 0
    rows, volts = np.zeros(TOGETHER + 3, np.int64), np.zeros(TOGETHER + 3, np.float32)
    for first in range(0, w.shape[0], TOGETHER):
        for n in range(codes.shape[0]):
            driven = 0
            for i in range(first, min(first + TOGETHER, w.shape[0])):
                rows[driven], volts[driven] = i, codes[n, i] * volt
                driven += int(codes[n, i] != 0)  # not an `if`, which the processor would often guess wrong
            volts[driven : driven + 3] = 0  # the last four are made full
            for k in range(0, driven, 4):
                a, b, c, d = rows[k], rows[k + 1], rows[k + 2], rows[k + 3]
                p, q, r, t = volts[k], volts[k + 1], volts[k + 2], volts[k + 3]
                for j in range(w.shape[1]):
                    total[n, j] += p * w[a, j] + q * w[b, j] + r * w[c, j] + t * w[d, j]
                for j in range(w.shape[1] if s.size else 0):
                    spread[n, j] += p * p * s[a, j] + q * q * s[b, j] + r * r * s[c, j] + t * t * s[d, j]


@njit(cache=True, fastmath=FAST, error_model="numpy")
def forward(
    weight: F32,
    variance: F32,
    blocks: Records,
    lines: U16,
    codes: Codes,
    volt: float,
    normals: F32,
    step: float,
    top: int,
    out: Codes,
    reads: U64,
) -> int:
    """Word lines to bit lines."""
    saturated = at = 0
    for block in blocks:
        rows, columns, first = block.rows, block.columns, block.row_offset
        crossings = slice(block.start, block.start + rows * columns)
        w, s = weight[crossings].reshape(rows, columns), variance[crossings].reshape(rows, columns)
        driven = codes[:, first : first + rows]
        _count_reads(driven, lines[block.first_row : block.first_row + rows], 1, reads[block.array])
        total, spread = np.empty((len(codes), columns), np.float32), np.empty((len(codes), columns), np.float32)
        _add_rows(w, s if normals.size else s[:0], driven, volt, total, spread)
        for b in range(codes.shape[0]):
            normal = normals[b * out.shape[1] + at :][:columns]
            saturated += _convert(total[b], spread[b], normal, step, top, out[b, at : at + columns])
        at += columns
    return saturated


@njit(cache=True, fastmath=FAST, error_model="numpy")
def backward(
    weight: F32,
    variance: F32,
    blocks: Records,
    lines: U16,
    codes: Codes,
    volt: float,
    normals: F32,
    step: float,
    top: int,
    out: Codes,
    reads: U64,
) -> int:
    """Bit lines to word lines."""
    saturated = at = 0
    for block in blocks:
        rows, columns, first = block.rows, block.columns, block.column_offset
        crossings = slice(block.start, block.start + rows * columns)
        w, s = weight[crossings].reshape(rows, columns), variance[crossings].reshape(rows, columns)
        driven = codes[:, first : first + columns]
        bit_lines = lines[block.first_line : block.first_line + columns * block.devices]
        _count_reads(driven, bit_lines, block.devices, reads[block.array])
        v, total, spread = np.empty(columns, np.float32), np.empty(rows, np.float32), np.empty(rows, np.float32)
        for b in range(codes.shape[0]):
            v[:] = driven[b] * np.float32(volt)
            for i in range(rows):
                current = noise = np.float32(0)
                for j in range(columns):
                    current += v[j] * w[i, j]
                    noise += v[j] * v[j] * s[i, j]
                total[i], spread[i] = current, noise
            normal = normals[b * out.shape[1] + at :][:rows]
            saturated += _convert(total, spread, normal, step, top, out[b, at : at + rows])
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
