"""Write weights that were trained elsewhere onto a chip, by program-and-verify."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hil.bench import connect
from hil.config import Settings, load_settings
from hil.convert import analog
from hil.data.datasets import DataSet
from hil.images import chosen, keep
from hil.layers import BACKWARD_RANGE, FORWARD_RANGE
from hil.mapping import Floorplan
from hil.observers import SILENT
from hil.pairs import UNIT
from hil.placed import accuracy_of, keep_chip, keep_layer
from hil.procedure import Bench, Outcome, Place, Steps, perform
from hil.programming import Convergence, Verify, reach_of
from hil.protocols.errors import InputError
from hil.protocols.messages import Capabilities
from hil.session import twin_seed
from hil.weights import read_weights
from hil.writing import Verified


@dataclass(frozen=True)
class Network:
    """What tells how right the weights are: the experiment that they belong to, and its data."""

    experiment: str
    settings: Settings
    data: DataSet

    def check(self, source: str, matrices: Sequence[torch.Tensor]) -> None:
        """Raise `InputError` for weights of another shape."""
        found = (matrices[0].shape[0] - 1, *(matrix.shape[1] for matrix in matrices))
        wanted = (self.data.test_images.shape[1], *self.settings.hidden, self.data.classes)
        if found != wanted:
            shapes = ["-".join(map(str, sizes)) for sizes in (found, wanted)]
            raise InputError(f"{source} holds a network of {shapes[0]}, {self.experiment} is one of {shapes[1]}")


@dataclass(frozen=True)
class ProgramWeights:
    """The procedure: layers (inputs + 1, outputs) by name onto a chip."""

    source: str
    layers: Mapping[str, torch.Tensor]
    how: Verify
    network: Network | None
    name = "program"

    def config(self) -> dict[str, Any]:
        of = self.network
        network = {"experiment": of.experiment, "network": of.settings.model_dump(mode="json")} if of else {}
        return {"weights": self.source} | asdict(self.how) | network

    def check(self, capabilities: Capabilities) -> None:
        self.how.check()
        if self.network is not None:
            self.network.check(self.source, list(self.layers.values()))
        plan = Floorplan(capabilities)
        for matrix in self.layers.values():
            plan.place(*matrix.shape)
        top, reset = reach_of(capabilities), capabilities.staircase[0] if capabilities.staircase else 0.0
        if top < UNIT + reset:
            raise InputError(
                f"SET pulses reach from {reset:.3g} to {top:.3g} S, and the largest weight of a layer is to become a "
                f"difference of {UNIT:g} S: choose a chip with a larger range"
            )

    def run(self, bench: Bench) -> None:
        if self.network is not None:
            keep(bench.log, self.network.data)
        reports, placed = [], []
        for number, (name, matrix) in enumerate(self.layers.items(), 1):
            write = Verified(self.how, _Progress(bench, f"layer {name}", self.how.iterations))
            layer = analog(matrix, bench.tester, write, *self._ranges)
            keep_layer(bench.log, f"layer{number}", layer)
            _keep_report(bench, f"convergence{number}", write.reports[0])
            placed.append(layer)
            reports += write.reports
        found = Convergence.concatenate(reports).summary()
        row = {key: value for key, value in found.items() if key != "error_quantiles"}
        of = self.network
        row["test_accuracy"] = accuracy_of(of.settings, placed, of.data) if of else float("nan")
        bench.log.metrics(row, dict.fromkeys(row, "") | {"mean_error": "S", "error_spread": "S"})
        keep_chip(bench.log, bench.memory())

    @property
    def _ranges(self) -> tuple[float, float]:
        of = self.network
        return (of.settings.forward_range, of.settings.backward_range) if of else (FORWARD_RANGE, BACKWARD_RANGE)


def program_weights(
    source: Path,
    place: Place,
    how: Verify,
    experiment: str | None = None,
    changes: Sequence[str] = (),
    data_dir: Path | None = None,
    observer: Steps = SILENT,
) -> Outcome:
    """Write the weights in a safetensors file; `changes` are those of the experiment's settings. Raises `InputError`
    before anything is sent where that cannot be.
    """
    layers, network = read_weights(source), None
    if experiment is not None:
        settings, _ = load_settings(experiment, changes)
        network = Network(experiment, settings, chosen(settings, data_dir))
    procedure = ProgramWeights(str(source), layers, how, network)
    return perform(procedure, place, connect(place.tester, twin_seed(place.seed)), observer)


class _Progress:
    """Iterations as steps of a procedure."""

    def __init__(self, bench: Bench, what: str, iterations: int) -> None:
        self._bench, self._what, self._iterations = bench, what, iterations

    def __call__(self, iteration: int, left: int) -> None:
        self._bench.step(iteration, self._iterations, f"{self._what}: {left} devices to go")


def _keep_report(bench: Bench, name: str, report: Convergence) -> None:
    arrays = {key: value for key, value in vars(report).items() if isinstance(value, np.ndarray)}
    bench.log.snapshot(name, arrays, dict.fromkeys(arrays, "") | {"error": "S"})
