"""The figures of each study, with their texts: from a run file to pictures."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from hil.data.run import Run
from hil.measured import Floats, Reads
from hil.plots import svg
from hil.protocols.errors import InputError
from hil.report_figures import Picture, source_line
from hil.study_data import Linearity, Rows, cells_of, is_stuck, linearity_of, reads_of, rows_of
from hil.study_plots import Axis, Band, Line, band_figure, density_figure, histogram_figure, map_figure

US = 1e6  # uS per S
CONDUCTANCE = "conductance (µS)"
LARGEST_DRIFTING = 0.5e-6
"""S below which a cell's drift cannot be told from its noise. CHOSEN."""
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
    level = reads.mean * US
    edges = _edges(level)
    figure = histogram_figure(f"{CONDUCTANCE} after a RESET", {"": level.ravel()}, edges, source)
    text = (
        f"Each cell after each of {len(rows)} RESETs, mean of {reads.count} reads: mean {level.mean():.3f} µS, "
        f"standard deviation {level.std():.3f} µS, largest {level.max():.3g} µS."
    )
    return [Picture(svg(figure), "Histogram of the conductance after a RESET", text)]


def _staircase(run: Run, rows: Rows, reads: Reads, source: str) -> list[Picture]:
    return [
        _staircase_picture(rows, reads.mean * US, source),
        _levels_picture(rows, reads.mean * US, source),
        *_noise(reads, source),
    ]


def _staircase_picture(rows: Rows, level: Floats, source: str) -> Picture:
    mean, deviation = level.mean(1), level.std(1)
    n = np.array([number for number in MODEL if number <= rows.pulses.max()])
    model = np.array([MODEL[number] for number in n])
    figure = band_figure(
        Axis("SET pulses since the RESET"),
        Axis(CONDUCTANCE),
        [Band("mean ± standard deviation", rows.pulses.astype(float), mean, mean - deviation, mean + deviation)],
        [
            Line("2018 model, mean", n, model[:, 0]),
            *(Line(label, n, model[:, 0] + sign * model[:, 1]) for label, sign in (("± deviation", 1), ("_", -1))),
        ],
        source,
    )
    text = (
        f"{level.shape[1]:,} cells: {mean[-1]:.2f} ± {deviation[-1]:.2f} µS after {rows.pulses[-1]} pulses. Dashed: "
        "statistical model of Nandakumar et al., J. Appl. Phys. 124, 152135 (2018)."
    )
    return Picture(svg(figure), "Conductance over SET pulses", text)


def _levels_picture(rows: Rows, level: Floats, source: str) -> Picture:
    shown = sorted({*np.unique(np.geomspace(1, max(rows.pulses[-1], 1), 5).round().astype(int)), 0} & {*rows.pulses})
    values = {_times(int(n), "pulse"): level[int(np.flatnonzero(rows.pulses == n)[0])] for n in shown}
    figure = histogram_figure(CONDUCTANCE, values, _edges(level), source)
    text = "How many cells have which conductance after so many SET pulses; each the mean of its reads."
    return Picture(svg(figure), "Histograms of the conductance after some SET pulses", text)


def _noise(reads: Reads, source: str) -> list[Picture]:
    """Standard deviation of a read over conductance; of three reads or more, which tell whether they correlate."""
    if reads.count < 3:
        return []
    mean, deviation = reads.mean.ravel() * US, np.sqrt(reads.variance).ravel() * US
    ends = np.array([mean.min(), mean.max()])
    figure = density_figure(
        Axis(CONDUCTANCE),
        Axis("standard deviation of a read (µS)"),
        (mean, deviation),
        [Line("2018 model", ends, READ_SLOPE * ends + READ_OFFSET)],
        source,
    )
    text = f"Each cell at each step, {reads.count} reads: the deviation is {deviation.mean():.3f} µS in the mean"
    if deviation.any():
        correlation = reads.covariance.mean() / reads.variance.mean()
        text += f", and successive reads correlate by {correlation:.3f} ({-1 / reads.count:.3f} for white noise)"
    return [Picture(svg(figure), "Read noise over conductance", f"{text}.")]


def _drift(run: Run, rows: Rows, reads: Reads, source: str) -> list[Picture]:
    counts = run.snapshot("drift").arrays["pulses"]
    level = {int(n): (reads.mean[:, counts == n] * US).mean(1) for n in np.unique(counts)}
    nu = drift_exponents(reads)
    mean = float(np.mean(nu)) if len(nu) else float("nan")
    age = reads.age
    figure = band_figure(
        Axis("time since the last pulse (s)", log=True),
        Axis(f"mean {CONDUCTANCE}", log=True),
        [Band(_times(n, "pulse"), age, values, values, values) for n, values in level.items()],
        [
            Line("_" if i else f"ν = {mean:.3f}", age, v[0] * (age / age[0]) ** -mean)
            for i, v in enumerate(level.values())
        ],
        source,
    )
    text = (
        f"Mean of the cells that had so many SET pulses. Drift exponent ν of {len(nu):,} of {reads.mean.shape[1]:,} "
        f"cells (those above {LARGEST_DRIFTING * US:g} µS): mean {mean:.4f}, dashed."
    )
    drawn = [Picture(svg(figure), "Conductance over time", text)]
    return drawn + ([_nu_picture(nu, source)] if len(nu) else [])


def _nu_picture(nu: Floats, source: str) -> Picture:
    figure = histogram_figure("drift exponent ν", {"": nu}, _edges(nu), source)
    text = (
        f"Drift exponent of each cell, by a line through its reads on log scales: mean {nu.mean():.4f}, standard "
        f"deviation {nu.std():.4f}, read noise included."
    )
    return Picture(svg(figure), "Histogram of drift exponents", text)


def drift_exponents(reads: Reads) -> Floats:
    """nu of each cell that stays well above its noise, by least squares on log scales: fewer than there are cells."""
    enough = (reads.mean > LARGEST_DRIFTING).all(0)
    if len(reads.age) < 2:
        return np.empty(0)
    level, x = np.log(reads.mean[:, enough]), np.log(reads.age)
    x = x - x.mean()
    return np.asarray(-(x @ level) / (x @ x))


def _endurance(run: Run, rows: Rows, reads: Reads, source: str) -> list[Picture]:
    level = reads.mean * US
    bands = []
    for label, chosen in (("after SET", rows.pulses > 0), ("after RESET", rows.pulses == 0)):
        low, middle, high = np.percentile(level[chosen], (10, 50, 90), axis=1)
        bands.append(Band(label, rows.cycle[chosen].astype(float), middle, low, high))
    figure = band_figure(Axis("cycles of RESET and SET", log=True), Axis(CONDUCTANCE), bands, [], source)
    text = (
        f"Median of the cells, and where the middle 80 % of them are, mean of {_times(reads.count, 'read')}. "
        f"After SET {bands[0].y[0]:.2f} µS at first, {bands[0].y[-1]:.2f} µS in cycle {rows.cycle[-1]:,}."
    )
    return [Picture(svg(figure), "Conductance over cycles", text)]


def _map(run: Run, rows: Rows, reads: Reads, source: str) -> list[Picture]:
    level = reads.mean * US
    pictures = [_map_picture(run, reads.mean.mean(0) * US, f"mean of {_times(len(rows), 'cycle')}", source)]
    if min(level.shape) < 2:
        return pictures
    cycle, persistent = spreads(level)
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
        f"Each cell. Standard deviation from cycle to cycle {cycle:.2f} µS, persistent from device to device "
        f"{persistent:.2f} µS ({persistent / level.mean():.1%} of the mean); without the latter, points scatter about "
        "one value."
    )
    return [*pictures, Picture(svg(figure), "Odd against even cycles of each cell", text)]


def spreads(level: Floats) -> tuple[float, float]:
    """Standard deviations of levels (cycles, cells): from cycle to cycle, and persistent from device to device."""
    within = level.var(0, ddof=1).mean()
    between = level.mean(0).var(ddof=1) - within / len(level)
    return float(np.sqrt(within)), float(np.sqrt(max(between, 0.0)))


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
    grids = linearity_of(run)
    if not grids:
        rows = rows_of(run, "linearity")
        level = reads_of(run, rows).mean * US
        figure = histogram_figure(f"{CONDUCTANCE} of RESET cells", {"": level.ravel()}, _edges(level), source)
        text = f"The tester does not multiply. Offset of a read: {level.mean():.3f} µS in the mean."
        return [Picture(svg(figure), "Histogram of reads of RESET cells", text)]
    if all(np.isnan(grid.gain).all() for grid in grids):
        raise InputError("every product went beyond the converter's range: give fewer --pulses")
    return [picture for grid in grids for picture in (_deviation_picture(grid, source), _gain_picture(grid, source))]


def _deviation_picture(grid: Linearity, source: str) -> Picture:
    full = np.nanmean(np.abs(grid.current[:, [0, -1]]))
    by_code = np.moveaxis(grid.deviation, 1, 0).reshape(len(grid.voltage), -1) / full * 100
    low, middle, high = np.nanpercentile(by_code, (10, 50, 90), axis=1)
    band = Band("median, middle 80 %", grid.voltage, middle, low, high)
    figure = band_figure(
        Axis("voltage on the driven line (V)"), Axis("deviation (% of full current)"), [band], [], source
    )
    zero = grid.current[:, np.abs(grid.voltage).argmin()]
    text = (
        f"One driven line at a time, {grid.gain.size:,} crossings: deviation {np.nanstd(grid.deviation) / full:.2%} of "
        f"the current at the largest code (standard deviation); current at zero input {np.nanmean(zero) * 1e9:.2g} nA."
    )
    return Picture(svg(figure), "Deviation of products from a line", text)


def _gain_picture(grid: Linearity, source: str) -> Picture:
    expected, gain = grid.conductance.ravel() * US, grid.gain.ravel() * US
    ends = np.array([np.nanmin(expected), np.nanmax(expected)])
    figure = density_figure(
        Axis("conductance by single reads (µS)"), Axis("slope of the product (µS)"), (expected, gain),
        [Line("equal", ends, ends)], source,
    )  # fmt: skip
    ratio = np.nansum(gain * expected) / np.nansum(np.where(np.isnan(gain), np.nan, expected) ** 2)
    over = int(np.isnan(gain).sum())
    text = f"Products are {ratio:.4f} times what reads of the cells add up to; the dashed line is 1."
    text += f" {over} crossings beyond the converter's range are left out." if over else ""
    return Picture(svg(figure), "Slope of products over conductance", text)


def _edges(values: Floats) -> Floats:
    """Bins over all values."""
    low, high = float(values.min()), float(values.max())
    return np.linspace(low, high if high > low else low + 1e-3, BINS + 1)


def _times(number: int, thing: str) -> str:
    return f"{number} {thing}" + ("" if number == 1 else "s")


FIGURES: Mapping[str, Callable[[Run, Rows, Reads, str], list[Picture]]] = {
    "read-noise": _read_noise,
    "reset": _reset,
    "staircase": _staircase,
    "drift": _drift,
    "endurance": _endurance,
    "map": _map,
}
