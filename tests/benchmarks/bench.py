"""Measure what the README claims about speed, memory and size: `make bench DATA_DIR=path/to/data`.

Every figure is the median of five interleaved repetitions on one thread. Without a data folder, images of MNIST's size
and density are made up.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numba
import numpy as np
import torch

# The benchmarks beside this one.
from history_bench import report_history
from memory import peak_of
from runfile_bench import OPERATIONS, log_cost, report_run_file
from size_bench import report_size
from studies_bench import report_studies
from training_bench import REPETITIONS, made_up, report_training, verdict
from wire_bench import report_wire

from hil.data.datasets import load

HIL = Path(sys.executable).with_name("hil")
MOST_SECONDS = 0.3
"""What `hil --help` may take."""
MOST_MEMORY = 600
"""MB that a run may take over an interpreter with torch loaded."""


def report_memory(data_dir: Path | None, folder: Path) -> None:
    """Print what runs of different lengths take over an interpreter with torch."""
    empty = peak_of([sys.executable, "-c", "import torch"]) / 1e6
    print(f"memory: an interpreter with torch takes {empty:.0f} MB")
    name, options = ("mnist-mlp", ["--data-dir", str(data_dir)]) if data_dir else ("digits", [])
    for images in (3000, 60_000) if data_dir else (700, 1400):
        out = folder / f"{images}.h5"
        command = [str(HIL), "train", name, *options, "--epochs", "1", "--out", str(out), "--json"]
        more = peak_of([*command, "--set", f"train_images={images}"]) / 1e6 - empty
        print(f"  `hil train {name}`, {images} images: {more:.0f} MB more (at most {MOST_MEMORY}: ", end="")
        print(f"{verdict(more <= MOST_MEMORY)})")


def report_start() -> None:
    """Print how long `hil --help` takes."""
    times = []
    for _ in range(REPETITIONS):
        began = time.perf_counter()
        subprocess.run([str(HIL), "--help"], check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - began)
    seconds = statistics.median(times)
    print(f"`hil --help`: {seconds:.2f} s (at most {MOST_SECONDS}: {verdict(seconds <= MOST_SECONDS)})\n")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-dir", type=Path)
    data_dir = parser.parse_args().data_dir
    torch.set_num_threads(1)
    versions = f"python {platform.python_version()}, numpy {np.__version__}, numba {numba.__version__}"
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, {versions}, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        report_memory(data_dir, folder)
        report_size()
        report_start()
        report_studies(folder)
        data = load("mnist", data_dir) if data_dir else made_up(60_000)
        print(f"784-250-10, {data.name} images, one thread; medians of {REPETITIONS} repetitions in turns\n")
        report_training(data, folder)
        report_run_file(data, folder)
        cost = log_cost(folder / "cost.h5", data.train_images)
        print(f"logging {OPERATIONS} products of 785 inputs and 250 outputs: {cost:.1f} ms\n")
        report_history(1.0, folder)
    report_wire()


if __name__ == "__main__":
    main()
