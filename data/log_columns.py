"""All that grows in a run file: the streams of payload and the tables."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from hil.data.columns import CHUNK_BYTES, Column, Field, Table
from hil.data.schema import MARKS, MESSAGES, OPERATION_CHUNK, OPERATIONS, READINGS, SHAPES, STREAMS
from hil.data.tail import Tail, TailedColumn, TailedTable

SMALL_CHUNK = 2**8
"""Rows per chunk of small tables."""

TABLES = {"shapes": SHAPES, "readings": READINGS, "messages": MESSAGES, "operations": OPERATIONS, "marks": MARKS}
"""The fields of each table."""


class LogColumns:
    """The columns of one file, to append to."""

    def __init__(self, file: Any, tail: Tail | None = None) -> None:
        """Of an h5py.File, continued where they are there. What is appended goes to the tail as well."""
        self.streams = {name: _stream(file, field, tail) for name, field in STREAMS.items()}
        """The columns of STREAMS."""
        self.tables = {name: _table(file, name, tail) for name in TABLES}
        """The tables of TABLES."""
        self.metrics: Table | None = None
        """The table of metrics, from the first row on; it is flushed with each row and needs no tail."""
        self.metric_types: dict[str, str] = {}
        if "metrics" in file:
            self.begin_metrics(
                file["metrics"],
                [Field(name, group["values"].dtype.str, "", "") for name, group in file["metrics"].items()],
            )

    def begin_metrics(self, group: Any, fields: list[Field]) -> None:
        """Make or continue the table of metrics."""
        self.metric_types = {field.name: field.dtype for field in fields}
        self.metrics = Table(group, fields, SMALL_CHUNK)

    def log_metrics(self, values: Mapping[str, float]) -> None:
        """Append a row of metrics, of the names that they began with."""
        if self.metrics is not None:
            self.metrics.append(*(values[name] for name in self.metric_types))

    def message(self, text: str) -> None:
        """Append a message with the time of day."""
        data = np.frombuffer(text.encode(errors="replace"), np.uint8)
        self.tables["messages"].append(time.time_ns(), self.streams["messages/text"].append(data), len(data))

    def sort(self) -> None:
        """Hand the buffered rows of all tables to their columns."""
        for table in self._tables():
            table.sort()

    def flush(self) -> None:
        """Write to the HDF5 file what it does not hold."""
        self.sort()
        for column in self._columns():
            column.flush()

    def settle(self) -> None:
        """Move all into `values`, for good."""
        for column in self._columns():
            column.settle()

    def _tables(self) -> Iterator[Table]:
        yield from self.tables.values()
        if self.metrics is not None:
            yield self.metrics

    def _columns(self) -> Iterator[Column]:
        yield from self.streams.values()
        for table in self._tables():
            yield from table.columns


def _stream(file: Any, field: Field, tail: Tail | None) -> Column:
    parent, _, name = field.name.partition("/")
    group, short = file.require_group(parent), replace(field, name=name)
    chunk = field.chunks * CHUNK_BYTES
    return Column(group, short, chunk) if tail is None else TailedColumn(group, short, chunk, field.name, tail)


def _table(file: Any, name: str, tail: Tail | None) -> Table:
    group, fields = file.require_group(name), TABLES[name]
    rows = OPERATION_CHUNK if name == "operations" else SMALL_CHUNK
    return Table(group, fields, rows) if tail is None else TailedTable(group, fields, rows, name, tail)
