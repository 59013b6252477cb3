"""Read a run file; its schema is described in `data/README.md`."""

import json
import os
import re
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np

from hil.data import history, state
from hil.data.column_reader import BLOCK, TableReader, data_errors
from hil.data.columns import Values
from hil.data.head import check_format, read_regions, read_start, text
from hil.data.history import F32, CellPulses, CellReadings, Products
from hil.data.integrity import check_file
from hil.data.journal import recover
from hil.data.log import Log
from hil.data.merging import merge_tail
from hil.data.schema import MESSAGES, NONE
from hil.data.state import U32, Conductances, Layer
from hil.protocols.errors import DataError, InputError
from hil.protocols.messages import (
    MVM_DIRECTION,
    Capabilities,
    Cells,
    Direction,
    Identity,
    Operation,
    PulseBatch,
    PulseTrains,
    Readings,
    Receipt,
    Region,
    Status,
    Vectors,
)

INTERRUPTED = "interrupted"
"""State of a run without a stop."""


@dataclass(frozen=True, slots=True)
class LoggedOperation:
    """One operation: what was asked and what the tester answered, as it passed between them.

    The request is Cells (read), Vectors (MVM), PulseBatch (SET, RESET), PulseTrains (update) or seconds (wait). Without
    an answer, the tester failed: operation id and device time are -1. `answer.values()` gives readings in their unit.
    """

    op_id: int
    kind: Operation
    status: Status
    device_time_ns: int
    host_time_ns: int
    region: Region | None
    gain: int | None
    request: Cells | Vectors | PulseBatch | PulseTrains | float
    answer: Readings | Receipt | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Arrays stored together, with their units, and attributes of the whole."""

    arrays: dict[str, Values]
    units: dict[str, str]
    attrs: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a run needs to go on: JSON-able state, arrays, and the rows of each table that were written before."""

    state: dict[str, Any]
    arrays: dict[str, Values]
    operations: int
    metrics: int
    messages: int


class Run:
    """A run file, open for reading; a context manager. What cannot be read raises `DataError`."""

    def __init__(self, path: Path, file: Any) -> None:
        """Read what is small of an open HDF5 file; use `open`."""
        self.path = path
        self._file = file
        with self._reading("the head"):
            check_format(path, file.attrs)
            check_file(file)
            self.run_id = text(file.attrs, "run_id")
            self.created_utc = text(file.attrs, "created_utc")
            self.tester_kind = text(file.attrs, "tester_kind")
        with self._reading("start"):
            self.start = read_start(file["start"])
        with self._reading("regions"):
            self.regions = read_regions(file["regions"], self.start.capabilities)
        self.log = Log(path, file)
        self.operations = self.log.operations

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Open a run file. Raises DataError where it is missing, truncated, of another kind or of a newer version."""
        path = Path(path)
        if not os.path.isfile(path):
            what = "is a folder" if os.path.isdir(path) else "there is no such file"
            raise DataError(f"{path}: {what}: give the name of a run file")
        try:
            with data_errors(str(path), "the file"):
                recover(path)
                merge_tail(path)
                file = h5py.File(path, "r")
        except DataError as error:
            if isinstance(error.__cause__, BlockingIOError):
                raise DataError(f"{path} is being written by another process: wait until it is done") from error
            raise
        try:
            return cls(path, file)
        except BaseException:
            file.close()
            raise

    def __repr__(self) -> str:
        return f"<Run {self.path}: {self.config.get('experiment')}, {self.state}, {self.operations.rows} operations>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. Idempotent."""
        self._file.close()

    @property
    def config(self) -> dict[str, Any]:
        """The resolved configuration."""
        return self.start.config

    @property
    def identity(self) -> Identity | None:
        """The tester, or None where there was none."""
        return self.start.identity

    @property
    def capabilities(self) -> Capabilities | None:
        """What the tester could do, or None where there was none."""
        return self.start.capabilities

    @cached_property
    def state(self) -> str:
        """The exit status the run stopped with, such as "completed"; "interrupted" where it never stopped."""
        return str(self._stop("exit_status") or INTERRUPTED)

    @cached_property
    def counts(self) -> dict[str, int]:
        """The logged operations by kind, such as "mvm_forward"; of a run that stopped, also what it counted itself."""
        kinds = np.zeros(256, np.int64)
        for start in range(0, self.operations.rows, BLOCK):
            part = self.operations["kind"][start : min(start + BLOCK, self.operations.rows)]
            kinds += np.bincount(part, minlength=256)
        by_kind = {kind.name.lower(): int(kinds[kind]) for kind in Operation}
        with self._reading("stop/counts"):
            return {**by_kind, **json.loads(self._stop("counts") or "{}")}

    @cached_property
    def metrics(self) -> dict[str, Values]:
        """The metrics by name, each with one value per row."""
        if "metrics" not in self._file:
            return {}
        with self._reading("metrics"):
            table = TableReader(self._file["metrics"], list(self._file["metrics"]))
            return {name: column[: table.rows] for name, column in table.items()}

    @cached_property
    def messages(self) -> list[tuple[int, str]]:
        """Host time (ns, UTC since 1970) and text of each message."""
        rows = self.log.rows("messages", MESSAGES)
        if not rows:
            return []
        column = self.log.stream("messages/text")
        column.check_ranges(*np.array([row[1:] for row in rows], np.int64).T)
        with self._reading("messages"):
            return [(time, column[offset : offset + size].tobytes().decode()) for time, offset, size in rows]

    @property
    def snapshots(self) -> tuple[str, ...]:
        """Names of the snapshots."""
        with self._reading("snapshots"):
            return tuple(self._file["snapshots"])

    def snapshot(self, name: str) -> Snapshot:
        """Load a snapshot. Raises InputError where there is none of this name."""
        if name not in self.snapshots:
            raise InputError(f"{self.path} has no snapshot {name!r}; there is: {_listed(self.snapshots)}")
        with self._reading(f"snapshots/{name}"):
            group = self._file["snapshots"][name]
            arrays = {key: np.asarray(dataset[()]) for key, dataset in group.items()}
            units = {key: str(dataset.attrs["units"]) for key, dataset in group.items()}
            return Snapshot(arrays, units, dict(group.attrs))

    @cached_property
    def checkpoint(self) -> Checkpoint | None:
        """The newest checkpoint, from which `hil resume` goes on; None where there is none."""
        with self._reading("checkpoints"):
            numbers = sorted(map(int, self._file["checkpoints"]))
            if not numbers:
                return None
            group = self._file[f"checkpoints/{numbers[-1]}"]
            state = json.loads(group["state"].asstr()[()])
            arrays = {name: np.asarray(dataset[()]) for name, dataset in group.items() if name != "state"}
            return Checkpoint(state, arrays, **state["rows"])

    @cached_property
    def sessions(self) -> list[dict[str, Any]]:
        """When, where and how the run was resumed, and how it had stopped before."""
        with self._reading("sessions"):
            group = self._file["sessions"]
            return [json.loads(group[str(number)].asstr()[()]) for number in sorted(map(int, group))]

    def operation(self, index: int) -> LoggedOperation:
        """The operation in row `index` of `operations`, decoded."""
        index = range(self.operations.rows)[index]
        with self._reading(f"operation {index}"):
            row = {name: column[index].item() for name, column in self.operations.items()}
            kind = Operation(row["kind"])
            region = None if row["region"] == NONE else self.regions[row["region"]]
            return LoggedOperation(
                op_id=row["op_id"],
                kind=kind,
                status=Status(row["status"]),
                device_time_ns=row["device_time_ns"],
                host_time_ns=row["host_time_ns"],
                region=region,
                gain=None if row["gain"] == NONE else row["gain"],
                request=self._request(kind, region, row),
                answer=self._answer(kind, region, row),
            )

    def operation_at(self, seconds: float) -> int:
        """The first row whose device time is beyond `seconds`, or the number of rows; for `at`.

        Operations that failed have no time and count as done with the one before.
        """
        return history.operation_at(self.log, seconds)

    def pulses(self, array: int, row: int, column: int) -> CellPulses:
        """Every SET and RESET on a cell, in order. Raises InputError on a cell that the chip has not."""
        return history.pulses(self.log, *self._check_cell(array, row, column))

    def readings(self, array: int, row: int, column: int) -> CellReadings:
        """Every reading of a cell, in order. Raises InputError on a cell that the chip has not."""
        return history.readings(self.log, *self._check_cell(array, row, column))

    def products(self, region: int, direction: Direction, start: int = 0, stop: int | None = None) -> Products:
        """What a region multiplied in rows start to stop of the operations; unanswered vectors are left out.

        All that is asked for is loaded. Raises InputError on a region or row that the run has not, or where the log
        holds no codes.
        """
        if region not in self.regions:
            raise InputError(f"{self.path} has no region {region}; there is: {_listed(self.regions)}")
        if not isinstance(direction, Direction):
            raise InputError(f"direction {direction!r} is neither Direction.FORWARD nor Direction.BACKWARD")
        return history.products(self.log, self.regions[region], direction, start, stop)

    def conductances(self, at: int | None = None) -> Conductances:
        """What the log tells of each cell before row `at` of the operations, or at the end; nothing is inferred."""
        return state.conductances(self.log, self._chip, at)

    def pulse_counts(self, at: int | None = None) -> tuple[U32, U32]:
        """SET and RESET pulses on each cell before row `at`, or at the end: shape (arrays, rows, columns) each."""
        return state.pulse_counts(self.log, self._chip, at)

    @cached_property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers whose places on the chip are known, from input to output."""
        names = [name for name in self.snapshots if re.fullmatch(r"layer[1-9][0-9]*", name)]
        return tuple(sorted(names, key=lambda name: int(name.removeprefix("layer"))))

    def devices(self, layer: str, row: int, column: int) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        """The cells (array, row, column) of G+ and G- of the weight from input `row` to output `column` of a layer."""
        place = self._layer(layer)
        if not (0 <= row < place.plus.shape[0] and 0 <= column < place.plus.shape[1]):
            raise InputError(f"weight ({row}, {column}) of {layer}: its matrix is {place.plus.shape}")
        plus, minus = (np.unravel_index(side[row, column], self._chip) for side in (place.plus, place.minus))
        return (int(plus[0]), int(plus[1]), int(plus[2])), (int(minus[0]), int(minus[1]), int(minus[2]))

    def layer_conductances(self, layer: str, at: int | None = None) -> tuple[F32, F32]:
        """G+ and G- (S) of a layer as last read before row `at`: shape (rows, columns) each, NaN where never read."""
        return self._layer(layer).of(self.conductances(at).value)

    def weights(self, layer: str, at: int | None = None) -> F32:
        """The weights of a layer as last read before row `at`: scale (G+ - G-) / unit, shape (rows, columns)."""
        placed = self._layer(layer)
        plus, minus = placed.of(self.conductances(at).value)
        return np.float32(placed.scale / placed.unit) * (plus - minus)

    def _layer(self, name: str) -> Layer:
        if name not in self.layers:
            raise InputError(f"{self.path} has no layer {name!r}; there is: {_listed(self.layers)}")
        snapshot = self.snapshot(name)
        with self._reading(f"snapshots/{name}"):
            return Layer.of_snapshot(snapshot.arrays, snapshot.attrs, self._chip)

    @property
    def _chip(self) -> tuple[int, int, int]:
        """Arrays, rows and columns of the tester, 0 without one."""
        chip = self.capabilities
        return (chip.arrays, chip.rows, chip.columns) if chip else (0, 0, 0)

    def _check_cell(self, *cell: int) -> tuple[int, int, int]:
        if not all(0 <= number < size for number, size in zip(cell, self._chip, strict=True)):
            raise InputError(f"{self.path}: cell (array, row, column) {cell} is outside the chip of {self._chip}")
        array, row, column = (int(number) for number in cell)
        return array, row, column

    def _request(
        self, kind: Operation, region: Region | None, row: dict[str, int]
    ) -> Cells | Vectors | PulseBatch | PulseTrains | float:
        count, offset = row["count"], row["offset"]
        if kind == Operation.WAIT:
            return float(self.log.load("wait/seconds", offset, 1)[0])
        if kind == Operation.READ:
            return self._cells("read", offset, count)
        if kind in (Operation.SET, Operation.RESET):
            counts = self.log.load("program/counts", offset, count)
            return PulseBatch(self._cells("program", offset, count), kind, counts, self.log.shapes[row["shape"]])
        if region is None:
            raise ValueError(f"{kind.name} without a region")
        if kind == Operation.UPDATE:
            return self._trains(region, count, offset, row["polarity"])
        codes = self._matrix("mvm/inputs", offset, count, region.inputs(MVM_DIRECTION[kind]))
        return Vectors(codes, self.log.load("mvm/scales", row["scale_offset"], count))

    def _answer(self, kind: Operation, region: Region | None, row: dict[str, int]) -> Readings | Receipt | None:
        op_id, time_ns, done, saturated = row["op_id"], row["device_time_ns"], row["done"], row["saturated"]
        if op_id == NONE:
            return None
        if kind == Operation.READ:
            codes = self.log.load("read/codes", row["output_offset"], done)
        elif kind in MVM_DIRECTION and region is not None:
            codes = self._matrix("mvm/outputs", row["output_offset"], done, region.outputs(MVM_DIRECTION[kind]))
        else:
            return Receipt(op_id, time_ns, Status(row["status"]), done, saturated)
        unit, scale, zero = self.log.constants[kind, row["gain"]]
        return Readings(op_id, time_ns, codes, unit, scale, zero, saturated, Status(row["status"]))

    def _cells(self, stream: str, offset: int, count: int) -> Cells:
        return Cells(*(self.log.load(f"{stream}/{name}", offset, count) for name in ("array", "row", "column")))

    def _trains(self, region: Region, slots: int, offset: int, polarity: int) -> PulseTrains:
        row_bytes, column_bytes = -(-region.rows // 8), -(-region.columns // 8)
        rows = self._matrix("update/trains", offset, slots, row_bytes)
        columns = self._matrix("update/trains", offset + slots * row_bytes, slots, column_bytes)
        return PulseTrains(rows, columns, polarity)

    def _matrix(self, stream: str, offset: int, rows: int, columns: int) -> Values:
        return self.log.load(stream, offset, rows * columns).reshape(rows, columns)

    def _stop(self, name: str) -> str | None:
        with self._reading("stop"):
            stop = self._file.get("stop", {})
            return stop[name].asstr()[()] if name in stop else None

    def _reading(self, what: str) -> AbstractContextManager[None]:
        return data_errors(str(self.path), what)


def _listed(names: Iterable[object]) -> str:
    return ", ".join(map(str, names)) or "none"
