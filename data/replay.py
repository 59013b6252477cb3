"""A tester that answers from the recording of an earlier run."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np

from hil.data.recorded import Recorded, RecordingEndsError, Row
from hil.data.run import Run
from hil.data.schema import NONE
from hil.instruments.tester import ArrayTester
from hil.protocols import limits
from hil.protocols.errors import InputError, ReplayError, TesterError
from hil.protocols.messages import (
    MVM_KIND,
    Block,
    Capabilities,
    Cells,
    Direction,
    Identity,
    Operation,
    PulseBatch,
    PulseTrains,
    Readings,
    Receipt,
    Region,
    Status,
    TesterKind,
    Vectors,
)

STATUS = {int(status): status for status in Status}
"""Each status by its number: `Status(number)` takes ten times as long."""


class ReplayTester(ArrayTester):
    """Serves a run's answers in their order, and raises `ReplayError` at the first request that differs from the run's.

    It is of kind replay, with the name and the chip of the recorded tester. What is out of the recorded tester's limits
    raises `LimitError`, as it did then, and leaves the recording where it is.
    """

    def __init__(self, run: Run) -> None:
        """Closes the run when it is closed. Raises InputError if the run had no tester."""
        if run.identity is None or run.capabilities is None:
            raise InputError(f"{run.path} was made without a tester: there is nothing to replay")
        self._run = run
        self.digest = run.start.log == "digest"
        """Whether the recording has a checksum instead of each product."""
        self._identity = replace(run.identity, kind=TesterKind.REPLAY)
        self._capabilities = run.capabilities
        self.recorded = Recorded(run)
        """Where in the recording it is."""
        self._dac_dtype = np.dtype(run.capabilities.dac_dtype)
        self._regions: list[Region] = []
        self._time_ns = 0
        self._closed = False

    @classmethod
    def open(cls, path: Path) -> Self:
        """Of a run file. Raises InputError if it keeps no products, DataError if it cannot be read."""
        run = Run.open(path)
        try:
            tester = cls(run)
            if tester.digest and run.regions:
                raise InputError(f"{path} keeps only a checksum of each product (log=digest): it cannot be replayed")
        except BaseException:
            run.close()
            raise
        return tester

    def jump(self, operations: int) -> None:
        """Go on after so many of the recorded operations."""
        self.recorded.next = operations
        self._time_ns = int(self._run.operations["device_time_ns"][operations - 1]) if operations else 0

    def identify(self) -> Identity:
        return self._identity

    def capabilities(self) -> Capabilities:
        return self._capabilities

    def register(self, blocks: Sequence[Block]) -> Region:
        self._check_open()
        limits.check_blocks(self._capabilities, blocks)
        number = len(self._regions)
        region = self._run.regions.get(number)
        if region is None and self.recorded.row() is None:
            raise RecordingEndsError(f"region {number}: the recording ends here, now it is registered")
        if region is None or not same_blocks(region.blocks, blocks):
            raise ReplayError(f"region {number} is registered with other cells than in the recording")
        self._regions.append(region)
        return region

    def regions(self) -> tuple[Region, ...]:
        return tuple(self._regions)

    @property
    def recorded_regions(self) -> int:
        """How many regions were registered when this was recorded."""
        return len(self._run.regions)

    def read(self, cells: Cells) -> Readings:
        self._check_open()
        try:
            row = self.recorded.expect(Operation.READ, len(cells))
            self._compare_cells("read", row, cells)
        except ReplayError:
            limits.check_cells(self._capabilities, cells)
            raise
        return self._readings(row, "read/codes", (row.done,))

    def mvm(self, region: Region, vectors: Vectors, direction: Direction, gain: int) -> Readings:
        self._check_open()
        codes = vectors.codes
        limits.check_registered(self._regions, region)
        try:
            kind = MVM_KIND[direction]
            row = self.recorded.expect(kind, len(codes), region=region.handle, gain=gain)
            self.recorded.compare(
                "mvm/inputs", row.offset, codes if codes.dtype == self._dac_dtype else codes.astype(self._dac_dtype)
            )
            self.recorded.compare("mvm/scales", row.scale_offset, vectors.scale)
        except ReplayError:
            limits.check_vectors(self._capabilities, region, vectors, direction, gain)
            limits.check_codes(self._capabilities, int(np.abs(codes.astype(np.int64)).max()))
            raise
        return self._readings(row, "mvm/outputs", (row.done, region.outputs(direction)))

    def program(self, pulses: PulseBatch) -> Receipt:
        self._check_open()
        cells = pulses.cells
        try:
            row = self.recorded.expect(pulses.kind, len(pulses.counts))
            self._compare_cells("program", row, cells)
            self.recorded.compare("program/counts", row.offset, pulses.counts)
            if self._run.log.shapes[row.shape] != pulses.shape:
                raise self.recorded.mismatch("the pulse", self._run.log.shapes[row.shape], pulses.shape)
        except ReplayError:
            limits.check_cells(self._capabilities, cells)
            limits.check_pulses(self._capabilities, pulses)
            raise
        return self._receipt(row)

    def update(self, region: Region, trains: PulseTrains) -> Receipt:
        self._check_open()
        if not self._capabilities.parallel_update:
            raise limits.no_parallel_update()
        row = self.recorded.expect(Operation.UPDATE, len(trains.rows), region=region.handle, polarity=trains.polarity)
        self.recorded.compare("update/trains", row.offset, trains.rows)
        self.recorded.compare("update/trains", row.offset + trains.rows.size, trains.columns)
        return self._receipt(row)

    def wait(self, seconds: float) -> Receipt:
        self._check_open()
        limits.check_wait(seconds)
        row = self.recorded.expect(Operation.WAIT, 1)
        self.recorded.compare("wait/seconds", row.offset, np.array([seconds]))
        return self._receipt(row)

    def time_ns(self) -> int:
        return self._time_ns

    def safe_state(self) -> None:
        """A recording has no lines to ground."""

    def close(self) -> None:
        self._closed = True
        self._run.close()

    def _check_open(self) -> None:
        if self._closed:
            raise TesterError(f"the recording {self._run.path} is closed; open it again")

    def _compare_cells(self, group: str, row: Row, cells: Cells) -> None:
        for name, index in (("row", cells.row), ("column", cells.column), ("array", cells.array)):
            self.recorded.compare(f"{group}/{name}", row.offset, index)

    def _readings(self, row: Row, stream: str, shape: tuple[int, ...]) -> Readings:
        self._answered(row)
        codes = self.recorded.values(stream, row.output_offset, math.prod(shape)).reshape(shape)
        unit, scale, zero = self._run.log.constants[row.kind, row.gain]
        return Readings(row.op_id, row.device_time_ns, codes, unit, scale, zero, row.saturated, STATUS[row.status])

    def _receipt(self, row: Row) -> Receipt:
        self._answered(row)
        return Receipt(row.op_id, row.device_time_ns, STATUS[row.status], row.done, row.saturated)

    def _answered(self, row: Row) -> None:
        self.recorded.next += 1
        if row.op_id == NONE:
            raise TesterError(f"operation {self.recorded.next - 1}: the tester failed here when this was recorded")
        self._time_ns = row.device_time_ns


def same_blocks(blocks: Sequence[Block], others: Sequence[Block]) -> bool:
    """Whether two regions are the same cells in the same order."""
    return len(blocks) == len(others) and all(map(_same_block, blocks, others))


def _same_block(a: Block, b: Block) -> bool:
    partners = (a.partners is None) == (b.partners is None) and (
        a.partners is None or b.partners is None or np.array_equal(a.partners, b.partners)
    )
    places = (a.array, a.row_offset, a.column_offset) == (b.array, b.row_offset, b.column_offset)
    return partners and places and np.array_equal(a.rows, b.rows) and np.array_equal(a.columns, b.columns)
