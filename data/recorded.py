"""Step through the operations that a run file holds, comparing each with what is asked now."""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from hil.data.columns import Values
from hil.data.run import Run
from hil.data.schema import NONE
from hil.protocols.errors import DataError, ReplayError
from hil.protocols.messages import Operation

ROWS = 4096
"""Rows of operations that are loaded at once."""

WINDOW = 2**20
"""Elements of a stream that are loaded at once."""


@dataclass(slots=True)
class Row:
    """One row of the operations; see `data/README.md`."""

    op_id: int
    kind: int
    status: int
    device_time_ns: int
    host_time_ns: int
    region: int
    gain: int
    shape: int
    polarity: int
    count: int
    done: int
    saturated: int
    offset: int
    output_offset: int
    scale_offset: int


COLUMNS = [column.name for column in fields(Row)]


class Stream:
    """A payload stream, read forwards: a window of it is held as bytes, which are compared quickest."""

    def __init__(self, run: Run, name: str) -> None:
        self._column = run.log.stream(name)
        self.dtype = self._column.dtype
        self._first = self._stop = 0
        self._window = b""

    def get(self, offset: int, size: int) -> bytes:
        """The bytes of `size` elements from `offset` on."""
        if not self._first <= offset or offset + size > self._stop:
            self._load(offset, size)
        width = self.dtype.itemsize
        start = (offset - self._first) * width
        return self._window[start : start + size * width]

    def _load(self, offset: int, size: int) -> None:
        values = self._column[offset : offset + max(size, WINDOW)]
        self._first, self._stop, self._window = offset, offset + len(values), values.tobytes()
        if self._stop < offset + size:
            raise DataError(f"a stream of the recording ends at {self._stop}, expected {offset + size}: it is damaged")


class Recorded:
    """A position in a run's operations."""

    def __init__(self, run: Run) -> None:
        """At the first operation."""
        self._run = run
        self.length = run.operations.rows
        self.next = 0
        """Index of the next operation; may be set."""
        self._rows: list[Row] = []
        self._first = 0
        self._streams: dict[str, Stream] = {}

    def row(self) -> Row | None:
        """The next operation, or None at the end of the recording."""
        place = self.next - self._first
        if 0 <= place < len(self._rows):
            return self._rows[place]
        if self.next >= self.length:
            return None
        self._first, stop = self.next, min(self.next + ROWS, self.length)
        columns = [self._run.operations[name][self._first : stop].tolist() for name in COLUMNS]
        self._rows = [Row(*values) for values in zip(*columns, strict=True)]
        return self._rows[0]

    def stream(self, name: str) -> Stream:
        """A payload stream."""
        if name not in self._streams:
            self._streams[name] = Stream(self._run, name)
        return self._streams[name]

    def values(self, name: str, offset: int, size: int) -> Values:
        """Elements of a stream."""
        stream = self.stream(name)
        return np.frombuffer(stream.get(offset, size), stream.dtype)

    def compare(self, name: str, offset: int, values: Values) -> None:
        """Raise `ReplayError` where a stream of the next operation differs from these values."""
        recorded = self.stream(name).get(offset, values.size)
        if recorded != values.tobytes():
            raise self.different(name, self.values(name, offset, values.size), values.ravel())

    def different(self, name: str, recorded: Values, values: Values) -> ReplayError:
        """The first difference between arrays of the next operation."""
        where = int(np.flatnonzero(recorded != values)[0]) if (recorded != values).any() else 0
        return self.mismatch(f"{name}[{where}]", recorded[where], values[where])

    def mismatch(self, what: str, recorded: object, found: object) -> ReplayError:
        """The error for a value of the next operation that differs."""
        row = self.row()
        kind = f" ({Operation(row.kind).name})" if row else ""
        return ReplayError(f"operation {self.next}{kind}: {what} was {recorded}, is {found}")

    def expect(self, kind: Operation, count: int, **fields: Any) -> Row:
        """The next operation, if it is of this kind, number of parts and other fields. Raises `ReplayError`."""
        row = self.row()
        asked = describe(kind, count, fields.get("region", NONE))
        if row is None:
            raise ReplayError(f"operation {self.next}: the recording ends here, now {asked} is asked for")
        if row.kind != kind or row.count != count or any(getattr(row, name) != value for name, value in fields.items()):
            was = describe(Operation(row.kind), row.count, row.region)
            detail = "".join(
                f"; {name} was {getattr(row, name)}, is {value}"
                for name, value in fields.items()
                if row.kind == kind and getattr(row, name) != value
            )
            raise ReplayError(f"operation {self.next}: was {was}, is {asked}{detail}")
        return row


def describe(kind: Operation, count: int, region: int) -> str:
    """An operation in a few words."""
    if kind == Operation.WAIT:
        return "WAIT"
    where = "" if region == NONE else f" on region {region}"
    return f"{kind.name} of {count}{where}"
