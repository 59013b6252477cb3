"""The training loop of a run: epochs, evaluation, checkpoints."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from hil.checkpoint import pack
from hil.config import Settings
from hil.data.columns import Values
from hil.data.datasets import DataSet
from hil.diagnosis import WINDOW, Diagnosis
from hil.instruments.tester import ArrayTester
from hil.interrupt import Interrupt
from hil.kernels import F32, I64, MATRIX, score
from hil.mixed_precision import MixedPrecisionSGD, Refresh
from hil.mock_hw.compiled import code_for
from hil.network import analog_layers
from hil.observers import LoopObserver
from hil.pace import Pace
from hil.passes import Passes, accuracy, passes
from hil.protocols.errors import DivergedError
from hil.protocols.messages import MvmMode
from hil.tally import Tally

MEMORY = 1000  # images over which the running accuracy is taken
REPORT_EVERY = 64  # images
BLOCK = 1000  # images gathered at once
COUNTED = ("_images", "_epochs", "_looked_at", "_position", "_hits", "_loss", "_running_accuracy", "_test_accuracy")
"""Attributes that make up the loop's own state, with the host's seconds."""
CHIP = "chip"
"""The array of a checkpoint that holds a tester's memory."""


class Log(Protocol):
    """Where a run writes what is not an operation; a `RunWriter`, or what compares with an earlier run."""

    status: dict[str, Any]

    @property
    def operations(self) -> int:
        """Operations so far."""

    def message(self, text: str) -> None:
        """A warning or diagnosis."""

    def metrics(self, values: Mapping[str, float], units: Mapping[str, str]) -> None:
        """A row of numbers."""

    def snapshot(
        self, name: str, arrays: Mapping[str, Values], units: Mapping[str, str], attrs: Mapping[str, Any] | None = None
    ) -> None:
        """Arrays."""

    def checkpoint_due(self) -> bool:
        """Whether a checkpoint is wanted now."""

    def checkpoint(self, state: Mapping[str, Any], arrays: Mapping[str, Values]) -> None:
        """What the run needs to go on from here."""

    def close(self, exit_status: str, counts: Mapping[str, int]) -> None:
        """The run has stopped."""


class Training:
    """A run's state and loop."""

    def __init__(
        self,
        settings: Settings,
        data: DataSet,
        model: nn.Sequential,
        tester: ArrayTester | None,
        memory: Callable[[], bytes | None],
        log: Log,
        observer: LoopObserver,
    ) -> None:
        """`memory` gives what a checkpoint keeps of the tester."""
        self.settings, self._data, self.model = settings, data, model
        self._memory, self._log, self._observer = memory, log, observer
        self._targets = np.eye(data.classes, dtype=np.float32)
        self._score = code_for(score, MATRIX, MATRIX, data.train_labels)
        self.optimizer = _optimizer(model, settings)
        self._network: Passes = passes(model, self.optimizer)
        self.pace = Pace(tester, settings.image_period) if tester else None
        self.tally = Tally(model, self.optimizer)
        self.diagnosis = Diagnosis(data.classes, partial(_found, log, observer))  # no cycle: memory is freed at once
        self._images = self._epochs = self._looked_at = 0
        self._position, self._hits, self._loss = 0, 0, 0.0  # in this epoch: images, right ones, sum of their losses
        self._running_accuracy, self._test_accuracy = 0.0, float("nan")
        self._seconds, self._since = 0.0, 0.0
        self.interrupted = False

    @property
    def images(self) -> int:
        """Images trained on."""
        return self._images

    @property
    def epochs(self) -> int:
        """Epochs finished."""
        return self._epochs

    @property
    def test_accuracy(self) -> float:
        """After the last finished epoch, else NaN."""
        return self._test_accuracy

    @property
    def seconds(self) -> float:
        """Time spent in training, without evaluation."""
        return self._seconds

    def begin(self, keep: bool) -> None:
        """Before the first image of a new run; with `keep`, a checkpoint is made at once."""
        self._look()  # where the counts begin
        self._survey()
        if keep:
            self.checkpoint()

    def run(self, interrupt: Interrupt) -> None:
        """All epochs that are left, or as much of them as there is before Ctrl-C."""
        self._observer.begin(len(self._data.train_images), self.settings.epochs)
        while self._epochs < self.settings.epochs:
            self._set_rate(self.settings.lr * self.settings.lr_decay**self._epochs)
            self._epoch(interrupt)
            self.interrupted = interrupt.requested
            if self.interrupted:
                self.checkpoint()
                return
            self._evaluate()
        self._log.snapshot("final", *self._final())

    def checkpoint(self) -> None:
        """Write down all that is needed to go on from here."""
        own = {name: getattr(self, name) for name in (*COUNTED, "_seconds")}
        state, arrays = pack(
            {
                "training": own,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "diagnosis": self.diagnosis.state(),
                "pace": self.pace.state() if self.pace else None,
            }
        )
        memory = self._memory()
        self._log.checkpoint({"state": state}, arrays | ({} if memory is None else memory_arrays(memory)))

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what a checkpoint packed."""
        vars(self).update(state["training"])
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.diagnosis.restore(state["diagnosis"])
        if self.pace is not None:
            self.pace.restore(state["pace"])

    def _set_rate(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def _epoch(self, interrupt: Interrupt) -> None:
        """Train on the images of this epoch that are left, each counted before its update."""
        order = np.random.default_rng([self.settings.seed, self._epochs]).permutation(len(self._data.train_images))
        self._since = time.perf_counter()
        if self.pace is not None and self._position == 0:
            self.pace.begin()
        for images, targets, labels in self._batches(order[self._position :]):
            outputs = self._network.train(images, targets)
            if self.pace is not None:
                self.pace.images_done(len(labels))
            loss, hits = self._score(outputs, targets, labels)
            self._loss += loss
            if not self._loss < math.inf:
                raise DivergedError(f"the loss is not finite after {self._images} images: lower the rate")
            self._images_done(len(labels), hits)
            if interrupt.requested:
                break
        self._take_time()

    def _batches(self, order: I64) -> Iterator[tuple[F32, F32, I64]]:
        """Images (batch, features), targets (batch, classes) and labels (batch,) in this order.

        They are gathered in blocks, which takes a tenth of the time that gathering each batch would.
        """
        size = self.settings.batch_size
        block = size * max(BLOCK // size, 1)
        for start in range(0, len(order), block):
            chosen = order[start : start + block]
            images, labels = self._data.train_images[chosen], self._data.train_labels[chosen]
            targets = self._targets[labels]
            for first in range(0, len(chosen), size):
                part = slice(first, first + size)
                yield images[part], targets[part], labels[part]

    def _images_done(self, count: int, hits: int) -> None:
        self._images += count
        self._position += count
        self._hits += hits
        weight = count / min(self._images, MEMORY)
        self._running_accuracy += min(weight, 1.0) * (hits / count - self._running_accuracy)
        if self._images - self._looked_at >= WINDOW:
            self._look()
        if self._images % REPORT_EVERY < count:
            self._report()

    def _report(self) -> None:
        pulses, refreshes = self.tally.set_pulses, self.tally.refreshes
        self._observer.progress(self._images, self._running_accuracy, pulses, refreshes)
        self._log.status.update(
            images=self._images,
            epochs=self._epochs,
            running_accuracy=self._running_accuracy,
            set_pulses=pulses,
            refreshes=refreshes,
        )
        if self._log.checkpoint_due():
            self._take_time()
            self.checkpoint()

    def _take_time(self) -> None:
        now = time.perf_counter()
        self._seconds += now - self._since
        self._since = now

    def _look(self) -> None:
        since = self._images - self._looked_at
        self.diagnosis.look(self.tally.layers(), self._images, since, self._running_accuracy)
        self._looked_at = self._images

    def _evaluate(self) -> None:
        """End an epoch: measure the accuracy, through the tester like everything else, and log it."""
        if self._images - self._looked_at >= WINDOW // 4:
            self._look()
        self.model.eval()
        self._survey()
        self._test_accuracy = accuracy(self._network.evaluate, self._data.test_images, self._data.test_labels)
        self.model.train()
        self._epochs += 1
        row: dict[str, float] = {
            "epoch": self._epochs,
            "images": self._images,
            "lr": self.optimizer.param_groups[0]["lr"],
            "loss": self._loss / self._position,
            "train_accuracy": self._hits / self._position,
            "test_accuracy": self._test_accuracy,
            "image_period": self.pace.period if self.pace else 0.0,
            "seconds": self._seconds,
            "operations": self._log.operations,
        }
        self._position, self._hits, self._loss = 0, 0, 0.0
        totals = self.tally.totals()
        units = {"image_period": "s", "seconds": "s"}
        self._log.status["test_accuracy"] = self._test_accuracy
        self._log.metrics(row | totals, dict.fromkeys(row | totals, "") | units)
        self._observer.epoch(self._epochs, self._test_accuracy)
        self.diagnosis.epoch_done(self._test_accuracy, len(self._data.test_labels))

    def _survey(self) -> None:
        """Read every device for the log; an array that is multiplied on the host is read anyway."""
        for layer in analog_layers(self.model):
            pairs = layer.weight.pairs
            if pairs.tester.capabilities().mvm == MvmMode.ANALOG:
                for index in pairs.slices():
                    pairs.measure(index)

    def _final(self) -> tuple[dict[str, Values], dict[str, str]]:
        """What the host ends with: chi of each analog layer, else the parameters; and their units."""
        chi = {
            f"layer{number}_chi": self.optimizer.state[layer.weight]["chi"].numpy()
            for number, layer in enumerate(analog_layers(self.model), 1)
        }
        if chi:
            return dict(chi), dict.fromkeys(chi, "device units of 8 uS")
        parameters = {name: value.detach().numpy() for name, value in self.model.named_parameters()}
        return dict(parameters), dict.fromkeys(parameters, "")


def memory_arrays(memory: bytes) -> dict[str, Values]:
    """The arrays by which a run file keeps a tester's memory."""
    return {CHIP: np.frombuffer(memory, np.uint8)}


def _found(log: Log, observer: LoopObserver, text: str) -> None:
    log.message(text)
    observer.finding(text)


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
