"""Figures of studies: from arrays to matplotlib figures, in the style of `hil.plots`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.axis import XAxis, YAxis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator

from hil.plots import COLOURS, GREY, MARKERS, STYLE, legend_if_short, log_axis, new_figure, short
from hil.series import Floats

FEW = 200
"""Points that are few enough for a marker each."""


@dataclass(frozen=True)
class Band:
    """A curve with what lies around it: x, y and the two ends of the band, (n,) each."""

    label: str
    x: Floats
    y: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True)
class Line:
    """A line for comparison, grey and dashed."""

    label: str
    x: Floats
    y: Floats


@dataclass(frozen=True)
class Axis:
    """What an axis shows, with its unit; linear or logarithmic. Of `whole` numbers, such as pulses, ticks are whole."""

    label: str
    log: bool = False
    whole: bool = False


def band_figure(x: Axis, y: Axis, bands: Sequence[Band], lines: Sequence[Line], source: str) -> Figure:
    """Curves with bands, and lines to compare them with."""
    with mpl.rc_context(STYLE):
        figure, (axes,) = new_figure(source)
        for number, band in enumerate(bands):
            colour = COLOURS[number % len(COLOURS)]
            axes.fill_between(band.x, band.low, band.high, color=colour, alpha=0.18, lw=0)
            axes.plot(band.x, band.y, MARKERS[number % len(MARKERS)] + "-", color=colour, label=band.label)
        for line in lines:
            axes.plot(line.x, line.y, color=GREY, lw=1, ls=(0, (6, 2)), label=line.label)
        axes.set(xlabel=x.label, ylabel=y.label)
        axes.locator_params(axis="x", nbins=6)
        for axis, wanted, name in ((axes.xaxis, x, "x"), (axes.yaxis, y, "y")):
            if wanted.log:
                axes.set(**{f"{name}scale": "log"})
                log_axis(axis)
            if wanted.whole:
                _whole(axis, wanted.log)
        legend_if_short(axes, len(bands) + len(lines))
    return figure


def _whole(axis: XAxis | YAxis, log: bool) -> None:
    """Ticks at whole numbers only, after everything is drawn."""
    if log:
        low, high = axis.get_view_interval()
        ticks = [tick for tick in axis.get_majorticklocs() if low <= tick <= high and tick >= 1]
        axis.set_major_locator(FixedLocator(ticks))
    else:
        axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def histogram_figure(x: Axis, values: Mapping[str, Floats], edges: Floats, source: str) -> Figure:
    """How many cells have which value, for each label, from light to dark; on a log scale."""
    colours = mpl.colormaps["viridis_r"](np.linspace(1, 0.12, len(values)))[::-1]
    counts = {label: np.histogram(found, edges)[0] for label, found in values.items()}
    with mpl.rc_context(STYLE):
        figure, (axes,) = new_figure(source)
        for colour, (label, count) in zip(colours, counts.items(), strict=True):
            axes.stairs(count, edges, color=colour, label=label, lw=1.2)
        axes.set_yscale("log", nonpositive="clip")
        axes.set_ylim(0.7, 2 * max(int(count.max(initial=1)) for count in counts.values()))
        log_axis(axes.yaxis)
        _whole(axes.yaxis, log=True)
        axes.set(xlabel=x.label, ylabel="cells")
        axes.locator_params(axis="x", nbins=6)
        if x.whole:
            _whole(axes.xaxis, log=False)
        legend_if_short(axes, len(values) if len(values) > 1 else 0)
    return figure


def density_figure(x: Axis, y: Axis, points: tuple[Floats, Floats], lines: Sequence[Line], source: str) -> Figure:
    """How densely points lie, with their mean over x in steps, and lines to compare it with."""
    known = np.isfinite(points[0]) & np.isfinite(points[1])
    at, value = points[0][known], points[1][known]
    with mpl.rc_context(STYLE | {"axes.grid": False}):
        figure, (axes,) = new_figure(source)
        counts, xs, ys = np.histogram2d(at, value, bins=(60, 45))
        if len(at) < FEW:
            axes.plot(at, value, ".", color=COLOURS[0], clip_on=False)
        else:
            axes.pcolormesh(xs, ys, np.ma.masked_equal(counts.T, 0), cmap="Blues", norm="log", rasterized=True)
        centre, mean = binned(at, value)
        axes.plot(centre, mean, "o", color=COLOURS[1], label="mean")
        for line in lines:
            axes.plot(line.x, line.y, color="black", lw=1, ls=(0, (6, 2)), label=line.label)
        axes.set(xlabel=x.label, ylabel=y.label, xlim=(xs[0], xs[-1]), ylim=(ys[0], ys[-1]))
        legend_if_short(axes, 1 + len(lines))
    return figure


def binned(x: Floats, y: Floats, bins: int = 15, fewest: int = 20) -> tuple[Floats, Floats]:
    """Centre of each bin over x with enough points, and the mean of y there."""
    edges = np.linspace(x.min(), x.max(), bins + 1) if len(x) else np.zeros(bins + 1)
    place = np.clip(np.searchsorted(edges, x, "right") - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    enough = count >= min(fewest, len(x) // bins + 1)
    total = np.bincount(place, y, bins)
    return (edges[1:] + edges[:-1])[enough] / 2, total[enough] / count[enough]


def _limits(image: Floats) -> tuple[float, float]:
    """Ends of a scale that holds most values, and is never empty."""
    low, high = np.nanpercentile(image, (0.5, 99.5))
    if low == high:
        low, high = np.nanmin(image), np.nanmax(image)
    return (low, high) if low < high else (low - 0.5, low + 0.5)


def map_figure(image: Floats, extent: tuple[float, float, float, float], quantity: str, source: str) -> Figure:
    """One value per cell (rows, columns), word lines from top to bottom; cells without a value are grey."""
    colours = mpl.colormaps["viridis"].with_extremes(bad="#dddddd")
    with mpl.rc_context(STYLE | {"axes.grid": False}):
        figure, (axes, scale) = new_figure(source, 4.2, ratios=(1.0, 0.05))
        low, high = _limits(image)
        shown = axes.imshow(
            image, cmap=colours, extent=extent, vmin=low, vmax=high, aspect="auto", interpolation="none"
        )
        if np.isfinite(image).sum() < min(FEW, image.size):  # which are scattered, and hardly seen as they are
            row, column = np.nonzero(np.isfinite(image))
            x, y = extent[0] + 0.5 + column, extent[3] + 0.5 + row
            axes.scatter(x, y, s=16, c=image[row, column], marker="s", cmap=colours, vmin=low, vmax=high, clip_on=False)
        axes.set(xlabel="bit line", ylabel="word line")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
        figure.colorbar(shown, cax=scale)
        scale.yaxis.set_major_formatter(short)
        scale.set_title(quantity, fontsize=8, loc="right")
    return figure
