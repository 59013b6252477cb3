"""What a report says of an evaluation over time, and of programmed weights."""

import numpy as np

import hil.report_facts as facts
from hil.data.run import Run
from hil.durations import duration
from hil.findings import Findings, Part
from hil.measured import Floats
from hil.plots import svg
from hil.programming import QUANTILES
from hil.report_figures import Picture, source_line
from hil.study_plots import Axis, Band, Line, band_figure, histogram_figure
from hil.tables import percent

US = 1e6  # uS per S
BINS = 80
CLAIM = (
    "Nandakumar et al., Front. Neurosci. 14, 406 (2020) report a negligible loss over about a month, without "
    "correction (RECALLED)."
)


def evaluation(run: Run, label: str) -> Findings:
    """Accuracy as devices drift."""
    found = run.metrics
    if not found:
        return Findings(
            label, [("", facts.kind_of(run))], [("state", run.state)], [], _messages(run), facts.tables(run)
        )
    time, plain, corrected = found["time"], found["test_accuracy"], found["compensated_accuracy"]
    last = duration(float(time[-1]))
    results = [
        ("at first", percent(plain[0])),
        (f"after {last}", percent(plain[-1])),
        (f"after {last}, with drift compensation", percent(corrected[-1])),
        ("state", run.state),
    ]
    parts = [
        Part("Accuracy over time", CLAIM if run.config["network"]["data"] == "mnist" else "", _curves(run), _table(run))
    ]
    return Findings(label, [("", facts.kind_of(run))], results, parts, _messages(run), facts.tables(run))


def _curves(run: Run) -> list[Picture]:
    found, source = run.metrics, source_line(run)
    later = found["time"] > 0
    if not later.any():
        return []
    time = found["time"][later]
    names = {"test_accuracy": "as they are", "compensated_accuracy": "with drift compensation"}
    bands = [_band(run, label, time, found[name][later]) for name, label in names.items()]
    first = Line("at first", time[[0, -1]], np.full(2, 100 * found["test_accuracy"][0]))
    axis = Axis("time since the end of the run (s)", log=True)
    accuracy = band_figure(axis, Axis("test accuracy (%)"), bands, [first], source)
    factors = [
        Band(name.removeprefix("factor_"), time, values[later], values[later], values[later])
        for name, values in found.items()
        if name.startswith("factor_")
    ]
    correction = band_figure(axis, Axis("factor of the compensation"), factors, [], source)
    text = "Bands: standard error of a fraction of so many images. Drift compensation is one digital factor per layer."
    return [
        Picture(svg(accuracy), "Accuracy over time", text),
        Picture(
            svg(correction), "Factors over time", "What the outputs of each layer are multiplied by: what drift took."
        ),
    ]


def _band(run: Run, label: str, time: Floats, accuracy: Floats) -> Band:
    error = np.sqrt(accuracy * (1 - accuracy) / run.config["test_images"])
    return Band(label, time, 100 * accuracy, 100 * (accuracy - error), 100 * (accuracy + error))


def _table(run: Run) -> tuple[list[str], list[list[str]]]:
    factors = sorted(name for name in run.metrics if name.startswith("factor_"))
    names = ["test_accuracy", "compensated_accuracy", *factors]
    rows = [
        [
            duration(time),
            *(percent(value) if "accuracy" in name else f"{value:.3f}" for name, value in zip(names, row, strict=True)),
        ]
        for time, *row in zip(
            run.metrics["time"].tolist(), *(run.metrics[name].tolist() for name in names), strict=True
        )
    ]
    return ["after", *(name.replace("_", " ") for name in names)], rows


def programming(run: Run, label: str) -> Findings:
    """How near to their targets devices were brought."""
    layers = [name for name in run.snapshots if name.startswith("convergence")]
    source = source_line(run)
    parts = [_layer(run, name, source) for name in sorted(layers)]
    row = {name: values[-1].item() for name, values in run.metrics.items() if len(values)}
    results = [("state", run.state)]
    if row:
        results = [
            ("devices", f"{row['cells']:,}"),
            ("converged", percent(row["converged"])),
            ("test accuracy", percent(row["test_accuracy"])),
            *results,
        ]
    return Findings(label, [("", facts.kind_of(run))], results, parts, _messages(run), facts.tables(run))


def _layer(run: Run, name: str, source: str) -> Part:
    arrays = run.snapshot(name).arrays
    error, iterations = arrays["error"].astype(np.float64) * US, arrays["iterations"].astype(np.float64)
    margin = float(run.config["margin"]) * US
    edges = np.linspace(min(error.min(), -margin), max(error.max(), margin), BINS)
    off = histogram_figure(Axis("reading at the end minus target (µS)"), {"devices": error}, edges, source)
    steps = np.arange(0.5, iterations.max() + 1.5)
    taken = histogram_figure(Axis("verifications", whole=True), {"devices": iterations}, steps, source)
    quantiles = ", ".join(
        f"{level:.0%}: {value:+.2f}" for level, value in zip(QUANTILES, np.quantile(error, QUANTILES), strict=True)
    )
    text = (
        f"{arrays['converged'].mean():.2%} of {len(error):,} devices read within {margin:.3g} µS of their target. "
        f"Errors at the end (µS), after drift and with the noise of one more reading: {quantiles}."
    )
    pictures = [
        Picture(svg(off), "Errors of the devices", "Distribution of the errors when all devices were done."),
        Picture(
            svg(taken), "Verifications of the devices", "Readings that each device took, at most as many as allowed."
        ),
    ]
    return Part(name.replace("convergence", "Layer "), text, pictures)


def _messages(run: Run) -> list[str]:
    return [text for _, text in run.messages]
