"""The page on a comparison: the distributions of two run files side by side."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hil.compare import Comparison, Distance, Series, parting
from hil.findings import Findings, Part, write_findings
from hil.plots import svg
from hil.report_figures import Picture
from hil.study_plots import Axis, Band, Line, band_figure, histogram_figure
from hil.tables import spread_of

BINS = 80


def write_comparison(found: Comparison, out: Path) -> None:
    """Write the page. Raises `InputError` or `StorageError`, as `hil.findings.write_findings`."""
    parts = [_part(found, series, distances) for series, distances in zip(found.series, found.distances, strict=True)]
    if found.fractions:
        parts.append(_fractions(found))
    apart = [series.name for series, distances in zip(found.series, found.distances, strict=True) if parting(distances)]
    apart += [f"{one.name}, {one.label}" for one in found.fractions if one.apart]
    results = [
        ("compared", f"{len(found.series)} quantities, {len(found.fractions)} accuracies"),
        ("apart", str(len(apart))),
    ]
    write_findings(Findings(" and ".join(found.labels), found.kinds, results, parts), out)


def _part(found: Comparison, series: Series, distances: Sequence[Distance]) -> Part:
    where = parting(distances)
    worst = max(range(len(distances)), key=lambda index: distances[index].distance)
    text = (
        f"They part at {where}: the first step at which the distributions are further apart than chance and 5 %."
        if where
        else "They do not part: nowhere are the distributions further apart than chance and 5 %."
    )
    pictures = [_histogram(found, series, worst)]
    if len(distances) > 1:
        pictures = [_means(found, series, distances), _distances(found, series, distances), *pictures]
    rows = [
        [
            one.label,
            *(spread_of(mean, spread, series.unit) for mean, spread in zip(one.means, one.spreads, strict=True)),
            f"{one.distance:.3f}",
        ]
        for one in distances
    ]
    return Part(
        series.name[0].upper() + series.name[1:], text, pictures, (["step", *found.labels, "distance (KS)"], rows)
    )


def _scaled(series: Series) -> tuple[float, str]:
    """What values are multiplied by for a reader, and the name of the quantity with its unit."""
    return (1e6, f"{series.name} (µS)") if series.unit == "S" else (1.0, series.name)


def _means(found: Comparison, series: Series, distances: Sequence[Distance]) -> Picture:
    size, name = _scaled(series)
    steps = np.arange(len(distances), dtype=float)
    bands = []
    for which, label in enumerate(found.labels):
        mean, spread = (
            np.array([getattr(one, key)[which] for one in distances]) * size for key in ("means", "spreads")
        )
        bands.append(Band(label, steps, mean, mean - spread, mean + spread))
    figure = band_figure(Axis(_steps(series), whole=True), Axis(name), bands, [], " and ".join(found.labels))
    return Picture(svg(figure), f"{series.name}, step by step", "Mean and standard deviation (bands) at each step.")


def _distances(found: Comparison, series: Series, distances: Sequence[Distance]) -> Picture:
    steps = np.arange(len(distances), dtype=float)
    values = np.array([one.distance for one in distances])
    limit = Line("chance or 5 %", steps[[0, -1]], np.full(2, distances[0].limit))
    band = Band("distance", steps, values, values, values)
    quantity = Axis("distance (Kolmogorov-Smirnov)")
    figure = band_figure(Axis(_steps(series), whole=True), quantity, [band], [limit], " and ".join(found.labels))
    return Picture(svg(figure), "Distances", "How far the two distributions are apart at each step.")


def _steps(series: Series) -> str:
    return f"step: {series.step}, {series.labels[0]} to {series.labels[-1]}"


def _histogram(found: Comparison, series: Series, index: int) -> Picture:
    size, name = _scaled(series)
    values = {label: sample * size for label, sample in zip(found.labels, series.samples[index], strict=True)}
    low, high = (function([function(sample) for sample in values.values()]) for function in (min, max))
    edges = np.linspace(low, max(high, low + 1e-9), BINS)
    figure = histogram_figure(Axis(name), values, edges, " and ".join(found.labels))
    return Picture(
        svg(figure),
        f"{series.name} at {series.labels[index]}",
        f"Distributions at {series.labels[index]}, where they are farthest apart.",
    )


def _fractions(found: Comparison) -> Part:
    rows = [
        [
            one.name,
            one.label,
            *(f"{value:.2%}" for value in one.values),
            f"{100 * (one.values[1] - one.values[0]):+.2f}",
            f"{100 * one.error:.2f}",
        ]
        for one in found.fractions
    ]
    names = ["quantity", "at", *found.labels, "difference (points)", "its standard error"]
    return Part(
        "Accuracy",
        "The standard error is that of fractions of so many test images; training scatters besides.",
        table=(names, rows),
    )
