"""Whether the model class describes the devices: residuals of a fit against what they would be if it did."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import chdtri, ndtr, ndtri

from hil.fit_drift import Exponents
from hil.fit_reads import Noise
from hil.measured import Floats, Reads

BINS = 10
NORMAL_SCORES: Floats = ndtri(np.arange(1, 100) / 100)
"""The quantiles of a standard normal that `Goodness.quantiles` should equal."""
CHANCE = 1e-5
"""Of any one warning about devices that are as the model says."""
KS_LIMIT, KS_TOLERATED = 2.47, 0.03
"""Kolmogorov-Smirnov distance times the root of the cells that has this chance; and what is good enough."""
ERRORS = 4.5
"""Standard errors that a mean may be off by about this chance."""
TOLERATED = 0.05
"""Correlations that are good enough."""


class Bins(NamedTuple):
    """Means of something over equally full bins of conductance (bins,)."""

    at: Floats
    """S: mean conductance."""
    mean: Floats
    error: Floats
    """Standard errors of `mean`."""


@dataclass(frozen=True)
class Goodness:
    """How near the residuals of a fit are to what the model says."""

    ks: Floats
    """(pulses + 1,): Kolmogorov-Smirnov distance of the standardised residuals from a standard normal, for the RESET
    levels and then for each pulse.
    """
    quantiles: Floats
    """(pulses + 1, 99): their quantiles from 1 to 99 %."""
    trend: Bins
    """Their mean by the conductance before the pulse."""
    slope: Floats
    """(pulses,): correlation with the conductance before the pulse."""
    widening: Floats
    """(pulses,): mean product of that conductance, standardised, and the excess of their squares over 1."""
    noise: Bins
    """Sample variance of reads over what was fitted, by conductance."""
    correlation: tuple[float, float]
    """Of successive reads of a cell, and its standard error."""
    nu_ks: float
    """Kolmogorov-Smirnov distance of the cells' standardised drift exponents from a standard normal."""
    bend: float
    """Curvature of ln G by ln t over its standard error."""
    drifting: int
    """Cells whose drift was clear enough to be fitted."""


def judge(reads: Reads, noise: Noise, residual: Floats, scores: Floats, exponents: Exponents) -> Goodness:
    """From readings and residuals (pulses + 1, cells) of a staircase, and standardised drift exponents, `scores`
    (cells,), with what these were.
    """
    before, step, expected = reads.mean[:-1], residual[1:], noise.of_sample(reads.mean)
    standard = (before - before.mean(1, keepdims=True)) / (before.std(1, keepdims=True) + 1e-9 * before.max())
    return Goodness(
        ks=np.array([ks_distance(row) for row in residual]),
        quantiles=np.percentile(residual, np.arange(1, 100), axis=1).T,
        trend=binned(before, step),
        slope=(standard * step).mean(1),
        widening=(standard * (np.square(step) - 1)).mean(1) / np.sqrt(2),
        noise=binned(reads.mean, reads.variance / expected if noise.seen else np.ones_like(expected)),
        correlation=correlation(reads, expected) if noise.seen else (0.0, 0.0),
        nu_ks=ks_distance(scores),
        bend=float(exponents.bend.sum() / (np.sqrt(np.square(exponents.bend).sum()) or 1)),
        drifting=len(scores),
    )


def ks_distance(scores: Floats) -> float:
    """Kolmogorov-Smirnov distance of values (n,) from a standard normal."""
    uniform, steps = ndtr(np.sort(scores)), np.arange(len(scores) + 1) / len(scores)
    return float(max((uniform - steps[:-1]).max(), (steps[1:] - uniform).max()))


def binned(by: Floats, values: Floats) -> Bins:
    """Mean of `values` over `BINS` equally full bins of `by`."""
    order = np.argsort(by, axis=None)
    groups = [(by.ravel()[part], values.ravel()[part]) for part in np.array_split(order, BINS)]
    at, mean, error = zip(*((x.mean(), y.mean(), y.std() / np.sqrt(y.size)) for x, y in groups), strict=True)
    return Bins(np.array(at), np.array(mean), np.array(error))


def correlation(reads: Reads, expected: Floats) -> tuple[float, float]:
    """Of successive reads of a cell with `expected` variances, and its standard error; 0 where too few reads tell."""
    if reads.count < 3:
        return 0.0, 0.0
    cell = (reads.covariance / expected + 1 / reads.count).mean(0)
    return float(cell.mean()), float(cell.std() / np.sqrt(cell.size))


def warnings(goodness: Goodness, cells: int) -> list[str]:
    """One line for each way in which the devices are not as the model says; a staircase has so many `cells`."""
    return [*_of_steps(goodness, cells), *_of_reads(goodness), *_of_drift(goodness)]


def _of_steps(g: Goodness, cells: int) -> list[str]:
    limit = ks_limit(cells)
    found = []
    if g.ks[0] > limit:
        found.append(f"RESET levels are not normal: KS distance {g.ks[0]:.3f}, expected below {limit:.3f}")
    bad = 1 + np.flatnonzero(g.ks[1:] > limit)
    if bad.size:
        pulses = f"pulse{'s' if bad.size > 1 else ''} {', '.join(map(str, bad))}"
        found.append(
            f"steps are not as the model says at {pulses}: KS distance up to {g.ks[bad].max():.3f}, "
            f"expected below {limit:.3f}"
        )
    found += _off(
        g.trend, 0, 0.1, "the mean step is not linear in G: at {at} uS it is off by {off} standard deviations"
    )
    found += _correlated(g.slope, cells, "the mean step is not the same function of G at each pulse: residuals")
    found += _correlated(g.widening, cells, "the spread of steps is not the same function of G at each pulse: squares")
    return found


def _correlated(values: Floats, cells: int, what: str) -> list[str]:
    """A line, if correlations (pulses,) are further from 0 than chance and `TOLERATED` allow."""
    rms, limit = np.sqrt(np.mean(np.square(values))), np.sqrt(chdtri(values.size, CHANCE) / values.size / cells)
    if rms <= max(limit, TOLERATED):
        return []
    return [f"{what} correlate with G by {rms:.3f} (rms over pulses), expected below {max(limit, TOLERATED):.3f}"]


def _of_reads(g: Goodness) -> list[str]:
    value, error = g.correlation
    found = _off(g.noise, 1, 0.05, "read noise is not linear in G: at {at} uS its variance is {mean} of the fitted one")
    if abs(value) > max(ERRORS * error, 0.01):
        found.append(f"successive reads correlate by {value:.3f}: their noise does not average out as white noise does")
    return found


def _of_drift(g: Goodness) -> list[str]:
    limit, found = ks_limit(g.drifting), []
    if g.nu_ks > limit:
        found.append(f"drift exponents are not normal: KS distance {g.nu_ks:.3f}, expected below {limit:.3f}")
    if abs(g.bend) > ERRORS:
        found.append(f"drift is no power law: ln G bends over ln t, by {abs(g.bend):.1f} standard errors")
    return found


def ks_limit(cells: int) -> float:
    """Largest Kolmogorov-Smirnov distance of so many cells that counts as chance, or as good enough."""
    return max(KS_LIMIT / float(np.sqrt(cells)), KS_TOLERATED)


def _off(bins: Bins, expected: float, tolerance: float, text: str) -> list[str]:
    """The text, about the bin that is furthest from what is expected, if that is beyond chance and tolerance."""
    off = bins.mean - expected
    excess = np.abs(off) / np.maximum(ERRORS * bins.error, tolerance)
    worst = int(excess.argmax())
    if excess[worst] <= 1:
        return []
    return [text.format(at=f"{bins.at[worst] * 1e6:.2f}", mean=f"{bins.mean[worst]:.2f}", off=f"{off[worst]:.2f}")]
