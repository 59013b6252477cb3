"""What the log tells of single cells and of products; the methods of `Run` say what each function gives."""

import bisect
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hil.data.column_reader import BLOCK, data_errors
from hil.data.columns import Values
from hil.data.log import ROWS, Index, Log, Operations, joined, operation_blocks
from hil.data.schema import NONE
from hil.protocols.errors import DataError, InputError
from hil.protocols.messages import MVM_KIND, Codes, Direction, Operation, Region, Status

F32 = npt.NDArray[np.float32]

READ = (Operation.READ,)
PROGRAM = (Operation.SET, Operation.RESET)
EMPTY = {"mvm/inputs": np.int8, "mvm/scales": np.float32, "mvm/outputs": np.int8}


@dataclass(frozen=True, slots=True)
class CellPulses:
    """The SET and RESET pulses on one cell, one element per operation on it, in their order: shape (n,).

    An operation that the tester did not complete has the pulses that it applied; one of unknown fate all that were
    sent, and time -1 where the tester did not tell.
    """

    operation: Index  # row of the operation
    time_ns: Index  # device time at its end
    reset: npt.NDArray[np.bool_]  # RESET, else SET
    count: npt.NDArray[np.uint16]  # pulses


@dataclass(frozen=True, slots=True)
class CellReadings:
    """The readings of one cell, in their order: shape (n,)."""

    operation: Index  # row of the operation
    time_ns: Index  # device time at its end
    value: F32  # S


@dataclass(frozen=True, slots=True)
class Products:
    """The vectors that a region multiplied in one direction, one after the other, and what came out: (n, ...)."""

    operation: Index  # (n,) row of the operation; a batch repeats it
    time_ns: Index  # (n,) device time at its end
    inputs: Codes  # (n, lines) DAC codes
    scale: F32  # (n,) what one DAC code stands for on the host
    outputs: Codes  # (n, outputs) ADC codes, of all blocks side by side
    zero: Index  # (n,) code of the value 0
    unit: F32  # (n,) value of one code (A)

    def values(self) -> F32:
        """The outputs in A, shape (n, outputs)."""
        return (self.outputs.astype(np.float32) - self.zero[:, None].astype(np.float32)) * self.unit[:, None]


def operation_at(log: Log, seconds: float) -> int:
    if not math.isfinite(seconds):
        raise InputError(f"a device time of {seconds} s: give a finite number of seconds")
    rows = range(log.operations.rows)
    return bisect.bisect_right(rows, math.floor(seconds * 1e9), key=lambda row: _known_time(log, row))


def _known_time(log: Log, row: int) -> int:
    """Device time (ns) of the last operation up to `row` that has one; -1 where none has."""
    for stop in range(row + 1, 0, -ROWS):
        times = log.operations["device_time_ns"][max(stop - ROWS, 0) : stop]
        known = times[times != NONE]
        if len(known):
            return int(known[-1])
    return NONE


def pulses(log: Log, array: int, row: int, column: int) -> CellPulses:
    check_no_updates(log)
    operations, positions = _owners(log, "program", PROGRAM, ("kind", "status", "device_time_ns"), (array, row, column))
    counts = _each(log, "program/counts", positions)
    partial = operations["status"] == Status.PARTIAL
    if partial.any():
        counts[partial] = _applied(log, operations.where(partial), positions[partial], counts[partial])
    sent = counts > 0
    operations = operations.where(sent)
    reset = operations["kind"] == Operation.RESET
    return CellPulses(operations.row, operations["device_time_ns"], reset, counts[sent].astype(np.uint16))


def _applied(log: Log, operations: Operations, positions: Index, counts: Values) -> Values:
    """How many of the pulses at some positions were applied by operations that were broken off."""
    _, last, inverse = np.unique(operations.row[::-1], return_index=True, return_inverse=True)
    offsets, place = operations["offset"][::-1][last], inverse[::-1]
    sizes = positions[::-1][last] + 1 - offsets
    sent = np.concatenate([[0], np.cumsum(log.stream("program/counts").ranges(offsets, sizes), dtype=np.int64)])
    first = (np.cumsum(sizes) - sizes)[place]  # where each operation begins in `sent`
    before = sent[first + positions - offsets[place]] - sent[first]
    return np.asarray(np.clip(log.take("done", operations.row) - before, 0, counts))


def readings(log: Log, array: int, row: int, column: int) -> CellReadings:
    columns = "done", "output_offset", "device_time_ns"
    operations, positions = _owners(log, "read", READ, columns, (array, row, column))
    place = positions - operations["offset"]
    answered = place < operations["done"]
    operations, place = operations.where(answered), place[answered]
    codes = _each(log, "read/codes", operations["output_offset"] + place)
    values = siemens(log, codes) if len(codes) else codes.astype(np.float32)
    return CellReadings(operations.row, operations["device_time_ns"], values)


def _each(log: Log, stream: str, positions: Index) -> Values:
    """Elements of a stream, one by one."""
    if not len(positions):
        return np.empty(0, np.int64)
    return log.stream(stream).ranges(positions, np.ones_like(positions), ROWS)


def siemens(log: Log, codes: Codes) -> F32:
    """Codes of read cells in S."""
    with data_errors(str(log.path), "readings"):
        unit, scale, zero = log.constants[Operation.READ, NONE]
    if unit != "S":
        raise DataError(f"{log.path}: cells were read in {unit!r}, expected S: the file is damaged")
    return (codes.astype(np.float32) - np.float32(zero)) * np.float32(scale)


def _find(log: Log, prefix: str, array: int, row: int, column: int) -> Index:
    """Positions of a cell in the streams of cells read or programmed."""
    if not log.has(f"{prefix}/row"):
        return np.empty(0, np.int64)
    arrays, rows, columns = (log.stream(f"{prefix}/{name}") for name in ("array", "row", "column"))
    found = [np.empty(0, np.int64)]
    stop = min(len(arrays), len(rows), len(columns))
    for start in range(0, stop, BLOCK):
        part = slice(start, min(start + BLOCK, stop))
        (hits,) = np.nonzero(rows[part] == row)
        for stream, number in ((columns, column), (arrays, array)):
            if len(hits):
                hits = hits[stream[part][hits] == number]
        found.append(start + hits)
    return np.concatenate(found)


def _owners(
    log: Log, prefix: str, kinds: tuple[Operation, ...], columns: tuple[str, ...], cell: tuple[int, int, int]
) -> tuple[Operations, Index]:
    """The operations that read or programmed a cell, once for each time, and where it lies in their streams."""
    columns = (*columns, "offset", "count")
    positions, marks, blocks = _find(log, prefix, *cell), log.marks(prefix), -(-log.operations.rows // ROWS)
    lows, first = np.unique(np.searchsorted(marks, positions, "right"), return_index=True)
    found: list[tuple[Operations, Index]] = []
    for low, part in zip(lows.tolist(), np.split(positions, first)[1:], strict=True):
        high = low + 1 if low < len(marks) else blocks  # no mark says where those beyond the last one are
        found += _search(log, kinds, columns, part, low, high)
    operations = joined([operations for operations, _ in found], columns)
    return operations, np.concatenate([np.empty(0, np.int64), *(kept for _, kept in found)])


def _search(
    log: Log, kinds: tuple[Operation, ...], columns: tuple[str, ...], positions: Index, low: int, high: int
) -> Iterator[tuple[Operations, Index]]:
    """Bisect: only blocks of rows that hold one of the operations are read, and a few to find them."""
    if not len(positions) or low == high:
        return
    if high - low > 1:
        middle = (low + high) // 2
        begin = _first_offset(log, kinds, middle, high)
        cut = len(positions) if begin is None else int(np.searchsorted(positions, begin))
        yield from _search(log, kinds, columns, positions[:cut], low, middle)
        yield from _search(log, kinds, columns, positions[cut:], middle, high)
        return
    for block in operation_blocks(log, kinds, columns, low * ROWS, _end(log, high)):
        place = np.searchsorted(block["offset"], positions, "right") - 1
        mine = (place >= 0) & (positions - block["offset"][place] < block["count"][place])
        yield block.where(place[mine]), positions[mine]


def _first_offset(log: Log, kinds: tuple[Operation, ...], low: int, high: int) -> int | None:
    """Where the first operation of some kinds in blocks low to high has its elements."""
    for block in operation_blocks(log, kinds, (), low * ROWS, _end(log, high)):
        return int(log.operations["offset"][int(block.row[0])])
    return None


def _end(log: Log, block: int) -> int:
    return min(block * ROWS, log.operations.rows)


def products(log: Log, region: Region, direction: Direction, start: int, stop: int | None) -> Products:
    first, last = log.check_row("start", start), log.check_row("stop", stop)
    names = ("region", "gain", "done", "device_time_ns", "count", "offset", "output_offset", "scale_offset")
    blocks = [
        block.where((block["region"] == region.handle) & (block["done"] > 0))
        for block in operation_blocks(log, (MVM_KIND[direction],), names, first, last)
    ]
    operations = joined(blocks, names)
    if log.has("mvm/digest"):
        raise InputError(f"{log.path} holds no codes of products: its log is a digest, make a run with a full one")
    return _products(log, region.inputs(direction), region.outputs(direction), direction, operations)


def _products(log: Log, lines: int, outputs: int, direction: Direction, operations: Operations) -> Products:
    done = operations["done"]
    if (done > operations["count"]).any():
        raise DataError(f"{log.path}: operations have more answers than questions: the file is damaged")
    zero, unit = _amperes(log, MVM_KIND[direction], operations["gain"])
    return Products(
        operation=np.repeat(operations.row, done),
        time_ns=np.repeat(operations["device_time_ns"], done),
        inputs=_vectors(log, "mvm/inputs", operations["offset"], done, lines),
        scale=_vectors(log, "mvm/scales", operations["scale_offset"], done, 1)[:, 0],
        outputs=_vectors(log, "mvm/outputs", operations["output_offset"], done, outputs),
        zero=np.repeat(zero, done),
        unit=np.repeat(unit, done),
    )


def _amperes(log: Log, kind: Operation, gains: Values) -> tuple[Index, F32]:
    """Code of 0 A and value of a code (A) at each gain."""
    known, place = np.unique(gains, return_inverse=True)
    with data_errors(str(log.path), "readings"):
        constants = [log.constants[kind, gain] for gain in known.tolist()]
    if any(unit != "A" for unit, _, _ in constants):
        raise DataError(f"{log.path}: products were read in {constants[0][0]!r}, expected A: the file is damaged")
    zero = np.array([zero for _, _, zero in constants], np.int64)
    return zero[place], np.array([scale for _, scale, _ in constants], np.float32)[place]


def _vectors(log: Log, stream: str, offsets: Values, counts: Values, length: int) -> Values:
    if not len(offsets):
        return np.empty((0, length), log.stream(stream).dtype if log.has(stream) else EMPTY[stream])
    return log.stream(stream).ranges(offsets, counts.astype(np.int64) * length).reshape(-1, length)


def check_no_updates(log: Log) -> None:
    """Raise InputError where cells were also pulsed by parallel updates, which are not counted here."""
    if log.has("update/trains"):
        raise InputError(f"{log.path} holds parallel updates; pulses by cell are known of single SETs and RESETs only")
