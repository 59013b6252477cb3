"""Replay that goes on where the run differs a little: another CPU's exp or BLAS moves a code by one here and there."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hil.data.columns import Values
from hil.data.recorded import RecordingEndsError, Row
from hil.data.replay import ReplayTester
from hil.data.run import Run
from hil.data.runfile import COMPLETED
from hil.protocols.errors import ReplayError
from hil.protocols.messages import (
    MVM_KIND,
    Cells,
    Direction,
    Operation,
    PulseBatch,
    Readings,
    Receipt,
    Region,
    Status,
    Vectors,
)

MARKERS = (Operation.MVM_FORWARD, Operation.MVM_BACKWARD, Operation.WAIT)
"""Operations that every run of the same host has in the same order."""
LOOK_AHEAD = 64
"""Operations among which the one that is asked for is looked for: a few images' worth. CHOSEN."""


@dataclass
class Differences:
    """How far a run is from its recording."""

    first: str = ""  # the first difference in words
    products: int = 0  # products with other DAC codes
    largest_code: int = 0  # by so much at most
    largest_scale: float = 0.0  # largest relative difference of a vector's scale
    pulses: int = 0  # SET and RESET operations on other cells or with other counts
    reads: int = 0  # reads of other cells
    waits: float = 0.0  # largest difference of a wait (s)
    skipped: int = 0  # recorded operations that nobody asked for
    missing: int = 0  # requests that were not recorded

    @property
    def none(self) -> bool:
        """Whether there are none."""
        return self == Differences()


class FollowingTester(ReplayTester):
    """Serves the recorded answers of products by their order; other operations that differ are counted.

    A read of other cells gets the last recorded code of each. Raises `ReplayError` where a product that is asked for
    is not among the next operations.
    """

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        c = self.capabilities()
        self.differences = Differences()
        self._shape = (c.arrays, c.rows, c.columns)
        self._known: Values | None = None  # the last recorded code of each cell

    def read(self, cells: Cells) -> Readings:
        row = self._next(lambda row: row.kind == Operation.READ)
        if row is None:
            self.differences.missing += 1
            self._note("a read was not recorded")
            return self._from_known(cells)
        recorded = self._cells("read", row)
        answer = self._readings(row, "read/codes", (row.done,))
        self._learn(recorded, answer.codes)
        if _same_cells(recorded, cells):
            return answer
        self.differences.reads += 1
        self._note(f"operation {self.recorded.next - 1}: other cells are read")
        return self._from_known(cells)

    def mvm(self, region: Region, vectors: Vectors, direction: Direction, gain: int) -> Readings:
        kind = MVM_KIND[direction]
        wanted = (kind, region.handle, gain, len(vectors.codes))
        row = self._next(lambda row: (row.kind, row.region, row.gain, row.count) == wanted)
        if row is None:
            raise ReplayError(f"operation {self.recorded.next}: {kind.name} on region {region.handle} does not follow")
        codes = self.recorded.values("mvm/inputs", row.offset, vectors.codes.size)
        scales = self.recorded.values("mvm/scales", row.scale_offset, len(vectors.scale))
        self._compare_vectors(codes, scales, vectors)
        return self._readings(row, "mvm/outputs", (row.done, region.outputs(direction)))

    def program(self, pulses: PulseBatch) -> Receipt:
        row = self._next(lambda row: row.kind == pulses.kind)
        if row is None:
            self.differences.missing += 1
            self._note(f"{pulses.kind.name} of {len(pulses.cells)} was not recorded")
            return self._receipt_of(int(pulses.counts.sum()))
        counts = self.recorded.values("program/counts", row.offset, row.count)
        if not _same_cells(self._cells("program", row), pulses.cells) or not np.array_equal(counts, pulses.counts):
            self.differences.pulses += 1
            self._note(f"operation {self.recorded.next}: {pulses.kind.name} of other cells or counts")
        return self._receipt(row)

    def wait(self, seconds: float) -> Receipt:
        row = self._next(lambda row: row.kind == Operation.WAIT)
        if row is None:
            self.differences.missing += 1
            self._note("a wait was not recorded")
            return self._receipt_of(0)
        recorded = float(self.recorded.values("wait/seconds", row.offset, 1)[0])
        if recorded != seconds:
            self.differences.waits = max(self.differences.waits, abs(recorded - seconds))
            self._note(f"operation {self.recorded.next}: wait was {recorded} s, is {seconds} s")
        return self._receipt(row)

    def _next(self, fits: Callable[[Row], bool]) -> Row | None:
        """The next operation that fits, near enough; no product and no wait is passed over for it.

        Raises `RecordingEndsError` at the end of a run that did not come to its own.
        """
        position, start = self.recorded, self.recorded.next
        if start >= position.length and self._run.state != COMPLETED:
            raise RecordingEndsError(f"operation {start}: the recording ends here")
        for number in range(start, min(start + LOOK_AHEAD, position.length)):
            position.next = number
            row = position.row()
            if row is None:
                break
            if fits(row):
                self._skip(start, number)
                return row
            if row.kind in MARKERS:
                break
        position.next = start
        return None

    def _skip(self, start: int, stop: int) -> None:
        """Pass over operations that were recorded, and learn from those that were reads."""
        for number in range(start, stop):
            self.recorded.next = number
            row = self.recorded.row()
            if row is not None and row.kind == Operation.READ:
                self._learn(self._cells("read", row), self.recorded.values("read/codes", row.output_offset, row.done))
            self._note(f"operation {number}: is not asked for")
        self.recorded.next = stop
        self.differences.skipped += stop - start

    def _compare_vectors(self, codes: Values, scales: Values, vectors: Vectors) -> None:
        if codes.tobytes() != vectors.codes.astype(codes.dtype).tobytes():
            largest = int(np.abs(codes.astype(np.int64) - vectors.codes.ravel()).max())
            self.differences.products += 1
            self.differences.largest_code = max(self.differences.largest_code, largest)
            self._note(f"operation {self.recorded.next}: DAC codes differ by up to {largest}")
        if scales.tobytes() != vectors.scale.tobytes():
            relative = np.abs(scales - vectors.scale) / np.maximum(np.abs(scales), np.finfo(np.float32).tiny)
            self.differences.largest_scale = max(self.differences.largest_scale, float(relative.max()))
            self._note(f"operation {self.recorded.next}: scales differ by up to {relative.max():.2g} of their value")

    def _note(self, text: str) -> None:
        self.differences.first = self.differences.first or text

    def _cells(self, stream: str, row: Row) -> Cells:
        parts = [self.recorded.values(f"{stream}/{name}", row.offset, row.count) for name in ("array", "row", "column")]
        return Cells(*parts)

    def _learn(self, cells: Cells, codes: Values) -> None:
        if self._known is None:
            self._known = np.zeros(self._shape, codes.dtype)
        done = cells[: len(codes)]
        self._known[done.array, done.row, done.column] = codes

    def _from_known(self, cells: Cells) -> Readings:
        if self._known is None:
            raise ReplayError(f"operation {self.recorded.next}: cells are read of which nothing is recorded yet")
        unit, scale, zero = self._run.log.constants[Operation.READ, -1]
        codes = self._known[cells.array, cells.row, cells.column]
        return Readings(max(self.recorded.next, 1), self.time_ns(), codes, unit, scale, zero, 0)

    def _receipt_of(self, done: int) -> Receipt:
        return Receipt(max(self.recorded.next, 1), self.time_ns(), Status.COMPLETE, done)


def _same_cells(a: Cells, b: Cells) -> bool:
    return all(map(np.array_equal, (a.array, a.row, a.column), (b.array, b.row, b.column)))
