"""Fit the twin's cell model to measured devices: parameters with intervals, and whether the model describes them.

The model is that of `PcmParameters` (Nandakumar et al., J. Appl. Phys. 124, 152135 (2018)) with its spreads of
steps and drift exponents between devices. Noise of reads, RESET levels, steps and drift are fitted one after the other.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from hil.fit_drift import LEAST_CELLS, fit_drift
from hil.fit_goodness import ERRORS, Goodness, judge, warnings
from hil.fit_reads import Noise, fit_reads
from hil.fit_reset import fit_reset
from hil.fit_staircase import fit_staircase
from hil.likelihood import Part
from hil.measured import Drift, Floats, Reads, Staircase, about_cut_off
from hil.mock_hw.parameters import PcmParameters
from hil.protocols.errors import InputError

LEAST_PULSES, LEAST_READS, LEAST_TIMES = 3, 2, 3
TOLERATED_STUCK = 0.01
MOVED = 3
"""Standard deviations of a read, and a step of the converter, that pulses move a cell that is not stuck. CHOSEN."""

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Fitted:
    """A chip's cell model as measured; `PcmParameters()._replace(**fitted.parameters)` is a twin's."""

    parameters: dict[str, float]
    """By the names of `PcmParameters`, in its units."""
    intervals: dict[str, tuple[float, float]]
    """95 % intervals of those that have one: all but `t0`, `g_min`, `g_max` and `stuck_fraction`."""
    goodness: Goodness
    warnings: tuple[str, ...]
    """One line for each way in which the devices are not as the model says; none if they are."""
    cells: int
    """Those of the staircase that were fitted: all that are not stuck."""
    t0: float
    """s: the age of the staircase's reads."""


def fit(staircase: Staircase, drift: Drift, seed: int = 0) -> Fitted:
    """Maximum likelihood parameters, with percentile intervals of a one-step bootstrap over cells
    (`likelihood.resample`) that `seed` determines.

    The model's time `t0` is the age of the staircase's reads. Where both studies have equally many cells, these count
    as the same, and those that are stuck in the staircase are left out of the drift too. `g_max` is among the
    parameters only where devices were read above the model's: it is then the highest mean reading. Raises `InputError`
    for too few data.
    """
    _check(staircase, drift)
    rng = np.random.default_rng(seed)
    t0 = float(np.median(staircase.reads.age))
    noise, reads_part = fit_reads(staircase.reads, rng)
    moving = responding(staircase.reads, noise)
    if moving.sum() < LEAST_CELLS:
        raise InputError(f"only {moving.sum()} of {moving.size} cells respond to pulses; a fit needs {LEAST_CELLS}")
    reads = chosen(staircase.reads, moving)
    resets = fit_reset(reads, noise, rng)
    steps = fit_staircase(reads, noise, resets.level, rng)
    drifting = drift.reads if drift.reads.mean.shape[1] != moving.size else chosen(drift.reads, moving)
    drift_part, scores, exponents = fit_drift(drifting, noise, t0, rng)
    parts = [reads_part, resets.part, steps.part, drift_part]
    top = upper_end(reads, noise)
    goodness = judge(reads, noise, np.vstack([resets.residual, steps.residual]), scores, exponents)
    return Fitted(
        {name: value for part in parts for name, value in part.values.items()}
        | {"g_min": steps.g_min, "t0": t0, "stuck_fraction": float(1 - moving.mean())}
        | top,
        {name: _interval(draws) for part in parts for name, draws in part.draws.items()},
        goodness,
        (*_about_range(staircase, drift, top), *_found(parts, goodness, moving)),
        int(moving.sum()),
        t0,
    )


def responding(reads: Reads, noise: Noise) -> Mask:
    """Which cells (cells,) are not stuck: pulses raise them by more than reads scatter."""
    still = MOVED * np.sqrt(noise.of_sample(reads.mean[0])) + reads.quantum
    moving: Mask = reads.mean[1:].max(0) - reads.mean[0] > still
    return moving


def upper_end(reads: Reads, noise: Noise) -> dict[str, float]:
    """`g_max` (S) where a mean reading is above the model's by more than chance: the highest one; else nothing."""
    highest = float(reads.mean.max())
    chance = ERRORS * np.sqrt(noise.of_mean(np.array([highest]), reads.count)[0])
    return {"g_max": highest} if highest > PcmParameters().g_max + chance else {}


def chosen(reads: Reads, cells: Mask) -> Reads:
    """The readings of some of the cells."""
    mean, variance, covariance = (values[:, cells] for values in (reads.mean, reads.variance, reads.covariance))
    return replace(reads, mean=mean, variance=variance, covariance=covariance)


def _interval(draws: Floats) -> tuple[float, float]:
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(low), float(high)


def _about_range(staircase: Staircase, drift: Drift, top: dict[str, float]) -> Iterator[str]:
    """Warnings of values that lie beyond what was measured."""
    yield from filter(None, (about_cut_off("staircase", staircase.reads), about_cut_off("drift", drift.reads)))
    for highest in top.values():
        yield (
            f"cells were read at up to {highest * 1e6:.1f} uS, above the model's {PcmParameters().g_max * 1e6:g} uS: "
            "the twin's conductances end there, as nobody knows whether more pulses would bring the devices higher"
        )


def _found(parts: list[Part], goodness: Goodness, moving: Mask) -> Iterator[str]:
    """Warnings of devices that are not as the model says."""
    stuck = 1 - moving.mean()
    if stuck > TOLERATED_STUCK:
        yield f"{stuck:.1%} of the cells do not respond to pulses; they were left out"
    for part in parts:
        yield from part.faults
    yield from warnings(goodness, int(moving.sum()))


def _check(staircase: Staircase, drift: Drift) -> None:
    reads, pulses = staircase.reads, staircase.pulses
    _check_reads("staircase", reads, (len(reads.mean) - 1, LEAST_PULSES, "SET pulse", "SET pulses"))
    _check_reads("drift", drift.reads, (len(drift.reads.mean), LEAST_TIMES, "time of reading", "times of reading"))
    if not np.array_equal(pulses, np.arange(len(reads.mean))):
        raise InputError(f"the staircase was read after {pulses.tolist()} pulses; a fit needs 0, 1, 2, ...")


def _check_reads(name: str, reads: Reads, steps: tuple[int, int, str, str]) -> None:
    for value, limit, one, several in (
        steps,
        (reads.count, LEAST_READS, "read each time", "reads each time"),
        (reads.mean.shape[1], LEAST_CELLS, "cell", "cells"),
    ):
        if value < limit:
            raise InputError(f"the {name} has {value} {one if value == 1 else several}; a fit needs at least {limit}")
    if not all(np.isfinite(values).all() for values in (reads.mean, reads.variance, reads.age)):
        raise InputError(f"the {name} has readings or times that are not finite; leave those cells out")
    if (reads.age <= 0).any():
        raise InputError(f"the {name} was read {reads.age.min():g} s after a pulse; a fit needs times after it")
