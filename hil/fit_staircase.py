"""How SET pulses change cells: a filter that follows each cell up the staircase gives the likelihood of its readings.

A cell's state is its conductance and the scale of its steps, both unknown: readings have errors, and the scale shows in
all steps of a cell. An extended Kalman filter carries mean and covariance of the two from pulse to pulse; each reading
is then judged by those before it. Errors of readings bias nothing, since the filter holds them apart from the steps,
and its standardised residuals are independent standard normals where the model is right.

A cell that reads less than a few standard errors above the lower end of the range has been stopped there: all that
counts is that it would have come so low or lower.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import log_ndtr, ndtr, ndtri

from hil.fit_reads import Noise
from hil.likelihood import Estimate, Part, faults, maximise, resample
from hil.measured import Floats, Reads

MEMORIES = (1.0, 3.0, 9.0)
"""Pulses: where the search for `memory` begins."""
STANDARD_ERRORS = 3
"""Of a reading, within which a cell counts as being at the lower end."""
FEW = 5
"""Readings that may be low by chance. CHOSEN."""
NAMES = ("mean_slope", "mean_offset", "mean_memory", "spread_slope", "spread_offset", "spread_memory", "memory")
LOW = np.array([-1.0, 0, 0, 0, 1e-6, 0, np.log(0.1), 0])
HIGH = np.array([1.0, np.inf, np.inf, np.inf, np.inf, np.inf, np.log(1000), 1])
"""Range of the parameters of `follow`, conductances in units of the largest."""


@dataclass(frozen=True)
class Levels:
    """What a staircase measured, in one unit of conductance."""

    mean: Floats
    """(pulses + 1, cells)"""
    error: Floats
    """Variances of `mean`."""
    reset: tuple[Floats, Floats]
    """Mean and variance (cells,) of what is known of the conductance after the RESET."""
    limit: float
    """Readings below were stopped at the lower end of the range."""


class Followed(NamedTuple):
    """What a filter found."""

    residual: Floats
    """Standardised residuals of the steps (points, pulses, cells); of stopped cells, the largest possible."""
    loglik: Floats
    """(points, cells)"""


@dataclass(frozen=True)
class Steps:
    """A fitted staircase."""

    part: Part
    g_min: float
    """S: lower end of the conductance range; 0 where no cell was stopped."""
    residual: Floats
    """(pulses, cells): standard normal where the model is right."""


def fit_staircase(reads: Reads, noise: Noise, reset: tuple[Floats, Floats], rng: np.random.Generator) -> Steps:
    """Parameters of the steps, from the readings of cells that are not stuck, and mean (S) and variance (S^2) of their
    RESET levels (cells,).
    """
    unit = float(reads.mean.max())
    g_min, limit = lower_end(reads.mean[1:], noise, reads.count)
    error = noise.of_mean(reads.mean, reads.count)
    levels = Levels(reads.mean / unit, error / unit**2, (reset[0] / unit, reset[1] / unit**2), limit / unit)
    estimate = fit_steps(levels)
    values = {name: float(value) for name, value in _in_si(estimate.value, unit).items()}
    part = Part(values, _in_si(resample(estimate, rng), unit), faults(estimate, NAMES))
    return Steps(part, g_min, residuals(estimate.value, levels, rng))


def _in_si(theta: Floats, unit: float) -> dict[str, Floats]:
    """Parameters (..., 8) of `follow` by name."""
    scaled = theta[..., :7] * [1, unit, unit, 1, unit, unit, 1]
    named = dict(zip(NAMES, np.moveaxis(scaled, -1, 0), strict=True))
    return named | {"memory": np.exp(named["memory"]), "step_spread": np.sqrt(theta[..., 7])}


def lower_end(pulsed: Floats, noise: Noise, count: int) -> tuple[float, float]:
    """S: where cells were stopped, and the reading below which one was; 0 and -inf where none was.

    Readings after pulses (pulses, cells) lie densely there: more than twice as many within some standard errors of the
    end as just above, after more than one pulse.
    """
    end = float(pulsed.min())
    for _ in range(10):
        width = STANDARD_ERRORS * float(np.sqrt(noise.of_mean(np.array([end]), count)[0]))
        end = float(np.median(pulsed[pulsed < end + width]))
    near = pulsed < end + width
    above = (pulsed < end + 3 * width) & ~near
    dense = near.sum() > FEW + 2 * above.sum() and near[1:].any()
    return (max(end, 0.0), end + width) if dense else (0.0, -np.inf)


def fit_steps(levels: Levels) -> Estimate:
    """The parameters that `follow` takes."""

    def loglik(theta: Floats) -> Floats:
        return follow(theta, levels).loglik

    starts = np.stack([np.clip(guess(levels, memory), LOW, HIGH) for memory in MEMORIES])
    best = starts[loglik(starts).sum(1).argmax()]
    return maximise(loglik, best, LOW, HIGH)


def guess(levels: Levels, memory: float) -> Floats:
    """Parameters to begin with, from least squares on the steps of cells that were not stopped."""
    n = np.arange(1, len(levels.mean))[:, None] + 0 * levels.mean[1:]
    free = levels.mean[1:] >= levels.limit
    g, fade = levels.mean[:-1][free], np.exp(-n[free] / memory)
    terms = np.stack([g, np.ones_like(g), fade], 1)
    step = levels.mean[1:][free] - g
    mean = np.linalg.lstsq(terms, step, rcond=None)[0]
    spread = np.linalg.lstsq(terms, np.abs(step - terms @ mean) * np.sqrt(np.pi / 2), rcond=None)[0]
    return np.array([*mean, *np.maximum(spread, 1e-3), np.log(memory), 0.01])


def residuals(theta: Floats, levels: Levels, rng: np.random.Generator) -> Floats:
    """(pulses, cells): where cells were stopped, at random below the largest possible."""
    residual: Floats = follow(theta[None], levels).residual[0]
    stopped = levels.mean[1:] < levels.limit
    residual[stopped] = ndtri(ndtr(residual[stopped]) * (1 - rng.random(stopped.sum())))
    return residual


def follow(theta: Floats, levels: Levels) -> Followed:
    """Filter all cells with parameters `theta` (points, 8): those of `NAMES`, `memory` as its logarithm, then the
    variance of the scale of steps.
    """
    slope, offset, mean_memory, spread_slope, spread_offset, spread_memory, memory, variance = theta.T[:, :, None]
    points, pulses, cells = len(theta), len(levels.mean) - 1, levels.mean.shape[1]
    residual, loglik = np.empty((points, pulses, cells)), np.zeros((points, cells))
    g, gg = levels.reset  # mean and variance of the conductance
    s, ss, gs = np.ones(1), variance, np.zeros(1)  # of the scale, and their covariance
    for n in range(1, pulses + 1):
        mean, error = levels.mean[n], levels.error[n]
        fade = np.exp(-n / np.exp(memory))
        drive = slope * g + offset + mean_memory * fade
        spread = spread_slope * g + spread_offset + spread_memory * fade
        gain = 1 + s * slope
        g = g + s * drive + slope * gs
        gg = np.maximum(gain**2 * gg + 2 * gain * drive * gs + drive**2 * ss + spread**2 + spread_slope**2 * gg, 0)
        gs = gain * gs + drive * ss
        total = gg + error
        deviation = np.sqrt(total)
        stopped = mean < levels.limit
        z = (np.maximum(mean, levels.limit) - g) / deviation
        pull, known, height = _judge(z, stopped)
        loglik += height - np.where(stopped, 0, np.log(deviation))
        residual[:, n - 1] = z
        s = s + gs / deviation * pull
        ss = ss - gs**2 / total * known
        g = np.where(stopped, mean, g + gg / deviation * pull)
        gs = np.where(stopped, 0, gs * error / total)
        gg = np.where(stopped, error, gg * error / total)
    return Followed(residual, loglik)


def _judge(z: Floats, stopped: npt.NDArray[np.bool_]) -> tuple[Floats, Floats, Floats]:
    """What a reading at `z` (points, cells), or somewhere below for `stopped` cells (cells,), tells of a standard
    normal: its mean, how much of its variance is gone, and the log-likelihood.
    """
    mean, known, height = z.copy(), np.ones_like(z), -(z**2) / 2
    edge = z[:, stopped]
    below = log_ndtr(edge)
    hazard = np.exp(-(edge**2) / 2 - below) / np.sqrt(2 * np.pi)
    mean[:, stopped], known[:, stopped], height[:, stopped] = -hazard, hazard * (hazard + edge), below
    return mean, known, height
