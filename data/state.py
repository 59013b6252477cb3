"""The array as last known from the log, with nothing inferred; the methods of `Run` say what each function gives."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from hil.data.columns import Values
from hil.data.history import F32, PROGRAM, check_no_updates, siemens
from hil.data.log import Elements, Index, Log, Operations, element_blocks, operation_blocks
from hil.protocols.errors import DataError
from hil.protocols.messages import Operation, Status

U32 = npt.NDArray[np.uint32]
Shape = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Conductances:
    """What the log says of each cell: shape (arrays, rows, columns)."""

    value: F32  # S, of the last reading; NaN where there is none
    read_at: Index  # row of the operation that read it, else -1
    set_pulses: U32  # SET pulses since then, or since the start
    reset: npt.NDArray[np.bool_]  # RESET since then, or since the start


@dataclass(frozen=True, slots=True)
class Layer:
    """Where the weights of a layer lie: flat numbers of the cells of G+ and G-, shape (rows, columns)."""

    plus: Index
    minus: Index
    scale: float  # weight of one unit
    unit: float  # S of difference

    @classmethod
    def of_snapshot(cls, arrays: Mapping[str, Values], attrs: Mapping[str, Any], shape: Shape) -> Self:
        """From what is stored of it. Raises ValueError or KeyError where that is damaged."""
        rows, columns = int(attrs["rows"]), int(attrs["columns"])
        sides = []
        for side in ("plus", "minus"):
            cells = tuple(arrays[f"{side}_{name}"] for name in ("array", "row", "column"))
            sides.append(np.ravel_multi_index(cells, shape).reshape(rows, columns))
        return cls(sides[0], sides[1], float(attrs["scale"]), float(attrs["unit_siemens"]))

    def of(self, values: F32) -> tuple[F32, F32]:
        """Values of the chip's cells on either side."""
        return values.reshape(-1)[self.plus], values.reshape(-1)[self.minus]


@dataclass(frozen=True, slots=True)
class _Cells:
    """Elements of a stream: the row of the operation, the flat number of the cell, and its count or value."""

    operation: Index
    cell: Index
    amount: Values


def conductances(log: Log, shape: Shape, at: int | None) -> Conductances:
    check_no_updates(log)
    stop = log.check_row("at", at)
    state = Conductances(
        np.full(shape, np.nan, np.float32), np.full(shape, -1), np.zeros(shape, np.uint32), np.zeros(shape, np.bool_)
    )
    value, read_at, set_pulses, reset = (
        part.reshape(-1) for part in (state.value, state.read_at, state.set_pulses, state.reset)
    )
    for read in _read(log, shape, stop):
        value[read.cell] = read.amount
        read_at[read.cell] = read.operation
    for kind, sent in _programmed(log, shape, stop):
        later = sent.operation > read_at[sent.cell]
        if kind == Operation.SET:
            np.add.at(set_pulses, sent.cell[later], sent.amount[later].astype(np.uint32))
        else:
            reset[sent.cell[later]] = True
    return state


def pulse_counts(log: Log, shape: Shape, at: int | None) -> tuple[U32, U32]:
    check_no_updates(log)
    counts = {kind: np.zeros(shape, np.uint32) for kind in PROGRAM}
    for kind, sent in _programmed(log, shape, log.check_row("at", at)):
        np.add.at(counts[kind].reshape(-1), sent.cell, sent.amount.astype(np.uint32))
    return counts[Operation.SET], counts[Operation.RESET]


def _read(log: Log, shape: Shape, stop: int) -> Iterator[_Cells]:
    """The answered readings before row `stop`, in their order."""
    names = ("count", "done", "offset", "output_offset")
    for operations in operation_blocks(log, (Operation.READ,), names, 0, stop):
        if (operations["done"] > operations["count"]).any():
            raise DataError(f"{log.path}: operations have more answers than questions: the file is damaged")
        operations = operations.where(operations["done"] > 0)
        for elements in _elements(log, "read", operations, operations["done"]):
            of = slice(elements.first, elements.last)
            codes = log.stream("read/codes").ranges(operations["output_offset"][of] + elements.begin, elements.sizes)
            cell = _flat(log, "read", shape, elements)
            yield _Cells(operations.row[elements.owner], cell, siemens(log, codes))


def _programmed(log: Log, shape: Shape, stop: int) -> Iterator[tuple[Operation, _Cells]]:
    """The pulses before row `stop` that were applied, or sent where nobody knows; SET and RESET apart."""
    names = ("kind", "status", "count", "done", "offset")
    for operations in operation_blocks(log, PROGRAM, names, 0, stop):
        partial = operations["status"] == Status.PARTIAL
        limit = np.where(partial, operations["done"].astype(np.int64), np.iinfo(np.int64).max)
        earlier = np.zeros(len(limit), np.int64)  # pulses before each operation began
        log.stream("program/counts").check_ranges(operations["offset"], operations["count"])
        total = 0
        for elements in _elements(log, "program", operations, operations["count"]):
            counts = log.stream("program/counts")[elements.part][elements.index]
            sent = total + np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
            of = slice(elements.first, elements.last)
            begins = sent[np.cumsum(elements.sizes) - elements.sizes]
            earlier[of] = np.where(elements.begin == 0, begins, earlier[of])
            total, owner = int(sent[-1]), elements.owner
            counts = np.clip(limit[owner] - (sent[:-1] - earlier[owner]), 0, counts)
            cell = _flat(log, "program", shape, elements)
            for kind in PROGRAM:
                mine = (operations["kind"][owner] == kind) & (counts > 0)
                yield kind, _Cells(operations.row[owner[mine]], cell[mine], counts[mine])


def _elements(log: Log, prefix: str, operations: Operations, counts: Values) -> Iterator[Elements]:
    """The first elements of each operation, as many as `counts` says, block by block."""
    for name in ("array", "row", "column"):
        log.stream(f"{prefix}/{name}").check_ranges(operations["offset"], operations["count"])
    yield from element_blocks(operations["offset"], operations["offset"] + counts)


def _flat(log: Log, prefix: str, shape: Shape, elements: Elements) -> Index:
    """Flat numbers of the cells. Raises DataError on a cell outside the chip."""
    lines = [log.stream(f"{prefix}/{name}")[elements.part][elements.index] for name in ("array", "row", "column")]
    if any(part.max(initial=0) >= size for part, size in zip(lines, shape, strict=True)):
        raise DataError(f"{log.path}: {prefix} names a cell outside the chip's {shape}: the file is damaged")
    array, row, column = (part.astype(np.int64) for part in lines)
    return np.asarray((array * shape[1] + row) * shape[2] + column, np.int64)
