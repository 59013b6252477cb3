"""The page on a fit: parameters with their intervals, and how well the model describes the devices."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

import hil.report_facts as facts
from hil.findings import Findings, Part, write_findings
from hil.fit_goodness import NORMAL_SCORES, Bins, ks_limit
from hil.fitted_chip import FittedChip
from hil.measured import Floats
from hil.mock_hw.array import Chip
from hil.mock_hw.chips import ChipParameters
from hil.plots import GREY, STYLE, legend_if_short, new_figure, svg
from hil.protocols.messages import Cells, Operation, PulseBatch
from hil.report_figures import Picture
from hil.study_plots import Axis, Band, Line, band_figure
from hil.tables import fit_rows

US = 1e6  # uS per S
SHOWN = (0, 1, 2, 5, 10, 20)
"""SET pulses after which residuals are shown."""
SIMULATED = 4096
"""Cells of the twin that the curve of the fit is computed with. CHOSEN: its mean is known to 2 %."""


def write_fit_report(found: FittedChip, out: Path) -> None:
    """Write the page on a fit. Raises `InputError` or `StorageError`, as `hil.findings.write_findings`."""
    fitted = found.fitted
    parts = [
        Part("Parameters", "With 95 % intervals from a bootstrap over the cells.", table=fit_rows(fitted)),
        Part("Staircase", _about_steps(found), [_staircase(found), _quantiles(found), _distances(found)]),
        Part("Noise of reads and trends", _about_trends(found), [_noise(found), _trend(found)]),
    ]
    results = [
        ("cells", f"{fitted.cells:,}"),
        ("largest distance (KS)", f"{fitted.goodness.ks.max():.3f}"),
        ("warnings", str(len(fitted.warnings))),
    ]
    page = Findings(f"Fit to {found.measured}", [("", facts.KINDS[found.kind])], results, parts, fitted.warnings)
    write_findings(page, out)


def _about_steps(found: FittedChip) -> str:
    goodness = found.fitted.goodness
    worst = int(goodness.ks.argmax())
    return (
        "Residuals are each step minus what the fit expects of it, over its standard deviation: standard normal where "
        f"the model describes the devices. Their largest distance from that is {goodness.ks[worst]:.3f}, after {worst} "
        f"pulses; up to {ks_limit(found.fitted.cells):.3f} counts as chance."
    )


def _about_trends(found: FittedChip) -> str:
    value, error = found.fitted.goodness.correlation
    return f"Successive reads of a cell are correlated by {value:.3f} +- {error:.3f}; white noise would give 0."


def _staircase(found: FittedChip) -> Picture:
    """Mean and standard deviation of the devices, and of a twin's."""
    mean, pulses = found.staircase.reads.mean * US, found.staircase.pulses.astype(float)
    centre, spread = mean.mean(1), mean.std(1)
    twin = simulated(found.chip, len(pulses) - 1) * US
    lines = [
        Line("fit: mean", pulses, twin.mean(1)),
        Line("fit: standard deviation", pulses, twin.std(1)),
    ]
    bands = [
        Band("devices: mean", pulses, centre, centre - spread, centre + spread),
        Band("devices: standard deviation", pulses, spread, spread, spread),
    ]
    figure = band_figure(
        Axis("SET pulses since the RESET", whole=True), Axis("conductance (µS)"), bands, lines, found.source
    )
    return Picture(
        svg(figure), "Staircase", "Devices as measured (band: standard deviation) and a twin with the fit (dashed)."
    )


def simulated(chip: ChipParameters, pulses: int) -> Floats:
    """Conductances (S) of cells of a twin after 0 to so many pulses: (pulses + 1, cells)."""
    small = ChipParameters(arrays=1, rows=64, columns=SIMULATED // 64, cell=chip.cell)
    twin = Chip(small, np.random.SeedSequence(0))
    flat = np.arange(SIMULATED)
    rows, columns = np.divmod(flat, SIMULATED // 64)
    once = PulseBatch(Cells.of(0, rows, columns), Operation.SET, np.ones(SIMULATED, np.uint16), small.set_pulse)
    levels = [twin.cells["conductance"].copy()]
    for _ in range(pulses):
        twin.program(once, flat, SIMULATED)
        levels.append(twin.cells["conductance"].copy())
    return np.array(levels, np.float64)


def _quantiles(found: FittedChip) -> Picture:
    goodness = found.fitted.goodness
    chosen = [count for count in SHOWN if count < len(goodness.quantiles)]
    figure = quantile_figure({f"{n} pulses": goodness.quantiles[n] for n in chosen}, found.source)
    text = "Quantiles of the residuals after so many pulses over those of a standard normal: on the line if they agree."
    return Picture(svg(figure), "Quantiles of residuals", text)


def quantile_figure(values: Mapping[str, Floats], source: str) -> Figure:
    """Quantiles from 1 to 99 % over those of a standard normal, for each label."""
    colours = mpl.colormaps["viridis_r"](np.linspace(0.12, 1, len(values)))
    with mpl.rc_context(STYLE):
        figure, (axes,) = new_figure(source)
        axes.plot(NORMAL_SCORES, NORMAL_SCORES, color=GREY, lw=1, ls=(0, (6, 2)))
        for colour, (label, quantiles) in zip(colours, values.items(), strict=True):
            axes.plot(NORMAL_SCORES, quantiles, ".", ms=3, color=colour, label=label)
        axes.set(xlabel="quantiles of a standard normal", ylabel="quantiles of the residuals")
        legend_if_short(axes, len(values))
    return figure


def _distances(found: FittedChip) -> Picture:
    ks = found.fitted.goodness.ks
    pulses = np.arange(len(ks), dtype=float)
    limit = Line("chance", pulses[[0, -1]], np.full(2, ks_limit(found.fitted.cells)))
    band = Band("residuals", pulses, ks, ks, ks)
    figure = band_figure(
        Axis("SET pulses since the RESET", whole=True),
        Axis("distance (Kolmogorov-Smirnov)"),
        [band],
        [limit],
        found.source,
    )
    return Picture(svg(figure), "Goodness of fit", "Distance of the residuals from a standard normal after each pulse.")


def _noise(found: FittedChip) -> Picture:
    figure = _binned("variance of reads over that of the fit", found.fitted.goodness.noise, 1.0, found.source)
    return Picture(
        svg(figure), "Noise of reads", "1 where the noise of reads is linear in conductance, as the model says."
    )


def _trend(found: FittedChip) -> Picture:
    figure = _binned("mean residual", found.fitted.goodness.trend, 0.0, found.source)
    return Picture(svg(figure), "Mean residual", "0 where the mean step is linear in conductance, as the model says.")


def _binned(quantity: str, bins: Bins, expected: float, source: str) -> Figure:
    at = bins.at * US
    band = Band("devices", at, bins.mean, bins.mean - bins.error, bins.mean + bins.error)
    line = Line("model", at[[0, -1]], np.full(2, expected))
    return band_figure(Axis("conductance (µS)"), Axis(quantity), [band], [line], source)
