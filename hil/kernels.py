"""Compiled loops of the host: DAC scaling, products with weights read from cells, the accumulator chi, addresses.

Weights (rows, columns) have the bias as their last row, whose input is always 1: vectors x (batch, rows - 1) leave it
out, and no gradient is asked for it.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from hil.protocols.messages import Codes

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
U16 = npt.NDArray[np.uint16]
Bools = npt.NDArray[np.bool_]
Index = npt.NDArray[np.integer[Any]]

VECTOR, MATRIX = np.empty(1, np.float32), np.empty((1, 1), np.float32)
"""What floats look like to the compiler: see `hil.mock_hw.compiled`."""

# Sums may be reassociated so that they vectorise; NaN and infinity keep their meaning.
FAST = {"reassoc", "contract", "nsz"}
NOT_FINITE = -1
LARGE_BATCH = 8  # images from which on `descend_in_fours` is quicker: measured
MAGNITUDE = np.int32(0x7FFFFFFF)  # all bits of a float but its sign


@njit(cache=True)
def largest(values: F32) -> np.float32:
    """The largest magnitude among values (n,); NaN or infinity where one is not finite.

    Magnitudes are ordered as their bits are, NaN last, and a maximum of integers vectorises.
    """
    peak = np.int32(0)
    for j in range(values.size):
        magnitude = np.float32(values[j]).view(np.int32) & MAGNITUDE
        if magnitude > peak:
            peak = magnitude
    return np.int32(peak).view(np.float32)


@njit(cache=True)
def all_finite(values: F32) -> bool:
    """Whether all values (batch, lines) are finite."""
    finite = True
    for b in range(values.shape[0]):
        for i in range(values.shape[1]):
            finite &= abs(values[b, i]) < np.inf
    return finite


@njit(cache=True)
def quantise_inputs(x: F32, top: int, codes: Codes, scale: F32) -> bool:
    """Scale each vector of `x` (batch, rows - 1) and its bias input by the largest magnitude to codes (batch, rows) of
    +-`top`; `scale` (batch,) is what one code stands for. False if a value is not finite.
    """
    features = x.shape[1]
    if codes.shape[1] != features + 1:
        raise ValueError("the vectors do not fit the weights")
    for b in range(x.shape[0]):
        peak = largest(x[b])
        if not peak < np.inf:
            return False
        unit = np.float32(max(peak, np.float32(1)) / top)
        for i in range(features):
            codes[b, i] = np.int32(np.rint(x[b, i] / unit))
        codes[b, features] = np.int32(np.rint(np.float32(1) / unit))
        scale[b] = unit
    return True


@njit(cache=True)
def quantise_deltas(delta: F32, top: int, codes: Codes, scale: F32) -> bool:
    """As `quantise_inputs` for `delta` (batch, columns), without a bias.

    Where there are twice as many codes, each value goes to two lines with opposite signs: `codes` (batch, 2 * columns).
    """
    columns = delta.shape[1]
    twice = codes.shape[1] == 2 * columns
    if codes.shape[1] != columns and not twice:
        raise ValueError("the vectors do not fit the weights")
    for b in range(delta.shape[0]):
        peak = largest(delta[b])
        if not peak < np.inf:
            return False
        unit = np.float32(peak / top) if peak > 0 else np.float32(1)
        for j in range(columns):
            code = np.int32(np.rint(delta[b, j] / unit))
            if twice:
                codes[b, 2 * j] = code
                codes[b, 2 * j + 1] = -code
            else:
                codes[b, j] = code
        scale[b] = unit
    return True


@njit(cache=True)
def combine(codes: Codes, places: I64, pairwise: bool, factor: float, scale: F32, out: F32) -> None:
    """Add the outputs of a region's blocks digitally: `out` (batch, outputs) in host units.

    `places` (blocks, 2) holds each block's first output and number of outputs; those beyond `out` (the bias row, going
    back) are left out. With `pairwise`, neighbouring codes are a pair's two lines.
    """
    for b in range(codes.shape[0]):
        out[b, :] = 0
        at = 0
        for n in range(places.shape[0]):
            first, count = places[n]
            part = out[b, first : first + count]
            if pairwise:
                for j in range(part.size):
                    part[j] += np.float32(codes[b, at + 2 * j]) - np.float32(codes[b, at + 2 * j + 1])
                count *= 2
            else:  # a loop of its own, which vectorises
                for j in range(part.size):
                    part[j] += np.float32(codes[b, at + j])
            at += count
        unit = factor * scale[b]
        for j in range(out.shape[1]):
            out[b, j] *= unit


@njit(cache=True, fastmath=FAST)
def product(x: F32, weight: F32, out: F32) -> None:
    """`out` (batch, columns) = x and its bias input times `weight`; rows without input cost nothing."""
    features = x.shape[1]
    if weight.shape != (features + 1, out.shape[1]):
        raise ValueError("the vectors do not fit the weights")
    for b in range(x.shape[0]):
        out[b, :] = 0
        for i in range(features):
            value = x[b, i]
            if value == 0:
                continue
            for j in range(weight.shape[1]):
                out[b, j] += value * weight[i, j]
        for j in range(weight.shape[1]):
            out[b, j] += weight[features, j]


@njit(cache=True, fastmath=FAST)
def transposed_product(delta: F32, weight: F32, out: F32) -> None:
    """`out` (batch, rows - 1) = `delta` (batch, columns) times the transpose of `weight` without the bias."""
    if weight.shape != (out.shape[1] + 1, delta.shape[1]):
        raise ValueError("the vectors do not fit the weights")
    for b in range(delta.shape[0]):
        for i in range(out.shape[1]):
            total = np.float32(0)
            for j in range(weight.shape[1]):
                total += delta[b, j] * weight[i, j]
            out[b, i] = total


@njit(cache=True, fastmath=FAST)
def descend(
    chi: F32, x: F32, delta: F32, first: int, end: int, rate: float, threshold: np.float32, crossed: Bools
) -> None:
    """chi[i] -= rate * sum over the batch of x[:, i] delta, for rows i from `first` to before `end`; `crossed`
    (rows,) says where a |chi| has reached the threshold.
    """
    rows, steps = np.empty(end - first + 1, np.int64), np.empty(end - first + 1, np.float32)
    for b in range(x.shape[0]):
        active = 0
        for i in range(first, min(end, x.shape[1])):
            rows[active], steps[active] = i, rate * x[b, i]
            active += x[b, i] != 0  # not an `if`, which the processor would often guess wrong
        if end > x.shape[1]:
            rows[active], steps[active] = end - 1, rate
            active += 1
        for k in range(active):
            i, step, reached = rows[k], steps[k], False
            for j in range(chi.shape[1]):
                rest = chi[i, j] - step * delta[b, j]
                chi[i, j] = rest
                reached |= abs(rest) >= threshold
            crossed[i] = reached


@njit(cache=True, fastmath=FAST)
def descend_in_fours(
    chi: F32, x: F32, delta: F32, first: int, end: int, rate: float, threshold: np.float32, crossed: Bools
) -> None:
    """As `descend`, in half the time where the batch is large: it passes over chi once for four images."""
    images, steps = np.zeros(len(x) + 3, np.int64), np.zeros(len(x) + 3, np.float32)
    for i in range(first, end):
        active = 0
        for b in range(x.shape[0]):
            value = x[b, i] if i < x.shape[1] else np.float32(1)
            images[active], steps[active] = b, rate * value
            active += value != 0  # not an `if`, which the processor would often guess wrong
        steps[active : active + 3] = 0  # the last four are made full
        for k in range(0, active, 4):
            a, b, c, d = images[k], images[k + 1], images[k + 2], images[k + 3]
            p, q, r, s = steps[k], steps[k + 1], steps[k + 2], steps[k + 3]
            reached = False
            for j in range(chi.shape[1]):
                rest = chi[i, j] - (p * delta[a, j] + q * delta[b, j] + r * delta[c, j] + s * delta[d, j])
                chi[i, j] = rest
                reached |= abs(rest) >= threshold
            crossed[i] = reached


@njit(cache=True)
def accumulate(
    chi: F32,
    x: F32,
    delta: F32,
    first: int,
    end: int,
    rate: float,
    granularity: float,
    most: int,
    index: I32,
    pulses: I32,
    suspects: Bools,
) -> int:
    """One step of mixed-precision SGD on the rows of `chi` (rows, columns) from `first` to before `end`, in place;
    returns the number of weights to be pulsed, or NOT_FINITE.

    chi -= rate * sum over the batch of x (batch, rows - 1) outer delta (batch, columns); where |chi| has reached the
    granularity, p = trunc(chi / granularity), at most `most` pulses of either sign, is taken off chi, the weight's
    place and p are written to `index` and `pulses`, and its place is marked in `suspects`. Rows without input cost
    nothing. Source: Nandakumar 2020.
    """
    if not all_finite(delta):
        return NOT_FINITE
    features, columns = x.shape[1], chi.shape[1]
    if chi.shape[0] != features + 1 or delta.shape[1] != columns or len(x) != len(delta):
        raise ValueError("the gradient does not fit the weights")
    threshold = np.float32(granularity)
    crossed = np.zeros(chi.shape[0], np.bool_)
    if len(x) < LARGE_BATCH:
        descend(chi, x, delta, first, end, rate, threshold, crossed)
    else:
        descend_in_fours(chi, x, delta, first, end, rate, threshold, crossed)
    hits, hit = np.empty(chi.shape[0] + 1, np.int64), 0
    for i in range(first, end):
        hits[hit] = i
        hit += crossed[i]
    count = 0
    for i in hits[:hit]:
        for j in range(columns):
            if not abs(chi[i, j]) >= threshold:
                continue
            p = np.int32(min(max(chi[i, j] / granularity, -most), most))
            if p != 0:  # the threshold is the granularity but for its rounding to float32
                chi[i, j] -= p * granularity
                at = i * columns + j
                index[count], pulses[count], suspects[at] = at, p, True
                count += 1
    return count


@njit(cache=True)
def address(index: Index, pulses: Index, places: U16, stuck: Bools, out: U16) -> tuple[int, int]:
    """The devices that pulses on weights (n,) go to: G+ for positive ones, G- for negative ones, none where 0 or stuck.

    `places` (3, 2 * weights) holds array, row and column of each G+, then of each G-; `stuck` (2 * weights,) may be
    empty. `out` (4, n) gets array, row, column and count; returned are how many of its columns, and how many pulses.
    """
    weights = places.shape[1] // 2
    count, total = 0, 0
    for k in range(index.size):
        device = index[k] + (weights if pulses[k] < 0 else 0)
        if pulses[k] == 0 or (stuck.size and stuck[device]):
            continue
        for line in range(3):
            out[line, count] = places[line, device]
        out[3, count] = abs(pulses[k])
        total += abs(pulses[k])
        count += 1
    return count, total


@njit(cache=True)
def address_pairs(index: Index, places: U16, out: U16) -> None:
    """The devices of weights (n,), G+ of all, then G- of all: `out` (3, 2 * n) from `places` (3, 2 * weights)."""
    count, weights = index.size, places.shape[1] // 2
    for line in range(3):
        for k in range(count):
            out[line, k] = places[line, index[k]]
            out[line, count + k] = places[line, weights + index[k]]


@njit(cache=True)
def sigmoid_backward(gradient: F32, output: F32) -> None:
    """From the gradient by a sigmoid's output (batch, features) to that by its input, in place: the operations of
    torch's operator in their order, which gives the same bits in a third of the time.
    """
    for b in range(output.shape[0]):
        for j in range(output.shape[1]):
            gradient[b, j] = gradient[b, j] * (np.float32(1) - output[b, j]) * output[b, j]


@njit(cache=True)
def score(outputs: F32, targets: F32, labels: I64) -> tuple[float, int]:
    """Half the sum of squared errors of outputs (batch, classes), and how many are largest at the label (batch,)."""
    loss, hits = 0.0, 0
    for b in range(outputs.shape[0]):
        best = 0
        for j in range(outputs.shape[1]):
            error = np.float64(outputs[b, j] - targets[b, j])
            loss += error * error
            if outputs[b, j] > outputs[b, best]:
                best = j
        hits += best == labels[b]
    return loss / 2, hits
