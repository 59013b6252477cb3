"""Maximum likelihood from one log-likelihood per cell: cells are what differs, so their scores tell how sure it is."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hil.measured import Floats

LogLikelihood = Callable[[Floats], Floats]
"""Of parameters (points, parameters): the log-likelihood of each cell (points, cells). Parameters are scaled so that
`STEP` is small for each.
"""

STEP = 1e-5
"""Of the differences that scores are made of."""
ENOUGH = 1e-4
"""Gain in log-likelihood that is not worth another iteration: a hundredth of a standard error."""
ITERATIONS = 100
RESAMPLES = 1000


@dataclass(frozen=True)
class Estimate:
    """Where a log-likelihood is largest."""

    value: Floats
    """(parameters,)"""
    scores: Floats
    """Derivative of each cell's log-likelihood there (cells, parameters)."""
    low: Floats
    """Ends of the parameters' ranges (parameters,)."""
    high: Floats
    converged: bool


@dataclass(frozen=True)
class Part:
    """What a fit says of some parameters, by name, in SI units."""

    values: dict[str, float]
    draws: dict[str, Floats]
    """The values of `RESAMPLES` resamples of the cells."""
    faults: tuple[str, ...] = ()
    """What went wrong, one line each."""


def maximise(loglik: LogLikelihood, start: Floats, low: Floats, high: Floats) -> Estimate:
    """Fisher scoring with the empirical information of the scores (Berndt, Hall, Hall and Hausman 1974), damped after
    Levenberg and Marquardt by Nielsen's rule (1999). Parameters (parameters,) stay from `low` to `high`.
    """
    value, damping = np.clip(start, low, high), 1e-3
    height, scores = loglik(value[None]).sum(), score(loglik, value)
    for _ in range(ITERATIONS):
        slope = scores.sum(0)
        free = np.where(slope < 0, value > low, value < high) & scores.any(0)
        step = np.zeros_like(value)
        step[free] = _solve(scores[:, free], slope[free], damping)
        if slope @ step * (1 + damping) < ENOUGH:
            return Estimate(value, scores, low, high, True)
        trial = np.clip(value + step, low, high)
        gain = loglik(trial[None]).sum() - height
        if gain > 0:
            damping = max(damping * max(1 / 3, 1 - (4 * gain / (slope @ step) - 1) ** 3), 1e-9)
            value, height, scores = trial, height + gain, score(loglik, trial)
        else:
            damping *= 4
    return Estimate(value, scores, low, high, False)


def score(loglik: LogLikelihood, value: Floats) -> Floats:
    """Derivatives (cells, parameters) by central differences; they may look a `STEP` beyond an end of the range."""
    step = STEP * np.eye(len(value))
    above, below = np.split(loglik(np.concatenate([value + step, value - step])), 2)
    derivatives: Floats = (above - below).T / (2 * STEP)
    return derivatives


def resample(estimate: Estimate, rng: np.random.Generator) -> Floats:
    """One-step bootstrap over cells (RESAMPLES, parameters): with each resample of the cells, one scoring step from the
    estimate instead of a new fit.

    Where the likelihood still rises beyond an end of a range, the step begins there, but no more than a standard error
    away, and is cut at the end: so the interval covers as often as it should, and holds the estimate. A parameter that
    no cell depends on may lie anywhere in its range.
    """
    seen = estimate.scores.any(0)
    scores, cells = estimate.scores[:, seen], len(estimate.scores)
    slope = scores.sum(0)
    beyond = _solve(scores, slope, 1e-9)
    centred = scores - slope / cells
    sums = np.stack([centred[rng.integers(cells, size=cells)].sum(0) for _ in range(RESAMPLES)])
    draws = np.tile(estimate.value, (RESAMPLES, 1))
    draws[:, seen] += beyond / max(1.0, float(np.sqrt(slope @ beyond))) + _solve(scores, sums.T, 1e-9).T
    anywhere = ~seen & np.isfinite(estimate.low) & np.isfinite(estimate.high)
    draws[:, anywhere] = np.linspace(estimate.low[anywhere], estimate.high[anywhere], RESAMPLES)
    return np.clip(draws, estimate.low, estimate.high)


def faults(estimate: Estimate, names: tuple[str, ...]) -> tuple[str, ...]:
    """Parameters that were pushed to an end of their range, and a search without end: one line each."""
    found = [
        f"{name} is at the {side} end of its range: the model may not fit, or have more terms than it needs"
        for side, limit in (("lower", estimate.low), ("upper", estimate.high))
        for name, at_end in zip(names, (estimate.value == limit)[: len(names)], strict=True)
        if at_end
    ]
    if not estimate.converged:
        found.append(f"the search for {names[0]}, ... {names[-1]} did not end: no values fit best")
    return tuple(found)


def population(values: Floats, error: Floats, rng: np.random.Generator) -> tuple[float, float, Floats]:
    """Mean and variance of normal values (cells,) that are known up to errors of variance `error` (cells,), and the
    same of resamples (RESAMPLES, 2).
    """
    centre = values.mean()
    scale = max(float(values.std()), 1e-9 * float(np.abs(values).max())) or 1.0

    def loglik(theta: Floats) -> Floats:
        variance = theta[:, 1:] + np.maximum(error / scale**2, 1e-4)
        residual = (values - centre) / scale - theta[:, :1]
        height: Floats = -(np.square(residual) / variance + np.log(variance)) / 2
        return height

    start = np.array([0.0, max(1 - np.mean(error) / scale**2, 0.1)])
    estimate = maximise(loglik, start, np.array([-np.inf, 0.0]), np.array([np.inf, np.inf]))
    draws = resample(estimate, rng) * [scale, scale**2] + [centre, 0.0]
    return float(centre + scale * estimate.value[0]), float(scale**2 * estimate.value[1]), draws


def _solve(scores: Floats, right: Floats, damping: float) -> Floats:
    """Inverse of the damped information of scores (cells, n), times `right` (n, ...)."""
    norm = np.sqrt(np.square(scores).sum(0))
    scaled = scores / norm
    information = scaled.T @ scaled + damping * np.eye(len(norm))
    solution: Floats = (np.linalg.solve(information, (right.T / norm).T).T / norm).T
    return solution
