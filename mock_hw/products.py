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

TOGETHER = 16
"""Vectors that are multiplied at a time: few enough for their sums to stay in the fastest cache."""

# Sums may be reassociated so that they vectorise; no value is assumed finite.
FAST = {"reassoc", "contract", "nsz"}


@njit(cache=True, fastmath=FAST, error_model="numpy")
def to_code(current: float, step: float, top: int) -> tuple[int, int]:
    """The ADC code of a current (A), and 1 if it met an end of the range."""
    code = np.rint(current / step)
    if code > top:
        return top, 1
    if code < -top:
        return -top, 1
    return np.int64(code), 0  # type: ignore[return-value]


@njit(cache=True)
def _count_reads(codes: Codes, first: int, lines: U16, devices: int, reads: U64) -> None:
    """Add to the counts of the lines the vectors of the batch that drove them: those with a code other than 0."""
    for b in range(codes.shape[0]):
        for i in range(lines.size):
            reads[lines[i]] += np.uint64(codes[b, first + i // devices] != 0)


@njit(inline="always")
def _add_rows(w: F32, s: F32, codes: Codes, volt: float, total: F32, spread: F32) -> None:
    """Currents and their variances of vectors `codes` (n, rows) into `total` and `spread` (n or more, columns); `s` is
    empty without noise. Row by row, so that a row is fetched once for all vectors.
    """
    total[: codes.shape[0]] = 0
    spread[: codes.shape[0]] = 0
    for i in range(w.shape[0]):
        for b in range(codes.shape[0]):
            if codes[b, i] == 0:
                continue
            v = np.float32(codes[b, i] * volt)
            for j in range(w.shape[1]):
                total[b, j] += v * w[i, j]
            for j in range(w.shape[1] if s.size else 0):
                spread[b, j] += v * v * s[i, j]


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
        _count_reads(codes, first, lines[block.first_row : block.first_row + rows], 1, reads[block.array])
        total, spread = np.empty((TOGETHER, columns), np.float32), np.empty((TOGETHER, columns), np.float32)
        for start in range(0, codes.shape[0], TOGETHER):
            part = codes[start : start + TOGETHER, first : first + rows]
            _add_rows(w, s if normals.size else s[:0], part, volt, total, spread)
            for b in range(part.shape[0]):
                for j in range(columns):
                    current = np.float64(total[b, j])
                    if normals.size:
                        current += np.sqrt(spread[b, j]) * normals[(start + b) * out.shape[1] + at + j]
                    out[start + b, at + j], met = to_code(current, step, top)
                    saturated += met
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
        driven = lines[block.first_line : block.first_line + columns * block.devices]
        _count_reads(codes, first, driven, block.devices, reads[block.array])
        v = np.empty(columns, np.float32)
        for b in range(codes.shape[0]):
            for j in range(columns):
                v[j] = codes[b, first + j] * volt
            for i in range(rows):
                total = spread = np.float32(0)
                for j in range(columns):
                    total += v[j] * w[i, j]
                if normals.size:
                    for j in range(columns):
                        spread += v[j] * v[j] * s[i, j]
                current = np.float64(total)
                if normals.size:
                    current += np.sqrt(spread) * normals[b * out.shape[1] + at + i]
                out[b, at + i], met = to_code(current, step, top)
                saturated += met
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
