"""Compiled loops of the host: DAC scaling, products with weights read from cells, and the accumulator chi."""

import numpy as np
import numpy.typing as npt
from numba import njit

from hil.protocols.messages import Codes

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]

# Sums may be reassociated so that they vectorise; NaN and infinity keep their meaning.
FAST = {"reassoc", "contract", "nsz"}
NOT_FINITE = -1


@njit(cache=True)
def quantise(x: F32, top: int, codes: Codes, scale: F32, twice: bool) -> bool:
    """Scale each vector of `x` (batch, lines) by its largest magnitude to codes of +-`top`; `scale` (batch,) is what
    one code stands for.

    With `twice`, each value goes to two lines with opposite signs: `codes` (batch, 2 * lines). False if a value is not
    finite.
    """
    for b in range(x.shape[0]):
        peak = np.float32(0)
        for i in range(x.shape[1]):
            magnitude = abs(x[b, i])
            if not magnitude < np.inf:
                return False
            peak = max(peak, magnitude)
        scale[b] = peak / top if peak > 0 else np.float32(1)
        for i in range(x.shape[1]):
            code = np.int64(np.rint(x[b, i] / scale[b]))
            if twice:
                codes[b, 2 * i] = code
                codes[b, 2 * i + 1] = -code
            else:
                codes[b, i] = code
    return True


@njit(cache=True)
def combine(codes: Codes, places: I64, pairwise: bool, factor: float, scale: F32, out: F32) -> None:
    """Add the outputs of a region's blocks digitally: `out` (batch, columns) in host units.

    `places` (blocks, 2) holds each block's first output and number of outputs. With `pairwise`, neighbouring codes are
    a pair's two lines.
    """
    width = 2 if pairwise else 1
    for b in range(codes.shape[0]):
        out[b, :] = 0
        at = 0
        for n in range(places.shape[0]):
            first, count = places[n]
            for j in range(count):
                value = np.float32(codes[b, at + width * j])
                if pairwise:
                    value -= np.float32(codes[b, at + width * j + 1])
                out[b, first + j] += value
            at += width * count
        for j in range(out.shape[1]):
            out[b, j] *= factor * scale[b]


@njit(cache=True, fastmath=FAST)
def product(x: F32, weight: F32, out: F32) -> None:
    """`out` (batch, columns) = `x` (batch, rows) times `weight` (rows, columns); rows without input cost nothing."""
    for b in range(x.shape[0]):
        out[b, :] = 0
        for i in range(weight.shape[0]):
            if x[b, i] == 0:
                continue
            for j in range(weight.shape[1]):
                out[b, j] += x[b, i] * weight[i, j]


@njit(cache=True, fastmath=FAST)
def transposed_product(delta: F32, weight: F32, out: F32) -> None:
    """`out` (batch, rows) = `delta` (batch, columns) times the transpose of `weight` (rows, columns)."""
    for b in range(delta.shape[0]):
        for i in range(weight.shape[0]):
            total = np.float32(0)
            for j in range(weight.shape[1]):
                total += delta[b, j] * weight[i, j]
            out[b, i] = total


@njit(cache=True)
def all_finite(values: F32) -> bool:
    """Whether all values (batch, lines) are finite."""
    for b in range(values.shape[0]):
        for i in range(values.shape[1]):
            if not abs(values[b, i]) < np.inf:
                return False
    return True


@njit(cache=True, fastmath=FAST)
def largest(values: F32) -> np.float32:
    """The largest magnitude among values (n,)."""
    peak = np.float32(0)
    for j in range(values.size):
        peak = max(peak, abs(values[j]))
    return peak


@njit(cache=True, fastmath=FAST)
def accumulate(
    chi: F32, x: F32, delta: F32, rate: float, granularity: float, most: int, index: I32, pulses: I32
) -> int:
    """One step of mixed-precision SGD on `chi` (rows, columns), in place; returns the number of weights to be pulsed,
    or NOT_FINITE.

    chi -= rate * sum over the batch of x (batch, rows) outer delta (batch, columns); where |chi| has reached the
    granularity, p = trunc(chi / granularity), at most `most` pulses of either sign, is taken off chi, and the weight's
    place and p are written to `index` and `pulses`. Rows without input cost nothing. Source: Nandakumar 2020.
    """
    columns = chi.shape[1]
    count = 0
    if not all_finite(delta):
        return NOT_FINITE
    for i in range(chi.shape[0]):
        touched = False
        for b in range(x.shape[0]):
            if x[b, i] == 0:
                continue
            touched = True
            step = np.float32(rate * x[b, i])
            for j in range(columns):
                chi[i, j] -= step * delta[b, j]
        if not touched:
            continue
        if largest(chi[i]) < granularity:
            continue
        for j in range(columns):
            ratio = chi[i, j] / granularity
            if abs(ratio) >= 1:
                p = np.trunc(min(max(ratio, -most), most))
                chi[i, j] -= p * granularity
                index[count] = i * columns + j
                pulses[count] = np.int32(p)
                count += 1
    return count
