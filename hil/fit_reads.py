"""How much reads scatter: sigma(G) = read_slope * G + read_offset, and the rounding of the converter."""

from dataclasses import dataclass

import numpy as np

from hil.likelihood import Estimate, Part, faults, maximise, resample
from hil.measured import Floats, Reads


@dataclass(frozen=True)
class Noise:
    """White noise of reads (S), which are then rounded to the converter's `quantum` (S)."""

    slope: float
    offset: float
    quantum: float

    @property
    def seen(self) -> bool:
        """Whether reads scatter."""
        return self.slope + self.offset > 0

    def spread(self, g: Floats) -> Floats:
        """S: standard deviation of reads of cells at `g` (S), before rounding."""
        return self.slope * np.maximum(g, 0) + self.offset

    def of_sample(self, g: Floats) -> Floats:
        """S^2: expected sample variance of reads of cells at `g` (S)."""
        return sampled(np.square(self.spread(g)), self.quantum) + _smallest(g)

    def of_mean(self, g: Floats, count: int) -> Floats:
        """S^2: variance of the mean of `count` reads of cells at `g` (S)."""
        variance = np.square(self.spread(g))
        mean: Floats = sampled(variance, self.quantum) / count + rounding(variance, self.quantum) + _smallest(g)
        return mean

    def lattice(self, g: float, count: int) -> float:
        """S: distance of the values that the mean of `count` reads at `g` (S) falls on, for the converter's codes."""
        shared = float(rounding(np.square(self.spread(np.array(g))), self.quantum))
        return float(np.sqrt((self.quantum / count) ** 2 + 12 * shared))


def rounding(variance: Floats, quantum: float) -> Floats:
    """The part of the rounding's variance, quantum^2 / 12, that all reads of a cell share because their noise of so
    much `variance` does not carry them over the edges of a code: nothing, where the noise is above quantum / 2.
    """
    if not quantum:
        return np.zeros_like(variance)
    shared: Floats = quantum**2 / 12 * np.exp(-4 * np.pi**2 * variance / quantum**2)
    return shared


def sampled(variance: Floats, quantum: float) -> Floats:
    """Expected sample variance of reads with noise of so much `variance`."""
    return variance + quantum**2 / 12 - rounding(variance, quantum)


def _smallest(g: Floats) -> float:
    """S^2: what stands for no variance at all, lest anything is divided by zero."""
    return float(np.square(1e-6 * np.abs(g).max()))


def fit_reads(reads: Reads, rng: np.random.Generator) -> tuple[Noise, Part]:
    """`read_slope` and `read_offset` by maximum likelihood: sample variances follow sigma^2 chi^2 / (count - 1).

    A second fit puts in place of each mean reading what it tells of the conductance, between itself and the mean of all
    cells: as if it were exact, it would flatten the slope.
    """
    unit = float(np.abs(reads.mean).max())
    if np.median(reads.variance) <= _smallest(reads.mean):
        return _unseen(reads.quantum)
    first = _noise(_fit(reads, reads.mean, unit), unit, reads.quantum)
    error, total = first.of_mean(reads.mean, reads.count), reads.mean.var(1, keepdims=True)
    centre = reads.mean.mean(1, keepdims=True)
    trust = np.clip(1 - error.mean(1, keepdims=True) / np.maximum(total, _smallest(reads.mean)), 0, 1)
    estimate = _fit(reads, centre + trust * (reads.mean - centre), unit)
    noise = _noise(estimate, unit, reads.quantum)
    slope, offset = resample(estimate, rng).T
    return noise, Part(
        {"read_slope": noise.slope, "read_offset": noise.offset},
        {"read_slope": slope, "read_offset": offset * unit},
        faults(estimate, ("read_slope", "read_offset")),
    )


def _unseen(quantum: float) -> tuple[Noise, Part]:
    """Of reads that do not scatter: their noise is below half a step of the converter."""
    fault = f"most reads do not scatter over the converter's steps of {quantum:.2g} S: their noise cannot be fitted"
    nothing = {"read_slope": 0.0, "read_offset": 0.0}
    return Noise(0.0, 0.0, quantum), Part(nothing, {"read_offset": np.linspace(0, quantum / 2)}, (fault,))


def _noise(estimate: Estimate, unit: float, quantum: float) -> Noise:
    return Noise(float(estimate.value[0]), float(estimate.value[1]) * unit, quantum)


def _fit(reads: Reads, conductance: Floats, unit: float) -> Estimate:
    g, sample, quantum = np.maximum(conductance, 0) / unit, reads.variance / unit**2, reads.quantum / unit

    def loglik(theta: Floats) -> Floats:
        expected = sampled(np.square(theta[:, :1, None] * g + theta[:, 1:, None]), quantum) + 1e-12
        height: Floats = -(reads.count - 1) / 2 * (np.log(expected) + sample / expected).sum(1)
        return height

    line = np.stack([g.ravel(), np.ones(g.size)], 1)
    start = np.maximum(np.linalg.lstsq(line, np.sqrt(sample).ravel(), rcond=None)[0], 1e-3)
    return maximise(loglik, start, np.zeros(2), np.full(2, np.inf))
