"""The figures of a report, each with its text: from a run file to pictures."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from hil.data.run import Run
from hil.plots import (
    Curve,
    accuracy_figure,
    conductance_figure,
    epoch_figure,
    printable,
    pulse_distribution,
    pulse_map,
    pulse_rate_figure,
    svg,
)
from hil.series import Floats, LogSummary, Moment, cells_of, moments, per_image

BINS = 80
"""Bins of a conductance histogram, about."""

Values = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]  # values that occur, how often each


@dataclass(frozen=True)
class Picture:
    """A figure as a data URI, what it shows (for who cannot see it), and what one sees."""

    source: str
    alt: str
    caption: str


def common(runs: Mapping[str, Mapping[str, Any]], paper: bool, source: str) -> list[Picture]:
    """Accuracy and loss of all runs, given their metrics by label."""
    shown = {label: metrics for label, metrics in runs.items() if len(metrics.get("test_accuracy", ()))}
    if not shown:
        return []
    names = ("test_accuracy", "train_accuracy", "loss")
    test, train, loss = ([Curve(label, metrics[name]) for label, metrics in shown.items()] for name in names)
    one = len(shown) == 1
    ends = "; ".join(f"{curve.label}: {_accuracies(curve.values)}" for curve in test)
    accuracy = accuracy_figure(test, train, paper, source)
    text = f"Test (solid) and training accuracy (dashed) after each epoch. {ends}."
    if paper:
        text += " Grey line: 97.73 % on MNIST with PCM hardware, Nandakumar et al., Front. Neurosci. 14, 406 (2020)."
    lost = "; ".join(f"{curve.label}: {curve.values[0]:.3g} to {curve.values[-1]:.3g}" for curve in loss)
    loss_figure = epoch_figure(loss, "loss per image, ½ sum of squares", source, legend=not one)
    return [
        _picture(accuracy, "Accuracy over epochs", text),
        _picture(loss_figure, "Training loss over epochs", f"Mean loss of each epoch on a log scale. {lost}."),
    ]


def _accuracies(values: Floats) -> str:
    best = int(np.argmax(values))
    return f"{values[-1]:.2%} at the end, best {values[best]:.2%} after epoch {best + 1}"


def _picture(figure: Figure, alt: str, caption: str) -> Picture:
    return Picture(svg(figure), alt, caption)


def conductances(run: Run, log: LogSummary, source: str) -> list[Picture]:
    """Histograms of G+ and G- of each layer, as read at the start of training and after some epochs."""
    times = moments(run, log.training)
    cells = {layer: cells_of(run, layer) for layer in run.layers}
    if not times or not cells:
        return []
    seen: dict[str, dict[str, list[Values]]] = {layer: {sign: [] for sign in places} for layer, places in cells.items()}
    for moment in times:
        value = run.conductances(at=moment.row).value.reshape(-1)
        for layer, places in cells.items():
            for sign, place in places.items():
                known = value[place]
                seen[layer][sign].append(np.unique(known[~np.isnan(known)], return_counts=True))
    return [_conductance_picture(layer, times, values, source) for layer, values in seen.items()]


def _conductance_picture(
    layer: str, times: Sequence[Moment], values: Mapping[str, list[Values]], source: str
) -> Picture:
    edges = _edges(np.concatenate([found for sides in values.values() for found, _ in sides]))
    counts = {
        sign: [np.histogram(found, edges, weights=often)[0].astype(np.uint32) for found, often in sides]
        for sign, sides in values.items()
    }
    figure = conductance_figure([moment.label for moment in times], counts, edges, f"{source}, {layer}")
    means = "; ".join(f"{sign} {_mean(sides[0]):.2f} to {_mean(sides[-1]):.2f} µS" for sign, sides in values.items())
    first, last = times[0].label, times[-1].label
    when, of = f"from {first} (light) to {last} (dark)", f"Mean {means}."
    if len(times) == 1:
        when, of = f"at the {first}", ""
    text = f"{_named(layer)}: how many devices were read with which conductance, {when}; one noisy reading each. {of}"
    return _picture(figure, f"Histograms of the conductances of {layer}", text)


def _edges(values: npt.NDArray[np.float32]) -> Floats:
    """Bin edges that hold a whole number of converter steps, else one bin would get more codes than the next."""
    known = np.unique(values).astype(np.float64)
    if len(known) < 2:
        centre = known[0] if len(known) else 0.0
        return np.array([centre - 1e-6, centre + 1e-6])
    span = known[-1] - known[0]
    step = max(float(np.diff(known).min()), span * 1e-5)
    width = step * np.ceil(span / step / BINS)
    return np.asarray(known[0] - step / 2 + width * np.arange(np.ceil(span / width + 0.5) + 1))


def _mean(values: Values) -> float:
    found, often = values
    return float(np.average(found, weights=often)) * 1e6 if len(found) else float("nan")


def pulses(run: Run, source: str) -> list[Picture]:
    """Maps and distributions of the pulses on each device of each layer, over the whole run."""
    if not run.layers:
        return []
    sets, resets = (counts.reshape(-1) for counts in run.pulse_counts())
    pictures = []
    for layer in run.layers:
        cells = cells_of(run, layer)
        set_counts = {sign: sets[place] for sign, place in cells.items()}
        reset_counts = {sign: resets[place] for sign, place in cells.items()}
        pictures += [_map_picture(layer, set_counts, source), _spread_picture(layer, set_counts, reset_counts, source)]
    return pictures


def _map_picture(layer: str, counts: Mapping[str, npt.NDArray[np.uint32]], source: str) -> Picture:
    shape = next(iter(counts.values())).shape
    none = sum(int(np.count_nonzero(count == 0)) for count in counts.values())
    devices = sum(count.size for count in counts.values())
    text = (
        f"{_named(layer)}: SET pulses on each device in the whole run, laid out as the weight matrix of {shape[0]} "
        f"inputs by {shape[1]} outputs, the last input being the bias. Log scale; "
        f"grey: none ({none:,} of {devices:,} devices)."
    )
    return _picture(pulse_map(counts, f"{source}, {layer}"), f"Maps of the SET pulses on the devices of {layer}", text)


def _spread_picture(
    layer: str,
    sets: Mapping[str, npt.NDArray[np.uint32]],
    resets: Mapping[str, npt.NDArray[np.uint32]],
    source: str,
) -> Picture:
    counts = {f"SET {sign}": count for sign, count in sets.items()}
    counts |= {f"RESET {sign}": count for sign, count in resets.items()}
    most = "; ".join(f"{name}: mean {count.mean():.2f}, most {count.max():,}" for name, count in counts.items())
    text = f"{_named(layer)}: how many devices had at least so many pulses. {most}."
    figure = pulse_distribution(counts, f"{source}, {layer}")
    return _picture(figure, f"Distribution of the pulses per device of {layer}", text)


def updates(run: Run, log: LogSummary, source: str) -> list[Picture]:
    """Pulses, refreshes and saturation per image."""
    pictures = []
    if len(log.images) > 1:
        ends = run.metrics.get("images", np.zeros(0))
        figure = pulse_rate_figure(log.images, log.pulses, ends, source)
        text = (
            f"SET pulses per image, counted in the log: {log.pulses[0]:.3g} at first, {log.pulses[-1]:.3g} at last. "
            "Rewritten weights (refreshes) are counted, initial ones are not. Log scale; dotted: ends of epochs."
        )
        pictures.append(_picture(figure, "SET pulses per image over the images trained", text))
    return pictures + [picture for kind in RATES if (picture := _rate_picture(run, kind, source))]


@dataclass(frozen=True)
class Rate:
    """Totals of each layer that share a figure: parts of their names with labels, the y axis, and the words."""

    parts: Mapping[str, str]
    quantity: str
    about: str


RATES = (
    Rate({"set_pulses": ""}, "SET pulses per image", "SET pulses of weight updates per image, by layer"),
    Rate({"refreshes": ""}, "refreshed pairs per image", "Pairs of devices refreshed (RESET and rewritten) per image"),
    Rate(
        {"forward_saturated": " forward", "backward_saturated": " backward"},
        "saturated codes per image",
        "Converter codes at an end of the range per image, by layer and direction",
    ),
    Rate(
        {"conductance_saturated": ""},
        "pulses at a limit per image",
        "SET pulses that met an end of the conductance range per image, as far as the tester can tell",
    ),
)


def layer_numbers(run: Run) -> list[int]:
    """Numbers of the layers that the metrics count."""
    found = (re.fullmatch(r"layer(\d+)_set_pulses", name) for name in run.metrics)
    return sorted(int(match[1]) for match in found if match)


def _rate_picture(run: Run, kind: Rate, source: str) -> Picture | None:
    """One curve per layer; None without epochs or layers."""
    names = {
        f"layer {number}{label}": f"layer{number}_{part}"
        for number, (part, label) in product(layer_numbers(run), kind.parts.items())
    }
    curves = [Curve(label, per_image(run, name)) for label, name in names.items() if len(run.metrics.get(name, ()))]
    if not curves:
        return None
    shown = [curve for curve in curves if curve.values.any()]
    last = "; ".join(f"{curve.label}: {curve.values[-1]:.3g}" for curve in curves)
    text = f"{kind.about}, epoch by epoch, on a log scale, where none has no point. In the last epoch {last}."
    return _picture(epoch_figure(shown, kind.quantity, source), kind.about, text)


def _named(layer: str) -> str:
    return re.sub(r"layer(\d+)", r"Layer \1", layer)


def source_line(run: Run) -> str:
    """What stands under a figure: a figure that left its page must still say what its data are."""
    return f"{data_of(run)}, {printable(run.path.name)}"


def data_of(run: Run) -> str:
    """The kind of the data, in two words."""
    return f"{run.tester_kind} data" if run.identity else "floating point"
