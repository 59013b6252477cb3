"""Compiled matrix-vector products of a tile, with read noise drawn on the outputs.

The noise of an output is Gaussian with the variance that its cells' read noises add up to: the same distribution as
drawing each cell's, at a fraction of the cost. It is never clamped before the converter.
"""

import numpy as np
import numpy.typing as npt
from numba import njit

from hil.protocols.messages import Codes

F32 = npt.NDArray[np.float32]

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


@njit(cache=True, fastmath=FAST, error_model="numpy")
def forward(
    weight: F32,
    variance: F32,
    codes: Codes,
    first: int,
    volt: float,
    normals: F32,
    step: float,
    top: int,
    out: Codes,
    at: int,
) -> int:
    """Word lines to bit lines; returns how many outputs met an end of the converter's range.

    `codes` (batch, inputs), of which this tile takes (R,) from `first` on; `out` (batch, outputs), of which it gives
    (C,) from `at` on; `volt` is V per DAC code, `step` A per ADC code; `normals` as `out`, or empty without read noise.
    Lines without input cost nothing.
    """
    rows, columns = weight.shape
    total = np.empty(columns, np.float32)
    spread = np.empty(columns, np.float32)
    saturated = 0
    for b in range(codes.shape[0]):
        total[:] = 0
        spread[:] = 0
        for i in range(rows):
            if codes[b, first + i] == 0:
                continue
            v = np.float32(codes[b, first + i] * volt)
            for j in range(columns):
                total[j] += v * weight[i, j]
            if normals.size:
                for j in range(columns):
                    spread[j] += v * v * variance[i, j]
        for j in range(columns):
            current = np.float64(total[j])
            if normals.size:
                current += np.sqrt(spread[j]) * normals[b, at + j]
            out[b, at + j], met = to_code(current, step, top)
            saturated += met
    return saturated


@njit(cache=True, fastmath=FAST, error_model="numpy")
def backward(
    weight: F32,
    variance: F32,
    codes: Codes,
    first: int,
    volt: float,
    normals: F32,
    step: float,
    top: int,
    out: Codes,
    at: int,
) -> int:
    """Bit lines to word lines: takes (C,) from `first` on and gives (R,) from `at` on; otherwise as `forward`."""
    rows, columns = weight.shape
    v = np.empty(columns, np.float32)
    saturated = 0
    for b in range(codes.shape[0]):
        for j in range(columns):
            v[j] = codes[b, first + j] * volt
        for i in range(rows):
            total = np.float32(0)
            spread = np.float32(0)
            for j in range(columns):
                total += v[j] * weight[i, j]
            if normals.size:
                for j in range(columns):
                    spread += v[j] * v[j] * variance[i, j]
            current = np.float64(total)
            if normals.size:
                current += np.sqrt(spread) * normals[b, at + i]
            out[b, at + i], met = to_code(current, step, top)
            saturated += met
    return saturated


@njit(cache=True)
def count_reads(codes: Codes, first: int, lines: npt.NDArray[np.uint16], reads: npt.NDArray[np.uint64]) -> None:
    """Add to each driven line's count the vectors of the batch that drove it: those with a code other than 0."""
    for b in range(codes.shape[0]):
        for i in range(lines.size):
            reads[lines[i]] += codes[b, first + i] != 0


@njit(cache=True)
def largest(codes: Codes) -> int:
    """The largest magnitude among integer codes."""
    top = 0
    for b in range(codes.shape[0]):
        for i in range(codes.shape[1]):
            top = max(top, int(abs(np.int64(codes[b, i]))))
    return top
