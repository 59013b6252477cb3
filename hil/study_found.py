"""What each study found, in one line: for the terminal, and for the captions of its figures."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hil.data.run import Run
from hil.measured import Floats, Reads, about_cut_off
from hil.protocols.errors import DataError, InputError
from hil.protocols.messages import MvmMode
from hil.stuck import MOVED
from hil.study_data import Linearity, Rows, is_stuck, linearity_of, reads_of, rows_of, studies_of

US = 1e6  # uS per S
DRIFTING = 0.5e-6
"""S below which a cell's drift, and whether pulses move it, cannot be told from its noise. CHOSEN."""


def findings(run: Run) -> dict[str, str]:
    """A line for each study of a run; where there is nothing to tell, why. None for a run of no studies."""
    return {study: _line(run, study) for study in studies_of(run)}


def _line(run: Run, study: str) -> str:
    try:
        return found(run, study)
    except (InputError, DataError) as error:
        return str(error)


def found(run: Run, study: str) -> str:
    """What a study found, as far as it went, with its numbers; ASCII.

    Raises `InputError` where there is nothing yet, `DataError` where an operation was not done in full.
    """
    if study == "stuck":
        return stuck(is_stuck(run))
    if study == "linearity":
        return "; ".join(products(grid) for grid in products_of(run)) or offset(reads_of(run, rows_of(run, study)))
    rows = rows_of(run, study)
    reads = reads_of(run, rows)
    return "; ".join(filter(None, (LINES[study](rows, reads), about_cut_off(study, reads))))


def some(number: int, thing: str) -> str:
    """`1 pulse`, `2 pulses`."""
    return f"{number:,} {thing}" + ("" if number == 1 else "s")


def read_noise(rows: Rows, reads: Reads) -> str:
    """Level and noise of the cells as they were."""
    noise = f"standard deviation of a read {deviation(reads):.3f} uS" if reads.count > 1 else "one read tells no noise"
    return f"mean {reads.mean.mean() * US:.2f} uS, {noise}"


def deviation(reads: Reads) -> float:
    """uS, mean over cells and steps of the standard deviation of a read."""
    return float(np.sqrt(reads.variance).mean() * US)


def reset(rows: Rows, reads: Reads) -> str:
    """Where a RESET leaves the cells."""
    level = reads.mean * US
    return f"{level.mean():.3f} +- {level.std():.3f} uS after {some(len(rows), 'RESET')}, at most {level.max():.3g} uS"


def staircase(rows: Rows, reads: Reads) -> str:
    """Where the last pulse brought the cells."""
    last = reads.mean[-1] * US
    return f"{last.mean():.2f} +- {last.std():.2f} uS after {some(int(rows.pulses[-1]), 'pulse')}"


def drift(rows: Rows, reads: Reads) -> str:
    """The drift exponents, and of how many cells they are."""
    cells = reads.mean.shape[1]
    if len(reads.age) < 2:
        return "no drift exponent: it takes reads at two times"
    nu, above = drift_exponents(reads), f"above {DRIFTING * US:g} uS"
    if not len(nu):
        return f"no drift exponent: none of {some(cells, 'cell')} stays {above}"
    few = f": only these stay {above}, fewer than half" if 2 * len(nu) < cells else ""
    return f"nu {nu.mean():.4f} +- {nu.std():.4f} ({len(nu):,} of {some(cells, 'cell')}{few})"


def drift_exponents(reads: Reads) -> Floats:
    """nu of each cell that stays well above its noise, by least squares on log scales: fewer than there are cells."""
    enough = (reads.mean > DRIFTING).all(0)
    if len(reads.age) < 2:
        return np.empty(0)
    level, x = np.log(reads.mean[:, enough]), np.log(reads.age)
    x = x - x.mean()
    return np.asarray(-(x @ level) / (x @ x))


def endurance(rows: Rows, reads: Reads) -> str:
    """Both states in the first and the last cycle that was read as a whole, and how many cells wore out."""
    cycle, low, high = cycles(rows, reads)
    if not len(cycle):
        raise InputError("no cycle of the endurance study is whole yet: finish it with hil resume")
    states = [
        f"after {name} {np.median(level[0]) * US:.2f} uS, then {np.median(level[-1]) * US:.2f} uS"
        for name, level in (("SET", high), ("RESET", low))
    ]
    worn = f"{failed(low, high):,} of {some(low.shape[1], 'cell')} failed"
    return f"cycle {cycle[0]} and cycle {cycle[-1]:,}: median {', '.join(states)}; {worn}"


def cycles(rows: Rows, reads: Reads) -> tuple[npt.NDArray[np.int64], Floats, Floats]:
    """The cycles of which both states were read, and the cells (cycles, cells) after RESET and after SET (S)."""
    high = rows.pulses > 0
    whole = int(high.sum())
    return rows.cycle[high], reads.mean[~high][:whole], reads.mean[high]


def failed(low: Floats, high: Floats) -> int:
    """How many cells (cycles, cells) pulses moved in the first cycle, and move in the last by less than `MOVED` of the
    median at first, or not beyond their noise.
    """
    effect = high - low
    least = max(MOVED * float(np.median(effect[0])), DRIFTING)
    return int(((effect[0] >= least) & (effect[-1] < least)).sum())


def spread(rows: Rows, reads: Reads) -> str:
    """What differs from device to device, and what from cycle to cycle."""
    level = reads.mean * US
    if min(level.shape) < 2:
        return f"mean {level.mean():.2f} uS; spreads take two cycles and two cells"
    cycle, persistent = spreads(level)
    return f"mean {level.mean():.2f} uS, from device to device +- {persistent:.2f} uS, cycle to cycle +- {cycle:.2f} uS"


def spreads(level: Floats) -> tuple[float, float]:
    """Standard deviations of levels (cycles, cells): from cycle to cycle, and persistent from device to device."""
    within = level.var(0, ddof=1).mean()
    between = level.mean(0).var(ddof=1) - within / len(level)
    return float(np.sqrt(within)), float(np.sqrt(max(between, 0.0)))


def stuck(cells: npt.NDArray[np.bool_]) -> str:
    """How many cells are stuck."""
    return f"{cells.sum():,} of {some(len(cells), 'cell')} ({100 * cells.mean():.1f} %)"


def products_of(run: Run) -> list[Linearity]:
    """Products on arrays where some were within the converter's range; none where the tester does not multiply.

    Raises `InputError` where all of them went beyond it, or none was done yet.
    """
    grids = linearity_of(run)
    if not grids and not (run.capabilities and run.capabilities.mvm == MvmMode.NONE):
        raise InputError(
            f"{run.path} holds no product of its linearity study yet: finish it with hil resume {run.path}"
        )
    seen = [grid for grid in grids if np.isfinite(grid.gain).any()]
    if grids and not seen:
        raise InputError("every product went beyond the converter's range: give fewer --pulses")
    return seen


class Line(NamedTuple):
    """How products follow reads of the cells."""

    gain: float
    """Slope of products over what reads of the cells add up to."""
    offset: float
    """A at zero input."""
    largest: float
    """Deviation from a line, over the current at the largest code."""
    deviation: float
    """Its standard deviation, over the same."""


def line_of(grid: Linearity) -> Line:
    """The numbers of the products on one array."""
    full = full_current(grid)
    expected = np.where(np.isnan(grid.gain), np.nan, grid.conductance)
    return Line(
        gain=float(np.nansum(grid.gain * expected) / np.nansum(np.square(expected))),
        offset=float(np.nanmean(grid.current[:, np.abs(grid.voltage).argmin()])),
        largest=float(np.nanmax(np.abs(grid.deviation)) / full),
        deviation=float(np.nanstd(grid.deviation) / full),
    )


def full_current(grid: Linearity) -> float:
    """A, the mean magnitude at the largest codes."""
    return float(np.nanmean(np.abs(grid.current[:, [0, -1]])))


def products(grid: Linearity) -> str:
    """Gain, offset and deviation of the products on one array."""
    line = line_of(grid)
    return (
        f"gain {line.gain:.4f} of what reads add up to, offset {line.offset * 1e9:.2g} nA, largest deviation from a "
        f"line {100 * line.largest:.2g} % of the current at the largest code"
    )


def offset(reads: Reads) -> str:
    """Of reads of RESET cells, where the tester does not multiply."""
    return f"the tester does not multiply; mean of RESET cells {reads.mean.mean() * US:.3f} uS"


LINES: Mapping[str, Callable[[Rows, Reads], str]] = {
    "read-noise": read_noise,
    "reset": reset,
    "staircase": staircase,
    "drift": drift,
    "endurance": endurance,
    "map": spread,
}
