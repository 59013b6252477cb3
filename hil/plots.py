"""Figures of a report: from arrays to SVG. Each is as wide as a phone, so that a page can set them side by side."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, PercentFormatter

from hil.series import Counts, Floats

# Okabe and Ito: told apart with every common colour blindness.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
GREY = "#767676"
STYLE: Any = {
    "axes.edgecolor": "#444444",
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.linewidth": 0.7,
    "axes.prop_cycle": f"cycler('color', {COLOURS})",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.dpi": 96,
    "font.size": 9,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.6,
    "legend.fontsize": 8,
    "legend.framealpha": 0.85,
    "legend.edgecolor": "none",
    "lines.linewidth": 1.4,
    "lines.markersize": 3.5,
    "svg.hashsalt": "report",  # equal figures give equal bytes
    "text.parse_math": False,  # names of files and experiments are shown as they are
}
WIDTH, HEIGHT = 4.4, 3.0  # inches
PAPER = 0.9773
PAPER_LABEL = "97.73 %, MNIST on PCM hardware\n(Nandakumar et al. 2020)"


@dataclass(frozen=True)
class Curve:
    """A quantity over epochs 1, 2, ..., with its name in the legend."""

    label: str
    values: Floats


def svg(figure: Figure) -> str:
    """The figure as a data URI."""
    out = io.BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(out, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(out.getvalue()).decode()


def new_figure(
    source: str, height: float = HEIGHT, rows: int = 1, ratios: Sequence[float] = (1,)
) -> tuple[Figure, list[Axes]]:
    """A new figure and its axes, row after row. The figure says where its data come from: figures leave their page.

    Margins are fixed, in inches: matplotlib's own layouts take longer than all the rest of a report.
    """
    figure = Figure(figsize=(WIDTH, height))
    right, top = (0.22, 0.14) if len(ratios) == 1 else (0.5, 0.3)  # a colour scale is labelled on its right
    left, right, top, bottom = 0.72, WIDTH - right, height - top, 0.62
    sides = {"left": left / WIDTH, "right": right / WIDTH, "top": top / height, "bottom": bottom / height}
    grid = figure.add_gridspec(rows, len(ratios), width_ratios=ratios, hspace=0.1, wspace=0.09, **sides)
    figure.text(0.985, 0.03 / height, printable(source), ha="right", va="bottom", fontsize=6.5, color=GREY)
    places = [grid[row, column] for row in range(rows) for column in range(len(ratios))]
    return figure, [figure.add_subplot(place) for place in places]


def log_axis(axis: Axis) -> None:
    """A log axis with few, plain numbers: more between where there is less than a decade."""
    axis.set_minor_locator(NullLocator())
    low, high = sorted(axis.get_view_interval())
    steps = (1, 2, 3, 4, 6, 8) if high / low < 10 else (1, 2, 5) if high / low < 100 else (1,)
    axis.set_major_locator(LogLocator(subs=steps, numticks=8))
    axis.set_major_formatter(short)


def short(value: float, _: object = None) -> str:
    """A number of a tick in a few characters."""
    for limit, unit in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:g}{unit}"
    return f"{value:g}"


def _log_if_any(axes: Axes, curves: Sequence[Floats]) -> None:
    """A log scale for values over decades; zeros have no point there, and nothing but zeros no scale."""
    if any((values > 0).any() for values in curves):
        axes.set_yscale("log", nonpositive="mask")
        log_axis(axes.yaxis)
    else:
        axes.set_ylim(0, 1)


def printable(text: str, longest: int = 36) -> str:
    """A name in characters that the figures' font has, shortened in the middle."""
    plain = text.encode("latin-1", "replace").decode("latin-1")
    plain = "".join(character if character.isprintable() else "?" for character in plain)
    half = longest // 2 - 1
    return plain if len(plain) <= longest else f"{plain[:half]}...{plain[-half:]}"


def _epochs(axes: Axes) -> None:
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def legend_if_short(axes: Axes, entries: int) -> None:
    if 1 <= entries <= 12:  # more would hide the curves; the caption names them
        axes.legend()


def accuracy_figure(test: Sequence[Curve], train: Sequence[Curve], paper: bool, source: str) -> Figure:
    """Test (solid) and training accuracy (dashed) over epochs, the published value as a line where it applies."""
    with mpl.rc_context(STYLE):
        figure, (axes,) = new_figure(source)
        for number, (tested, trained) in enumerate(zip(test, train, strict=True)):
            colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
            names = (printable(tested.label), None) if len(test) > 1 else ("test", "training")
            for values, line, label in zip((tested.values, trained.values), ("-", "--"), names, strict=True):
                face, width = (colour, 1.4) if line == "-" else ("white", 0.9)
                epochs = np.arange(1, len(values) + 1)
                axes.plot(epochs, values, marker + line, color=colour, mfc=face, lw=width, label=label)
        if paper:
            axes.axhline(PAPER, color=GREY, lw=1, ls=(0, (6, 2)), label=PAPER_LABEL)
        _epochs(axes)
        axes.set_ylabel("accuracy (%)")
        axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=""))
        legend_if_short(axes, len(test) + 1)
    return figure


def epoch_figure(curves: Sequence[Curve], quantity: str, source: str, legend: bool = True) -> Figure:
    """Curves over epochs on a log scale; `quantity` names the y axis with its unit."""
    with mpl.rc_context(STYLE):
        figure, (axes,) = new_figure(source)
        for number, curve in enumerate(curves):
            marker = MARKERS[number % len(MARKERS)]
            axes.plot(np.arange(1, len(curve.values) + 1), curve.values, marker + "-", label=printable(curve.label))
        _epochs(axes)
        axes.set_ylabel(quantity)
        _log_if_any(axes, [curve.values for curve in curves])
        legend_if_short(axes, len(curves) * legend)
    return figure


def pulse_rate_figure(images: Floats, pulses: Floats, epochs: Floats, source: str) -> Figure:
    """SET pulses per image over images trained, with the ends of epochs."""
    with mpl.rc_context(STYLE):
        figure, (axes,) = new_figure(source)
        axes.plot(images, pulses, lw=1.1)
        for end in epochs:
            axes.axvline(end, color=GREY, lw=0.7, ls=":")
        axes.set_xlabel("images trained")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(short)
        axes.set_ylabel("SET pulses per image")
        _log_if_any(axes, [pulses])
    return figure


def conductance_figure(
    labels: Sequence[str], histograms: Mapping[str, Sequence[Counts]], edges: Floats, source: str
) -> Figure:
    """Histograms (one per moment) of each device of the pairs, over `edges` in S; moments run from light to dark."""
    colours = mpl.colormaps["viridis_r"](np.linspace(0.12, 1, len(labels)))
    top = max(int(count.max(initial=1)) for counts in histograms.values() for count in counts)
    with mpl.rc_context(STYLE):
        figure, panels = new_figure(source, 4.2, rows=len(histograms))
        for axes, (sign, counts) in zip(panels, histograms.items(), strict=True):
            for label, colour, count in zip(labels, colours, counts, strict=True):
                axes.stairs(count, edges * 1e6, color=colour, label=label, lw=1.2)
            axes.set_yscale("log", nonpositive="clip")
            axes.set_ylim(0.7, 2 * top)
            log_axis(axes.yaxis)
            axes.set_ylabel(f"devices {sign}")
            axes.tick_params(labelbottom=axes is panels[-1])
        panels[0].legend(ncols=2)
        panels[-1].set_xlabel("conductance (µS)")
    return figure


def pulse_map(counts: Mapping[str, Counts], source: str) -> Figure:
    """Pulses on each device as an image per sign, (inputs, outputs) of the layer; devices without a pulse are grey."""
    top = max((int(count.max(initial=0)) for count in counts.values()), default=0)
    colours = mpl.colormaps["viridis"].with_extremes(bad="#dddddd")
    with mpl.rc_context(STYLE | {"axes.grid": False}):
        figure, (*panels, scale) = new_figure(source, 4.2, ratios=(*[1.0] * len(counts), 0.07))
        for axes, (sign, count) in zip(panels, counts.items(), strict=True):
            shown = np.ma.masked_equal(count, 0)
            image = axes.imshow(shown, norm=LogNorm(1, max(top, 2)), cmap=colours, aspect="auto", interpolation="none")
            axes.set_title(sign, fontsize=9)
            axes.set_xlabel("output")
            axes.tick_params(labelleft=axes is panels[0])
            axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
            axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        panels[0].set_ylabel("input (last: bias)")
        figure.colorbar(image, cax=scale)
        log_axis(scale.yaxis)
        scale.set_title("  SET pulses", fontsize=8)
    return figure


def pulse_distribution(counts: Mapping[str, npt.NDArray[np.uint32]], source: str) -> Figure:
    """How many devices had at least so many pulses, for each name in `counts`."""
    with mpl.rc_context(STYLE):
        figure, (axes,) = new_figure(source, 4.2)
        for (name, count), style in zip(counts.items(), ("-", "-", "--", ":"), strict=False):
            values, devices = np.unique(count[count > 0], return_counts=True)
            if len(values):
                axes.step(values, devices[::-1].cumsum()[::-1], style, where="pre", label=name)
                axes.plot(values[-1:], devices[-1:], ".", color=axes.lines[-1].get_color())
        axes.set(xscale="log", yscale="log", xlabel="pulses", ylabel="devices with at least so many")
        log_axis(axes.xaxis)
        log_axis(axes.yaxis)
        legend_if_short(axes, len(axes.lines))
    return figure
