"""Export a run as Parquet tables and JSON, for programs that do not read HDF5."""

import json
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from enum import IntEnum
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hil.data.column_reader import ColumnReader, TableReader, data_errors
from hil.data.columns import Field, Values, reason
from hil.data.run import Run
from hil.data.schema import NONE, OPERATIONS, READINGS, SHAPES
from hil.protocols.errors import DataError, InputError, StorageError
from hil.protocols.messages import Operation, Readings, Status

BLOCK = 2**20
"""Rows of a table that are in memory at once; also the rows of a row group."""

Rows = dict[str, Values]
"""Some rows of a table: its columns by name, all of one length."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a Parquet table: what it is, and how its numbers are told."""

    field: Field
    words: type[IntEnum] | None = None  # numbers become the names of these, in lower case
    none: bool = False  # -1 becomes null


@dataclass(frozen=True, slots=True)
class Table:
    """A Parquet table: its columns, and its rows in blocks."""

    columns: Sequence[Column]
    blocks: Iterator[Rows]


NULLABLE = ("op_id", "device_time_ns", "region", "gain", "shape")
WORDS: dict[str, tuple[type[IntEnum], str]] = {
    "kind": (Operation, "kind of the operation"),
    "status": (Status, "complete, partial: the first `done` parts, or unknown"),
}


def _operation_column(field: Field) -> Column:
    if field.name in WORDS:
        words, description = WORDS[field.name]
        return Column(replace(field, description=description), words=words)
    if field.name in NULLABLE:
        return Column(replace(field, description=field.description.replace("-1", "null")), none=True)
    return Column(field)


OPERATION_COLUMNS = {field.name: _operation_column(field) for field in OPERATIONS}
CELL_COLUMNS = (
    Column(Field("operation", "<i8", "", "row of the operation in operations.parquet, from 0")),
    OPERATION_COLUMNS["device_time_ns"],
    Column(Field("array", "<u2", "", "array of the cell")),
    Column(Field("row", "<u2", "", "word line of the cell")),
    Column(Field("column", "<u2", "", "bit line of the cell")),
)
PULSE_COLUMNS = (
    *CELL_COLUMNS[:2],
    OPERATION_COLUMNS["kind"],
    *CELL_COLUMNS[2:],
    Column(Field("count", "<u2", "", "pulses asked for; the operation's status and `done` tell how many were given")),
)
READING_COLUMNS = (*CELL_COLUMNS, Column(Field("conductance", "<f4", "S", "conductance of the cell")))
MESSAGE_COLUMNS = (
    Column(Field("time_ns", "<i8", "ns", "UTC since 1970")),
    Column(Field("text", "U", "", "text of the message")),
)


def export_tables(path: Path, folder: Path) -> dict[str, int]:
    """Write a run file as tables into a new or empty folder; return the rows of each file.

    operations.parquet: all columns of `operations`, kinds and statuses as words, null for what there is not.
    pulses.parquet, readings.parquet: one row per cell pulsed and per cell that answered a read.
    metrics.parquet (where the run has metrics), messages.parquet, and run.json: start, identity, counts, state and the
    pulse shapes that operations name. Each column carries `units` and `description` as metadata, each table `run_id`
    and `tester_kind`. The payload of MVMs and updates is not exported: it stays in HDF5, where the offsets point to it.

    Memory is bounded by 2**20 rows. The folder appears complete or not at all. Raises InputError where the folder
    holds something or pyarrow is missing, DataError for what is no run file, StorageError where the disk does not
    take the tables.
    """
    _check_pyarrow()
    with Run.open(path) as run, h5py.File(path, "r") as file, _new_folder(folder) as place:
        about = {"run_id": run.run_id, "tester_kind": run.tester_kind}
        counts = {name: _write(place / name, table, about) for name, table in _tables(run, file)}
        (place / "run.json").write_text(_head(run, file), encoding="utf-8")
    return counts


def _check_pyarrow() -> None:
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise InputError(f"Parquet needs pyarrow ({error}): pip install 'pcm-hil[export]'") from error


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into that becomes `folder` at the end, or vanishes on an error."""
    folder = folder.resolve()
    try:
        _check_free(folder)
        place = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
        try:
            place.mkdir()
            yield place
            os.replace(place, folder)
        finally:
            shutil.rmtree(place, ignore_errors=True)
    except OSError as error:
        why = f"{folder}: cannot be written ({reason(error)}): make room or choose another folder"
        raise StorageError(why) from error


def _check_free(folder: Path) -> None:
    if folder.is_dir():
        for found in folder.iterdir():
            raise InputError(f"{found} exists: choose a new or an empty folder")
    elif folder.exists():
        raise InputError(f"{folder} is a file: choose a new or an empty folder")


def _tables(run: Run, file: Any) -> Iterator[tuple[str, Table]]:
    yield "operations.parquet", Table(list(OPERATION_COLUMNS.values()), _blocks(run.operations))
    if run.metrics:  # many programs refuse a table without columns
        metrics = TableReader(file["metrics"], list(run.metrics))
        columns = [
            Column(Field(name, column.dtype.str, column.units, column.description)) for name, column in metrics.items()
        ]
        yield "metrics.parquet", Table(columns, _blocks(metrics))
    yield "pulses.parquet", Table(PULSE_COLUMNS, _pulses(run, file))
    yield "readings.parquet", Table(READING_COLUMNS, _readings(run, file))
    yield "messages.parquet", Table(MESSAGE_COLUMNS, _messages(run))


def _blocks(table: TableReader) -> Iterator[Rows]:
    for first in range(0, table.rows, BLOCK):
        yield {name: column[first : min(first + BLOCK, table.rows)] for name, column in table.items()}


def _messages(run: Run) -> Iterator[Rows]:
    with data_errors(str(run.path), "messages"):
        messages = run.messages
    times = np.array([time for time, _ in messages], np.int64)
    yield {"time_ns": times, "text": np.array([text for _, text in messages], object)}


def _pulses(run: Run, file: Any) -> Iterator[Rows]:
    for cells in _cells(run, (Operation.SET, Operation.RESET), "count"):
        streams = _streams(file, "program", cells["offset"] + cells["cell"], ("array", "row", "column", "counts"))
        yield {**cells, **streams, "count": streams["counts"]}


def _readings(run: Run, file: Any) -> Iterator[Rows]:
    for cells in _cells(run, (Operation.READ,), "done"):
        streams = _streams(file, "read", cells["offset"] + cells["cell"], ("array", "row", "column"))
        codes = _streams(file, "read", cells["output_offset"] + cells["cell"], ("codes",))["codes"]
        yield {**cells, **streams, "conductance": _conductances(file, codes)}


def _conductances(file: Any, codes: Values) -> Values:
    """What read codes stand for (S), float32."""
    for row in _rows(file, "readings", READINGS):
        if row["kind"] == Operation.READ and row["unit"] == b"S":
            return Readings(NONE, NONE, codes, "S", row["scale"], row["zero"], 0).values()
    raise DataError(f"{file.filename}: readings does not tell the conductance of a read code: the file is damaged")


def _cells(run: Run, kinds: Sequence[Operation], size: str) -> Iterator[Rows]:
    """The cells of all operations of these kinds, in order; `size` is the column that tells how many each has.

    A row per cell: the columns of its operation, `operation` (row of that operation), and `cell` (its place therein).
    """
    first = 0
    for rows in _blocks(run.operations):
        chosen = np.flatnonzero(np.isin(rows["kind"], kinds))
        sizes = rows[size][chosen].astype(np.int64)
        stops = np.cumsum(sizes)
        total = int(sizes.sum())
        for start in range(0, total, BLOCK):
            cell = np.arange(start, min(start + BLOCK, total))
            which = np.searchsorted(stops, cell, side="right")
            index = chosen[which]
            columns = {name: rows[name][index] for name in ("kind", "device_time_ns", "offset", "output_offset")}
            yield {**columns, "operation": first + index, "cell": cell - (stops - sizes)[which]}
        first += len(rows["kind"])


def _streams(file: Any, group: str, positions: Values, names: Sequence[str]) -> Rows:
    """Elements of the streams of a group at some positions; consecutive positions are loaded together."""
    with data_errors(file.filename, group):
        columns = {name: ColumnReader(file[group][name]) for name in names}
    if positions.min() < 0 or positions.max() >= min(len(column) for column in columns.values()):
        raise DataError(f"{file.filename}: operations name elements that {group} does not have: the file is damaged")
    stretches = np.split(positions, np.flatnonzero(np.diff(positions) != 1) + 1)
    return {
        name: np.concatenate([column[int(part[0]) : int(part[-1]) + 1] for part in stretches])
        for name, column in columns.items()
    }


def _rows(file: Any, group: str, fields: Sequence[Field]) -> list[dict[str, Any]]:
    """The rows of a small table."""
    with data_errors(file.filename, group):
        table = TableReader(file[group], [field.name for field in fields])
    return [dict(zip(table, row, strict=True)) for row in table.all()]


def _head(run: Run, file: Any) -> str:
    start = asdict(run.start)
    head = {
        "run_id": run.run_id,
        "created_utc": run.created_utc,
        "tester_kind": run.tester_kind,
        "state": run.state,
        "identity": start.pop("identity"),
        "counts": run.counts,
        "start": start,
        "shapes": _rows(file, "shapes", SHAPES),
    }
    finite = json.loads(json.dumps(head), parse_constant=lambda _: None)  # JSON knows no infinity
    return json.dumps(finite, indent=2, ensure_ascii=False) + "\n"


def _write(path: Path, table: Table, about: dict[str, str]) -> int:
    """Write a table and return its rows; `about` becomes metadata of the file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([_arrow_field(column) for column in table.columns], metadata=about)
    count = 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for rows in table.blocks:
            arrays = [_arrow_array(column, rows[column.field.name]) for column in table.columns]
            writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema), row_group_size=BLOCK)
            count += len(arrays[0])
    return count


def _arrow_field(column: Column) -> Any:
    import pyarrow as pa

    plain = pa.from_numpy_dtype(np.dtype(column.field.dtype))
    metadata = {"units": column.field.units, "description": column.field.description}
    kind = pa.dictionary(pa.int8(), pa.string()) if column.words else plain
    return pa.field(column.field.name, kind, nullable=column.none, metadata=metadata)


def _arrow_array(column: Column, values: Values) -> Any:
    import pyarrow as pa

    if column.words is None:
        kind = pa.from_numpy_dtype(np.dtype(column.field.dtype))
        return pa.array(values, kind, mask=values == NONE if column.none else None)
    numbers = np.array(sorted(column.words))
    if not np.isin(values, numbers).all():
        wrong = sorted({*values.tolist()} - {*numbers.tolist()})
        raise DataError(f"operations: {column.field.name} is {wrong}, expected {numbers.tolist()}: the file is damaged")
    words = [column.words(number).name.lower() for number in numbers]
    return pa.DictionaryArray.from_arrays(np.searchsorted(numbers, values).astype(np.int8), words)
