"""How conductances drift: one exponent per cell, then their mean and spread."""

from dataclasses import dataclass

import numpy as np

from hil.fit_reads import Noise
from hil.likelihood import Part, population
from hil.measured import Floats, Reads
from hil.protocols.errors import InputError

CLEAR = 10
"""Conductance over the standard error of its mean reading, of cells whose exponent is fitted."""
LEAST_CELLS = 20
ITERATIONS = 5


@dataclass(frozen=True)
class Exponents:
    """Of each cell (cells,): its drift exponent, the variance of that, and the slope of its log-likelihood by a
    curvature in ln G over ln t.
    """

    nu: Floats
    variance: Floats
    bend: Floats


def fit_drift(reads: Reads, noise: Noise, t0: float, rng: np.random.Generator) -> tuple[Part, Floats, Exponents]:
    """`nu` and `nu_spread`, the standardised exponents of the cells that were clear enough, and what these were.

    Raises `InputError` where too few cells are clear.
    """
    clear = (reads.mean > CLEAR * np.sqrt(noise.of_mean(reads.mean, reads.count))).all(0)
    if clear.sum() < LEAST_CELLS:
        raise InputError(
            f"the drift of only {clear.sum()} of {clear.size} cells stands out of their read noise; a fit needs "
            f"{LEAST_CELLS}: read more often, or program more cells to higher levels"
        )
    found = exponents(reads.mean[:, clear], np.log(reads.age / t0), noise, reads.count)
    nu, variance, draws = population(found.nu, found.variance, rng)
    scores = (found.nu - nu) / np.sqrt(variance + found.variance)
    exponent = np.maximum(draws[:, 0], 0)
    if np.percentile(exponent, 2.5) == 0:
        part = Part({"nu": max(nu, 0), "nu_spread": 0.0}, {"nu": exponent}, (f"no drift is seen: nu is {nu:.2g}",))
    else:
        spread = float(np.sqrt(variance)) / nu
        part = Part({"nu": nu, "nu_spread": spread}, {"nu": exponent, "nu_spread": np.sqrt(draws[:, 1]) / exponent})
    return part, scores, found


def exponents(mean: Floats, x: Floats, noise: Noise, count: int) -> Exponents:
    """Gauss-Newton fit of level * exp(-nu * x) to the mean readings (times, cells) at logarithms `x` (times,) of time.

    Conductances are fitted, as their logarithms would be biased, and weights follow the fitted curve, since those of
    the readings would favour high ones.
    """
    level, nu = mean.mean(0), np.zeros(mean.shape[1])
    for _ in range(ITERATIONS):
        curve = level * np.exp(-np.outer(x, nu))
        weight = np.square(curve) / noise.of_mean(curve, count)
        total = weight.sum(0)
        lever = x[:, None] - (weight * x[:, None]).sum(0) / total
        precision = (weight * np.square(lever)).sum(0)
        residual = mean / curve - 1
        nu = nu - (weight * lever * residual).sum(0) / precision
        level = level * np.exp((weight * residual).sum(0) / total)
    skew = (weight * lever**3).sum(0) / precision
    bow = np.square(lever) - skew * lever - precision / total
    # the fit is not linear: an error of nu, squared, looks like a bend; half of it is in the residuals
    bent = (np.square(bow) * weight).sum(0) / precision / 2
    return Exponents(nu, 1 / precision, (weight * bow * residual).sum(0) + bent)
