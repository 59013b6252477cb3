"""The search for the largest likelihood, its resamples, and fits of normal values with errors."""

import numpy as np
import pytest

from hil.likelihood import Estimate, faults, maximise, population, resample
from hil.measured import Floats

SAMPLE = np.random.default_rng(1).normal(2.0, 0.5, 400)
ANY = np.full(2, np.inf)


def normal(theta: Floats) -> Floats:
    """Log-likelihood of `SAMPLE` with a mean and a logarithm of the standard deviation."""
    mean, log_spread = theta.T[:, :, None]
    height: Floats = -np.square((SAMPLE - mean) * np.exp(-log_spread)) / 2 - log_spread
    return height


def test_the_maximum_is_found_from_afar() -> None:
    found = maximise(normal, np.array([-5.0, 2.0]), -ANY, ANY)
    assert found.converged
    assert found.value == pytest.approx([SAMPLE.mean(), np.log(SAMPLE.std())], abs=1e-3)
    assert faults(found, ("mean", "spread")) == ()


def test_resamples_scatter_as_much_as_the_estimate_is_unsure() -> None:
    draws = resample(maximise(normal, np.zeros(2), -ANY, ANY), np.random.default_rng(1))
    error = SAMPLE.std() / np.sqrt(len(SAMPLE))
    assert draws.mean(0) == pytest.approx([SAMPLE.mean(), np.log(SAMPLE.std())], abs=error / 5)
    assert draws[:, 0].std() == pytest.approx(error, rel=0.1)
    assert draws[:, 1].std() == pytest.approx(1 / np.sqrt(2 * len(SAMPLE)), rel=0.2)


def test_a_maximum_beyond_the_range_is_at_its_end_and_told() -> None:
    found = maximise(normal, np.array([0.5, 0.0]), -ANY, np.array([1.5, np.inf]))
    assert found.value[0] == 1.5
    assert found.value[1] == pytest.approx(np.log(np.sqrt(np.mean((SAMPLE - 1.5) ** 2))), abs=1e-3)
    draws = resample(found, np.random.default_rng(1))[:, 0]
    assert draws.max() == 1.5
    assert 1.35 < draws.min() < 1.49
    assert [line[:28] for line in faults(found, ("mean", "spread"))] == ["mean is at the upper end of "]


def test_a_parameter_that_nothing_depends_on_may_be_anywhere_in_its_range() -> None:
    found = maximise(lambda theta: normal(theta[:, :2]), np.array([1.0, 0.0, 4.0]), np.full(3, -9.0), np.full(3, 9.0))
    draws = resample(found, np.random.default_rng(1))
    assert found.value[2] == 4
    assert np.percentile(draws[:, 2], [2.5, 97.5]) == pytest.approx([-8.55, 8.55], abs=0.01)
    assert draws[:, 0].std() < 0.1


def test_a_search_without_end_is_told() -> None:
    endless = Estimate(np.zeros(2), np.zeros((5, 2)), -ANY, ANY, converged=False)
    assert faults(endless, ("mean", "spread")) == ("the search for mean, ... spread did not end: no values fit best",)


@pytest.mark.parametrize("spread", [0.0, 0.02, 0.3])
def test_known_errors_are_told_from_a_spread_of_the_values(spread: float) -> None:
    rng = np.random.default_rng(3)
    error = np.square(rng.uniform(0.05, 0.15, 5000))
    mean, variance, draws = population(
        7 + spread * rng.standard_normal(5000) + np.sqrt(error) * rng.standard_normal(5000), error, rng
    )
    low, high = np.percentile(draws, [2.5, 97.5], axis=0)
    assert low[0] < 7 < high[0]
    assert mean == pytest.approx(7, abs=0.02)
    assert low[1] <= spread**2 <= high[1]
    assert variance == pytest.approx(spread**2, abs=5e-4 + 0.1 * spread**2)


def test_values_that_are_all_the_same_have_no_spread() -> None:
    mean, variance, draws = population(np.full(30, 3.0), np.zeros(30), np.random.default_rng(1))
    assert mean == 3
    assert variance == pytest.approx(0, abs=1e-12)
    assert np.abs(draws - [3, 0]).max() < 1e-6
