"""Measure what the run file costs: time of the log, its size and what that is made of, replay against the original."""

import itertools
import statistics
import time
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt

# The benchmark beside this one.
from training_bench import REPETITIONS, Counting, first_of, prepare, settings_of, verdict

from hil.data.datasets import DataSet
from hil.data.recording import RecordingTester
from hil.data.runfile import RunWriter
from hil.data.schema import Start
from hil.mock_hw.array import Chip
from hil.mock_hw.chips import CHIPS
from hil.mock_hw.firmware import Firmware
from hil.mock_hw.twin import TwinTester
from hil.protocols.messages import Block, Direction, Readings, Region, Vectors
from hil.replay import verify
from hil.train import execute

OPERATIONS = 1000
IMAGES = 6000


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


def report_run_file(data: DataSet, folder: Path) -> None:
    """Print the time of a run's replay against the run's, and the size of its log by part."""
    settings, images = settings_of(), first_of(data, IMAGES)
    trained, verified = [], []
    for _ in range(REPETITIONS):
        began = time.perf_counter()
        setup, writer = prepare(settings, images, folder / "replayed.h5")
        execute(setup, writer, partial(RecordingTester, writer=writer), Counting())
        trained.append(time.perf_counter() - began)
        began = time.perf_counter()
        verdict_of_replay = verify(folder / "replayed.h5", Counting())
        verified.append(time.perf_counter() - began)
    ratio = statistics.median(verified) / statistics.median(trained)
    print(f"a run of {IMAGES} images of the first epoch: {statistics.median(trained):.1f} s, ", end="")
    print(f"replay --verify {ratio:.2f} x as long (at most 1: {verdict(ratio <= 1)}): {verdict_of_replay}")
    sizes = stored(folder / "replayed.h5")
    whole = sum(sizes.values())
    for name, size in sizes.items():
        print(f"  {name:28} {size / whole:5.1%} of the log")


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

    def add(name: str, item: object) -> None:
        for part, prefixes in parts.items():
            if isinstance(item, h5py.Dataset) and name.startswith(prefixes) and name.endswith("/values"):
                sizes[part] += item.id.get_storage_size()

    with h5py.File(path) as file:
        file.visititems(add)
    return sizes
