"""What a RESET leaves: normal levels, read with known errors."""

from dataclasses import dataclass

import numpy as np

from hil.fit_reads import Noise
from hil.likelihood import Part, population
from hil.measured import Floats, Reads


@dataclass(frozen=True)
class Resets:
    """Fitted RESET levels."""

    part: Part
    level: tuple[Floats, Floats]
    """S and S^2 (cells,): mean and variance of each cell's level, from its reading and what is known of all."""
    residual: Floats
    """Standardised residuals of the readings (cells,), spread over the distance between possible readings."""


def fit_reset(reads: Reads, noise: Noise, rng: np.random.Generator) -> Resets:
    """`reset_mean` and `reset_spread`, from the first step of a staircase."""
    reading = reads.mean[0]
    # the mean of the errors: weights by those of the single readings would favour low ones
    error = np.full(reading.size, noise.of_mean(reading, reads.count).mean())
    centre, variance, draws = population(reading, error, rng)
    part = Part(
        {"reset_mean": centre, "reset_spread": float(np.sqrt(variance))},
        {"reset_mean": draws[:, 0], "reset_spread": np.sqrt(draws[:, 1])},
    )
    trust = variance / (variance + error)
    anywhere = noise.lattice(centre, reads.count) * (rng.random(reading.size) - 0.5)
    residual = (reading + anywhere - centre) / np.sqrt(variance + error)
    return Resets(part, (centre + trust * (reading - centre), trust * error), residual)
