"""Operations on their way into the columns of a run file: they wait in the order in which they came, and are put there
many at a time.

A training loop leaves the processor's caches cold for what runs once per operation, so that each call of a function
costs several times what it costs in a loop. So what a loop does is kept as it came, with no call of a function for most
of it.
"""

import struct
from collections.abc import Sequence
from typing import Any

from hil.data.columns import Values, row_struct, uninterrupted
from hil.data.log_columns import LogColumns
from hil.data.schema import NONE, OPERATION_CHUNK, OPERATIONS
from hil.protocols.errors import TesterError
from hil.protocols.messages import COMPLETE, MVM_DIRECTION, READ, RESET, SET, UPDATE, WAIT, Operation, Receipt, Status

MOST = 1024
"""Operations that wait at most. CHOSEN: they usually take 700 kB; the 0.2 ms of a lot no longer count."""
LARGEST = 2**15
"""Bytes of payload of an operation that waits, at most. CHOSEN: more would save nothing. So 32 MB wait at most."""
MOST_PULSED = LARGEST // 8
"""Cells of pulses that wait, at most: each has four numbers of two bytes."""

UNANSWERED = Receipt(NONE, NONE, Status.UNKNOWN, 0)
"""Stands for the answer to an operation that has none."""

pack_row, pack_places = row_struct(OPERATIONS[:-3]).pack, row_struct(OPERATIONS[-3:]).pack
"""A row of OPERATIONS in two parts: what is known when the operation is done, and the positions of its payload."""

CELLS = ("array", "row", "column")
READS = tuple(f"read/{name}" for name in (*CELLS, "codes"))
PULSES = tuple(f"program/{name}" for name in (*CELLS, "counts"))
PRODUCTS = ("mvm/inputs", "mvm/scales", "mvm/outputs")
WAITS = ("wait/seconds",)
PAYLOAD = {READ: READS, SET: PULSES, RESET: PULSES, WAIT: WAITS, UPDATE: ("update/trains",)}
"""The streams that take the payload of an operation; those of a product are PRODUCTS, or in a digest `mvm/digest`."""

PRODUCT, PAUSE = 12, 5
"""Items of the entries of answered products and of waits; all others have three."""


class Waiting:
    """Puts operations into the tables of operations and marks, and their payload into the streams."""

    def __init__(self, columns: LogColumns, digest: bool) -> None:
        """`digest`: whether only a CRC-32 of each product is kept."""
        self._table, self._marks = columns.tables["operations"], columns.tables["marks"]
        self._streams = columns.streams
        self._say = columns.message
        names = PAYLOAD | dict.fromkeys(MVM_DIRECTION, ("mvm/digest",) if digest else PRODUCTS)
        self._takers = {kind: [self._streams[name] for name in streams] for kind, streams in names.items()}
        self.entries: list[tuple[Any, ...]] = []
        """What waits. An entry is one of

            row, kind, payload                          any operation: what `pack_row` and `packed` make of it
            op_id, kind, status, time_ns, host time,    an answered product, once `packed` has seen one of its kind;
                region, gain, count, saturated,         as many vectors were answered as asked, and the last three are
                inputs, scales, outputs                 bytes
            op_id, time_ns, host time, done, seconds    a wait that is complete; the last is bytes
        """
        self._fault: TesterError | None = None  # the last answer that became a row of unknown status
        self.cut(len(self._table))

    @property
    def operations(self) -> int:
        """All so far, with those that wait."""
        return len(self._table) + len(self.entries)

    def packed(self, kind: Operation, payload: Sequence[Values]) -> tuple[bytes, ...]:
        """Payload as it waits; of an operation without answer, what would come with it is left out.

        Raises StorageError where a type is not that of its stream.
        """
        streams = self._takers[kind]
        return tuple(
            [
                values.tobytes() if values.dtype is stream.dtype else stream.packed(values)
                for stream, values in zip(streams, payload, strict=False)
            ]
        )

    def take_up(self) -> None:
        """Put all that waits into the columns."""
        if not self.entries:
            return
        with uninterrupted():
            try:
                while waiting := len(self.entries):
                    self._take_up(min(waiting, self._until_mark) if self._until_mark > 0 else waiting)
            finally:
                for stream in self._streams.values():
                    stream.gather()

    def tell(self) -> None:
        """Raise TesterError, once, where an answer could not be put and has become a row of unknown status."""
        fault, self._fault = self._fault, None
        if fault is not None:
            raise fault

    def cut(self, rows: int) -> None:
        """Forget operations from row `rows` on, and marks beyond the last one."""
        if len(self._table) > rows:
            self._table.cut(rows)
        if len(self._marks) > (whole := rows // OPERATION_CHUNK):
            self._marks.cut(whole)
        # Below 0, for good, where an older program went on without marks: a row that is missing cannot be made up for.
        self._until_mark = (len(self._marks) + 1) * OPERATION_CHUNK - rows

    def _take_up(self, number: int) -> None:
        """The first so many, which are no more than there are before the next mark."""
        rows: list[bytes] = []
        try:
            self._put(self.entries[:number], rows)
        finally:
            del self.entries[: len(rows)]
            self._until_mark -= len(rows)
            self._table.add(b"".join(rows))
        if not self._until_mark:
            self._until_mark = OPERATION_CHUNK
            self._marks.append(len(self._streams["read/row"]), len(self._streams["program/row"]))

    def _put(self, entries: Sequence[tuple[Any, ...]], rows: list[bytes]) -> None:
        """Append the payload of entries to the streams, and to `rows` what becomes of each in the table."""
        pack, add = self._table.pack, rows.append
        inputs, scales, outputs, waits = (self._streams[name] for name in PRODUCTS + WAITS)
        for entry in entries:
            if len(entry) == PRODUCT:
                op_id, kind, status, time_ns, now, region, gain, count, saturated, asked, scale, answered = entry
                i, s, o = inputs.length, scales.length, outputs.length
                try:
                    row = pack(
                        op_id, kind, status, time_ns, now, region, gain, NONE, 0, count, count, saturated, i, o, s
                    )
                except struct.error as error:
                    add(self._unknown(error, kind, now, region, gain, count, (asked, scale)))
                    continue
                add(row)
                inputs.parts.append(asked)
                scales.parts.append(scale)
                outputs.parts.append(answered)
                inputs.length = i + len(asked) // inputs.item_size
                scales.length = s + count
                outputs.length = o + len(answered) // outputs.item_size
            elif len(entry) == PAUSE:
                op_id, time_ns, now, done, seconds = entry
                try:
                    row = pack(op_id, WAIT, COMPLETE, time_ns, now, NONE, NONE, NONE, 0, 1, done, 0, waits.length, 0, 0)
                except struct.error as error:
                    add(self._unknown(error, WAIT, now, NONE, NONE, 1, (seconds,)))
                    continue
                add(row)
                waits.parts.append(seconds)
                waits.length += 1
            else:
                row, kind, payload = entry
                add(row + pack_places(*self._places(kind, payload)))

    def _unknown(
        self, error: struct.error, kind: Operation, now: int, region: int, gain: int, count: int, asked: Sequence[bytes]
    ) -> bytes:
        """The row of an operation whose answer has numbers that no column takes: nobody knows what it did."""
        text = f"{kind.name}: the tester's answer has numbers that do not fit into the log ({error}): mend the driver"
        self._fault = TesterError(text)
        self._say(text)
        answer = UNANSWERED
        row = pack_row(
            answer.op_id, kind, answer.status, answer.time_ns, now, region, gain, NONE, 0, count, 0, answer.saturated
        )
        return row + pack_places(*self._places(kind, asked))

    def _places(self, kind: Operation, payload: Sequence[bytes]) -> tuple[int, int, int]:
        """Append payload to its streams; returns where that of request, answer and scales begins there, or 0."""
        at = [stream.add(data) for stream, data in zip(self._takers[kind], payload, strict=False)]
        full = len(at) == len(self._takers[kind])
        output = at[-1] if full and at[1:] and kind in (READ, *MVM_DIRECTION) else 0  # a digest has one stream
        return at[0], output, at[1] if len(at) > 1 and kind in MVM_DIRECTION else 0
