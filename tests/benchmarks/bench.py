"""Measure what the README claims about speed, memory and size: `make bench DATA_DIR=path/to/data`.

Every figure is the median of five interleaved repetitions in one process, on one thread. Without a data folder, images
of MNIST's size and density are made up.
"""

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

# The benchmarks beside this one.
from history_bench import report_history
from runfile_bench import OPERATIONS, log_cost, report_run_file
from torch import nn
from wire_bench import report_wire

from hil.bench import open_tester
from hil.config import Settings, load_settings
from hil.data.datasets import DataSet, load
from hil.data.recording import RecordingTester
from hil.data.runfile import RunWriter
from hil.data.schema import Start
from hil.instruments.batching import BatchingTester
from hil.instruments.tester import ArrayTester
from hil.mixed_precision import MixedPrecisionSGD
from hil.network import build, initial_weights
from hil.pace import Pace
from hil.passes import AutogradPasses, DirectPasses, Passes

REPETITIONS = 5
IMAGES = 3000


def made_up(images: int) -> DataSet:
    """The built-in digits, drawn three times as large in frames of 28 x 28 pixels: strokes, as in MNIST."""
    rng = np.random.default_rng(0)
    digits = load("digits").train_images[rng.integers(0, 1400, images)].reshape(-1, 8, 8)
    large = digits.repeat(3, axis=1).repeat(3, axis=2)
    pixels = np.pad(large, ((0, 0), (2, 2), (2, 2))).reshape(images, 784)
    return DataSet("made-up", pixels, rng.integers(0, 10, images), pixels[:100], rng.integers(0, 10, 100), 10)


def images_per_second(steps: Passes, data: DataSet, pace: Pace | None) -> Callable[[], float]:
    """A repetition: train on the next images one by one."""
    targets = np.eye(10, dtype=np.float32)
    order = iter(np.random.default_rng(1).integers(0, len(data.train_images), 100 * IMAGES).tolist())

    def repetition() -> float:
        began = time.perf_counter()
        for _ in range(IMAGES):
            k = next(order)
            steps.train(data.train_images[k : k + 1], targets[data.train_labels[k : k + 1]])
            if pace is not None:
                pace.images_done(1)
        return IMAGES / (time.perf_counter() - began)

    return repetition


def network(settings: Settings, tester: ArrayTester | None) -> nn.Sequential:
    """The network of the paper."""
    capabilities = tester.capabilities() if tester else None
    weights = initial_weights(settings, [784, 250, 10], np.random.SeedSequence(1), capabilities)
    return build(settings, weights, tester)


def floating_point(data: DataSet) -> Callable[[], float]:
    """Plain fp32 PyTorch: modules, autograd, SGD."""
    settings = load_settings("mnist-mlp", ["system=float"])[0]
    model = network(settings, None)
    return images_per_second(AutogradPasses(model, torch.optim.SGD(model.parameters(), lr=0.1)), data, None)


def on_twin(data: DataSet, uri: str, path: Path | None, graph: bool = False) -> Callable[[], float]:
    """The network on a twin, with its log in `path` or without one; through torch's graph if asked."""
    settings = load_settings("mnist-mlp", [])[0]
    tester: ArrayTester = open_tester(uri)
    if path is not None:
        start = Start({}, "", (), 1, {}, {}, None, {}, tester.identify(), tester.capabilities())
        tester = BatchingTester(RecordingTester(tester, RunWriter.create(path, start)))
    model = network(settings, tester)
    # Devices change fastest in the first images, which are not typical: the rate is that of the tenth epoch.
    optimizer = MixedPrecisionSGD(model.parameters(), lr=0.4 * 0.88**10)
    steps = AutogradPasses(model, optimizer) if graph else DirectPasses(model, optimizer)
    return images_per_second(steps, data, Pace(tester, settings.image_period))


def peak_memory(data_dir: Path | None, images: int, folder: Path) -> float:
    """Peak resident memory (MB) of `hil train` over so many images, in a process of its own."""
    name, options = ("mnist-mlp", ["--data-dir", str(data_dir)]) if data_dir else ("digits", [])
    hil = Path(sys.executable).with_name("hil")
    command = [str(hil), "train", name, *options, "--epochs", "1", "--json", "--out", str(folder / f"{images}.h5")]
    subprocess.run([*command, "--set", f"train_images={images}"], check=True, stdout=subprocess.DEVNULL)
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-dir", type=Path)
    data_dir = parser.parse_args().data_dir
    with tempfile.TemporaryDirectory() as name:  # first: a child counts what its parent holds when it is started
        for images in (1000, 1400) if data_dir is None else (3000, 30_000):
            memory = peak_memory(data_dir, images, Path(name))
            print(f"peak memory of `hil train` over {images} images: {memory:.0f} MB")
    torch.set_num_threads(1)
    data = load("mnist", data_dir) if data_dir else made_up(10_000)
    versions = f"python {platform.python_version()}, numpy {np.__version__}, torch {torch.__version__}"
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, {versions}")
    print(f"784-250-10, batch 1, one thread, {data.name} images; medians of {REPETITIONS} x {IMAGES} images\n")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cases = {
            "plain fp32 PyTorch": floating_point(data),
            "pcm-analog, full log": on_twin(data, "twin:pcm-analog", folder / "analog.h5"),
            "pcm-analog, no log": on_twin(data, "twin:pcm-analog", None),
            "pcm-analog, full log, autograd": on_twin(data, "twin:pcm-analog", folder / "graph.h5", graph=True),
            "pcm-90nm, full log": on_twin(data, "twin:pcm-90nm", folder / "serial.h5"),
        }
        for case in cases.values():
            case()  # warm up
        before = os.path.getsize(folder / "analog.h5")
        rates: dict[str, list[float]] = {name: [] for name in cases}
        for _ in range(REPETITIONS):
            for name, case in cases.items():
                rates[name].append(case())
        report(rates, (os.path.getsize(folder / "analog.h5") - before) / (REPETITIONS * IMAGES))
        cost = log_cost(folder / "cost.h5", data.train_images)
        print(f"logging {OPERATIONS} products of 785 inputs and 250 outputs: {cost:.1f} ms")
        report_run_file(data_dir, folder, IMAGES if data_dir else 1400)
        report_history(1.0, folder)
    report_wire()


def report(rates: dict[str, list[float]], bytes_per_image: float) -> None:
    """Print the medians, their ratios to the first, and the share of the log."""
    medians = {name: statistics.median(values) for name, values in rates.items()}
    plain = medians["plain fp32 PyTorch"]
    for name, rate in medians.items():
        print(f"{name:32} {rate:8.0f} images/s  {rate / plain:5.2f} x plain  {1e6 / rate:6.0f} us per image")
    share = 1 - medians["pcm-analog, full log"] / medians["pcm-analog, no log"]
    print(f"\nlog: {share:.0%} of the run, {bytes_per_image:.0f} bytes per image")


if __name__ == "__main__":
    main()
