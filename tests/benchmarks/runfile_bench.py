"""Measure what the run file costs: time of the log, its size and what that is made of, replay against the original."""

import itertools
import statistics
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from hil.config import load_settings
from hil.data.recording import RecordingTester
from hil.data.runfile import RunWriter
from hil.data.schema import Start
from hil.mock_hw.array import Chip
from hil.mock_hw.chips import CHIPS
from hil.mock_hw.firmware import Firmware
from hil.mock_hw.twin import TwinTester
from hil.protocols.messages import Block, Direction, Readings, Region, Vectors
from hil.replay import verify
from hil.train import Job, train

OPERATIONS = 1000


class Silent:
    """An observer that does nothing."""

    def logging(self, *_: Any) -> None:
        """Nothing."""

    begin = progress = epoch = finding = logging


def log_cost(path: Path, images: npt.NDArray[np.float32]) -> float:
    """Milliseconds for logging 1,000 products of 785 inputs (images) and 250 outputs; the median of 15 times."""
    tester = Answering(Firmware(Chip(CHIPS["pcm-analog"], np.random.SeedSequence(1))), "pcm-analog", "bench")
    start = Start({}, "", (), 1, {}, {}, None, {}, tester.identify(), tester.capabilities())
    writer = RunWriter.create(path, start)
    recorder = RecordingTester(tester, writer)
    lines = np.arange(785, dtype=np.uint16)
    region = Region(0, (Block(0, lines, lines[:250], lines[250:500], 0, 0),))
    codes = np.full((OPERATIONS, 785), 127, np.int8)
    codes[:, :784] = np.rint(images[:OPERATIONS] * 127)
    vectors = [Vectors(code[None], np.ones(1, np.float32)) for code in codes]
    times = []
    for _ in range(15):
        began = time.perf_counter()
        for number in range(OPERATIONS):
            recorder.mvm(region, vectors[number], Direction.FORWARD, 0)
        times.append(time.perf_counter() - began)
    writer.close("completed", {})
    return 1e3 * statistics.median(times)


class Answering(TwinTester):
    """A twin that answers a product at once, with made-up codes."""

    def mvm(self, region: Region, vectors: Vectors, direction: Direction, gain: int) -> Readings:
        return ANSWERS[next(NUMBERS) % len(ANSWERS)]


CODES = np.clip(np.random.default_rng(2).normal(0, 20, (100, 1, 250)), -127, 127).astype(np.int8)
ANSWERS = [Readings(number, number, values, "A", 1e-9, 0, 0) for number, values in enumerate(CODES, 1)]
NUMBERS = itertools.count()


def report_run_file(data_dir: Path | None, folder: Path, images: int) -> None:
    """Print the size of a run's log by part, and the time of its replay against the run's."""
    name = "mnist-mlp" if data_dir else "digits"
    settings, text = load_settings(name, [f"train_images={images}", "epochs=1"])
    job = Job(name, settings, text, folder / "replayed.h5", data_dir)
    began = time.perf_counter()
    train(job, Silent())
    trained = time.perf_counter()
    verdict = verify(job.out, Silent())
    verified = time.perf_counter()
    print(f"\n{name}, {images} images and their evaluation: {trained - began:.1f} s, ", end="")
    print(f"replay {verified - trained:.1f} s ({(verified - trained) / (trained - began):.2f} x): {verdict}")
    sizes = stored(job.out)
    whole = sum(sizes.values())
    for part, size in sizes.items():
        print(f"  {part:28} {size / whole:5.1%} of the log")


def stored(path: Path) -> dict[str, int]:
    """Compressed bytes by part of a run file."""
    parts = {
        "inputs of products": ("mvm/inputs", "mvm/scales"),
        "outputs of products": ("mvm/outputs",),
        "pulses": ("program",),
        "reads (refreshes, surveys)": ("read",),
        "rows of operations": ("operations",),
    }
    sizes = dict.fromkeys(parts, 0)

    def add(name: str, item: Any) -> None:
        for part, prefixes in parts.items():
            if isinstance(item, h5py.Dataset) and name.startswith(prefixes) and name.endswith("/values"):
                sizes[part] += item.id.get_storage_size()

    with h5py.File(path) as file:
        file.visititems(add)
    return sizes
