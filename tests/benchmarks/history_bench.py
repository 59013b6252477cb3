"""Measure what it takes to open a large run file and to ask for the history of one device.

The file is made up, in the proportions of a run of mnist-mlp: for each image two products forward, one backward, a SET
of six devices and a wait; for each hundred images two refresh checks; a survey of all devices after every 60,000. It
is read in a fresh process (its pages are mostly in memory then: it was just written), and removed.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hil.bench import open_tester
from hil.data.run import Run
from hil.data.runfile import RunWriter
from hil.data.schema import NONE, Start
from hil.protocols.messages import Block, Operation, Readings, Receipt, Region, Status

INPUTS, HIDDEN, CLASSES = 785, 250, 10
DEVICES = 2 * (INPUTS * HIDDEN + (HIDDEN + 1) * CLASSES)
IMAGES = 1000  # logged together
SET_DEVICES, CHECKED, RESET_DEVICES = 6, 700, 10  # by operation
CHECK_EVERY, SURVEY_EVERY = 50, 60_000  # images
REPETITIONS = 5
Cells = npt.NDArray[np.int64]


class MadeUpRun:
    """Logs what a recording logs; payload of many images goes to the streams at once, and repeats but for the cells."""

    def __init__(self, path: Path) -> None:
        tester = open_tester("twin:pcm-analog")
        self.chip = tester.capabilities()
        self.writer = RunWriter.create(path, Start({}, "", (), 1, {}, {}, None, {}, tester.identify(), self.chip))
        self.rng = rng = np.random.default_rng(1)
        pixels = rng.integers(1, 128, (IMAGES, INPUTS)) * (rng.random((IMAGES, INPUTS)) < 0.19)
        codes = np.clip(rng.normal(0, 30, (IMAGES, INPUTS + 2 * CLASSES)), -127, 127).astype(np.int8)
        self.inputs = np.hstack([pixels.astype(np.int8), codes[:, : HIDDEN + 1 + CLASSES]])
        self.outputs = codes[:, : 2 * HIDDEN + CLASSES + HIDDEN + 1]
        self.ids = 0
        lines = np.arange(self.chip.rows, dtype=np.uint16)
        rest = lines[: INPUTS - self.chip.rows]
        one = Block(0, lines, lines[:HIDDEN], None, 0, 0), Block(1, rest, lines[:HIDDEN], None, len(lines), 0)
        two = (Block(1, lines[: HIDDEN + 1], lines[:CLASSES], None, 0, 0),)
        for handle, blocks in enumerate((one, two)):
            self.writer.region(Region(handle, blocks))
        for kind in (Operation.MVM_FORWARD, Operation.MVM_BACKWARD):
            self.writer.check_readings(kind, 0, Readings(0, 0, codes, "A", 1e-8, 0, 0))
        self.writer.check_readings(Operation.READ, NONE, Readings(0, 0, codes, "S", 1e-7, 10, 0))

    def images(self, first: int) -> None:
        """The operations of IMAGES images."""
        streams = self.writer.streams
        inputs, outputs = streams["mvm/inputs"].append(self.inputs), streams["mvm/outputs"].append(self.outputs)
        scales = streams["mvm/scales"].append(np.ones(3 * IMAGES, np.float32))
        wait = streams["wait/seconds"].append(np.full(IMAGES, 0.4))
        checks = IMAGES // CHECK_EVERY
        pulsed = self.pulse(self.some(IMAGES * SET_DEVICES + checks * RESET_DEVICES))
        read, codes = self.read(np.sort(self.some(checks * CHECKED).reshape(checks, CHECKED)).ravel())
        for image in range(IMAGES):
            at = inputs + image * self.inputs.shape[1], outputs + image * self.outputs.shape[1], scales + 3 * image
            self.products(*at)
            self.log(Operation.SET, SET_DEVICES, pulsed, shape=0)
            pulsed += SET_DEVICES
            if image % CHECK_EVERY == 0:
                self.log(Operation.READ, CHECKED, read, output_offset=codes)
                self.log(Operation.RESET, RESET_DEVICES, pulsed, shape=0)
                read, codes, pulsed = read + CHECKED, codes + CHECKED, pulsed + RESET_DEVICES
            self.log(Operation.WAIT, 1, wait + image)
        if first % SURVEY_EVERY == 0:
            read, codes = self.read(np.arange(DEVICES))
            self.log(Operation.READ, DEVICES, read, output_offset=codes)

    def products(self, inputs: int, outputs: int, scales: int) -> None:
        """Two layers forward, the second one backward."""
        forward, backward = Operation.MVM_FORWARD, Operation.MVM_BACKWARD
        self.log(forward, 1, inputs, region=0, gain=0, output_offset=outputs, scale_offset=scales)
        inputs, outputs = inputs + INPUTS, outputs + 2 * HIDDEN
        self.log(forward, 1, inputs, region=1, gain=0, output_offset=outputs, scale_offset=scales + 1)
        inputs, outputs = inputs + HIDDEN + 1, outputs + CLASSES
        self.log(backward, 1, inputs, region=1, gain=0, output_offset=outputs, scale_offset=scales + 2)

    def pulse(self, devices: Cells) -> int:
        self.writer.streams["program/counts"].append(np.ones(len(devices), np.uint16))
        return self.cells("program", devices)

    def read(self, devices: Cells) -> tuple[int, int]:
        codes = self.rng.integers(0, 255, len(devices), dtype=np.uint8)
        return self.cells("read", devices), self.writer.streams["read/codes"].append(codes)

    def some(self, devices: int) -> Cells:
        """Devices; some come much more often than others."""
        return (self.rng.random(devices) ** 3 * DEVICES).astype(np.int64)

    def cells(self, prefix: str, devices: Cells) -> int:
        """Append their places on the chip."""
        line, column = np.divmod(devices, self.chip.columns)
        array, row = np.divmod(line, self.chip.rows)
        streams = self.writer.streams
        for name, values in (("array", array), ("row", row), ("column", column)):
            offset = streams[f"{prefix}/{name}"].append(values.astype(np.uint16))
        return offset

    def log(self, kind: Operation, count: int, offset: int, **columns: int) -> None:
        self.ids += 1
        receipt = Receipt(self.ids, self.ids * 80_000_000, Status.COMPLETE, count)
        self.writer.operation(kind, count, offset, receipt, count, **columns)


def make(path: Path, size: int) -> int:
    """Write a run file of `size` bytes; returns its images."""
    run = MadeUpRun(path)
    images = 0
    while path.stat().st_size < size:
        run.images(images)
        images += IMAGES
    run.writer.close("completed", {})
    return images


def ask(path: Path) -> None:
    """What is measured, with the time and memory that it took."""
    for device in [*np.random.default_rng(2).integers(0, DEVICES, REPETITIONS).tolist(), 0]:
        began = time.perf_counter()
        with Run.open(path) as run:
            opened = time.perf_counter()
            row, column = divmod(device, run.capabilities.columns) if run.capabilities else (0, 0)
            pulses = run.pulses(0, row, column)
            pulsed = time.perf_counter()
            readings = run.readings(0, row, column)
            read = time.perf_counter()
        print(
            f"device {device}: {read - began:.2f} s (open {opened - began:.3f}, {len(pulses.count)} operations "
            f"{pulsed - opened:.2f}, {len(readings.value)} readings {read - pulsed:.2f})"
        )
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size-gb", type=float, default=1.0)
    parser.add_argument("--folder", type=Path, help="where the file goes for the while; a temporary folder")
    parser.add_argument("--ask", type=Path, help="only read this file, of an earlier run")
    options = parser.parse_args()
    if options.ask:
        return ask(options.ask)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "run.h5"
        began = time.perf_counter()
        images = make(path, int(options.size_gb * 1e9))
        print(f"{path.stat().st_size / 1e9:.2f} GB, {images} images, written in {time.perf_counter() - began:.0f} s")
        subprocess.run([sys.executable, __file__, "--ask", str(path)], check=True)


if __name__ == "__main__":
    main()
