"""The figures of each study, with their texts: from a run file to pictures."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from hil.data.run import Run
from hil.measured import Floats, Reads
from hil.plots import svg
from hil.report_figures import Picture, source_line
from hil.study_data import Linearity, Rows, cells_of, is_stuck, reads_of, rows_of
from hil.study_found import (
    DRIFTING,
    US,
    cycles,
    deviation,
    drift,
    drift_exponents,
    endurance,
    full_current,
    line_of,
    offset,
    products_of,
    reset,
    some,
    spread,
    staircase,
)
from hil.study_plots import Axis, Band, Line, band_figure, density_figure, histogram_figure, map_figure

CONDUCTANCE = "conductance (µS)"
BINS = 60


class Model(NamedTuple):
    """What a statistical model predicts after so many SET pulses: mean and standard deviation (uS)."""

    mean: float
    deviation: float


MODEL = {
    0: Model(0.1, 0.01),
    1: Model(2.06, 1.52),
    2: Model(3.44, 1.97),
    3: Model(4.47, 2.19),
    4: Model(5.28, 2.32),
    6: Model(6.44, 2.41),
    8: Model(7.24, 2.44),
    10: Model(7.83, 2.47),
    15: Model(8.81, 2.57),
    20: Model(9.41, 2.70),
}
"""DERIVED by Monte Carlo (200,000 cells) from Nandakumar et al., J. Appl. Phys. 124, 152135 (2018)."""
READ_SLOPE, READ_OFFSET = 0.03, 0.13  # and uS: standard deviation of a read. FOUND (Nandakumar 2018)


def pictures_of(run: Run, study: str) -> list[Picture]:
    """The figures of a study, as far as it went. Raises `InputError` where there is nothing to show yet."""
    source = f"{source_line(run)}, {study}"
    if study == "stuck":
        return _stuck(run, source)
    if study == "linearity":
        return _linearity(run, source)
    rows = rows_of(run, study)
    return FIGURES[study](run, rows, reads_of(run, rows), source)


def _read_noise(run: Run, rows: Rows, reads: Reads, source: str) -> list[Picture]:
    return [*_noise(reads, source), _map_picture(run, reads.mean.mean(0) * US, "the cells as they were", source)]


def _reset(run: Run, rows: Rows, reads: Reads, source: str) -> list[Picture]:
    values = {"": reads.mean.ravel() * US}
    figure = histogram_figure(Axis(f"{CONDUCTANCE} after a RESET"), values, _edges(reads), source)
    text = f"Each cell after each RESET, mean of {some(reads.count, 'read')}: {typeset(reset(rows, reads))}."
    return [Picture(svg(figure), "Histogram of the conductance after a RESET", text)]


def _staircase(run: Run, rows: Rows, reads: Reads, source: str) -> list[Picture]:
    return [
        _staircase_picture(rows, reads, source),
        _levels_picture(rows, reads, source),
        *_noise(reads, source),
    ]


def _staircase_picture(rows: Rows, reads: Reads, source: str) -> Picture:
    level = reads.mean * US
    mean, spread = level.mean(1), level.std(1)
    n = np.array([number for number in MODEL if number <= rows.pulses.max()])
    model = np.array([MODEL[number] for number in n])
    figure = band_figure(
        Axis("SET pulses since the RESET", whole=True),
        Axis(CONDUCTANCE),
        [Band("mean ± standard deviation", rows.pulses.astype(float), mean, mean - spread, mean + spread)],
        [
            Line("2018 model, mean", n, model[:, 0]),
            *(Line(label, n, model[:, 0] + sign * model[:, 1]) for label, sign in (("± deviation", 1), ("_", -1))),
        ],
        source,
    )
    text = (
        f"{some(level.shape[1], 'cell')}: {typeset(staircase(rows, reads))}. Dashed: statistical model of Nandakumar "
        "et al., J. Appl. Phys. 124, 152135 (2018)."
    )
    return Picture(svg(figure), "Conductance over SET pulses", text)


def _levels_picture(rows: Rows, reads: Reads, source: str) -> Picture:
    level = reads.mean * US
    shown = sorted({*np.unique(np.geomspace(1, max(rows.pulses[-1], 1), 5).round().astype(int)), 0} & {*rows.pulses})
    values = {some(int(n), "pulse"): level[int(np.flatnonzero(rows.pulses == n)[0])] for n in shown}
    figure = histogram_figure(Axis(CONDUCTANCE), values, _edges(reads), source)
    text = "How many cells have which conductance after so many SET pulses; each the mean of its reads."
    return Picture(svg(figure), "Histograms of the conductance after some SET pulses", text)


def _noise(reads: Reads, source: str) -> list[Picture]:
    """Standard deviation of a read over conductance; of three reads or more, which tell whether they correlate."""
    if reads.count < 3:
        return []
    mean, noise = reads.mean.ravel() * US, np.sqrt(reads.variance).ravel() * US
    ends = np.array([mean.min(), mean.max()])
    figure = density_figure(
        Axis(CONDUCTANCE),
        Axis("standard deviation of a read (µS)"),
        (mean, noise),
        [Line("2018 model", ends, READ_SLOPE * ends + READ_OFFSET)],
        source,
    )
    text = f"Each cell at each step, {reads.count} reads: the deviation is {deviation(reads):.3f} µS in the mean"
    if noise.any():
        correlation = reads.covariance.mean() / reads.variance.mean()
        text += f", and successive reads correlate by {correlation:.3f} ({-1 / reads.count:.3f} for white noise)"
    return [Picture(svg(figure), "Read noise over conductance", f"{text}.")]


def _drift(run: Run, rows: Rows, reads: Reads, source: str) -> list[Picture]:
    counts = run.snapshot("drift").arrays["pulses"]
    level = {int(n): (reads.mean[:, counts == n] * US).mean(1) for n in np.unique(counts)}
    nu, age = drift_exponents(reads), reads.age
    mean = float(np.mean(nu)) if len(nu) else 0.0
    lines = [
        Line("_" if i else f"ν = {mean:.3f}", age, v[0] * (age / age[0]) ** -mean) for i, v in enumerate(level.values())
    ]
    figure = band_figure(
        Axis("time since the last pulse (s)", log=True),
        Axis(f"mean {CONDUCTANCE}", log=True),
        [Band(some(n, "pulse"), age, values, values, values) for n, values in level.items()],
        lines if len(nu) else [],
        source,
    )
    found = typeset(drift(rows, reads))
    exponent = f"Dashed: drift exponent of those above {DRIFTING * US:g} µS, {found}" if len(nu) else capital(found)
    text = f"Mean of the cells that had so many SET pulses. {exponent}."
    drawn = [Picture(svg(figure), "Conductance over time", text)]
    return drawn + ([_nu_picture(nu, found, source)] if len(nu) else [])


def _nu_picture(nu: Floats, found: str, source: str) -> Picture:
    figure = histogram_figure(Axis("drift exponent ν"), {"": nu}, _bins(nu), source)
    text = f"Drift exponent of each cell, by a line through its reads on log scales: {found}, read noise included."
    return Picture(svg(figure), "Histogram of drift exponents", text)


def _endurance(run: Run, rows: Rows, reads: Reads, source: str) -> list[Picture]:
    found = typeset(endurance(rows, reads))
    cycle, *states = cycles(rows, reads)
    bands = []
    for label, level in zip(("after RESET", "after SET"), states, strict=True):
        low, middle, high = np.percentile(level * US, (10, 50, 90), axis=1)
        bands.append(Band(label, cycle.astype(float), middle, low, high))
    axis = Axis("cycles of RESET and SET", log=True, whole=True)
    figure = band_figure(axis, Axis(CONDUCTANCE), bands[::-1], [], source)
    text = (
        f"Median of the cells, and where the middle 80 % of them are, mean of {some(reads.count, 'read')}. "
        f"{capital(found)}: SET pulses moved them in the first cycle, and no longer do."
    )
    return [Picture(svg(figure), "Conductance over cycles", text)]


def _map(run: Run, rows: Rows, reads: Reads, source: str) -> list[Picture]:
    level = reads.mean * US
    pictures = [_map_picture(run, reads.mean.mean(0) * US, f"mean of {some(len(rows), 'cycle')}", source)]
    if min(level.shape) < 2:
        return pictures
    even, odd = level[1::2].mean(0), level[0::2].mean(0)
    ends = np.array([min(even.min(), odd.min()), max(even.max(), odd.max())])
    figure = density_figure(
        Axis("mean of odd cycles (µS)"),
        Axis("mean of even cycles (µS)"),
        (odd, even),
        [Line("equal", ends, ends)],
        source,
    )
    text = (
        f"Each cell: {typeset(spread(rows, reads))} (standard deviations). Where devices are alike, points scatter "
        "about one value."
    )
    return [*pictures, Picture(svg(figure), "Odd against even cycles of each cell", text)]


def _stuck(run: Run, source: str) -> list[Picture]:
    found = is_stuck(run)
    return [_map_picture(run, found.astype(float), "stuck cells", source, "1: stuck")] if found.any() else []


def _map_picture(run: Run, values: Floats, what: str, source: str, quantity: str = CONDUCTANCE) -> Picture:
    """One value per cell of the first array that was studied, where it lies."""
    cells = cells_of(run)
    here = cells.array == cells.array[0]
    rows, columns = cells.row[here].astype(int), cells.column[here].astype(int)
    image = np.full((np.ptp(rows) + 1, np.ptp(columns) + 1), np.nan)
    image[rows - rows.min(), columns - columns.min()] = values[here]
    extent = (columns.min() - 0.5, columns.max() + 0.5, rows.max() + 0.5, rows.min() - 0.5)
    figure = map_figure(image, extent, quantity, source)
    return Picture(svg(figure), f"Map of {what}", f"Array {cells.array[0]}, {what}; grey: not studied.")


def _linearity(run: Run, source: str) -> list[Picture]:
    grids = products_of(run)
    if not grids:
        reads = reads_of(run, rows_of(run, "linearity"))
        values = {"": reads.mean.ravel() * US}
        figure = histogram_figure(Axis(f"{CONDUCTANCE} of RESET cells"), values, _edges(reads), source)
        return [Picture(svg(figure), "Histogram of reads of RESET cells", f"{capital(typeset(offset(reads)))}.")]
    return [picture for grid in grids for picture in (_deviation_picture(grid, source), _gain_picture(grid, source))]


def _deviation_picture(grid: Linearity, source: str) -> Picture:
    by_code = np.moveaxis(grid.deviation, 1, 0).reshape(len(grid.voltage), -1) / full_current(grid) * 100
    low, middle, high = np.nanpercentile(by_code, (10, 50, 90), axis=1)
    band = Band("median, middle 80 %", grid.voltage, middle, low, high)
    figure = band_figure(
        Axis("voltage on the driven line (V)"), Axis("deviation (% of full current)"), [band], [], source
    )
    line = line_of(grid)
    text = (
        f"One driven line at a time, {some(grid.gain.size, 'crossing')}: deviation {100 * line.deviation:.2g} % of the "
        f"current at the largest code (standard deviation), at most {100 * line.largest:.2g} %; current at zero input "
        f"{line.offset * 1e9:.2g} nA."
    )
    return Picture(svg(figure), "Deviation of products from a line", text)


def _gain_picture(grid: Linearity, source: str) -> Picture:
    expected, gain = grid.conductance.ravel() * US, grid.gain.ravel() * US
    ends = np.array([np.nanmin(expected), np.nanmax(expected)])
    figure = density_figure(
        Axis("conductance by single reads (µS)"), Axis("slope of the product (µS)"), (expected, gain),
        [Line("equal", ends, ends)], source,
    )  # fmt: skip
    over = int(np.isnan(gain).sum())
    text = f"Products are {line_of(grid).gain:.4f} times what reads of the cells add up to; the dashed line is 1."
    text += f" Left out: {some(over, 'crossing')} beyond the converter's range." if over else ""
    return Picture(svg(figure), "Slope of products over conductance", text)


def typeset(line: str) -> str:
    """A line of `hil.study_found` with the signs that a page has."""
    return line.replace("+-", "±").replace(" uS", " µS").replace("nu ", "ν ")


def capital(line: str) -> str:
    """The line as the beginning of a sentence."""
    return line[0].upper() + line[1:]


def _edges(reads: Reads) -> Floats:
    """Bins (uS) over all levels: each takes equally many of the values that a mean of so many codes can have."""
    low, high, step = reads.mean.min() * US, reads.mean.max() * US, reads.quantum / reads.count * US
    width = step * max(1, np.ceil((high - low) / step / BINS))
    edges: Floats = low - step / 2 + width * np.arange(2 + (high - low + step / 2) // width)
    return edges


def _bins(values: Floats) -> Floats:
    """Bins over all values."""
    low, high = float(values.min()), float(values.max())
    return np.linspace(low, high if high > low else low + 1e-3, BINS + 1)


FIGURES: Mapping[str, Callable[[Run, Rows, Reads, str], list[Picture]]] = {
    "read-noise": _read_noise,
    "reset": _reset,
    "staircase": _staircase,
    "drift": _drift,
    "endurance": _endurance,
    "map": _map,
}
