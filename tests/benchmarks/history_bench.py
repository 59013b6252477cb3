"""Measure what it takes to open a large run file and to ask for the history of one device.

The file is made up, in the proportions of a run of mnist-mlp: for each image two products forward, one backward, a SET
of six devices and a wait; for each fifty images a read of 700 devices and a RESET of ten; a survey of all devices after
every 60,000. To be quick, the operations of a thousand images are logged at once, and the codes of products, which
nothing here reads, are copies of a few compressed chunks. The file is read in a fresh process (its pages are mostly in
memory then: it was just written), and removed.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
from memory import own_peak

from hil.bench import open_tester
from hil.data.run import Run
from hil.data.runfile import RunWriter
from hil.data.schema import NONE, OPERATION_CHUNK, OPERATIONS, Start
from hil.protocols.messages import Block, Operation, PulseShape, Readings, Region

INPUTS, HIDDEN, CLASSES = 785, 250, 10
DEVICES = 2 * (INPUTS * HIDDEN + (HIDDEN + 1) * CLASSES)
LINES = 512  # word lines of an array
IMAGES, FLUSH_EVERY = 1000, 20  # images that are logged together; so many of them are flushed together
SET_DEVICES, CHECKED, RESET_DEVICES = 6, 700, 10  # by operation
CHECK_EVERY, SURVEY_EVERY = 50, 60_000  # images
CODES = {"mvm/inputs": INPUTS + HIDDEN + 1 + CLASSES, "mvm/outputs": 2 * HIDDEN + CLASSES + HIDDEN + 1}  # of an image
READ, SET, RESET, WAIT = Operation.READ, Operation.SET, Operation.RESET, Operation.WAIT
FORWARD, BACKWARD = Operation.MVM_FORWARD, Operation.MVM_BACKWARD
REPETITIONS = 7
Index = npt.NDArray[np.int64]

IMAGE = [(FORWARD, 0, INPUTS, 2 * HIDDEN), (FORWARD, 1, HIDDEN + 1, CLASSES), (BACKWARD, 1, CLASSES, HIDDEN + 1)]
"""Kind, region (or `NONE`), elements asked for and answered of the operations of an image."""
IMAGE += [(SET, NONE, SET_DEVICES, 0)]
CHECK = [(READ, NONE, CHECKED, CHECKED), (RESET, NONE, RESET_DEVICES, 0)]
SURVEY = [(READ, NONE, DEVICES, DEVICES)]
ROWS = np.array(
    [row for k in range(IMAGES) for row in (*IMAGE, *([] if k % CHECK_EVERY else CHECK), (WAIT, NONE, 1, 0))]
)


class BulkWriter(RunWriter):
    """Logs many operations at once."""

    def log(self, columns: dict[str, Any]) -> None:
        """Operations that lie one after the other in their streams, which end with them; other columns are 0."""
        kind, offset = columns["kind"], columns["offset"]
        tables = self._columns.tables
        here = OPERATION_CHUNK - len(tables["operations"].columns[0]) % OPERATION_CHUNK
        if len(kind) >= here:
            later = [offset[here:][np.isin(kind[here:], kinds)] for kinds in ((READ,), (SET, RESET))]
            ends = (len(self.streams["read/row"]), len(self.streams["program/row"]))
            tables["marks"].append(*(int(part[0]) if len(part) else end for part, end in zip(later, ends, strict=True)))
        for field, column in zip(OPERATIONS, tables["operations"].columns, strict=True):
            column.append(np.asarray(columns.get(field.name, np.zeros(len(kind)))).astype(field.dtype))


class MadeUpRun:
    """Logs what a recording logs."""

    def __init__(self, path: Path) -> None:
        tester = open_tester("twin:pcm-analog")
        chip = tester.capabilities()
        self.writer = BulkWriter.create(path, Start({}, "", (), 1, {}, {}, None, {}, tester.identify(), chip))
        self.rng = rng = np.random.default_rng(1)
        lines = np.arange(LINES, dtype=np.uint16)
        rest = lines[: INPUTS - LINES]
        one = Block(0, lines, lines[:HIDDEN], None, 0, 0), Block(1, rest, lines[:HIDDEN], None, LINES, 0)
        two = (Block(1, lines[: HIDDEN + 1], lines[:CLASSES], None, 0, 0),)
        for handle, blocks in enumerate((one, two)):
            self.writer.region(Region(handle, blocks))
        pixels = rng.integers(1, 128, (IMAGES, INPUTS)) * (rng.random((IMAGES, INPUTS)) < 0.19)
        codes = np.clip(rng.normal(0, 30, (IMAGES, HIDDEN + 1 + CLASSES + CODES["mvm/outputs"])), -127, 127)
        for kind in (FORWARD, BACKWARD):
            self.writer.check_readings(kind, 0, Readings(0, 0, codes.astype(np.int8), "A", 1e-8, 0, 0))
        self.writer.check_readings(READ, NONE, Readings(0, 0, codes.astype(np.uint8), "S", 1e-7, 10, 0))
        self.writer.shape(PulseShape(90e-6, 50e-9))
        inputs = np.hstack([pixels, codes[:, : HIDDEN + 1 + CLASSES]]).astype(np.int8)
        self.writer.streams["mvm/inputs"].append(inputs)
        self.writer.streams["mvm/outputs"].append(codes[:, HIDDEN + 1 + CLASSES :].astype(np.int8))
        self.images = self.operations = 0

    def more(self) -> None:
        """The operations of IMAGES images."""
        checks = IMAGES // CHECK_EVERY
        read = np.sort(self.some(checks * CHECKED).reshape(checks, CHECKED)).ravel()
        rows = ROWS
        if self.images % SURVEY_EVERY == 0:
            rows, read = np.concatenate([ROWS, SURVEY]), np.concatenate([read, np.arange(DEVICES)])
        kind, region, size, answered = rows.T
        columns = self.columns(kind, region, size, answered)
        streams = self.writer.streams
        self.cells("read", read)
        streams["read/codes"].append(self.rng.integers(0, 255, len(read), dtype=np.uint8))
        pulsed = self.some(int(size[np.isin(kind, (SET, RESET))].sum()))
        self.cells("program", pulsed)
        streams["program/counts"].append(np.ones(len(pulsed), np.uint16))
        streams["mvm/scales"].append(np.ones(3 * IMAGES, np.float32))
        streams["wait/seconds"].append(np.full(IMAGES, 0.4))
        self.writer.log(columns)
        self.images += IMAGES
        self.operations += len(rows)

    def columns(self, kind: Index, region: Index, size: Index, answered: Index) -> dict[str, Any]:
        """The table of these operations."""
        is_product = np.isin(kind, (FORWARD, BACKWARD))
        offset, output, scale = (np.zeros(len(kind), np.int64) for _ in range(3))
        lengths = {name: len(column) for name, column in self.writer.streams.items()}
        lengths |= {name: codes * self.images for name, codes in CODES.items()}
        for name, kinds in {
            "mvm/inputs": (FORWARD, BACKWARD),
            "read/row": (READ,),
            "program/row": (SET, RESET),
        }.items():
            offset += _places(np.isin(kind, kinds), size, lengths[name])
        offset += _places(kind == WAIT, size, lengths["wait/seconds"])
        output += _places(is_product, answered, lengths["mvm/outputs"])
        output += _places(kind == READ, answered, lengths["read/codes"])
        scale += _places(is_product, np.ones_like(size), lengths["mvm/scales"])
        count = np.where(is_product, 1, size)
        op_id = self.operations + 1 + np.arange(len(kind))
        given = {"op_id": op_id, "kind": kind, "device_time_ns": op_id * 80_000_000, "host_time_ns": op_id * 900_000}
        places = {"offset": offset, "output_offset": output, "scale_offset": scale}
        gain, shape = np.where(is_product, 0, NONE), np.where(np.isin(kind, (SET, RESET)), 0, NONE)
        return given | places | {"region": region, "gain": gain, "shape": shape, "count": count, "done": count}

    def some(self, devices: int) -> Index:
        """Devices; some come much more often than others."""
        return (self.rng.random(devices) ** 3 * DEVICES).astype(np.int64)

    def cells(self, prefix: str, devices: Index) -> None:
        """Append their places on the chip."""
        for name, values in zip(("array", "row", "column"), place(devices), strict=True):
            self.writer.streams[f"{prefix}/{name}"].append(values.astype(np.uint16))


def _places(mine: npt.NDArray[np.bool_], sizes: Index, start: int) -> Index:
    """Where the elements of some operations begin in a stream; 0 for the others."""
    sizes = np.where(mine, sizes, 0)
    return np.where(mine, start + np.cumsum(sizes) - sizes, 0)


def place(device: Any) -> tuple[Any, Any, Any]:
    """Array, word line and bit line of devices."""
    line, column = np.divmod(device, 2 * HIDDEN)
    return line // LINES, line % LINES, column


def make(path: Path, size: float) -> int:
    """Write a run file of `size` bytes; returns its images."""
    run = MadeUpRun(path)
    run.more()
    run.writer.flush()
    stored = {name: run.writer.view()[f"{name}/values"] for name in CODES}
    products = sum(codes * stored[name].id.get_storage_size() / len(stored[name]) for name, codes in CODES.items())
    while path.stat().st_size + products * run.images < size:
        for _ in range(FLUSH_EVERY):
            run.more()
        run.writer.flush()
    run.writer.close("completed", {})
    with h5py.File(path, "r+", rdcc_nbytes=0) as file:
        for name, codes in CODES.items():
            fill(file[name], codes * run.images)
    return run.images


def fill(column: Any, length: int) -> None:
    """Make a column this long by copies of its first chunk, as it is stored."""
    values = column["values"]
    _, chunk = values.id.read_direct_chunk((0,))
    first = len(values) // values.chunks[0] * values.chunks[0]
    values.resize((length,))
    for start in range(first, length, values.chunks[0]):
        values.id.write_direct_chunk((start,), chunk)
    column["tail_range"][:] = length


def ask(path: Path) -> None:
    """What is measured of some devices, with the time and memory that it took; the last line sums it up."""
    rng = np.random.default_rng(2)
    seconds = [history(path, device) for device in rng.integers(0, DEVICES, REPETITIONS).tolist()]
    memory = own_peak() / 1e6
    history(path, 0)
    most = own_peak() / 1e6
    print(f"device 0, which is used most, took {most:.0f} MB")
    size = path.stat().st_size / 1e9
    print(f"one device's history out of a {size:.3g} GB file: {statistics.median(seconds):.2f} s, {memory:.0f} MB")


def history(path: Path, device: int) -> float:
    """Ask for all pulses and readings of a device; returns the seconds it took."""
    began, cpu = time.perf_counter(), time.process_time()
    with Run.open(path) as run:
        opened = time.perf_counter()
        pulses = run.pulses(*place(device))
        pulsed = time.perf_counter()
        readings = run.readings(*place(device))
    seconds = time.perf_counter() - began
    print(
        f"device {device}: {seconds:.2f} s, CPU {time.process_time() - cpu:.2f} s (open {opened - began:.3f}, "
        f"pulses {pulsed - opened:.2f}; {len(pulses.count)} operations, {len(readings.value)} readings)"
    )
    return seconds


def measure(size_gb: float, folder: Path | None) -> str:
    """What `ask` says of a new file in a temporary folder there, from a process of its own."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        path = Path(name) / "run.h5"
        make(path, size_gb * 1e9)
        command = [sys.executable, __file__, "--ask", str(path)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def report_history(size_gb: float, folder: Path) -> None:
    """Print how long it takes to get a device's history, the median of some devices, and the peak memory."""
    print(measure(size_gb, folder).splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size-gb", type=float, default=1.0)
    parser.add_argument("--folder", type=Path, help="where the file goes for the while; a temporary folder")
    parser.add_argument("--ask", type=Path, help="only read this file, of an earlier run")
    options = parser.parse_args()
    if options.ask:
        ask(options.ask)
    else:
        print(measure(options.size_gb, options.folder), end="")


if __name__ == "__main__":
    main()
