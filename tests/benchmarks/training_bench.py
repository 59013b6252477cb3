"""Measure the training loop: each case is a run as `hil train` makes it, without its evaluation."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hil.bench import connect
from hil.config import Settings, load_settings
from hil.data.datasets import DataSet, load
from hil.data.recording import RecordingTester
from hil.data.runfile import RunWriter
from hil.data.schema import Start
from hil.instruments.batching import BatchingTester
from hil.interrupt import Interrupt
from hil.loop import Training
from hil.network import build
from hil.observers import Silent
from hil.session import twin_seed
from hil.train import Job, Setup, execute, first_weights

REPETITIONS = 5
TENTH_EPOCH = 0.4 * 0.88**10
"""Learning rate of the tenth of twenty epochs: fresh weights change fastest at the rate of the first, which is not
typical of a run."""
BATCH_LR = 0.006
"""Learning rate at which batches of 100 images reach 97 % (held constant, in 75 epochs)."""


class Counting(Silent):
    """An observer that remembers the first and the last count of images and of SET pulses, and the last accuracy."""

    def __init__(self) -> None:
        self._first: tuple[int, int] | None = None
        self._last = (0, 0)
        self.running_accuracy = 0.0

    def progress(self, images: int, running_accuracy: float, pulses: int, refreshes: int) -> None:
        """So far."""
        self._last, self.running_accuracy = (images, pulses), running_accuracy
        self._first = self._first or self._last

    @property
    def pulses_per_image(self) -> float:
        """With those of refreshes, without those of the initial weights."""
        images, pulses = np.subtract(self._last, self._first or self._last)
        return float(pulses / max(images, 1))


class NoLog:
    """A log that keeps nothing."""

    def __init__(self) -> None:
        self.status: dict[str, Any] = {}
        self.operations = 0

    def nothing(self, *_: Any, **__: Any) -> None:
        """Nothing."""

    message = metrics = snapshot = checkpoint = close = nothing

    def checkpoint_due(self) -> bool:
        """Never."""
        return False


@dataclass(frozen=True)
class Rate:
    """What a repetition gave."""

    images: float  # per second
    pulses: float  # per image
    bytes: float  # of the file per image


def made_up(images: int) -> DataSet:
    """The built-in digits, drawn three times as large in frames of 28 x 28 pixels: strokes, as in MNIST."""
    rng = np.random.default_rng(0)
    small = load("digits").train_images[rng.integers(0, 1400, images)].reshape(-1, 8, 8)
    large = small.repeat(3, axis=1).repeat(3, axis=2)
    pixels = np.pad(large, ((0, 0), (2, 2), (2, 2))).reshape(images, 784)
    return DataSet("made-up", pixels, rng.integers(0, 10, images), pixels[:100], rng.integers(0, 10, 100), 10)


def settings_of(*changes: str) -> Settings:
    """`mnist-mlp` with changes."""
    return load_settings("mnist-mlp", ["epochs=1", *changes])[0]


def first_of(data: DataSet, images: int) -> DataSet:
    """The first images, and a few to be evaluated."""
    return DataSet(
        data.name, data.train_images[:images], data.train_labels[:images], data.test_images[:100],
        data.test_labels[:100], data.classes,
    )  # fmt: skip


def prepare(settings: Settings, data: DataSet, path: Path) -> tuple[Setup, RunWriter]:
    """A run on a fresh twin, with its log."""
    raw = connect(settings.tester, twin_seed(settings.seed))
    identity, capabilities = raw.identify(), raw.capabilities()
    config = {"experiment": "mnist-mlp"} | settings.model_dump(mode="json") | {"log": "full"}
    setup = Setup(Job("mnist-mlp", settings, "", path), data, first_weights(settings, data, capabilities), raw)
    path.unlink(missing_ok=True)
    return setup, RunWriter.create(path, Start(config, "", (), settings.seed, {}, {}, None, {}, identity, capabilities))


def logged(settings: Settings, data: DataSet, path: Path) -> Rate:
    """The default loop, with its full log."""
    setup, writer = prepare(settings, data, path)
    observer = Counting()
    result = execute(setup, writer, lambda tester: RecordingTester(tester, writer), observer)
    return Rate(result.images_per_second, observer.pulses_per_image, path.stat().st_size / result.images)


def unlogged(settings: Settings, data: DataSet, aged: float = 0.0) -> Rate:
    """The same without a log; with devices that have aged (s) since they were written."""
    raw = connect(settings.tester, twin_seed(settings.seed))
    weights = first_weights(settings, data, raw.capabilities())
    setup, observer = Setup(Job("mnist-mlp", settings, "", Path()), data, weights, raw), Counting()

    def age(training: Training) -> None:
        raw.wait(aged)
        training.model(torch.ones(1, data.train_images.shape[1]))  # which follows the drift

    result = execute(setup, NoLog(), lambda tester: tester, observer, age if aged else None)
    return Rate(result.images_per_second, observer.pulses_per_image, 0)


def plain(data: DataSet) -> Rate:
    """PyTorch as everyone writes it, at batch 1: module, loss, autograd, SGD; nothing of ours."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(784, 250), nn.Sigmoid(), nn.Linear(250, 10), nn.Sigmoid())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    images = torch.from_numpy(data.train_images).split(1)
    targets = nn.functional.one_hot(torch.from_numpy(data.train_labels), 10).float().split(1)
    start = time.perf_counter()
    for image, target in zip(images, targets, strict=True):
        optimizer.zero_grad()
        loss = 0.5 * ((model(image) - target) ** 2).sum()
        loss.backward()
        optimizer.step()
    return Rate(len(images) / (time.perf_counter() - start), 0.0, 0.0)


def through_autograd(settings: Settings, data: DataSet, path: Path) -> Rate:
    """A model that is not trained without torch's graph: it ends with a module that does nothing."""
    setup, writer = prepare(settings, data, path)
    if setup.tester is None:
        raise ValueError("this is about analog layers")
    tester, observer = BatchingTester(RecordingTester(setup.tester, writer)), Counting()
    model = nn.Sequential(*build(settings, setup.weights, tester), nn.Identity())
    training = Training(settings, data, model, tester, lambda: None, writer, observer)
    with Interrupt() as interrupt:
        training.run(interrupt)
    writer.close("completed", {})
    size = path.stat().st_size / training.images
    return Rate(training.images / training.seconds, observer.pulses_per_image, size)


def cases_of(data: DataSet, folder: Path) -> dict[str, Callable[[], Rate]]:
    """All cases by name; each begins with fresh weights."""
    typical = settings_of(f"lr={TENTH_EPOCH}")
    serial = settings_of(f"lr={TENTH_EPOCH}", "tester=twin:pcm-90nm")
    batches = settings_of(f"lr={BATCH_LR}", "batch_size=100")
    return {
        "plain fp32 PyTorch": partial(plain, first_of(data, 4000)),
        "pcm-analog": partial(logged, typical, first_of(data, 60_000), folder / "a.h5"),
        "pcm-analog, not logged": partial(unlogged, typical, first_of(data, 60_000)),
        "pcm-analog, autograd": partial(through_autograd, typical, first_of(data, 4000), folder / "g.h5"),
        "pcm-analog, batch 100": partial(logged, batches, first_of(data, 60_000), folder / "b.h5"),
        "pcm-90nm": partial(logged, serial, first_of(data, 12_000), folder / "s.h5"),
    }


def measure(data: DataSet, folder: Path) -> dict[str, list[Rate]]:
    """All cases, in turns."""
    cases = cases_of(data, folder)
    rates: dict[str, list[Rate]] = {name: [] for name in cases}
    for _ in range(REPETITIONS):
        for name, case in cases.items():
            rates[name].append(case())
    return rates


def median(rates: list[Rate]) -> float:
    """Images per second."""
    return statistics.median(rate.images for rate in rates)


def report_training(data: DataSet, folder: Path) -> None:
    """Print the medians beside what is aimed at."""
    rates = measure(data, folder)
    medians = {name: median(values) for name, values in rates.items()}
    plain = medians["plain fp32 PyTorch"]
    aims = {
        "pcm-analog": f"3 x plain, 6000: {verdict(medians['pcm-analog'] >= max(3 * plain, 6000))}",
        "pcm-analog, autograd": f"1 x plain: {verdict(medians['pcm-analog, autograd'] >= plain)}",
        "pcm-analog, batch 100": f"20000: {verdict(medians['pcm-analog, batch 100'] >= 20_000)}",
        "pcm-90nm": f"2 x plain: {verdict(medians['pcm-90nm'] >= 2 * plain)}",
    }
    for name, rate in medians.items():
        pulses = statistics.median(each.pulses for each in rates[name])
        print(
            f"{name:24} {rate:8.0f} images/s {rate / plain:6.2f} x plain {1e6 / rate:6.0f} us per image "
            f"{pulses:6.2f} pulses per image   {aims.get(name, '')}"
        )
    pairs = zip(rates["pcm-analog"], rates["pcm-analog, not logged"], strict=True)  # one after the other
    share = statistics.median(1 - logged.images / unlogged.images for logged, unlogged in pairs)
    size = statistics.median(each.bytes for each in rates["pcm-analog"])
    print(f"log: {share:.0%} of the run (at most 20 %: {verdict(share <= 0.2)}), {size:.0f} bytes per image with all\n")


def verdict(reached: bool) -> str:
    """In a word."""
    return "reached" if reached else "NOT reached"
