"""Compare two run files: what both measured, how far the two are apart, and where they part."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import ks_2samp

from hil.data.history import F32
from hil.data.run import Run
from hil.durations import duration
from hil.measured import Floats, Reads
from hil.protocols.errors import InputError
from hil.report_facts import Kind, kind_of
from hil.series import cells_of, moments, read_log
from hil.study_data import drift_of, reads_of, rows_of, staircase_of, studies_of

NOTICEABLE = 0.05
"""Distance of two distributions below which they count as one. CHOSEN: for most purposes 5 % of the devices are few."""
CHANCE = 1e-3
"""How often a quantity of two equal chips is told to part somewhere."""
STANDARD_ERRORS = 3.0
"""Difference of two fractions, in standard errors, from which on it is none of chance."""


@dataclass(frozen=True)
class Series:
    """A quantity that both runs measured, at the same steps: the samples of each, in `unit`."""

    name: str
    unit: str
    step: str
    """What a step is: pulses, an epoch, a time."""
    labels: Sequence[str]
    samples: Sequence[tuple[Floats, Floats]]


@dataclass(frozen=True)
class Distance:
    """How far two samples are apart: the largest difference of their distribution functions (Kolmogorov-Smirnov)."""

    label: str
    means: tuple[float, float]
    spreads: tuple[float, float]
    distance: float
    limit: float
    """From which on it is beyond both chance and `NOTICEABLE`."""

    @property
    def apart(self) -> bool:
        """Whether it is."""
        return self.distance > self.limit


@dataclass(frozen=True)
class Fraction:
    """A fraction of `count` things that both runs tell, such as the test accuracy of an epoch."""

    name: str
    label: str
    values: tuple[float, float]
    error: float
    """Standard error of their difference, from the number of things alone."""

    @property
    def apart(self) -> bool:
        """Whether they differ by more than chance."""
        return abs(self.values[0] - self.values[1]) > STANDARD_ERRORS * self.error


@dataclass(frozen=True)
class Comparison:
    """What both runs measured."""

    labels: tuple[str, str]
    kinds: Sequence[tuple[str, Kind]]
    """The kind of the data of each."""
    series: Sequence[Series]
    distances: Sequence[Sequence[Distance]]
    """Of each series, step by step."""
    fractions: Sequence[Fraction]

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        quantities = [
            {
                "quantity": series.name,
                "unit": series.unit,
                "step": series.step,
                "parts": parting(distances),
                "steps": [vars(distance) | {"apart": distance.apart} for distance in distances],
            }
            for series, distances in zip(self.series, self.distances, strict=True)
        ]
        fractions = [vars(fraction) | {"apart": fraction.apart} for fraction in self.fractions]
        return {"runs": self.labels, "quantities": quantities, "fractions": fractions}


def compare(first: Path, second: Path) -> Comparison:
    """Compare two run files, of training, studies or evaluations. Raises `InputError` where they have nothing in
    common.
    """
    with Run.open(first) as a, Run.open(second) as b:
        series = [one for find in (_staircase, _drift, _others, _training) for one in find(a, b)]
        fractions = _fractions(a, b)
        if not series and not fractions:
            raise InputError(
                f"{first} and {second} hold nothing that could be compared: training runs, evaluations, or studies of "
                "reads in both"
            )
        labels = (f"{first.stem} ({a.tester_kind})", f"{second.stem} ({b.tester_kind})")
        kinds = [(run.path.name, kind_of(run)) for run in (a, b)]
        return Comparison(labels, kinds, series, [_distances(one) for one in series], fractions)


def parting(distances: Sequence[Distance]) -> str | None:
    """The first step at which the two are apart."""
    return next((distance.label for distance in distances if distance.apart), None)


def _distances(series: Series) -> list[Distance]:
    rare = CHANCE / len(series.labels)  # at each step (Bonferroni)
    return [_distance(label, a, b, rare) for label, (a, b) in zip(series.labels, series.samples, strict=True)]


def _distance(label: str, a: Floats, b: Floats, rare: float) -> Distance:
    """`rare` is how often equal distributions may count as apart, by the asymptotic distribution of the distance."""
    distance = float(ks_2samp(a, b, method="asymp").statistic)
    chance = np.sqrt(-np.log(rare / 2) / 2 * (1 / len(a) + 1 / len(b)))
    means, spreads = (float(a.mean()), float(b.mean())), (float(a.std()), float(b.std()))
    return Distance(label, means, spreads, distance, max(float(chance), NOTICEABLE))


def _both(a: Run, b: Run, load: Callable[[Run], Any]) -> tuple[Any, Any] | None:
    """A study that both hold, else None."""
    try:
        return load(a), load(b)
    except InputError:
        return None


def _staircase(a: Run, b: Run) -> Iterator[Series]:
    found = _both(a, b, staircase_of)
    if found is None:
        return
    pulses = np.intersect1d(found[0].pulses, found[1].pulses)
    labels = [f"{count} pulses" for count in pulses]
    rows = [[int(np.flatnonzero(one.pulses == count)[0]) for count in pulses] for one in found]
    yield _series("conductance", "S", "SET pulses since the RESET", labels, [one.reads.mean for one in found], rows)
    if min(one.reads.count for one in found) > 1:
        spreads = [np.sqrt(one.reads.variance) for one in found]
        yield _series("standard deviation of reads", "S", "SET pulses since the RESET", labels, spreads, rows)


def _drift(a: Run, b: Run) -> Iterator[Series]:
    found = _both(a, b, drift_of)
    if found is None or min(one.reads.count for one in found) < 2:  # a single read tells no noise
        return
    steps = min(len(one.reads.age) for one in found)
    ages = [one.reads.age[:steps] for one in found]
    clear = [_clear(one.reads) for one in found]
    if steps < 2 or not np.allclose(ages[0], ages[1], rtol=0.05) or not all(cells.any() for cells in clear):
        return
    labels = [f"{age:.3g} s" for age in ages[0]]
    relative = [one.reads.mean[:, cells] / one.reads.mean[0, cells] for one, cells in zip(found, clear, strict=True)]
    rows = [list(range(1, steps))] * 2
    yield _series("conductance over that at first", "", "time after the last pulse", labels[1:], relative, rows)


def _clear(reads: Reads) -> Any:
    """Cells whose conductance is clear of the noise of reads."""
    return reads.mean[0] > 10 * np.sqrt(np.nanmean(reads.variance[0]) / reads.count)


def _others(a: Run, b: Run) -> Iterator[Series]:
    """What other studies of both read, measurement by measurement."""
    for study in studies_of(a):
        if study in studies_of(b) and study not in ("staircase", "drift", "linearity", "stuck"):
            found = [reads_of(run, rows_of(run, study)).mean for run in (a, b)]
            steps = range(min(len(one) for one in found))
            labels = [f"measurement {step + 1}" for step in steps]
            yield _series(f"conductance in the study {study}", "S", "measurement", labels, found, [steps, steps])


def _series(
    name: str, unit: str, step: str, labels: Sequence[str], values: Sequence[Floats], rows: Sequence[Sequence[int]]
) -> Series:
    pairs = [(values[0][i], values[1][j]) for i, j in zip(*rows, strict=True)]
    return Series(name, unit, step, labels, pairs)


def _training(a: Run, b: Run) -> Iterator[Series]:
    """Conductances of each layer at the start and at the ends of epochs, and pulses on each device."""
    if not a.layers or a.layers != b.layers or a.config.get("procedure") or b.config.get("procedure"):
        return
    times = [moments(run, read_log(run).training) for run in (a, b)]
    shared = [moment.label for moment in times[0] if moment.label in {other.label for other in times[1]}]
    rows = [{moment.label: moment.row for moment in one} for one in times]
    read = [[run.conductances(at[label]).value for label in shared] for run, at in zip((a, b), rows, strict=True)]
    sets = [run.pulse_counts()[0] for run in (a, b)]
    for layer in a.layers:
        places = [np.concatenate([*cells_of(run, layer).values()], None) for run in (a, b)]
        samples = [
            (_known(one.ravel()[places[0]]), _known(other.ravel()[places[1]])) for one, other in zip(*read, strict=True)
        ]
        known = [index for index, (one, other) in enumerate(samples) if len(one) and len(other)]
        if known:
            labels, kept = [shared[index] for index in known], [samples[index] for index in known]
            yield Series(f"conductance of {layer}", "S", "moment", labels, kept)
        one, other = (counts.ravel()[place].astype(np.float64) for counts, place in zip(sets, places, strict=True))
        yield Series(f"SET pulses on each device of {layer}", "", "moment", ["end"], [(one, other)])


def _known(conductance: F32) -> Floats:
    """Those that were read."""
    return np.asarray(conductance[np.isfinite(conductance)], np.float64)


def _fractions(a: Run, b: Run) -> list[Fraction]:
    """Accuracies that both hold, by epoch or by time."""
    names = [name for name in ("test_accuracy", "compensated_accuracy") if name in a.metrics and name in b.metrics]
    key = next((key for key in ("epoch", "time") if key in a.metrics and key in b.metrics), None)
    if key is None or a.config.get("procedure") != b.config.get("procedure"):
        return []
    shared, i, j = np.intersect1d(a.metrics[key], b.metrics[key], return_indices=True)
    return [
        Fraction(
            name.replace("_", " "),
            duration(step) if key == "time" else f"{key} {step:g}",
            (values[0], values[1]),
            _error(values, _images(a), _images(b)),
        )
        for name in names
        for step, *values in zip(shared, a.metrics[name][i].tolist(), b.metrics[name][j].tolist(), strict=True)
    ]


def _error(values: Sequence[float], *counts: int) -> float:
    """Standard error of a difference of fractions; NaN where it is not known of how many."""
    parts = zip(values, counts, strict=True)
    return float(np.sqrt(sum(value * (1 - value) / count if count else np.nan for value, count in parts)))


def _images(run: Run) -> int:
    """Test images of a run; 0 where its file does not tell."""
    if "data" not in run.snapshots:
        return int(run.config.get("test_images", 0))
    return len(run.snapshot("data").arrays.get("test_labels", ()))
