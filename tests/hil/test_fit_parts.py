"""The parts of a fit against what can be computed or simulated without them."""

import numpy as np
import pytest
from scipy.special import ndtr
from scipy.stats import norm

from hil.fit_drift import exponents
from hil.fit_goodness import ks_distance
from hil.fit_reads import Noise, fit_reads
from hil.fit_reset import fit_reset
from hil.fit_staircase import Levels, follow, lower_end
from hil.measured import Floats, Reads

NOISE = Noise(0.03, 0.13e-6, 1e-7)
THETA = np.array([-0.08, 0.9, 1.4, 0.09, 0.26, 1.0, np.log(2.6), 0.04])
SLOPE, OFFSET, MEAN_MEMORY, SPREAD_SLOPE, SPREAD_OFFSET, SPREAD_MEMORY, LOG_MEMORY, VARIANCE = THETA
ERROR = 0.03
RESET = (0.1, 0.004)


def step(g: Floats, scale: Floats, n: int) -> tuple[Floats, Floats]:
    """Mean and standard deviation of the conductance after a pulse."""
    fade = np.exp(-n / np.exp(LOG_MEMORY))
    mean = g + scale * (SLOPE * g + OFFSET + MEAN_MEMORY * fade)
    return mean, SPREAD_SLOPE * g + SPREAD_OFFSET + SPREAD_MEMORY * fade


def filtered(readings: Floats, limit: float = -np.inf) -> float:
    """Log-likelihood of one cell, with the constants that the filter leaves out."""
    mean = np.array([RESET[0], *readings])[:, None]
    levels = Levels(mean, np.full_like(mean, ERROR), (np.full(1, RESET[0]), np.full(1, RESET[1])), limit)
    return float(follow(THETA[None], levels).loglik[0, 0] - (mean[1:] >= limit).sum() * np.log(2 * np.pi) / 2)


def grid(mean: float, variance: float, width: float = 6) -> tuple[Floats, Floats]:
    """Points and weights of a normal distribution."""
    points = np.linspace(-width, width, 121)
    weights = norm.pdf(points)
    return mean + np.sqrt(variance) * points, weights / weights.sum()


@pytest.mark.parametrize("readings", [(2.0, 3.1), (0.4, 0.9), (4.5, 8.0), (3.0, 2.0)])
def test_the_filter_finds_the_likelihood_that_integration_gives(readings: tuple[float, float]) -> None:
    s, of_s = grid(1, VARIANCE)
    g0, of_g0 = grid(*RESET)
    g1, of_g1 = grid(readings[0], ERROR)  # the first reading's likelihood of the level, as a distribution
    mean, spread = step(g0[:, None], s, 1)
    first = (of_g0[:, None, None] * norm.pdf(g1, mean[..., None], spread[..., None])).sum(0) * of_g1
    mean, spread = step(g1, s[:, None], 2)
    second = norm.pdf(readings[1], mean, np.sqrt(spread**2 + ERROR))
    assert filtered(np.array(readings)) == pytest.approx(np.log((of_s[:, None] * first * second).sum()), abs=0.015)


def test_a_stopped_cell_counts_by_the_chance_to_come_so_low() -> None:
    s, of_s = grid(1, VARIANCE)
    mean, spread = step(np.full(1, RESET[0]), s, 1)
    stopped = ndtr((0.4 - mean) / np.sqrt(spread**2 + RESET[1] + ERROR))
    mean, spread = step(np.full(1, 0.1), s, 2)
    second = norm.pdf(1.5, mean, np.sqrt(spread**2 + 2 * ERROR))
    assert filtered(np.array([0.1, 1.5]), limit=0.4) == pytest.approx(np.log((of_s * stopped * second).sum()), abs=0.02)


def test_residuals_of_simulated_steps_are_independent_standard_normals() -> None:
    rng = np.random.default_rng(1)
    cells, pulses = 4000, 8
    scale = 1 + np.sqrt(VARIANCE) * rng.standard_normal(cells)
    levels = [RESET[0] + np.sqrt(RESET[1]) * rng.standard_normal(cells)]
    for n in range(1, pulses + 1):
        mean, spread = step(levels[-1], scale, n)
        levels.append(mean + spread * rng.standard_normal(cells))
    readings = np.stack(levels) + np.sqrt(ERROR) * rng.standard_normal((pulses + 1, cells))
    known = np.full(cells, RESET[0]), np.full(cells, RESET[1])
    residual = follow(THETA[None], Levels(readings, np.full_like(readings, ERROR), known, -np.inf)).residual[0]
    assert max(ks_distance(row) for row in residual) < 1.95 / np.sqrt(cells)
    assert np.abs(np.corrcoef(residual) - np.eye(pulses)).max() < 4 / np.sqrt(cells)


def read(levels: Floats, count: int, noise: Noise = NOISE, seed: int = 1) -> Reads:
    """Readings of conductances (steps, cells)."""
    normal = np.random.default_rng(seed).standard_normal((len(levels), count, levels.shape[1]))
    values = levels[:, None] + noise.spread(levels)[:, None] * normal
    if noise.quantum:
        values = np.rint(values / noise.quantum) * noise.quantum
    return Reads.of(values, np.ones(len(levels)), noise.quantum)


@pytest.mark.parametrize("spread", [0.0, 0.02e-6, 0.05e-6, 0.13e-6])
def test_rounding_adds_to_the_scatter_of_reads_and_of_their_mean(spread: float) -> None:
    levels = np.random.default_rng(2).uniform(1e-6, 2e-6, (1, 20000))
    noise = Noise(0.0, spread, 1e-7)
    reads = read(levels, 20, noise)
    whole = noise.quantum**2 / 12
    assert reads.variance.mean() == pytest.approx(noise.of_sample(levels).mean(), abs=0.1 * whole, rel=0.02)
    assert np.mean((reads.mean - levels) ** 2) == pytest.approx(noise.of_mean(levels, 20).mean(), abs=0.1 * whole)


@pytest.mark.parametrize("count", [2, 20])
def test_few_reads_do_not_flatten_the_slope_of_their_noise(count: int) -> None:
    levels = np.abs(np.random.default_rng(2).normal([[0.1e-6], [0.5e-6], [1.5e-6]], 0.5e-6, (3, 20000)))
    _, part = fit_reads(read(levels, count, Noise(0.1, 0.13e-6, 0.0)), np.random.default_rng(1))
    for name, value in {"read_slope": 0.1, "read_offset": 0.13e-6}.items():
        assert np.abs(part.values[name] - value) < 2.4 * part.draws[name].std()


@pytest.mark.parametrize("count", [2, 20])
def test_reset_levels_are_not_biased_by_read_noise(count: int) -> None:
    levels = np.random.default_rng(2).normal(0.3e-6, 0.05e-6, (1, 20000))
    found = fit_reset(read(levels, count), NOISE, np.random.default_rng(1))
    for name, value in {"reset_mean": 0.3e-6, "reset_spread": 0.05e-6}.items():
        assert np.abs(found.part.values[name] - value) < 3.5 * found.part.draws[name].std()
    assert ks_distance(found.residual) < 1.95 / np.sqrt(20000)


@pytest.mark.parametrize("level", [0.3e-6, 5e-6])
def test_drift_exponents_are_not_biased_by_read_noise(level: float) -> None:
    cells, x = 20000, np.log(np.geomspace(1, 1000, 8))
    reads = read(np.repeat(level * np.exp(-0.04 * x)[:, None], cells, 1), 20)
    found = exponents(reads.mean, x, NOISE, 20)
    assert found.nu.mean() == pytest.approx(0.04, abs=4 * found.nu.std() / np.sqrt(cells))
    assert found.nu.std() == pytest.approx(np.sqrt(found.variance.mean()), rel=0.03)
    assert abs(found.bend.sum()) < 4 * np.sqrt(np.square(found.bend).sum())


def test_the_lower_end_is_where_readings_crowd() -> None:
    rng = np.random.default_rng(1)
    levels = np.maximum(rng.normal([[1e-6], [2e-6]], 1e-6, (2, 500)), 0.2e-6)
    end, limit = lower_end(read(levels, 20).mean, NOISE, 20)
    assert end == pytest.approx(0.2e-6, abs=0.01e-6)
    assert 0.25e-6 < limit < 0.4e-6
    assert lower_end(read(levels + rng.normal(5e-6, 1e-6, levels.shape), 20).mean, NOISE, 20) == (0, -np.inf)


def test_equal_levels_after_one_pulse_are_no_lower_end() -> None:
    levels = np.repeat([[1e-6], [2e-6], [3e-6]], 50, 1)
    assert lower_end(read(levels, 20).mean, NOISE, 20) == (0, -np.inf)
