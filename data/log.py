"""The operations of a run file and their payload, as they are stored; blocks of them, in bounded memory."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hil.data.column_reader import BLOCK, ColumnReader, TableReader, data_errors
from hil.data.columns import Field, Values
from hil.data.schema import MARKS, OPERATION_CHUNK, OPERATIONS, READINGS, SHAPES, STREAMS
from hil.protocols.errors import DataError, InputError
from hil.protocols.messages import Operation, PulseShape

Index = npt.NDArray[np.int64]

ROWS = OPERATION_CHUNK
"""Rows of operations that are read at a time; as many as a chunk has, and as lie between two marks."""


class Log:
    """The table of operations and the streams of payload of an open run file. What cannot be read is a DataError."""

    def __init__(self, path: Path, file: Any) -> None:
        self.path = path
        self._file = file
        self._streams: dict[str, ColumnReader] = {}
        self.operations = self.table("operations", OPERATIONS)

    def has(self, stream: str) -> bool:
        """Whether the stream exists; it does from its first use on."""
        return stream in self._file

    def stream(self, name: str) -> ColumnReader:
        """A stream by its name."""
        if name not in self._streams:
            with data_errors(str(self.path), name):
                column = ColumnReader(self._file[name])
                _check_type(column, STREAMS[name])
            self._streams[name] = column
        return self._streams[name]

    def load(self, stream: str, offset: int, size: int) -> Values:
        """Elements of a stream."""
        values: Values = self.stream(stream)[max(offset, 0) : offset + size]
        if len(values) != size:
            raise DataError(f"{self.path}: {stream} lacks the elements {offset} to {offset + size}: damaged")
        return values

    def table(self, group: str, fields: Sequence[Field]) -> TableReader:
        """A table by its name."""
        with data_errors(str(self.path), group):
            table = TableReader(self._file[group], [field.name for field in fields])
            for field in fields:
                _check_type(table[field.name], field)
        return table

    def rows(self, group: str, fields: Sequence[Field]) -> list[tuple[Any, ...]]:
        """All rows of a small table."""
        return self.table(group, fields).all()

    @cached_property
    def shapes(self) -> dict[int, PulseShape]:
        """The pulse shapes by their rows."""
        return dict(enumerate(PulseShape(*row) for row in self.rows("shapes", SHAPES)))

    @cached_property
    def constants(self) -> dict[tuple[int, int], tuple[str, float, int]]:
        """Unit, scale and code of the value 0, by kind and gain."""
        rows = self.rows("readings", READINGS)
        with data_errors(str(self.path), "readings"):
            return {(kind, gain): (unit.decode(), scale, zero) for kind, gain, unit, scale, zero in rows}

    def marks(self, prefix: str) -> Index:
        """Length of the stream of cells read or programmed after each ROWS operations; none in older files."""
        if "marks" not in self._file:
            return np.empty(0, np.int64)
        table = self.table("marks", MARKS)
        marks: Index = table[prefix][: min(table.rows, self.operations.rows // ROWS)]
        if (np.diff(marks, prepend=0) < 0).any():
            raise DataError(f"{self.path}: marks do not ascend: the file is damaged")
        return marks

    def take(self, column: str, rows: Index) -> Values:
        """A column of the operations at ascending rows, which may repeat."""
        unique, inverse = np.unique(rows, return_inverse=True)
        return self.operations[column].ranges(unique, np.ones_like(unique), ROWS)[inverse]

    def check_row(self, name: str, row: int | None) -> int:
        """A row, None for the end. Raises InputError where there is no such row."""
        rows = self.operations.rows
        if row is not None and not 0 <= row <= rows:
            raise InputError(f"{name} {row}: {self.path} has {rows} operations: give 0 to {rows}, or None for the end")
        return rows if row is None else int(row)


def _check_type(column: ColumnReader, field: Field) -> None:
    """Raise ValueError for a column of another type; where the tester gives the type, an integer."""
    if column.dtype != field.dtype if field.dtype else column.dtype.kind not in "iu":
        raise ValueError(f"{field.name} holds {column.dtype}, expected {field.dtype or 'integers'}")


@dataclass(frozen=True, slots=True)
class Operations:
    """Some operations: their rows and columns of them."""

    row: Index
    columns: dict[str, Values]

    def __getitem__(self, column: str) -> Values:
        return self.columns[column]

    def where(self, part: npt.NDArray[np.bool_] | Index) -> "Operations":
        """Those for which a mask is true, or by their numbers."""
        return Operations(self.row[part], {name: values[part] for name, values in self.columns.items()})


def joined(parts: Sequence[Operations], columns: Sequence[str]) -> Operations:
    """One from several, or from none; all columns as int64."""
    none = [np.empty(0, np.int64)]
    values = {name: np.concatenate([*none, *(part[name] for part in parts)]) for name in columns}
    return Operations(np.concatenate([*none, *(part.row for part in parts)]), values)


def operation_blocks(
    log: Log, kinds: Sequence[Operation], columns: Sequence[str], start: int, stop: int
) -> Iterator[Operations]:
    """The operations of some kinds in rows start to stop, with some of their columns, block by block."""
    wanted = np.zeros(256, np.bool_)
    wanted[list(kinds)] = True
    for first in range(start, stop, ROWS):
        part = slice(first, min(first + ROWS, stop))
        (hits,) = np.nonzero(wanted[log.operations["kind"][part]])
        if len(hits):
            yield Operations(first + hits, {name: log.operations[name][part][hits] for name in columns})


@dataclass(frozen=True, slots=True)
class Elements:
    """Elements of a stream that belong to operations first to last, a part of all: `part` of the stream holds them at
    `index`; sizes (operations,) elements belong to each, and begin at its element `begin` (operations,).
    """

    part: slice
    index: slice | Index
    first: int
    last: int
    begin: Index
    sizes: Index

    @property
    def owner(self) -> Index:
        """The operation of each element."""
        return np.repeat(np.arange(self.first, self.last), self.sizes)


def element_blocks(offset: Values, end: Values) -> Iterator[Elements]:
    """The elements of operations, which lie from `offset` to `end` one after the other, block by block."""
    for start in range(int(offset[0]) if len(offset) else 0, int(end[-1]) if len(end) else 0, BLOCK):
        stop = min(start + BLOCK, int(end[-1]))
        first, last = int(np.searchsorted(end, start, "right")), int(np.searchsorted(offset, stop, "left"))
        starts = np.maximum(offset[first:last], start)
        sizes = np.maximum(np.minimum(end[first:last], stop) - starts, 0)
        index: slice | Index = slice(None)
        if sizes.sum() != stop - start:  # some elements belong to no operation
            index = np.arange(sizes.sum()) + np.repeat(starts - start - (np.cumsum(sizes) - sizes), sizes)
        yield Elements(slice(start, stop), index, first, last, starts - offset[first:last], sizes)
