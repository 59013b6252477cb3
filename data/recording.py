"""Record everything that passes between a run and its tester."""

import struct
import zlib
from collections.abc import Sequence
from time import time_ns

import numpy as np

from hil.data.columns import Values
from hil.data.remarks import uncertain
from hil.data.runfile import RunWriter
from hil.data.schema import NONE
from hil.data.waiting import LARGEST, MOST, MOST_PULSED, pack_row
from hil.instruments.tester import ArrayTester
from hil.protocols.errors import InputError
from hil.protocols.limits import LINE
from hil.protocols.messages import (
    COMPLETE,
    MVM_KIND,
    READ,
    UPDATE,
    WAIT,
    Block,
    Capabilities,
    Cells,
    Codes,
    Direction,
    Identity,
    Operation,
    PulseBatch,
    PulseShape,
    PulseTrains,
    Readings,
    Receipt,
    Region,
    Vectors,
)

pack_seconds = struct.Struct("<d").pack


def digest(codes: Codes, vectors: Vectors, readings: Readings | None) -> int:
    """CRC-32 of a product: its DAC codes, scales and ADC codes."""
    crc = zlib.crc32(vectors.scale.tobytes(), zlib.crc32(codes.tobytes()))
    return crc if readings is None else zlib.crc32(readings.codes.tobytes(), crc)


class RecordingTester(ArrayTester):
    """Wraps a tester and logs its regions and operations, and adds nothing else. The caller closes the writer.

    What a training loop does is noted for the log right where it is done, in three places: see `hil.data.waiting`.

    An operation that was refused (`InputError`) leaves no row. One that failed or was interrupted in any other way may
    have reached the array: it leaves a row with status UNKNOWN and without answer. The error then goes on.

    On a tester that outlives the process, what changes the array is announced in the log before it is sent, and every
    answer is written before it is given.
    """

    def __init__(self, tester: ArrayTester, writer: RunWriter) -> None:
        """Regions that the tester already knows are logged now."""
        self._tester = tester
        self._writer = writer
        self._outlives, self._digest = writer.outlives, writer.digest
        self._dac_dtype = np.dtype(tester.capabilities().dac_dtype)
        self._entries = writer.waiting.entries
        self._shape: PulseShape | None = None  # of the last pulses, and its row in the log
        self._shape_row = NONE
        self._usual: dict[tuple[Operation, int], tuple[object, ...]] = {}  # what products that may wait are made of
        self._few = LARGEST  # vectors of a product that may wait
        for region in tester.regions():
            self._log_region(region)

    def identify(self) -> Identity:
        return self._tester.identify()

    def capabilities(self) -> Capabilities:
        return self._tester.capabilities()

    def register(self, blocks: Sequence[Block]) -> Region:
        region = self._tester.register(blocks)
        self._log_region(region)
        return region

    def regions(self) -> tuple[Region, ...]:
        return self._tester.regions()

    def read(self, cells: Cells) -> Readings:
        try:
            readings = self._tester.read(cells)
            self._writer.check_readings(READ, NONE, readings)
        except InputError:
            raise
        except BaseException:
            self._log_read(cells, None)
            raise
        self._log_read(cells, readings)
        return readings

    def mvm(self, region: Region, vectors: Vectors, direction: Direction, gain: int) -> Readings:
        kind = MVM_KIND[direction]
        try:
            readings = self._tester.mvm(region, vectors, direction, gain)
            codes, scale, out = vectors.codes, vectors.scale, readings.codes
            made_of = readings.unit, readings.scale, readings.offset, codes.dtype, scale.dtype, out.dtype
            usual = self._usual.get((kind, gain)) == made_of
            if not usual:
                self._writer.check_readings(kind, gain, readings)
        except InputError:
            raise
        except BaseException:
            self._log_mvm(kind, region, vectors, gain, None)
            raise
        count, now, writer = len(out), time_ns(), self._writer
        if usual and len(codes) == scale.size == count <= self._few:
            self._entries.append((
                readings.op_id, kind, readings.status, readings.time_ns, now, region.handle, gain, count,
                readings.saturated, codes.tobytes(), scale.tobytes(), out.tobytes(),
            ))  # fmt: skip
            if len(self._entries) >= MOST or not writer.flushed_ns <= now < writer.due_ns:
                writer.take_up()
            return readings
        self._log_mvm(kind, region, vectors, gain, readings)
        if codes.dtype == self._dac_dtype and not self._outlives and not self._digest:
            self._usual[kind, gain] = made_of
        return readings

    def program(self, pulses: PulseBatch) -> Receipt:
        if self._outlives:
            self._writer.intend(pulses.kind, len(pulses.counts))
        try:
            receipt = self._tester.program(pulses)
        except InputError:
            raise
        except BaseException:
            self._log_program(pulses, None)
            raise
        cells, counts, kind = pulses.cells, pulses.counts, pulses.kind
        lines = cells.array.dtype is cells.row.dtype is cells.column.dtype is counts.dtype is LINE
        if receipt.status is not COMPLETE or self._outlives or not lines or len(counts) > MOST_PULSED:
            self._log_program(pulses, receipt)
            return receipt
        if pulses.shape is not self._shape:
            self._shape, self._shape_row = pulses.shape, self._writer.shape(pulses.shape)
        now, writer = time_ns(), self._writer
        row = pack_row(
            receipt.op_id, kind, COMPLETE, receipt.time_ns, now, NONE, NONE, self._shape_row, 0,
            len(counts), receipt.done, receipt.saturated,
        )  # fmt: skip
        payload = cells.array.tobytes(), cells.row.tobytes(), cells.column.tobytes(), counts.tobytes()
        self._entries.append((row, kind, payload))
        if len(self._entries) >= MOST or not writer.flushed_ns <= now < writer.due_ns:
            writer.take_up()
        return receipt

    def update(self, region: Region, trains: PulseTrains) -> Receipt:
        if self._outlives:
            self._writer.intend(UPDATE, len(trains.rows))
        try:
            receipt = self._tester.update(region, trains)
        except InputError:
            raise
        except BaseException:
            self._log_update(region, trains, None)
            raise
        self._log_update(region, trains, receipt)
        return receipt

    def wait(self, seconds: float) -> Receipt:
        if self._outlives:
            self._writer.intend(WAIT, 1)
        try:
            receipt = self._tester.wait(seconds)
        except InputError:
            raise
        except BaseException:
            self._log_wait(seconds, None)
            raise
        if receipt.status is not COMPLETE or self._outlives:
            self._log_wait(seconds, receipt)
            return receipt
        now, writer = time_ns(), self._writer
        self._entries.append((receipt.op_id, receipt.time_ns, now, receipt.done, pack_seconds(seconds)))
        if len(self._entries) >= MOST or not writer.flushed_ns <= now < writer.due_ns:
            writer.take_up()
        return receipt

    def time_ns(self) -> int:
        return self._tester.time_ns()

    def safe_state(self) -> None:
        self._tester.safe_state()

    def close(self) -> None:
        self._tester.close()

    def _log_region(self, region: Region) -> None:
        self._writer.region(region)
        codes = max(region.inputs(way) + region.outputs(way) for way in Direction)
        self._few = min(self._few, LARGEST // (4 + 2 * codes))  # with its scale; codes of most testers have two bytes

    def _log_read(self, cells: Cells, readings: Readings | None) -> None:
        lines = cells.array, cells.row, cells.column
        payload, done = (lines, 0) if readings is None else ((*lines, readings.codes), len(readings.codes))
        self._writer.operation(READ, payload, readings, len(cells), done)

    def _log_mvm(self, kind: Operation, region: Region, vectors: Vectors, gain: int, readings: Readings | None) -> None:
        codes = vectors.codes if vectors.codes.dtype == self._dac_dtype else vectors.codes.astype(self._dac_dtype)
        asked: tuple[Values, ...] = codes, vectors.scale
        payload, done = (asked, 0) if readings is None else ((*asked, readings.codes), len(readings.codes))
        if self._digest:
            payload = (np.array([digest(codes, vectors, readings)], np.uint32),)
        self._writer.operation(kind, payload, readings, len(codes), done, region=region.handle, gain=gain)

    def _log_program(self, pulses: PulseBatch, receipt: Receipt | None) -> None:
        cells, counts, shape = pulses.cells, pulses.counts, self._writer.shape(pulses.shape)
        payload = cells.array, cells.row, cells.column, counts
        done = self._done(pulses.kind, len(counts), receipt)
        self._writer.operation(pulses.kind, payload, receipt, len(counts), done, shape=shape)

    def _log_update(self, region: Region, trains: PulseTrains, receipt: Receipt | None) -> None:
        payload, count = (np.concatenate([trains.rows, trains.columns], axis=None),), len(trains.rows)
        done = self._done(UPDATE, count, receipt)
        self._writer.operation(UPDATE, payload, receipt, count, done, region=region.handle, polarity=trains.polarity)

    def _log_wait(self, seconds: float, receipt: Receipt | None) -> None:
        self._writer.operation(WAIT, (np.array([seconds]),), receipt, 1, self._done(WAIT, 1, receipt))

    def _done(self, kind: Operation, count: int, receipt: Receipt | None) -> int:
        """What was done; of an answer that is not complete, the log says so in words as well."""
        if receipt is None:
            return 0
        if receipt.status != COMPLETE:
            self._writer.remark(uncertain(kind, count, receipt))
        return receipt.done
