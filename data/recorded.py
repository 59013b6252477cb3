"""Step through the operations that a run file holds, comparing each with what is asked now."""

from dataclasses import dataclass, fields

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


class RecordingEndsError(ReplayError):
    """More is asked for than was recorded; until there nothing differed."""


@dataclass(slots=True)
class Row:
    """One row of the operations, but for the time of day; see `data/README.md`."""

    op_id: int
    kind: int
    status: int
    device_time_ns: int
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
        self._width = self.dtype.itemsize
        self._first = self._stop = 0
        self._window = b""

    def get(self, offset: int, size: int) -> bytes:
        """The bytes of `size` elements from `offset` on."""
        if not self._first <= offset or offset + size > self._stop:
            self._load(offset, size)
        start = (offset - self._first) * self._width
        return self._window[start : start + size * self._width]

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
        self._rows = list(map(Row, *columns))
        return self._rows[0]

    def stream(self, name: str) -> Stream:
        """A payload stream."""
        stream = self._streams.get(name)
        if stream is None:
            stream = self._streams[name] = Stream(self._run, name)
        return stream

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

    def expect(self, kind: Operation, count: int, *, region: int = NONE, gain: int = NONE, polarity: int = 0) -> Row:
        """The next operation, if it is of this kind, number of parts and other fields. Raises `ReplayError`."""
        row = self.row()
        if row is None:
            asked = describe(kind, count, region)
            raise RecordingEndsError(f"operation {self.next}: the recording ends here, now {asked} is asked for")
        same_parts = row.kind == kind and row.count == count
        if not (same_parts and row.region == region and row.gain == gain and row.polarity == polarity):
            raise self._unexpected(row, kind, count, region, gain, polarity)
        return row

    def _unexpected(self, row: Row, kind: Operation, count: int, region: int, gain: int, polarity: int) -> ReplayError:
        fields = (("region", row.region, region), ("gain", row.gain, gain), ("polarity", row.polarity, polarity))
        detail = "".join(
            f"; {name} was {was}, is {value}" for name, was, value in fields if row.kind == kind and was != value
        )
        was, asked = describe(Operation(row.kind), row.count, row.region), describe(kind, count, region)
        return ReplayError(f"operation {self.next}: was {was}, is {asked}{detail}")


def describe(kind: Operation, count: int, region: int) -> str:
    """An operation in a few words."""
    if kind == Operation.WAIT:
        return "WAIT"
    where = "" if region == NONE else f" on region {region}"
    return f"{kind.name} of {count}{where}"
