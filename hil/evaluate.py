"""Follow the accuracy of a trained network as its devices drift, without and with a digital correction."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hil.bench import connect, revive
from hil.config import Settings, stored_settings
from hil.data.datasets import DataSet
from hil.data.run import Run
from hil.durations import check_increasing
from hil.images import kept
from hil.instruments.tester import ArrayTester
from hil.layers import AnalogLinear
from hil.observers import SILENT
from hil.placed import accuracy_of, kept_memory, placed_layers
from hil.procedure import Bench, Outcome, Place, Steps, perform
from hil.protocols.errors import InputError
from hil.protocols.messages import Capabilities
from hil.resume import last_id
from hil.session import outlives, released_on_error, twin_seed

PARTS, REPEATS = 16, 16
"""Products for one correction: each drives one of so many parts of the inputs, so that sums stay within the converter's
range, and is repeated so often, so that noise hardly matters. CHOSEN."""
LATE = 1.05
"""Delay of an evaluation, as a factor of its time, from which on it is told. CHOSEN."""
LATEST = 3.2e9
"""s, a hundred years: the latest time that is evaluated."""


@dataclass(frozen=True)
class Evaluation:
    """The procedure: wait, correct and evaluate at increasing `times` (s) since its beginning, the first at once.

    Global drift compensation: one digital factor per layer, the sum of the magnitudes of its outputs for inputs of 1,
    part by part, at the beginning over the same now. Source: Joshi et al., Nat. Commun. 11, 2473 (2020).
    """

    run_file: Run
    settings: Settings
    data: DataSet
    times: tuple[float, ...]
    doubt: str = ""
    """Why the chip may hold something else by now."""
    name = "evaluate"

    def config(self) -> dict[str, Any]:
        network = self.settings.model_dump(mode="json")
        experiment = {"experiment": self.run_file.config.get("experiment"), "network": network}
        images = len(self.data.test_labels)
        return {"source": str(self.run_file.path), "times": self.times, "test_images": images} | experiment

    def check(self, capabilities: Capabilities) -> None:
        """Nothing depends on more than the chip being that of the run."""

    def run(self, bench: Bench) -> None:
        if self.doubt:
            bench.find(self.doubt)
        layers = placed_layers(self.run_file, self.settings, bench.tester)
        before = [magnitude(layer) for layer in layers]
        for number, layer in enumerate(layers, 1):
            if layer.weight.products.calibration.saturated:
                bench.find(
                    f"layer {number}: sums of inputs are beyond the largest range of the converter: less drift is "
                    "compensated than there is"
                )
        began_ns, steps = bench.tester.time_ns(), len(self.times) + 1
        bench.step(0, steps, "at first")
        self._evaluate(bench, 0.0, layers, before)
        for number, seconds in enumerate(self.times, 1):
            bench.step(number, steps, f"at {seconds:g} s")
            self._evaluate(bench, _wait_until(seconds, began_ns, bench), layers, before)
        bench.step(steps, steps, "done")

    def _evaluate(self, bench: Bench, seconds: float, layers: Sequence[AnalogLinear], before: Sequence[float]) -> None:
        row = {"time": seconds, "test_accuracy": accuracy_of(self.settings, layers, self.data)}
        factors = [at_first / magnitude(layer) for layer, at_first in zip(layers, before, strict=True)]
        for layer, factor in zip(layers, factors, strict=True):
            layer.weight.products.rescale(factor)
        row["compensated_accuracy"] = accuracy_of(self.settings, layers, self.data)
        for number, (layer, factor) in enumerate(zip(layers, factors, strict=True), 1):
            layer.weight.products.rescale(1.0)
            row[f"factor_layer{number}"] = factor
        bench.log.metrics(row, dict.fromkeys(row, "") | {"time": "s"})


def _wait_until(seconds: float, began_ns: int, bench: Bench) -> float:
    """Let so much device time (s) have passed since `began_ns`; returns how much has."""
    passed = (bench.tester.time_ns() - began_ns) * 1e-9
    if seconds > passed:
        bench.tester.wait(seconds - passed)
        return seconds
    if passed > LATE * seconds:
        bench.find(f"the evaluation before that at {seconds:g} s took until {passed:.3g} s, so it is one of then")
    return passed


def magnitude(layer: AnalogLinear) -> float:
    """Sum of the magnitudes of a layer's outputs for inputs of 1, of which each product drives a part."""
    layer.weight.products.forget()
    inputs = np.arange(layer.in_features)
    vectors = np.zeros((REPEATS, PARTS, layer.in_features), np.float32)
    vectors[:, inputs % PARTS, inputs] = 1
    outputs = layer.weight.products.calibrate(vectors.reshape(-1, layer.in_features))
    total = float(np.abs(outputs.reshape(REPEATS, PARTS, -1).mean(0)).sum())
    if not total > 0:
        raise InputError("a layer gives nothing for any input: its devices hold no weights any more")
    return total


def evaluate(
    source: Path,
    times: Sequence[float],
    place: Place,
    data_dir: Path | None = None,
    observer: Steps = SILENT,
) -> Outcome:
    """Follow the network that the run in `source` left on its chip, and keep it in a run file of its own.

    The chip of a twin that ran in process is taken from the file, and a copy of it ages; a tester that outlives the
    process is asked itself, at `place.tester`. Raises `InputError` before anything is sent where that cannot be.
    """
    check_increasing(tuple(times))
    if times[-1] > LATEST:
        raise InputError(f"time {times[-1]:g} s is beyond the latest that is evaluated, {LATEST:g} s")
    if place.out.resolve() == source.resolve():
        raise InputError(f"{source} is the run that is evaluated: choose another name for its evaluation with --out")
    with Run.open(source) as run:
        settings = network_settings(run)
        data = kept(run, settings, data_dir)
        raw, doubt = _chip(run, place.tester)
        return perform(Evaluation(run, settings, data, tuple(times), doubt), place, raw, observer)


def network_settings(run: Run) -> Settings:
    """What the network of a run is, trained or programmed."""
    if run.identity is None:
        raise InputError(f"{run.path} was made in floating point: there are no devices that drift")
    if not run.layers:
        raise InputError(f"{run.path} does not say where weights lie: it holds no trained or programmed network")
    config = run.config if run.config.get("procedure") is None else run.config.get("network")
    if config is None:
        raise InputError(f"{run.path} holds no network with data: train one, or program one with --experiment")
    settings = stored_settings(config, str(run.path))
    if len(run.layers) != (expected := len(settings.hidden) + 1):
        raise InputError(
            f"{run.path} was stopped when {len(run.layers)} of {expected} layers had been written: write them again"
        )
    return settings


def _chip(run: Run, uri: str) -> tuple[ArrayTester, str]:
    """The run's chip, and why it may not be as the run left it."""
    if not run.start.outlives:
        return revive("twin:", kept_memory(run)), ""
    raw = connect(uri, twin_seed(run.start.seed))
    with released_on_error(raw):
        if not outlives(raw):
            raise InputError(
                f"{run.path} was made on a tester that outlives the process, and {uri} does not: serve the chip, and "
                "name that address with --tester"
            )
        was, found = run.identity.chip if run.identity else "", raw.identify().chip
        if found != was:
            raise InputError(f"{run.path} was made on chip {was}; at {uri} is chip {found}")
        return raw, _used_since(run, raw)


def _used_since(run: Run, raw: ArrayTester) -> str:
    last = last_id(run)
    try:
        if last is not None:
            raw.continue_after(last)
    except InputError as error:
        return f"the chip may hold other weights than those of {run.path}: {error}"
    return ""


def place_of(source: Path, tester: str | None, out: Path | None, overwrite: bool, argv: tuple[str, ...]) -> Place:
    """Where an evaluation of the run in `source` is done, and kept unless `out` says so."""
    with Run.open(source) as run:
        seed, uri = run.start.seed, str(run.config["tester"])
    return Place(tester or uri, out or source.with_name(f"{source.stem}-evaluated.h5"), seed, overwrite, argv=argv)
