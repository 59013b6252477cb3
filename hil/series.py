"""What the log of a run shows over time: pulses per image, operations in doubt, moments at which devices were read."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hil.data.column_reader import data_errors
from hil.data.run import Run
from hil.protocols.messages import Operation, Status

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.uint32]
Cells = npt.NDArray[np.int64]

POINTS = 200
"""Points of a curve over the log."""
LARGEST_BLOCK = 2**20
"""Rows of the log loaded at once."""
LISTED = 50
"""Operations in doubt that are listed; all are counted."""
MOMENTS = 4
"""Epochs at the end of which the devices are shown."""


@dataclass(frozen=True)
class Doubt:
    """An operation that was not answered in full: its row, what it was, how many cells or vectors, how many done."""

    row: int
    op_id: int
    kind: str
    count: int
    done: int
    status: str


class Moment(NamedTuple):
    """A row of the log before which all devices had been read, and what it is called."""

    label: str
    row: int


@dataclass(frozen=True)
class LogSummary:
    """The log in short. `images` (n,) trained by the end of each block, `pulses` (n,) SET pulses per image in it.

    `training` is the row of the first image, None where there is none. Initial weights come before it and count for
    nothing here; rewritten ones (refreshes) do.
    """

    images: Floats
    pulses: Floats
    training: int | None
    doubts: Sequence[Doubt]
    doubtful: int


def read_log(run: Run) -> LogSummary:
    """Go through the operations once, block by block."""
    table, training = run.operations, _training(run)
    step = min(max(-(-table.rows // POINTS), 1), LARGEST_BLOCK)
    images: list[float] = []
    pulses: list[int] = []
    doubts: list[Doubt] = []
    doubtful = 0
    mark = _image_mark(run, training)
    for start in range(0, table.rows, step):
        names = ("op_id", "kind", "status", "region", "count", "done")
        block = {name: table[name][start : min(start + step, table.rows)] for name in names}
        found = np.flatnonzero(block["status"] != Status.COMPLETE)
        doubts += [_doubt(block, start, index, str(run.path)) for index in found[: LISTED - len(doubts)]]
        doubtful += len(found)
        if training is not None and start + step > training:
            trained = {name: column[max(training - start, 0) :] for name, column in block.items()}
            images.append(_images(trained, mark))
            pulses.append(int(trained["done"][trained["kind"] == Operation.SET].sum()))
    return LogSummary(*_rates(images, pulses), training, doubts, doubtful)


def _rates(images: list[float], pulses: list[int]) -> tuple[Floats, Floats]:
    """Images so far and pulses per image, where there were images."""
    counted, passed = np.array(images), np.array(images) > 0
    return counted.cumsum()[passed], np.array(pulses)[passed] / counted[passed]


class _Mark(NamedTuple):
    """The operation that each image has once: rows of `kind` (on `region`), worth so many images per count."""

    kind: Operation
    region: int | None
    images: float


def _image_mark(run: Run, training: int | None) -> _Mark:
    """A product going back, or else the wait that keeps the image period."""
    first = None if training is None else _find(run, Operation.MVM_BACKWARD, training)
    if first is None:
        return _Mark(Operation.WAIT, None, float(run.config.get("batch_size", 1)))
    return _Mark(Operation.MVM_BACKWARD, int(run.operations["region"][first]), 1.0)


def _images(block: dict[str, Any], mark: _Mark) -> float:
    rows = block["kind"] == mark.kind
    if mark.region is not None:
        rows &= block["region"] == mark.region
    return float(block["count"][rows].sum() * mark.images)


def _training(run: Run) -> int | None:
    """The first product; where the host multiplies, the wait after the first image (one wait precedes it)."""
    product = _find(run, Operation.MVM_FORWARD, 0)
    if product is not None:
        return product
    before = _find(run, Operation.WAIT, 0)
    return None if before is None else _find(run, Operation.WAIT, before + 1)


def _find(run: Run, kind: Operation, start: int) -> int | None:
    """The first row of a kind from `start` on."""
    for first in range(start, run.operations.rows, LARGEST_BLOCK):
        rows = np.flatnonzero(run.operations["kind"][first : first + LARGEST_BLOCK] == kind)
        if len(rows) and first + rows[0] < run.operations.rows:
            return int(first + rows[0])
    return None


def _doubt(block: dict[str, Any], start: int, index: int, path: str) -> Doubt:
    row = {name: int(column[index]) for name, column in block.items()}
    with data_errors(path, f"operation {start + index}"):
        kind, status = Operation(row["kind"]).name.lower(), Status(row["status"]).name.lower()
    return Doubt(start + index, row["op_id"], kind.replace("_", " "), row["count"], row["done"], status)


def moments(run: Run, training: int | None) -> list[Moment]:
    """The start of training, and the ends of the first, the last and some epochs between."""
    ends = run.metrics.get("operations", np.zeros(0, np.int64))
    chosen = sorted({round(epoch) for epoch in np.linspace(1, len(ends), MOMENTS)}) if len(ends) else []
    start = [] if training is None else [Moment("start", training)]
    return start + [Moment(f"epoch {epoch}", int(ends[epoch - 1])) for epoch in chosen]


def per_image(run: Run, name: str) -> Floats:
    """What a running total rose by in each epoch, per image of the epoch."""
    images = np.diff(run.metrics["images"], prepend=0)
    return np.asarray(np.diff(run.metrics[name], prepend=0) / images, np.float64)


def cells_of(run: Run, layer: str) -> dict[str, Cells]:
    """Flat numbers of the cells of G+ and G- of a layer, in the shape of its matrix."""
    snapshot, chip = run.snapshot(layer), run.capabilities
    with data_errors(str(run.path), f"snapshots/{layer}"):
        size = (chip.arrays, chip.rows, chip.columns) if chip else (0, 0, 0)
        shape = int(snapshot.attrs["rows"]), int(snapshot.attrs["columns"])
        cells = {}
        for sign, side in (("G+", "plus"), ("G−", "minus")):
            lines = tuple(snapshot.arrays[f"{side}_{part}"] for part in ("array", "row", "column"))
            cells[sign] = np.ravel_multi_index(lines, size).reshape(shape)
        return cells
