"""Read a run file; its schema is described in `data/README.md`."""

import json
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np

from hil.data.column_reader import ColumnReader, TableReader, data_errors
from hil.data.columns import Values
from hil.data.runfile import FORMAT, FORMAT_VERSION, MESSAGES, NONE, OPERATIONS, READINGS, SHAPES, Start
from hil.protocols.errors import DataError, InputError
from hil.protocols.messages import (
    Block,
    Capabilities,
    Cells,
    Direction,
    Durations,
    Identity,
    MvmMode,
    Operation,
    PulseBatch,
    PulseLimits,
    PulseShape,
    PulseTrains,
    Readings,
    Readout,
    Receipt,
    Region,
    Status,
    TesterKind,
    Vectors,
)

INTERRUPTED = "interrupted"
"""State of a run without a stop."""

MVM_DIRECTION = {Operation.MVM_FORWARD: Direction.FORWARD, Operation.MVM_BACKWARD: Direction.BACKWARD}


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


class Run:
    """A run file, open for reading; a context manager. What cannot be read raises `DataError`."""

    def __init__(self, path: Path, file: Any) -> None:
        """Read what is small of an open HDF5 file; use `open`."""
        self.path = path
        self._file = file
        self._streams: dict[str, ColumnReader] = {}
        with self._reading("the head"):
            _check_format(path, file.attrs)
            self.run_id: str = file.attrs["run_id"]
            self.created_utc: str = file.attrs["created_utc"]
            self.tester_kind: str = file.attrs["tester_kind"]
        with self._reading("start"):
            self.start = _read_start(file["start"])
        with self._reading("regions"):
            self.regions = {int(handle): _read_region(int(handle), group) for handle, group in file["regions"].items()}
        self.operations = self._table("operations", [field.name for field in OPERATIONS])

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a run file. Raises DataError where it is missing, truncated, of another kind or of a newer version."""
        if not os.path.isfile(path):
            raise DataError(f"{path}: there is no such file: give the name of a run file")
        try:
            with data_errors(str(path), "the file"):
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
        kinds = np.bincount(self.operations["kind"][: self.operations.rows], minlength=max(Operation) + 1)
        by_kind = {kind.name.lower(): int(kinds[kind]) for kind in Operation}
        with self._reading("stop/counts"):
            return {**by_kind, **json.loads(self._stop("counts") or "{}")}

    @cached_property
    def metrics(self) -> dict[str, Values]:
        """The metrics by name, each with one value per row."""
        if "metrics" not in self._file:
            return {}
        table = self._table("metrics", list(self._file["metrics"]))
        return {name: column[: table.rows] for name, column in table.items()}

    @cached_property
    def messages(self) -> list[tuple[int, str]]:
        """Host time (ns, UTC since 1970) and text of each message."""
        rows = self._rows("messages", [field.name for field in MESSAGES])
        return [(time, self._load("messages/text", offset, size).tobytes().decode()) for time, offset, size in rows]

    @property
    def snapshots(self) -> tuple[str, ...]:
        """Names of the snapshots."""
        with self._reading("snapshots"):
            return tuple(self._file["snapshots"])

    def snapshot(self, name: str) -> Snapshot:
        """Load a snapshot. Raises InputError where there is none of this name."""
        if name not in self.snapshots:
            raise InputError(f"{self.path} has no snapshot {name!r}; there is: {', '.join(self.snapshots) or 'none'}")
        with self._reading(f"snapshots/{name}"):
            group = self._file["snapshots"][name]
            arrays = {key: np.asarray(dataset[()]) for key, dataset in group.items()}
            units = {key: str(dataset.attrs["units"]) for key, dataset in group.items()}
            return Snapshot(arrays, units, dict(group.attrs))

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

    def _request(
        self, kind: Operation, region: Region | None, row: dict[str, int]
    ) -> Cells | Vectors | PulseBatch | PulseTrains | float:
        count, offset = row["count"], row["offset"]
        if kind == Operation.WAIT:
            return float(self._load("wait/seconds", offset, 1)[0])
        if kind == Operation.READ:
            return self._cells("read", offset, count)
        if kind in (Operation.SET, Operation.RESET):
            counts = self._load("program/counts", offset, count)
            return PulseBatch(self._cells("program", offset, count), kind, counts, self._shapes[row["shape"]])
        if region is None:
            raise ValueError(f"{kind.name} without a region")
        if kind == Operation.UPDATE:
            return self._trains(region, count, offset, row["polarity"])
        codes = self._matrix("mvm/inputs", offset, count, region.inputs(MVM_DIRECTION[kind]))
        return Vectors(codes, self._load("mvm/scales", row["scale_offset"], count))

    def _answer(self, kind: Operation, region: Region | None, row: dict[str, int]) -> Readings | Receipt | None:
        op_id, time_ns, done, saturated = row["op_id"], row["device_time_ns"], row["done"], row["saturated"]
        if op_id == NONE:
            return None
        if kind == Operation.READ:
            codes = self._load("read/codes", row["output_offset"], done)
        elif kind in MVM_DIRECTION and region is not None:
            codes = self._matrix("mvm/outputs", row["output_offset"], done, region.outputs(MVM_DIRECTION[kind]))
        else:
            return Receipt(op_id, time_ns, Status(row["status"]), done, saturated)
        unit, scale, zero = self._constants[kind, row["gain"]]
        return Readings(op_id, time_ns, codes, unit, scale, zero, saturated, Status(row["status"]))

    def _cells(self, stream: str, offset: int, count: int) -> Cells:
        return Cells(*(self._load(f"{stream}/{name}", offset, count) for name in ("array", "row", "column")))

    def _trains(self, region: Region, slots: int, offset: int, polarity: int) -> PulseTrains:
        row_bytes, column_bytes = -(-region.rows // 8), -(-region.columns // 8)
        rows = self._matrix("update/trains", offset, slots, row_bytes)
        columns = self._matrix("update/trains", offset + slots * row_bytes, slots, column_bytes)
        return PulseTrains(rows, columns, polarity)

    def _matrix(self, stream: str, offset: int, rows: int, columns: int) -> Values:
        return self._load(stream, offset, rows * columns).reshape(rows, columns)

    def _load(self, stream: str, offset: int, size: int) -> Values:
        if stream not in self._streams:
            self._streams[stream] = ColumnReader(self._file[stream])
        values: Values = self._streams[stream][offset : offset + size]
        if len(values) != size:
            raise ValueError(f"{stream} ends at {offset + len(values)}, expected {offset + size}")
        return values

    @cached_property
    def _shapes(self) -> list[PulseShape]:
        return [PulseShape(*row) for row in self._rows("shapes", [field.name for field in SHAPES])]

    @cached_property
    def _constants(self) -> dict[tuple[int, int], tuple[str, float, int]]:
        """Unit, scale and code of the value 0, by kind and gain."""
        rows = self._rows("readings", [field.name for field in READINGS])
        return {(kind, gain): (unit.decode(), scale, zero) for kind, gain, unit, scale, zero in rows}

    def _rows(self, group: str, names: Sequence[str]) -> list[tuple[Any, ...]]:
        table = self._table(group, names)
        return list(zip(*(table[name][: table.rows].tolist() for name in names), strict=True))

    def _table(self, group: str, names: Sequence[str]) -> TableReader:
        with self._reading(group):
            return TableReader(self._file[group], names)

    def _stop(self, name: str) -> str | None:
        with self._reading("stop"):
            stop = self._file.get("stop", {})
            return stop[name].asstr()[()] if name in stop else None

    def _reading(self, what: str) -> AbstractContextManager[None]:
        return data_errors(str(self.path), what)


def _check_format(path: Path, attrs: Any) -> None:
    if attrs.get("format") != FORMAT:
        raise DataError(f"{path}: not a run file: format is {attrs.get('format')!r}, expected {FORMAT!r}")
    version = str(attrs["format_version"])
    if version.partition(".")[0] != FORMAT_VERSION.partition(".")[0]:
        raise DataError(f"{path}: format version {version}, this program reads {FORMAT_VERSION}: use one that reads it")


def _read_start(group: Any) -> Start:
    texts = {field.name: group[field.name].asstr()[()] for field in fields(Start)}
    parts = {name: text if name == "config_text" else json.loads(text) for name, text in texts.items()}
    parts["argv"] = tuple(parts["argv"])
    if parts["identity"]:
        parts["identity"] = Identity(**{**parts["identity"], "kind": TesterKind(parts["identity"]["kind"])})
    if parts["capabilities"]:
        parts["capabilities"] = _capabilities(parts["capabilities"])
    return Start(**parts)


def _capabilities(stored: dict[str, Any]) -> Capabilities:
    rebuilt = {
        "mvm": MvmMode(stored["mvm"]),
        "readout": Readout(stored["readout"]),
        "mvm_ranges": tuple(stored["mvm_ranges"]),
        "staircase": tuple(stored["staircase"]),
        "set_pulse": PulseShape(**stored["set_pulse"]),
        "reset_pulse": PulseShape(**stored["reset_pulse"]),
        "pulse_limits": PulseLimits(**stored["pulse_limits"]),
        "durations": Durations(**stored["durations"]),
    }
    return Capabilities(**{**stored, **rebuilt})


def _read_region(handle: int, group: Any) -> Region:
    blocks = sorted(((int(number), block) for number, block in group.items()), key=lambda item: item[0])
    return Region(handle, tuple(_read_block(block) for _, block in blocks))


def _read_block(group: Any) -> Block:
    return Block(
        array=int(group.attrs["array"]),
        rows=group["rows"][:],
        columns=group["columns"][:],
        partners=group["partners"][:] if "partners" in group else None,
        row_offset=int(group.attrs["row_offset"]),
        column_offset=int(group.attrs["column_offset"]),
    )
