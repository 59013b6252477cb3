"""Fits recover the parameters of the twin within their intervals, and say where devices are not as the model says."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from hil.fit import Fitted, fit
from hil.measured import Drift, Floats, Reads, Staircase
from hil.mock_hw.array import Chip
from hil.mock_hw.chips import CHIPS
from hil.mock_hw.parameters import PcmParameters
from hil.protocols.errors import InputError
from hil.protocols.messages import Cells, Operation, PulseBatch

Measured = tuple[Staircase, Drift]
CELLS, PULSES, READS = 300, 20, 20
SPREAD = {"step_spread": 0.2, "nu_spread": 0.2}
QUANTUM = 1e-7


class Bench:
    """A twin's cells, on which a test does what a study does."""

    def __init__(self, seed: int, cells: int, name: str, cell: dict[str, Any]) -> None:
        parameters = replace(CHIPS[name], arrays=1, rows=1, columns=cells, cell=CHIPS[name].cell._replace(**cell))
        self.chip = Chip(parameters, np.random.SeedSequence(seed))
        self.flat = np.arange(cells)
        place = np.zeros(cells, np.uint16)
        self.cells = Cells(place, place, self.flat.astype(np.uint16))

    def pulse(self, kind: Operation, counts: npt.ArrayLike = 1) -> int:
        """Pulse all cells; returns when."""
        each = np.broadcast_to(np.asarray(counts, np.uint16), len(self.flat))
        p = self.chip.parameters
        shape = p.set_pulse if kind == Operation.SET else p.reset_pulse
        self.chip.program(PulseBatch(self.cells, kind, each, shape), self.flat, int(each.sum()))
        return self.chip.now_ns

    def read(self, count: int, pulsed_ns: int, age: float) -> tuple[Floats, float]:
        """Readings (count, cells) in S that begin at an age, and their mean age (s)."""
        self.chip.advance(pulsed_ns + round(age * 1e9) - self.chip.now_ns)
        begin, codes = self.chip.now_ns, []
        for _ in range(count):
            codes.append(self.chip.read(self.flat)[0].astype(np.float64))
            self.chip.advance(1000 * len(self.flat))
        values = (np.stack(codes) - self.chip.read_offset) * self.chip.read_step
        return values, ((begin + self.chip.now_ns) / 2 - pulsed_ns) * 1e-9


def reads_of(parts: list[tuple[Floats, float]], quantum: float) -> Reads:
    values, ages = zip(*parts, strict=True)
    return Reads.of(np.stack(values), np.array(ages), quantum)


def measure(seed: int, cells: int = CELLS, pulses: int = PULSES, name: str = "pcm-analog", **cell: Any) -> Measured:
    """A staircase and a drift of 8 times of all cells of a new chip, with some parameters changed."""
    bench = Bench(seed, cells, name, SPREAD | cell)
    t0, quantum = bench.chip.parameters.cell.t0, bench.chip.read_step
    parts = [bench.read(READS, bench.pulse(Operation.RESET), t0)]
    parts += [bench.read(READS, bench.pulse(Operation.SET), t0) for _ in range(pulses)]
    staircase = Staircase(np.arange(pulses + 1), reads_of(parts, quantum))
    counts = 1 + bench.flat % PULSES
    bench.pulse(Operation.RESET)
    pulsed = bench.pulse(Operation.SET, counts)
    aged = [bench.read(READS, pulsed, age) for age in t0 * np.geomspace(1, 1000, 8)]
    return staircase, Drift(counts, reads_of(aged, quantum))


def truth() -> dict[str, float]:
    return PcmParameters()._asdict() | SPREAD


def covered(fits: list[Fitted]) -> dict[str, float]:
    """The share of fits whose interval holds the true value, for each parameter."""
    true = truth()
    return {
        name: float(np.mean([f.intervals[name][0] <= true[name] <= f.intervals[name][1] for f in fits]))
        for name in fits[0].intervals
    }


def readings(levels: Floats, seed: int = 1, noise: Callable[[Floats], Floats] = lambda g: 0.03 * g + 0.13e-6) -> Reads:
    """White readings of conductances (steps, cells), as of an 8-bit converter."""
    normal = np.random.default_rng(seed).standard_normal((len(levels), READS, levels.shape[1]))
    values = np.rint((levels[:, None] + noise(levels)[:, None] * normal) / QUANTUM) * QUANTUM
    return Reads.of(values, np.full(len(levels), 38.6), QUANTUM)


@pytest.fixture(scope="module")
def twenty() -> list[Fitted]:
    return [fit(*measure(seed)) for seed in range(20)]


@pytest.fixture(scope="module")
def right() -> Measured:
    """What a chip of the model's class shows."""
    return measure(100)


def test_intervals_hold_the_parameters_of_the_chip(twenty: list[Fitted]) -> None:
    shares = covered(twenty)
    assert len(shares) == 14
    assert twenty[0].parameters["t0"] == twenty[0].t0 == pytest.approx(38.6, abs=0.01)
    assert min(shares.values()) >= 15 / 20, shares
    assert np.mean(list(shares.values())) >= 0.9, shares


def test_devices_as_the_model_says_raise_no_warning(twenty: list[Fitted]) -> None:
    assert [f.warnings for f in twenty if f.warnings] == []


@pytest.mark.torture
@pytest.mark.timeout(1800)
def test_intervals_cover_as_often_as_they_say() -> None:
    fits = [fit(*measure(1000 + seed)) for seed in range(400)]
    shares = covered(fits)
    assert 0.91 <= min(shares.values()) <= max(shares.values()) <= 0.99, shares
    assert sum(bool(f.warnings) for f in fits) <= 4


def test_many_cells_narrow_the_intervals_about_the_truth(twenty: list[Fitted]) -> None:
    many = fit(*measure(7, cells=6000))
    true = truth()
    missed = [name for name, (low, high) in many.intervals.items() if not low <= true[name] <= high]
    assert len(missed) <= 2
    for name in ("mean_slope", "memory", "spread_offset", "read_slope", "nu"):
        few = np.mean([np.diff(f.intervals[name]) for f in twenty])
        assert np.diff(many.intervals[name]) == pytest.approx(few / np.sqrt(6000 / CELLS), rel=0.2)
    assert many.warnings == ()


def test_devices_without_spread_may_have_none() -> None:
    for seed in range(3):
        fitted = fit(*measure(seed, step_spread=0.0, nu_spread=0.0))
        assert fitted.intervals["step_spread"][0] == fitted.intervals["nu_spread"][0] == 0
        assert fitted.warnings == ()


def test_a_twin_of_the_fit_climbs_the_same_staircase() -> None:
    known = measure(101, cells=3000)
    fitted: dict[str, Any] = {**fit(*known).parameters}
    again = measure(102, cells=3000, **fitted)[0].reads.mean
    assert again.mean(1) == pytest.approx(known[0].reads.mean.mean(1), rel=0.02, abs=0.12e-6)
    assert again.std(1) == pytest.approx(known[0].reads.mean.std(1), rel=0.06)


def test_the_same_seed_gives_the_same_intervals(right: Measured) -> None:
    first, second, other = fit(*right), fit(*right), fit(*right, seed=1)
    assert first.intervals == second.intervals != other.intervals
    assert first.parameters == other.parameters


def test_reads_at_the_lower_end_tell_where_it_is() -> None:
    assert fit(*measure(1, g_min=0.3e-6, reset_mean=0.3e-6)).parameters["g_min"] == pytest.approx(0.3e-6, abs=0.02e-6)


def test_a_staircase_that_stops_nowhere_has_no_lower_end() -> None:
    assert fit(*measure(1, spread_offset=0.05e-6, spread_memory=0.2e-6)).parameters["g_min"] == 0


def test_stuck_cells_are_left_out_and_reported(right: Measured) -> None:
    fitted = fit(*measure(1, stuck_fraction=0.08))
    assert fitted.parameters["stuck_fraction"] == pytest.approx(0.08, abs=0.04)
    assert fitted.cells == round(CELLS * (1 - fitted.parameters["stuck_fraction"]))
    assert fitted.intervals["reset_mean"][0] < 0.1e-6 < fitted.intervals["reset_mean"][1]
    assert fitted.goodness.drifting <= fitted.cells
    assert [line.partition("%")[2] for line in fitted.warnings] == [
        " of the cells do not respond to pulses; they were left out"
    ]
    assert fit(*right).parameters["stuck_fraction"] == 0


def test_cells_that_do_not_drift_have_no_exponent() -> None:
    fitted = fit(*measure(1, drift=False))
    assert fitted.intervals["nu"][0] == 0 <= fitted.parameters["nu"] < 1e-3
    assert fitted.parameters["nu_spread"] == 0
    assert any("no drift is seen" in line for line in fitted.warnings)


def test_reads_without_noise_are_fitted_as_such() -> None:
    fitted = fit(*measure(1, read_noise=False))
    assert fitted.parameters["read_slope"] == fitted.parameters["read_offset"] == 0
    assert any("do not scatter" in line for line in fitted.warnings)
    assert fitted.intervals["mean_offset"][0] < 0.88e-6 < fitted.intervals["mean_offset"][1]


def exponential(rng: np.random.Generator) -> Floats:
    """Steps that decay with the conductance, by the law of aihwkit's PCM preset."""
    levels, scale = [np.full(CELLS, 0.1e-6)], 1 + 0.2 * rng.standard_normal(CELLS)
    for _ in range(PULSES):
        g = levels[-1]
        mean = scale * (0.1e-6 + 2.7235e-6 * np.exp(-g / 4e-6))
        levels.append(np.maximum(g + mean + 0.6 * (mean + 0.42e-6 + 0.108 * g) * rng.standard_normal(CELLS), 0))
    return np.stack(levels)


def linear(rng: np.random.Generator) -> Floats:
    """Equal steps without noise."""
    return 0.1e-6 + 0.5e-6 * np.arange(PULSES + 1)[:, None] + np.zeros(CELLS)


def verified(rng: np.random.Generator) -> Floats:
    """Levels that are written and verified one by one: no step depends on the one before."""
    target = 0.1 * np.arange(PULSES + 1)[:, None]
    return np.asarray(1e-6 * np.maximum(target + (0.1 + 0.08 * target) * rng.standard_normal((PULSES + 1, CELLS)), 0))


@pytest.mark.parametrize(
    ("law", "finding"),
    [
        (exponential, "the mean step is not the same function of G at each pulse"),
        (exponential, "the spread of steps is not the same function of G at each pulse"),
        (linear, "is at the lower end of its range"),
        (verified, "steps are not as the model says at pulse"),
    ],
)
@pytest.mark.parametrize("seed", range(2))
def test_staircases_of_other_laws_are_flagged(
    law: Callable[[np.random.Generator], Floats], finding: str, seed: int, right: Measured
) -> None:
    staircase = Staircase(np.arange(PULSES + 1), readings(law(np.random.default_rng(seed)), seed))
    fitted = fit(staircase, right[1])
    assert any(finding in line for line in fitted.warnings), fitted.warnings
    assert all(np.isfinite(value) for value in fitted.parameters.values())


def with_levels(reads: Reads, row: int, levels: Floats) -> Reads:
    mean = reads.mean.copy()
    mean[row] = levels
    return replace(reads, mean=mean)


def test_other_noise_of_reads_is_flagged(right: Measured) -> None:
    staircase, drift = right
    quadratic = readings(staircase.reads.mean, noise=lambda g: 0.1e-6 + 0.5e4 * g**2)
    fitted = fit(replace(staircase, reads=quadratic), drift)
    assert any("read noise is not linear in G" in line for line in fitted.warnings)


def test_reads_whose_noise_is_slow_are_flagged(right: Measured) -> None:
    staircase, drift = right
    slow = replace(staircase.reads, covariance=staircase.reads.covariance + 0.2 * staircase.reads.variance)
    fitted = fit(replace(staircase, reads=slow), drift)
    assert [line for line in fitted.warnings if "successive reads correlate by 0.2" in line] == list(fitted.warnings)


def test_reset_levels_of_two_kinds_are_flagged(right: Measured) -> None:
    staircase, drift = right
    mean = staircase.reads.mean[0] + np.where(np.arange(CELLS) % 2, 0.2e-6, 0)
    fitted = fit(replace(staircase, reads=with_levels(staircase.reads, 0, mean)), drift)
    assert any("RESET levels are not normal" in line for line in fitted.warnings)


def test_drift_that_bends_is_flagged(right: Measured) -> None:
    staircase, drift = right
    bent = 1 - 0.003 * np.log(drift.reads.age / 38.6)[:, None] ** 2
    fitted = fit(staircase, replace(drift, reads=replace(drift.reads, mean=drift.reads.mean * bent)))
    assert any("drift is no power law" in line for line in fitted.warnings)


def test_drift_exponents_of_two_kinds_are_flagged(right: Measured) -> None:
    staircase, drift = right
    faster = np.exp(-0.04 * np.outer(np.log(drift.reads.age / 38.6), np.arange(CELLS) % 4 == 0))
    fitted = fit(staircase, replace(drift, reads=replace(drift.reads, mean=drift.reads.mean * faster)))
    assert any("drift exponents are not normal" in line for line in fitted.warnings)


def first_cells(reads: Reads, count: int) -> Reads:
    return replace(reads, mean=reads.mean[:, :count], variance=reads.variance[:, :count])


def first_steps(reads: Reads, count: int) -> Reads:
    return replace(reads, mean=reads.mean[:count], variance=reads.variance[:count], age=reads.age[:count])


SPOILT: dict[str, tuple[str, Callable[[Reads], Reads]]] = {
    "cells; a fit needs at least 20": ("staircase", partial(first_cells, count=19)),
    "the staircase has 2 SET pulses; a fit needs at least 3": ("staircase", partial(first_steps, count=3)),
    "1 read each time; a fit needs at least 2": ("staircase", partial(replace, count=1)),
    "the staircase has readings or times that are not finite": (
        "staircase",
        lambda reads: with_levels(reads, 3, np.full(CELLS, np.nan)),
    ),
    "the drift has 2 times of reading; a fit needs at least 3": ("drift", partial(first_steps, count=2)),
    "the drift was read 0 s after": ("drift", lambda reads: replace(reads, age=np.zeros(8))),
    "only 0 of 300 cells respond": ("staircase", lambda reads: replace(reads, mean=reads.mean[:1] + 0 * reads.mean)),
    "the drift of only 0 of 300 cells": ("drift", lambda reads: replace(reads, mean=reads.mean * 0.01)),
}


@pytest.mark.parametrize("message", SPOILT)
def test_too_few_data_are_refused_with_what_is_needed(message: str, right: Measured) -> None:
    staircase, drift = right
    study, spoil = SPOILT[message]
    if study == "staircase":
        staircase = replace(staircase, reads=spoil(staircase.reads))
    else:
        drift = replace(drift, reads=spoil(drift.reads))
    with pytest.raises(InputError, match=message):
        fit(staircase, drift)


def test_a_staircase_with_gaps_is_refused(right: Measured) -> None:
    staircase, drift = right
    with pytest.raises(InputError, match="a fit needs 0, 1, 2"):
        fit(replace(staircase, pulses=2 * staircase.pulses), drift)
