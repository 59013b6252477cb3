"""Go over operations again that a run file already holds, and record those that follow."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from hil.data.recording import RecordingTester, digest
from hil.data.replay import ReplayTester
from hil.instruments.tester import ArrayTester
from hil.protocols.errors import TesterError
from hil.protocols.messages import (
    MVM_KIND,
    Block,
    Capabilities,
    Cells,
    Direction,
    Identity,
    PulseBatch,
    PulseTrains,
    Readings,
    Receipt,
    Region,
    Vectors,
)

Answer = TypeVar("Answer", Readings, Receipt)


class RetracingTester(ArrayTester):
    """Wraps the recorder of a tester, and the recording of what was done before the process died.

    As long as the recording lasts, every request is compared with it, and `ReplayError` says where they part; from then
    on all is recorded. A tester that died with the process does again what is recorded, and its answers are compared as
    well; for one that outlives it, which has done all that, the recording alone answers. So it does, whatever the
    tester, after `serve_recorded` until `jump`: for what was done before a checkpoint and leads up to its state.
    """

    def __init__(self, tester: ArrayTester, recorder: RecordingTester, replay: ReplayTester, outlives: bool) -> None:
        """`tester` is what `recorder` records; whether it outlives the process."""
        self._outlives = outlives
        self._tester, self._recorder, self._replay = tester, recorder, replay
        self._dac_dtype = np.dtype(tester.capabilities().dac_dtype)
        self._digest = replay.digest
        self._serving = False
        self._sent = False
        self._recorded_region: dict[int, Region] = {}

    def serve_recorded(self) -> None:
        """Ask nothing of the tester until `jump`."""
        self._serving = True

    def jump(self, operations: int) -> None:
        """Go on from here, after so many of the recorded operations."""
        self._replay.jump(operations)
        self._serving = False

    def identify(self) -> Identity:
        return self._tester.identify()

    def capabilities(self) -> Capabilities:
        return self._tester.capabilities()

    def register(self, blocks: Sequence[Block]) -> Region:
        region = self._recorder.register(blocks)
        if not self._done or region.handle < self._replay.recorded_regions:  # else it was cut before this one
            self._recorded_region[region.handle] = self._replay.register(blocks)
        return region

    def regions(self) -> tuple[Region, ...]:
        return self._tester.regions()

    def read(self, cells: Cells) -> Readings:
        return self._again(lambda tester: tester.read(cells))

    def mvm(self, region: Region, vectors: Vectors, direction: Direction, gain: int) -> Readings:
        if not self._done and self._digest:
            return self._mvm_by_digest(region, vectors, direction, gain)
        recorded = self._recorded_region.get(region.handle, region)
        return self._again(
            lambda tester: tester.mvm(recorded if tester is self._replay else region, vectors, direction, gain)
        )

    def program(self, pulses: PulseBatch) -> Receipt:
        return self._again(lambda tester: tester.program(pulses))

    def update(self, region: Region, trains: PulseTrains) -> Receipt:
        recorded = self._recorded_region.get(region.handle, region)
        return self._again(lambda tester: tester.update(recorded if tester is self._replay else region, trains))

    def wait(self, seconds: float) -> Receipt:
        return self._again(lambda tester: tester.wait(seconds))

    def time_ns(self) -> int:
        """Of the last answer that was given: a tester that outlives the process may be an operation ahead of it."""
        recorded = self._serving or (self._outlives and not self._sent)
        return self._replay.time_ns() if recorded else self._tester.time_ns()

    def safe_state(self) -> None:
        self._tester.safe_state()

    def close(self) -> None:
        self._tester.close()

    @property
    def _done(self) -> bool:
        return self._replay.recorded.next >= self._replay.recorded.length

    def _again(self, send: Callable[[ArrayTester], Answer]) -> Answer:
        if self._done and not self._serving:
            new = send(self._recorder)
            self._sent = True
            return new
        recorded = send(self._replay)
        if self._serving or self._outlives:
            return recorded
        answer = send(self._tester)
        if not _same(recorded, answer):
            position = self._replay.recorded
            position.next -= 1
            raise _difference(position.mismatch, recorded, answer)
        return answer

    def _mvm_by_digest(self, region: Region, vectors: Vectors, direction: Direction, gain: int) -> Readings:
        if self._serving or self._outlives:
            raise TesterError("a product is asked for that was done before: the log keeps only a checksum of it")
        position = self._replay.recorded
        kind = MVM_KIND[direction]
        row = position.expect(kind, len(vectors.codes), region=region.handle, gain=gain)
        answer = self._tester.mvm(region, vectors, direction, gain)
        crc = digest(vectors.codes.astype(self._dac_dtype, copy=False), vectors, answer)
        position.compare("mvm/digest", row.offset, np.array([crc], np.uint32))
        position.next += 1
        return answer


def _same(recorded: Answer, answer: Answer) -> bool:
    if isinstance(recorded, Readings) and isinstance(answer, Readings):
        codes = recorded.codes.tobytes() == answer.codes.tobytes()
        return codes and (recorded.op_id, recorded.time_ns, recorded.saturated) == (
            answer.op_id, answer.time_ns, answer.saturated,
        )  # fmt: skip
    return recorded == answer


def _difference(error: Callable[[str, object, object], Exception], recorded: Answer, answer: Answer) -> Exception:
    if isinstance(recorded, Readings) and isinstance(answer, Readings):
        different = np.flatnonzero(recorded.codes != answer.codes)
        if len(different):
            where = int(different[0])
            return error(f"the answer's code {where}", recorded.codes.flat[where], answer.codes.flat[where])
        return error(
            "the answer's id, device time and saturation",
            (recorded.op_id, recorded.time_ns, recorded.saturated),
            (answer.op_id, answer.time_ns, answer.saturated),
        )
    return error("the answer", recorded, answer)
