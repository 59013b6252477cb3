"""What studies of devices measured, as arrays: what fits, plots and comparisons work on."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
TOLERATED = 0.01
"""Share of the readings of a study that may be cut off. CHOSEN."""


@dataclass(frozen=True)
class Reads:
    """Repeated reads of the same cells: at each of so many steps, every cell was read `count` times in a row."""

    count: int
    mean: Floats
    """S (steps, cells): mean of the reads."""
    variance: Floats
    """S^2 (steps, cells): their sample variance; NaN for a single read."""
    covariance: Floats
    """S^2 (steps, cells): mean product of the deviations of successive reads, 0 but for -1/count of the variance where
    the noise of reads is white; NaN for fewer than three.
    """
    age: Floats
    """s (steps,): mean device time from the last pulse to the reads."""
    quantum: float
    """S per code of the converter."""
    cut_off: int = 0
    """Of all readings, those beyond an end of the converter's range, for which the end stands."""

    @classmethod
    def of(cls, values: npt.NDArray[np.floating], age: Floats, quantum: float, cut_off: int = 0) -> "Reads":
        """From all readings, S (steps, reads, cells)."""
        mean = values.mean(1, dtype=np.float64)
        count = values.shape[1]
        nothing = np.full(mean.shape, np.nan)
        deviation = values - mean[:, None].astype(values.dtype)
        variance = np.square(deviation).sum(1, dtype=np.float64) / (count - 1) if count > 1 else nothing
        neighbours = (deviation[:, 1:] * deviation[:, :-1]).mean(1, dtype=np.float64) if count > 2 else nothing
        return cls(count, mean, variance, neighbours, age, quantum, cut_off)


@dataclass(frozen=True)
class Staircase:
    """Cells that were RESET, then given one SET pulse at a time; read `reads.age` after each."""

    pulses: npt.NDArray[np.int64]
    """SET pulses since the RESET (steps,): 0, 1, 2, ..."""
    reads: Reads


@dataclass(frozen=True)
class Drift:
    """Cells that were programmed once, to various levels, then read again and again as time passed."""

    pulses: npt.NDArray[np.int64]
    """SET pulses since the RESET of each cell (cells,)."""
    reads: Reads


def about_cut_off(study: str, reads: Reads) -> str:
    """A line on the readings of a study that are cut off; empty if they are few."""
    total = reads.count * reads.mean.size
    if reads.cut_off <= TOLERATED * total:
        return ""
    return (
        f"{reads.cut_off:,} of {total:,} readings of the {study} study ({reads.cut_off / total:.1%}) met an end of the "
        "read range: values there are cut off; use a larger read range, or leave such cells out"
    )
