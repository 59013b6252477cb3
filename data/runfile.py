"""Write a run file: start, operations with their payloads, metrics, messages, snapshots, stop. Schema: `data/README.md`."""

import json
import os
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from hil.data.columns import CHUNK_BYTES, Column, Field, Table, compression, create_file, describe, reason, storage_errors
from hil.protocols.errors import InputError, StorageError, TesterError
from hil.protocols.messages import (
    Block,
    Capabilities,
    Cells,
    Direction,
    Identity,
    Operation,
    PulseBatch,
    PulseShape,
    PulseTrains,
    Readings,
    Receipt,
    Region,
    Status,
    Vectors,
)

FORMAT = "hil-run"
FORMAT_VERSION = "1.0"
FLUSH_NS = 1_000_000_000
"""Longest time between two flushes while operations are logged (ns)."""

OPERATION_CHUNK = 2**15
SMALL_CHUNK = 2**8
"""Rows per chunk of the operations and of small tables."""

NONE = -1
"""Stands for no region, no gain, no pulse shape, and for what a failed tester did not tell: operation id, device time."""

OPERATIONS = (
    Field("op_id", "<i8", "", "operation id; -1: the tester failed and did not tell"),
    Field("kind", "u1", "", "1 read, 2 MVM forward, 3 MVM backward, 4 SET, 5 RESET, 6 wait, 7 update"),
    Field("status", "u1", "", "0 complete, 1 partial: the first `done` parts, 2 unknown"),
    Field("device_time", "<i8", "ns", "device time at the end of the operation; -1: the tester failed and did not tell"),
    Field("host_time", "<i8", "ns", "UTC since 1970 when the host had the answer"),
    Field("region", "<i4", "", "region of an MVM or update, else -1"),
    Field("gain", "i1", "", "ADC gain of an MVM, else -1"),
    Field("shape", "<i2", "", "row of shapes of a SET or RESET, else -1"),
    Field("polarity", "i1", "", "polarity of an update, else 0"),
    Field("count", "<u4", "", "cells read, vectors, cells pulsed, slots of an update; 1 for a wait"),
    Field("done", "<u4", "", "cells or vectors answered; pulses applied"),
    Field("saturated", "<u4", "", "codes at the end of the converter's range; pulses that met an end of the conductance"),
    Field("offset", "<i8", "", "position of the first element in the streams of what was asked"),
    Field("output_offset", "<i8", "", "position of the first code in read/codes or mvm/outputs, else 0"),
    Field("scale_offset", "<i8", "", "position of the first element in mvm/scales, else 0"),
)

STREAMS = {
    field.name: field
    for field in (
        Field("read/array", "<u2", "", "array of each cell read"),
        Field("read/row", "<u2", "", "word line of each cell read"),
        Field("read/column", "<u2", "", "bit line of each cell read"),
        Field("read/codes", "", "", "conductance code of each cell read; see readings; dtype as the tester gives it"),
        Field("mvm/inputs", "", "", "DAC codes, vector after vector; int8, or int16 for more than 8 bits"),
        Field("mvm/scales", "<f4", "", "what one DAC code stands for on the host, one per vector"),
        Field("mvm/outputs", "", "", "ADC codes, vector after vector; see readings; dtype as the tester gives it"),
        Field("program/array", "<u2", "", "array of each cell pulsed"),
        Field("program/row", "<u2", "", "word line of each cell pulsed"),
        Field("program/column", "<u2", "", "bit line of each cell pulsed"),
        Field("program/counts", "<u2", "", "pulses on each cell pulsed"),
        Field("update/trains", "u1", "", "bits of the word lines, slot after slot, then those of the bit lines"),
        Field("wait/seconds", "<f8", "s", "device time that was let pass"),
        Field("messages/text", "u1", "", "UTF-8 text of all messages, one after the other"),
    )
}

SHAPES = (
    Field("amplitude", "<f8", "A or V", "amplitude of the pulse; the unit is that of the pulse source"),
    Field("width", "<f8", "s", "width of the pulse"),
    Field("rise", "<f8", "s", "rise time of the pulse"),
    Field("fall", "<f8", "s", "fall time of the pulse"),
)

READINGS = (
    Field("kind", "u1", "", "kind of operation, as in operations"),
    Field("gain", "i1", "", "ADC gain; -1 for reads"),
    Field("unit", "S16", "", "unit of the values: value = (code - zero) * scale"),
    Field("scale", "<f8", "", "value of one code, in the unit of this row"),
    Field("zero", "<i8", "", "code of the value 0"),
)

MESSAGES = (
    Field("time", "<i8", "ns", "UTC since 1970"),
    Field("offset", "<i8", "", "position of the first byte in text"),
    Field("size", "<u4", "", "length in bytes"),
)

LINES = ("rows", "columns", "partners")
"""The datasets of a block of a region."""


@dataclass(frozen=True)
class Start:
    """What a run starts from; all but the text must be JSON-able."""

    config: dict[str, Any]  # resolved
    config_text: str  # verbatim TOML
    argv: Sequence[str]
    seed: int
    versions: dict[str, str]
    host: dict[str, Any]  # python, platform, CPU capability
    git_commit: str | None
    meta: dict[str, str]
    identity: Identity | None  # None: no tester
    capabilities: Capabilities | None


class RunWriter:
    """Writes one run file. Everything is synchronous; memory is bounded by one chunk per column.

    Every method that writes raises `StorageError` where the disk does not take it.
    """

    def __init__(self, path: Path, file: Any, start: Start) -> None:
        """Take over a new, empty HDF5 file; use `create`."""
        self.path = path
        self._file = file
        self._closed = False
        self._dac_dtype = np.dtype(start.capabilities.dac_dtype if start.capabilities else np.int16)
        self._streams: dict[str, Column] = {}
        self._shapes: dict[PulseShape, int] = {}
        self._last_shape: tuple[PulseShape | None, int] = (None, NONE)
        self._readings: dict[tuple[int, int], tuple[str, float, int]] = {}
        self._counts = dict.fromkeys(Operation, 0)
        self._flushed_ns = time.time_ns()
        self._write_start(start)
        file.create_group("regions")
        file.create_group("snapshots")
        self._shape_table = Table(file.create_group("shapes"), SHAPES, SMALL_CHUNK)
        self._reading_table = Table(file.create_group("readings"), READINGS, SMALL_CHUNK)
        self._messages = Table(file.create_group("messages"), MESSAGES, SMALL_CHUNK)
        self._metrics: Table | None = None
        self._metric_names: list[str] = []
        self._operations = Table(file.create_group("operations"), OPERATIONS, OPERATION_CHUNK)
        self.flush()

    @classmethod
    def create(cls, path: Path, start: Start, overwrite: bool = False) -> Self:
        """Create the file. An older file of this name is replaced only if `overwrite`, and once the new one is there.

        Raises InputError where the file exists or its folder does not take it.
        """
        if path.exists() and (not overwrite or path.is_dir()):
            raise InputError(f"{path} exists: choose another name, or ask for it to be overwritten if it is a run file")
        place = path.with_name(f".{path.name}.{uuid.uuid4().hex}") if overwrite else path
        try:
            file = create_file(place)
        except OSError as error:
            raise InputError(f"{path}: cannot be created ({reason(error)}): give a file in a folder that can be written") from error
        try:
            with storage_errors(str(path)):
                writer = cls(path, file, start)
                if overwrite:
                    os.replace(place, path)
        except BaseException:
            with suppress(OSError, RuntimeError):
                file.close()
            place.unlink(missing_ok=True)
            raise
        return writer

    def region(self, region: Region) -> None:
        """Log a region, once, before its first operation."""
        with storage_errors(str(self.path)):
            group = self._file["regions"].create_group(str(region.handle))
            for number, block in enumerate(region.blocks):
                _write_block(group.create_group(str(number)), block)
        self.flush()  # it must be there before the rows that name it

    def read(self, cells: Cells, readings: Readings | None) -> None:
        """Log a read of cells; without readings, one that the tester did not answer."""
        offset = self._append("read/array", cells.array)
        self._append("read/row", cells.row)
        self._append("read/column", cells.column)
        output = self._outputs("read/codes", Operation.READ, NONE, readings)
        self._row(Operation.READ, readings, len(cells), offset, output_offset=output)

    def mvm(self, region: Region, vectors: Vectors, direction: Direction, gain: int, readings: Readings | None) -> None:
        """Log a matrix-vector product; without readings, one that the tester did not answer."""
        kind = Operation.MVM_FORWARD if direction == Direction.FORWARD else Operation.MVM_BACKWARD
        offset = self._append("mvm/inputs", np.asarray(vectors.codes, self._dac_dtype))
        scales = self._append("mvm/scales", vectors.scale)
        output = self._outputs("mvm/outputs", kind, gain, readings)
        self._row(
            kind, readings, len(vectors.codes), offset,
            region=region.handle, gain=gain, output_offset=output, scale_offset=scales,
        )  # fmt: skip

    def program(self, pulses: PulseBatch, receipt: Receipt | None) -> None:
        """Log SET or RESET pulses; without a receipt, ones that the tester did not acknowledge."""
        offset = self._append("program/array", pulses.cells.array)
        self._append("program/row", pulses.cells.row)
        self._append("program/column", pulses.cells.column)
        self._append("program/counts", pulses.counts)
        self._row(pulses.kind, receipt, len(pulses.counts), offset, shape=self._shape(pulses.shape))

    def update(self, region: Region, trains: PulseTrains, receipt: Receipt | None) -> None:
        """Log a parallel update; without a receipt, one that the tester did not acknowledge."""
        offset = self._append("update/trains", trains.rows)
        self._append("update/trains", trains.columns)
        self._row(
            Operation.UPDATE, receipt, len(trains.rows), offset, region=region.handle, polarity=trains.polarity
        )

    def wait(self, seconds: float, receipt: Receipt | None) -> None:
        """Log that device time was let pass; without a receipt, a wait that the tester did not acknowledge."""
        offset = self._append("wait/seconds", np.array([seconds]))
        self._row(Operation.WAIT, receipt, 1, offset)
