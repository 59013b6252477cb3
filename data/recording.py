"""Record everything that passes between a run and its tester."""

import zlib
from collections.abc import Sequence

import numpy as np

from hil.data.remarks import uncertain
from hil.data.runfile import RunWriter
from hil.data.schema import NONE
from hil.instruments.tester import ArrayTester
from hil.protocols.errors import InputError
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
    PulseTrains,
    Readings,
    Receipt,
    Region,
    Vectors,
)


def digest(codes: Codes, vectors: Vectors, readings: Readings | None) -> int:
    """CRC-32 of a product: its DAC codes, scales and ADC codes."""
    crc = zlib.crc32(vectors.scale.tobytes(), zlib.crc32(codes.tobytes()))
    return crc if readings is None else zlib.crc32(readings.codes.tobytes(), crc)


class RecordingTester(ArrayTester):
    """Wraps a tester and logs its regions and operations, and adds nothing else. The caller closes the writer.

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
        self._seconds = np.zeros(1)  # of the wait that is logged: a column takes a copy
        self._append = {name: column.append for name, column in writer.streams.items()}
        self._inputs, self._scales, self._outputs = (
            self._append[name] for name in ("mvm/inputs", "mvm/scales", "mvm/outputs")
        )
        for region in tester.regions():
            writer.region(region)

    def identify(self) -> Identity:
        return self._tester.identify()

    def capabilities(self) -> Capabilities:
        return self._tester.capabilities()

    def register(self, blocks: Sequence[Block]) -> Region:
        region = self._tester.register(blocks)
        self._writer.region(region)
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
            self._writer.check_readings(kind, gain, readings)
        except InputError:
            raise
        except BaseException:
            self._log_mvm(kind, region, vectors, gain, None)
            raise
        self._log_mvm(kind, region, vectors, gain, readings)
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
        self._log_program(pulses, receipt)
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
        self._log_wait(seconds, receipt)
        return receipt

    def time_ns(self) -> int:
        return self._tester.time_ns()

    def safe_state(self) -> None:
        self._tester.safe_state()

    def close(self) -> None:
        self._tester.close()

    def _log_read(self, cells: Cells, readings: Readings | None) -> None:
        append = self._append
        offset = append["read/array"](cells.array)
        append["read/row"](cells.row)
        append["read/column"](cells.column)
        done = output = 0
        if readings is not None:
            done, output = len(readings.codes), append["read/codes"](readings.codes)
        self._writer.operation(READ, len(cells), offset, readings, done, output_offset=output)

    def _log_mvm(self, kind: Operation, region: Region, vectors: Vectors, gain: int, readings: Readings | None) -> None:
        codes = vectors.codes if vectors.codes.dtype == self._dac_dtype else vectors.codes.astype(self._dac_dtype)
        scales = done = output = 0
        if readings is not None:
            done = len(readings.codes)
        if self._digest:
            offset = self._append["mvm/digest"](np.array([digest(codes, vectors, readings)], np.uint32))
        else:
            offset, scales = self._inputs(codes), self._scales(vectors.scale)
            if readings is not None:
                output = self._outputs(readings.codes)
        self._writer.operation(
            kind,
            len(codes),
            offset,
            readings,
            done,
            region=region.handle,
            gain=gain,
            output_offset=output,
            scale_offset=scales,
        )

    def _log_program(self, pulses: PulseBatch, receipt: Receipt | None) -> None:
        append = self._append
        offset = append["program/array"](pulses.cells.array)
        append["program/row"](pulses.cells.row)
        append["program/column"](pulses.cells.column)
        append["program/counts"](pulses.counts)
        done = self._done(pulses.kind, len(pulses.counts), receipt)
        self._writer.operation(
            pulses.kind, len(pulses.counts), offset, receipt, done, shape=self._writer.shape(pulses.shape)
        )

    def _log_update(self, region: Region, trains: PulseTrains, receipt: Receipt | None) -> None:
        append = self._append
        offset = append["update/trains"](trains.rows)
        append["update/trains"](trains.columns)
        done = self._done(UPDATE, len(trains.rows), receipt)
        self._writer.operation(
            UPDATE,
            len(trains.rows),
            offset,
            receipt,
            done,
            region=region.handle,
            polarity=trains.polarity,
        )

    def _log_wait(self, seconds: float, receipt: Receipt | None) -> None:
        self._seconds[0] = seconds
        offset = self._append["wait/seconds"](self._seconds)
        self._writer.operation(WAIT, 1, offset, receipt, self._done(WAIT, 1, receipt))

    def _done(self, kind: Operation, count: int, receipt: Receipt | None) -> int:
        """What was done; of an answer that is not complete, the log says so in words as well."""
        if receipt is None:
            return 0
        if receipt.status != COMPLETE:
            self._writer.remark(uncertain(kind, count, receipt))
        return receipt.done
