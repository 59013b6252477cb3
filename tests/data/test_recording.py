"""A recorded run holds what passed between host and tester, also where the tester failed."""

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from hil.data.recording import RecordingTester
from hil.data.run import LoggedOperation, Run
from hil.data.runfile import RunWriter
from hil.data.schema import Start
from hil.data.tail import Piece, read_tail
from hil.instruments.tester import ArrayTester
from hil.protocols.errors import InputError, LimitError, TesterError
from hil.protocols.messages import (
    Block,
    Capabilities,
    Cells,
    Direction,
    Durations,
    Identity,
    MvmMode,
    Operation,
    PulseBatch,
    PulseLimits,
    PulseShape,
    PulseTrains,
    Readings,
    Readout,
    Receipt,
    Region,
    Status,
    TesterKind,
    Vectors,
)

IDENTITY = Identity("Acme", "X1", "42", "1.0", "chip-7", TesterKind.TWIN)
SHAPE = PulseShape(90e-6, 50e-9, 1e-9, 2e-9)
CAPABILITIES = Capabilities(
    arrays=1,
    rows=64,
    columns=64,
    mvm=MvmMode.ANALOG,
    readout=Readout.DIFFERENTIAL,
    parallel_update=True,
    dac_bits=8,
    adc_bits=8,
    read_voltage=0.2,
    mvm_ranges=(1e-6, 1e-5),
    set_pulse=SHAPE,
    reset_pulse=PulseShape(400e-6, 50e-9),
    pulse_limits=PulseLimits("current", 1e-3, 1e-8, 1e-5, edges=True),
    exactly_once=True,
    verify=False,
    durations=Durations(1e-6, 1e-6, 1e-7, 1e-7),
    largest_batch=1000,
    staircase=(0.1e-6, 1e-6),
)
START = Start({"seed": 1}, "seed = 1", ("train",), 1, {}, {}, None, {}, IDENTITY, CAPABILITIES)


class FakeTester(ArrayTester):
    """Answers with codes drawn from a generator; raises `error`, if there is one, instead of the next answer."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(1)
        self.known: list[Region] = []
        self.last = 0
        self.error: BaseException | None = None
        self.scale = 1e-8
        self.closed = False

    def identify(self) -> Identity:
        return IDENTITY

    def capabilities(self) -> Capabilities:
        return CAPABILITIES

    def register(self, blocks: Sequence[Block]) -> Region:
        self.known.append(Region(len(self.known), tuple(blocks)))
        return self.known[-1]

    def regions(self) -> tuple[Region, ...]:
        return tuple(self.known)

    def read(self, cells: Cells) -> Readings:
        op_id, time_ns = self.next_operation()
        codes = self.rng.integers(0, 255, len(cells), dtype=np.uint8)
        return Readings(op_id, time_ns, codes, "S", 1e-7, 20, int((codes == 255).sum()))

    def mvm(self, region: Region, vectors: Vectors, direction: Direction, gain: int) -> Readings:
        op_id, time_ns = self.next_operation()
        codes = self.rng.integers(-127, 128, (len(vectors.codes), region.outputs(direction)), dtype=np.int16)
        return Readings(op_id, time_ns, codes, "A", self.scale * 10**gain, 0, 3)

    def program(self, pulses: PulseBatch) -> Receipt:
        op_id, time_ns = self.next_operation()
        return Receipt(op_id, time_ns, Status.PARTIAL, int(pulses.counts.sum()) - 1, 2)

    def update(self, region: Region, trains: PulseTrains) -> Receipt:
        return Receipt(*self.next_operation(), Status.COMPLETE, 5)

    def wait(self, seconds: float) -> Receipt:
        return Receipt(*self.next_operation(), Status.COMPLETE, 1)

    def time_ns(self) -> int:
        return 1000 * self.last

    def safe_state(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True

    def next_operation(self) -> tuple[int, int]:
        if self.error:
            raise self.error
        self.last += 3
        return self.last, 1000 * self.last


Operate = Callable[[ArrayTester], Readings | Receipt]
BLOCKS = (
    Block(0, np.arange(7, dtype=np.uint16), np.arange(9, dtype=np.uint16), np.arange(9, 18, dtype=np.uint16), 0, 0),
    Block(0, np.arange(20, 25, dtype=np.uint16), np.arange(9, dtype=np.uint16), None, 7, 0),
)  # 12 rows, 9 columns; 18 codes forward, 12 backward
CELLS = Cells.of([0, 0, 0], [1, 2, 63], [5, 6, 7])
FORWARD = Vectors(np.arange(-12, 12, dtype=np.int8).reshape(2, 12), np.array([0.5, 0.25], np.float32))
BACKWARD = Vectors(np.arange(9, dtype=np.int8).reshape(1, 9), np.array([2], np.float32))
PULSES = PulseBatch(CELLS, Operation.SET, np.array([1, 2, 300], np.uint16), SHAPE)
TRAINS = PulseTrains(np.arange(6, dtype=np.uint8).reshape(3, 2), np.arange(10, 16, dtype=np.uint8).reshape(3, 2), -1)

OPERATIONS: dict[str, tuple[Operation, Any, Operate]] = {
    "read": (Operation.READ, CELLS, lambda tester: tester.read(CELLS)),
    "forward": (
        Operation.MVM_FORWARD,
        FORWARD,
        lambda tester: tester.mvm(tester.regions()[0], FORWARD, Direction.FORWARD, 0),
    ),
    "backward": (
        Operation.MVM_BACKWARD,
        BACKWARD,
        lambda tester: tester.mvm(tester.regions()[0], BACKWARD, Direction.BACKWARD, 1),
    ),
    "set": (Operation.SET, PULSES, lambda tester: tester.program(PULSES)),
    "reset": (
        Operation.RESET,
        replace(PULSES, kind=Operation.RESET, shape=CAPABILITIES.reset_pulse),
        lambda tester: tester.program(replace(PULSES, kind=Operation.RESET, shape=CAPABILITIES.reset_pulse)),
    ),
    "update": (Operation.UPDATE, TRAINS, lambda tester: tester.update(tester.regions()[0], TRAINS)),
    "wait": (Operation.WAIT, 2.5, lambda tester: tester.wait(2.5)),
}


def plain(value: Any) -> Any:
    """Arrays in messages, with their types, as what `==` compares."""
    if isinstance(value, np.ndarray):
        return (value.dtype.str, value.tolist())
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, tuple):
        return tuple(plain(part) for part in value)
    if is_dataclass(value):
        return type(value), [plain(getattr(value, field.name)) for field in fields(value)]
    return value


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[RunWriter]:
    opened = RunWriter.create(tmp_path / "run.h5", START)
    yield opened
    opened.close("completed", {})


@pytest.fixture
def tester() -> FakeTester:
    fake = FakeTester()
    fake.register(BLOCKS)
    return fake


def logged(writer: RunWriter) -> list[LoggedOperation]:
    writer.close("completed", {})
    with Run.open(writer.path) as run:
        return [run.operation(index) for index in range(run.operations.rows)]


@pytest.mark.parametrize("name", OPERATIONS)
def test_what_passed_is_read_back_as_it_passed(name: str, tester: FakeTester, writer: RunWriter) -> None:
    kind, request, operate = OPERATIONS[name]
    recording = RecordingTester(tester, writer)
    for _, _, before in OPERATIONS.values():
        before(recording)
    answer = operate(recording)
    *_, operation = logged(writer)
    assert plain(operation.request) == plain(request)
    assert plain(operation.answer) == plain(answer)
    assert (operation.op_id, operation.kind, operation.status) == (answer.op_id, kind, answer.status)
    assert operation.device_time_ns == answer.time_ns
    assert operation.gain == {"forward": 0, "backward": 1}.get(name)
    if name in ("forward", "backward", "update"):
        assert plain(operation.region) == plain(Region(0, BLOCKS))
    else:
        assert operation.region is None


def test_readings_are_read_back_in_their_unit(tester: FakeTester, writer: RunWriter) -> None:
    readings = RecordingTester(tester, writer).read(CELLS)
    (operation,) = logged(writer)
    assert isinstance(operation.answer, Readings)
    assert operation.answer.unit == "S"
    np.testing.assert_array_equal(operation.answer.values(), readings.values())


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("error", [TesterError("no reply"), KeyboardInterrupt(), ValueError("a bug")])
def test_an_operation_that_failed_leaves_a_row_of_unknown_status(
    name: str, error: BaseException, tester: FakeTester, writer: RunWriter
) -> None:
    kind, request, operate = OPERATIONS[name]
    recording = RecordingTester(tester, writer)
    operate(recording)
    tester.error = error
    with pytest.raises(type(error)) as caught:
        operate(recording)
    assert caught.value is error
    tester.error = None
    operate(recording)
    done, failed, after = logged(writer)
    assert (failed.op_id, failed.kind, failed.status, failed.device_time_ns) == (-1, kind, Status.UNKNOWN, -1)
    assert plain(failed.request) == plain(request)
    assert failed.answer is None
    assert failed.host_time_ns >= done.host_time_ns
    assert after.answer is not None
    assert plain(after.request) == plain(request)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("error", [LimitError("too much"), InputError("no such cell")])
def test_an_operation_that_was_refused_leaves_no_row(
    name: str, error: InputError, tester: FakeTester, writer: RunWriter
) -> None:
    recording = RecordingTester(tester, writer)
    tester.error = error
    with pytest.raises(InputError) as caught:
        OPERATIONS[name][2](recording)
    assert caught.value is error
    assert logged(writer) == []


def test_a_scale_that_changes_is_a_failure_of_the_tester(tester: FakeTester, writer: RunWriter) -> None:
    recording = RecordingTester(tester, writer)
    forward, backward = OPERATIONS["forward"][2], OPERATIONS["backward"][2]
    forward(recording)
    tester.scale = 2e-8
    backward(recording)  # each kind and gain has its own
    with pytest.raises(TesterError, match=r"MVM_FORWARD, gain 0: .*1e-08.*2e-08.*mend the driver"):
        forward(recording)
    assert [operation.status for operation in logged(writer)] == [Status.COMPLETE, Status.COMPLETE, Status.UNKNOWN]


def test_regions_are_logged_whether_registered_before_or_later(tester: FakeTester, writer: RunWriter) -> None:
    recording = RecordingTester(tester, writer)
    later = recording.register(BLOCKS[1:])
    assert later is tester.known[1]
    writer.close("completed", {})
    with Run.open(writer.path) as run:
        assert plain(run.regions) == plain({0: Region(0, BLOCKS), 1: Region(1, BLOCKS[1:])})


def test_codes_of_a_wider_type_are_stored_in_the_converters_type(tester: FakeTester, writer: RunWriter) -> None:
    wide = Vectors(FORWARD.codes.astype(np.int64), FORWARD.scale)
    RecordingTester(tester, writer).mvm(tester.known[0], wide, Direction.FORWARD, 0)
    (operation,) = logged(writer)
    assert plain(operation.request) == plain(FORWARD)


def test_it_adds_nothing_else(tester: FakeTester, writer: RunWriter) -> None:
    bare = FakeTester()
    bare.register(BLOCKS)
    with RecordingTester(tester, writer) as recording:
        assert (recording.identify(), recording.capabilities()) == (IDENTITY, CAPABILITIES)
        assert (recording.regions(), recording.time_ns()) == (tester.regions(), 0)
        for _, _, operate in OPERATIONS.values():
            assert plain(operate(recording)) == plain(operate(bare))
        recording.safe_state()
    assert tester.closed
    writer.message("the writer is still open")
    assert writer.operations == len(logged(writer)) == len(OPERATIONS)


def test_what_was_not_complete_is_said(tester: FakeTester, writer: RunWriter) -> None:
    for name in ("set", "update", "wait", "read"):
        OPERATIONS[name][2](RecordingTester(tester, writer))
    writer.close("completed", {})
    with Run.open(writer.path) as run:
        assert [text for _, text in run.messages] == [
            "operation id 3 (SET of 3 cells) is uncertain: 302 pulses were applied"
        ]


@pytest.mark.parametrize("name", ["set", "reset", "update", "wait"])
def test_what_changes_the_array_is_announced_before_it_is_sent(name: str, tester: FakeTester, tmp_path: Path) -> None:
    writer = RunWriter.create(tmp_path / "run.h5", replace(START, outlives=True))
    recording = RecordingTester(tester, writer)
    sent: list[list[Piece]] = []

    def look() -> tuple[int, int]:
        with h5py.File(io.BytesIO(writer.path.read_bytes())) as file:
            sent.extend(read_tail(writer.path, file.attrs["run_id"]))
        return 1, 1000

    tester.next_operation = look  # type: ignore[method-assign]
    OPERATIONS[name][2](recording)
    assert [[(piece.name, piece.position) for piece in record] for record in sent] == [[("intent", 0)]]
    writer.close("completed", {})
