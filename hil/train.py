"""Train the network of an experiment on a tester, and keep all of it in a run file."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import nn

from hil.bench import connect
from hil.config import Settings
from hil.data.datasets import DataSet, hold_out, load
from hil.data.recording import RecordingTester
from hil.data.runfile import RunWriter, Start
from hil.diagnosis import WINDOW, Diagnosis
from hil.instruments.batching import BatchingTester
from hil.instruments.tester import ArrayTester
from hil.interrupt import Interrupt
from hil.layers import AnalogLinear
from hil.mapping import floorplan
from hil.mixed_precision import MixedPrecisionSGD, Refresh
from hil.network import analog_layers, build, initial_weights
from hil.pace import Pace
from hil.pairs import UNIT
from hil.passes import Passes, accuracy, passes
from hil.protocols.errors import DivergedError, InputError
from hil.protocols.messages import MvmMode
from hil.provenance import git_commit, host, versions
from hil.stuck import all_cells, find_stuck
from hil.tally import Tally

MEMORY = 1000  # images over which the running accuracy is taken
REPORT_EVERY = 64  # images


@dataclass(frozen=True)
class Job:
    """A run to be made: what, from where, and where to."""

    experiment: str
    settings: Settings
    config_text: str
    out: Path
    data_dir: Path | None = None
    overwrite: bool = False
    argv: tuple[str, ...] = ()
    meta: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """What came of a run; the accuracies are fractions. `system` float has no tester and no devices."""

    run: str
    experiment: str
    system: str
    tester: str
    epochs: int  # finished
    seed: int
    test_accuracy: float  # after the last finished epoch; of held-out training images if there are any
    images_per_second: float  # in training
    weights: int
    devices: int
    set_pulses: int
    reset_pulses: int
    refreshes: int
    operations: int
    image_period: float  # s of device time, as it was
    interrupted: bool
    images: int
    findings: tuple[str, ...]  # why the run goes wrong, each cause once
    finding_counts: dict[str, int]  # how often each cause was seen


class Observer(Protocol):
    """Told how a run goes."""

    def begin(self, images: int, epochs: int) -> None:
        """Training begins: images per epoch, and epochs."""

    def progress(self, images: int, running_accuracy: float, pulses: int, refreshes: int) -> None:
        """So far, over all epochs."""

    def epoch(self, number: int, test_accuracy: float) -> None:
        """An epoch, counted from 1, has been evaluated."""

    def finding(self, text: str) -> None:
        """The run goes wrong, and this is why."""


def train(job: Job, observer: Observer) -> Result:
    """Run the job. Raises `InputError` if it cannot be done: before anything is written or sent where that is known."""
    torch.set_num_threads(1)
    settings = job.settings
    data = _data(settings, job.data_dir)
    sizes = [data.train_images.shape[1], *settings.hidden, data.classes]
    twin_seed, weight_seed = np.random.SeedSequence(settings.seed).spawn(2)
    raw = None if settings.system == "float" else connect(settings.tester, twin_seed)
    weights = initial_weights(settings, sizes, weight_seed, raw.capabilities() if raw else None)
    writer = RunWriter.create(job.out, _start(job, raw), job.overwrite)
    with Interrupt() as interrupt, _recorded(raw, writer) as (tester, ending):
        if tester is not None and settings.scan_stuck:
            stuck = find_stuck(tester, all_cells(tester))
            floorplan(tester).avoid(stuck)
            writer.message(f"{len(stuck)} stuck cells found; weights are placed around them")
        model = build(settings, weights, tester)
        for number, layer in enumerate(analog_layers(model), 1):
            _keep_layer(writer, f"layer{number}", layer)
        training = Training(job, data, model, tester, writer, observer)
        training.run(interrupt)
        interrupt.hold()
        result = training.result()
        ending.status = "interrupted" if result.interrupted else "completed"
        ending.counts = {name: value for name, value in asdict(result).items() if isinstance(value, int)}
    if interrupt.requested and not result.interrupted:
        raise KeyboardInterrupt  # it came when this run was done; no other is to be begun
    return result


class Training:
    """A run's state and loop."""

    def __init__(
        self,
        job: Job,
        data: DataSet,
        model: nn.Sequential,
        tester: ArrayTester | None,
        writer: RunWriter,
        observer: Observer,
    ) -> None:
        self._job, self._settings, self._data, self._model = job, job.settings, data, model
        self._writer, self._observer = writer, observer
        self._targets = np.eye(data.classes, dtype=np.float32)
        self._optimizer = _optimizer(model, job.settings)
        self._network: Passes = passes(model, self._optimizer)
        self._pace = Pace(tester, job.settings.image_period) if tester else None
        self._tally = Tally(model, self._optimizer)
        self._diagnosis = Diagnosis(
            data.classes, partial(_found, writer, observer)
        )  # no cycle: a run frees its memory at once
        self._images = self._epochs = self._looked_at = 0
        self._running_accuracy, self._test_accuracy, self._seconds = 0.0, float("nan"), 0.0
        self._interrupted = False

    def run(self, interrupt: Interrupt) -> None:
        """All epochs, or as much of them as there is before Ctrl-C."""
        self._look()  # where the counts begin
        self._survey()
        self._observer.begin(len(self._data.train_images), self._settings.epochs)
        for epoch in range(self._settings.epochs):
            self._set_rate(self._settings.lr * self._settings.lr_decay**epoch)
            loss, right = self._epoch(epoch, interrupt)
            self._interrupted = interrupt.requested
            if self._interrupted:
                return
            self._evaluate(loss, right)

    def _set_rate(self, lr: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = lr

    def _epoch(self, epoch: int, interrupt: Interrupt) -> tuple[float, float]:
        """Train on all images once; returns the mean loss and the fraction right, each image before its update."""
        images, labels = self._data.train_images, self._data.train_labels
        order = np.random.default_rng([self._settings.seed, epoch]).permutation(len(images))
        loss, right, began = 0.0, 0, time.perf_counter()
        if self._pace is not None:
            self._pace.begin()
        for start in range(0, len(order), self._settings.batch_size):
            batch = order[start : start + self._settings.batch_size]
            targets = self._targets[labels[batch]]
            outputs = self._network.train(images[batch], targets)
            if self._pace is not None:
                self._pace.images_done(len(batch))
            hits = int(np.count_nonzero(outputs.argmax(1) == labels[batch]))
            right += hits
            loss += 0.5 * float(np.square(outputs - targets, dtype=np.float64).sum())
            if not loss < math.inf:
                raise DivergedError(f"the loss is not finite after {self._images} images: lower the rate")
            self._images_done(len(batch), hits)
            if interrupt.requested:
                break
        self._seconds += time.perf_counter() - began
        return loss / len(order), right / len(order)

    def _images_done(self, count: int, hits: int) -> None:
        self._images += count
        weight = count / min(self._images, MEMORY)
        self._running_accuracy += min(weight, 1.0) * (hits / count - self._running_accuracy)
        if self._images - self._looked_at >= WINDOW:
            self._look()
        if self._images % REPORT_EVERY < count:
            self._observer.progress(self._images, self._running_accuracy, self._tally.set_pulses, self._tally.refreshes)

    def _look(self) -> None:
        since = self._images - self._looked_at
        self._diagnosis.look(self._tally.layers(), self._images, since, self._running_accuracy)
        self._looked_at = self._images

    def _evaluate(self, loss: float, right: float) -> None:
        """End an epoch: measure the accuracy, through the tester like everything else, and log it."""
        if self._images - self._looked_at >= WINDOW // 4:
            self._look()
        self._model.eval()
        self._survey()
        self._test_accuracy = accuracy(self._network, self._data.test_images, self._data.test_labels)
        self._model.train()
        self._epochs += 1
        row: dict[str, float] = {
            "epoch": self._epochs,
            "images": self._images,
            "lr": self._optimizer.param_groups[0]["lr"],
            "loss": loss,
            "train_accuracy": right,
            "test_accuracy": self._test_accuracy,
            "image_period": self._pace.period if self._pace else 0.0,
            "seconds": self._seconds,
            "operations": self._writer.operations,
        }
        totals = self._tally.totals()
        units = {"image_period": "s", "seconds": "s"}
        self._writer.metrics(row | totals, dict.fromkeys(row | totals, "") | units)
        self._observer.epoch(self._epochs, self._test_accuracy)
        self._diagnosis.epoch_done(self._test_accuracy, len(self._data.test_labels))

    def _survey(self) -> None:
        """Read every device for the log; an array that is multiplied on the host is read anyway."""
        for layer in analog_layers(self._model):
            pairs = layer.weight.pairs
            if pairs.tester.capabilities().mvm == MvmMode.ANALOG:
                pairs.measure(np.arange(len(pairs)))

    def result(self) -> Result:
        """The run so far."""
        tally = self._tally
        return Result(
            run=str(self._job.out),
            experiment=self._job.experiment,
            system=self._settings.system,
            tester="none" if self._pace is None else self._settings.tester,
            epochs=self._epochs,
            seed=self._settings.seed,
            test_accuracy=self._test_accuracy,
            images_per_second=self._images / self._seconds if self._seconds else 0.0,
            weights=sum(parameter.numel() for parameter in self._model.parameters()),
            devices=tally.devices,
            set_pulses=tally.set_pulses,
            reset_pulses=tally.reset_pulses,
            refreshes=tally.refreshes,
            operations=self._writer.operations,
            image_period=self._pace.period if self._pace else 0.0,
            images=self._images,
            interrupted=self._interrupted,
            findings=tuple(self._diagnosis.findings),
            finding_counts=dict(self._diagnosis.counts),
        )


@dataclass
class Ending:
    """How a run file is closed."""

    status: str = "failed"
    counts: dict[str, int] = field(default_factory=dict)


@contextmanager
def _recorded(raw: ArrayTester | None, writer: RunWriter) -> Iterator[tuple[ArrayTester | None, Ending]]:
    """The tester with its log. Whatever happens, it ends in its safe state and the file is closed with how it ended."""
    ending = Ending()
    try:
        with raw if raw is not None else nullcontext():
            yield (None if raw is None else BatchingTester(RecordingTester(raw, writer))), ending
    except KeyboardInterrupt:
        ending.status = "interrupted"
        raise
    except BaseException as error:
        ending.status = f"failed: {type(error).__name__}: {error}"
        raise
    finally:
        writer.close(ending.status, ending.counts)


def _found(writer: RunWriter, observer: Observer, text: str) -> None:
    writer.message(text)
    observer.finding(text)


def _keep_layer(writer: RunWriter, name: str, layer: AnalogLinear) -> None:
    """Write down where the weights of a layer lie, so that conductances can be told from the log."""
    pairs = layer.weight.pairs
    arrays = {}
    for side, cells in (("plus", pairs.placement.plus), ("minus", pairs.placement.minus)):
        arrays |= {f"{side}_array": cells.array, f"{side}_row": cells.row, f"{side}_column": cells.column}
    rows, columns = pairs.shape
    attrs = {"rows": rows, "columns": columns, "scale": pairs.scale, "unit_siemens": UNIT}
    writer.snapshot(name, arrays, dict.fromkeys(arrays, ""), attrs)


def _optimizer(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    if settings.system == "float":
        return torch.optim.SGD(model.parameters(), lr=settings.lr)
    refresh = Refresh(settings.refresh_images, settings.refresh_above, settings.refresh_below)
    return MixedPrecisionSGD(
        model.parameters(),
        lr=settings.lr,
        granularity=settings.granularity,
        max_pulses=settings.max_pulses or None,
        refresh=refresh if settings.refresh_images else None,
    )


def _data(settings: Settings, data_dir: Path | None) -> DataSet:
    data = load(settings.data, data_dir)
    if settings.validation_images:
        data = hold_out(data, settings.validation_images)
    if settings.train_images > len(data.train_images):
        raise InputError(f"setting train_images={settings.train_images}: {data.name} has only {len(data.train_images)}")
    count = settings.train_images or len(data.train_images)
    return replace(data, train_images=data.train_images[:count], train_labels=data.train_labels[:count])


def _start(job: Job, tester: ArrayTester | None) -> Start:
    return Start(
        config={"experiment": job.experiment} | job.settings.model_dump(mode="json"),
        config_text=job.config_text,
        argv=job.argv,
        seed=job.settings.seed,
        versions=versions(),
        host=host(),
        git_commit=git_commit(),
        meta=job.meta,
        identity=tester.identify() if tester else None,
        capabilities=tester.capabilities() if tester else None,
    )
