"""Operations that wait on their way into the log get there in their order, once, and as they were."""

import itertools
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from hil.bench import connect
from hil.data import columns, recording, runfile, waiting
from hil.data.columns import Column
from hil.data.recording import RecordingTester
from hil.data.run import Run
from hil.data.runfile import RunWriter
from hil.data.schema import STREAMS, Start
from hil.instruments.tester import ArrayTester
from hil.mock_hw.twin import TwinTester
from hil.protocols.errors import StorageError, TesterError
from hil.protocols.messages import Block, Cells, Direction, Operation, PulseBatch, Readings, Receipt, Status, Vectors

LINES = np.arange(8, dtype=np.uint16)
BLOCK = Block(0, LINES, LINES[:4], LINES[4:], 0, 0)
HOST_TIME = "host_time_ns"

Make = Callable[..., tuple[RecordingTester, RunWriter]]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Makes a twin with a region, its recorder and the writer; always the same twin."""
    numbers = itertools.count()

    def begin(**options: Any) -> tuple[RecordingTester, RunWriter]:
        raw = connect("twin:pcm-analog?arrays=1&rows=8&columns=8", np.random.SeedSequence(1))
        start = Start({}, "", (), 1, {}, {}, None, {}, raw.identify(), raw.capabilities(), **options)
        writer = RunWriter.create(tmp_path / f"{next(numbers)}.h5", start)
        recorder = RecordingTester(raw, writer)
        recorder.register([BLOCK])
        return recorder, writer

    return begin


def multiply(tester: ArrayTester, codes: Any, scale: Any = None) -> Readings:
    codes = np.array(codes, np.int8, ndmin=2)
    scale = np.ones(len(codes), np.float32) if scale is None else scale
    return tester.mvm(tester.regions()[0], Vectors(codes, scale), Direction.FORWARD, 0)


def pulse(tester: ArrayTester, kind: Operation, rows: Any) -> None:
    chip = tester.capabilities()
    shape = chip.set_pulse if kind == Operation.SET else chip.reset_pulse
    tester.program(PulseBatch(Cells.of(0, rows, 1), kind, np.ones(len(rows), np.uint16), shape))


def operate(tester: ArrayTester, count: int) -> None:
    """Operations as a training loop does them, with batches of all sizes."""
    rng = np.random.default_rng(1)
    for number in range(count):
        multiply(tester, rng.integers(-127, 128, (1 + number % 40, 8)))
        if number % 3 == 0:
            pulse(tester, Operation.SET if number % 2 else Operation.RESET, rng.integers(0, 8, 3))
        if number % 7 == 0:
            tester.read(Cells.of(0, LINES, LINES))
        tester.wait(1e-3 * number)


def content(path: Path) -> dict[str, list[Any]]:
    """Everything about the operations but the host's time."""
    with Run.open(path) as run:
        table = {name: column[:].tolist() for name, column in run.operations.items() if name != HOST_TIME}
        assert (np.diff(run.operations[HOST_TIME][:]) >= 0).all()
    with h5py.File(path) as file:
        return table | {name: file[f"{name}/values"][:].tolist() for name in STREAMS if name in file}


def test_the_log_is_the_same_whether_operations_wait_or_not(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    usual = waiting.MOST, waiting.LARGEST, 2**15
    for most, largest, chunk in (usual, (1, *usual[1:]), (waiting.MOST, 200, 2**15), (*usual[:2], 50)):
        for module in (recording, runfile):
            monkeypatch.setattr(module, "MOST", most)
            monkeypatch.setattr(module, "LARGEST", largest)
        monkeypatch.setattr(waiting, "OPERATION_CHUNK", chunk)
        tester, writer = make()
        operate(tester, 2000)
        writer.close("completed", {})
        found.append(content(writer.path))
    assert len(found[0]["op_id"]) > 4 * waiting.MOST
    assert found[0] == found[1] == found[2] == found[3]


def test_operations_wait_only_where_the_chip_dies_with_the_process(make: Make) -> None:
    for options, waits in (({}, True), ({"outlives": True}, False), ({"log": "digest"}, True)):
        tester, writer = make(**options)
        for number in range(1, 5):
            multiply(tester, LINES)
            assert (len(writer.waiting.entries), writer.operations) == (number * waits, number)
        pulse(tester, Operation.SET, [1, 2])
        assert (len(writer.waiting.entries), writer.operations) == (5 * waits, 5)
        tester.wait(1.0)
        assert (len(writer.waiting.entries), writer.operations) == (6 * waits, 6)
        writer.close("completed", {})


def test_large_operations_do_not_wait(make: Make) -> None:
    tester, writer = make()
    for _ in range(2):
        multiply(tester, LINES)
        pulse(tester, Operation.SET, np.zeros(waiting.MOST_PULSED, np.uint16))
        tester.read(Cells.of(0, np.zeros(1000, np.uint16), 1))
        assert len(writer.waiting.entries) == 3
        multiply(tester, np.ones((waiting.LARGEST // 12, 8)))  # and 4 outputs, with a scale each
        assert writer.waiting.entries == []
        pulse(tester, Operation.SET, np.zeros(waiting.MOST_PULSED + 1, np.uint16))
        assert writer.waiting.entries == []
    writer.close("completed", {})


def test_the_larger_a_region_the_fewer_of_its_vectors_wait(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "LARGEST", (4 + 2 * (8 + 4)) * 3)
    tester, writer = make()
    multiply(tester, LINES)
    taken: list[int] = []
    monkeypatch.setattr(writer, "operation", lambda _kind, _payload, _answer, count, *_, **__: taken.append(count))
    for vectors in range(1, 7):
        multiply(tester, np.ones((vectors, 8)))
    assert taken == [4, 5, 6]


def test_of_a_region_with_few_cells_far_apart_few_vectors_wait(make: Make) -> None:
    tester, writer = make()
    far = replace(BLOCK, row_offset=waiting.LARGEST // 4)
    region = tester.register([far])
    vectors = Vectors(np.zeros((2, region.rows), np.int8), np.ones(2, np.float32))
    for _ in range(2):
        tester.mvm(region, vectors, Direction.FORWARD, 0)
        tester.mvm(region, vectors, Direction.FORWARD, 1)
        assert sum(len(entry) == waiting.PRODUCT for entry in writer.waiting.entries) == 0
    writer.close("completed", {})


def test_each_pulse_has_its_shape(make: Make) -> None:
    tester, writer = make()
    kinds = [Operation.SET, Operation.RESET, Operation.RESET, Operation.SET]
    for kind in kinds:
        pulse(tester, kind, [1])
    chip = tester.capabilities()
    writer.close("completed", {})
    with Run.open(writer.path) as run:
        shapes = [run.operation(row).request.shape for row in range(4)]  # type: ignore[union-attr]
    assert shapes == [chip.set_pulse if kind == Operation.SET else chip.reset_pulse for kind in kinds]


def test_lines_of_another_type_are_refused_whatever_the_driver_takes(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    tester, writer = make()
    monkeypatch.setattr(TwinTester, "program", lambda *_: Receipt(1, 1, Status.COMPLETE, 1))
    one, shape = np.ones(1, np.uint16), tester.capabilities().set_pulse
    tester.program(PulseBatch(Cells(one, one, one), Operation.SET, one, shape))
    tester.wait(1.0)
    with pytest.raises(StorageError, match="never changes its type"):
        tester.program(PulseBatch(Cells(one, one.astype(np.int64), one), Operation.SET, one, shape))
    writer.close("failed", {})
    found = content(writer.path)
    assert (found["kind"], found["program/row"]) == ([4, 6], [1])


def test_what_the_caller_changes_later_is_logged_as_it_was(make: Make) -> None:
    tester, writer = make()
    codes, scale = np.full((1, 8), 3, np.int8), np.full(1, 0.5, np.float32)
    for _ in range(3):
        out = multiply(tester, codes, scale).codes
    answered = out.tolist()
    for values in (codes, scale, out):
        values[:] = 9
    writer.close("completed", {})
    found = content(writer.path)
    assert found["mvm/inputs"] == [3] * 24
    assert found["mvm/scales"] == [0.5] * 3
    assert found["mvm/outputs"][-4:] == answered[0]


def test_a_product_that_is_not_as_those_before_it_finds_its_place(make: Make) -> None:
    """Scales that are not one per vector are nonsense, but must not shift those of others."""
    tester, writer = make()
    for number in range(1, 9):
        scales = np.full(2 if number % 3 == 0 else 1, number, np.float32)
        multiply(tester, np.full(8, number), scales)
    writer.close("completed", {})
    found = content(writer.path)
    assert [found["mvm/scales"][at] for at in found["scale_offset"]] == list(range(1, 9))
    assert [found["mvm/inputs"][at] for at in found["offset"]] == list(range(1, 9))


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """From now on, products of twins are answered with these changes."""
    real = TwinTester.mvm

    def change(**changes: Any) -> None:
        def answer(tester: TwinTester, *asked: Any) -> Readings:
            readings = real(tester, *asked)
            given = {name: change(readings) if callable(change) else change for name, change in changes.items()}
            return replace(readings, **given)

        monkeypatch.setattr(TwinTester, "mvm", answer)

    return change


def test_answers_in_part_are_logged_as_far_as_they_came(make: Make, spoil: Callable[..., None]) -> None:
    tester, writer = make()
    for number in range(6):
        spoil(codes=lambda readings, part=1 + number % 2: readings.codes[:part])
        multiply(tester, np.full((2, 8), number))
    writer.close("completed", {})
    found = content(writer.path)
    assert (found["count"], found["done"]) == ([2] * 6, [1, 2] * 3)
    assert found["output_offset"] == [0, 4, 12, 16, 24, 28]
    assert len(found["mvm/outputs"]) == 36


def test_an_answer_in_part_to_nonsense_finds_its_place(make: Make, spoil: Callable[..., None]) -> None:
    tester, writer = make()
    multiply(tester, LINES)
    spoil(codes=lambda readings: readings.codes[:1])
    for number in range(4):
        multiply(tester, np.full((2, 8), number), np.ones(1, np.float32))
    writer.close("completed", {})
    found = content(writer.path)
    assert (found["count"], found["done"]) == ([1, 2, 2, 2, 2], [1] * 5)


def test_codes_of_a_wider_type_are_stored_in_the_converters_type_every_time(make: Make) -> None:
    tester, writer = make()
    for _ in range(3):
        wide = Vectors(LINES.astype(np.int64)[None], np.ones(1, np.float32))
        tester.mvm(tester.regions()[0], wide, Direction.FORWARD, 0)
    writer.close("completed", {})
    assert content(writer.path)["mvm/inputs"] == [*range(8)] * 3


def failing(error: Exception) -> Callable[..., Any]:
    def fail(*_: Any) -> None:
        raise error

    return fail


def test_of_an_operation_that_failed_there_is_no_output(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    tester, writer = make()
    cells = Cells.of(0, LINES, LINES)
    for _ in range(2):
        multiply(tester, LINES)
        tester.read(cells)
    monkeypatch.setattr(TwinTester, "mvm", failing(TesterError("no reply")))
    monkeypatch.setattr(TwinTester, "read", failing(TesterError("no reply")))
    with pytest.raises(TesterError, match="no reply"):
        multiply(tester, LINES)
    with pytest.raises(TesterError, match="no reply"):
        tester.read(cells)
    writer.close("failed", {})
    found = content(writer.path)
    assert found["status"] == [0, 0, 0, 0, 2, 2]
    assert (found["offset"][-2:], found["output_offset"][-2:]) == ([16, 16], [0, 0])


def test_a_unit_that_changes_is_told_at_once(make: Make, spoil: Callable[..., None]) -> None:
    tester, writer = make()
    for _ in range(3):
        multiply(tester, LINES)
    spoil(offset=1)
    with pytest.raises(TesterError, match="mend the driver"):
        multiply(tester, LINES)
    writer.close("failed", {})
    assert content(writer.path)["status"] == [0, 0, 0, 2]


@pytest.mark.parametrize("told", [True, False])
def test_an_answer_whose_numbers_do_not_fit_is_of_unknown_status(
    told: bool, make: Make, spoil: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    tester, writer = make()
    answers = [multiply(tester, LINES).op_id for _ in range(3)]
    spoil(saturated=-1)
    multiply(tester, LINES)
    spoil()
    with monkeypatch.context() as patch:
        patch.setattr(TwinTester, "wait", lambda *_: Receipt(5, 5, Status.COMPLETE, 2**32))
        tester.wait(7.0)
    answers.append(multiply(tester, LINES).op_id)
    if told:
        with pytest.raises(TesterError, match=r"WAIT: .* numbers that do not fit into the log .*: mend the driver"):
            writer.take_up()
        writer.take_up()  # once
    answers.append(multiply(tester, LINES).op_id)
    writer.close("failed", {})
    found = content(writer.path)
    assert found["op_id"] == [*answers[:3], -1, -1, *answers[3:]]
    assert found["status"] == [0, 0, 0, 2, 2, 0, 0]
    assert (found["mvm/inputs"], found["wait/seconds"]) == ([*range(8)] * 6, [7.0])
    assert found["output_offset"] == [0, 4, 8, 0, 0, 12, 16]
    with Run.open(writer.path) as run:
        assert [text.partition(":")[0] for _, text in run.messages] == ["MVM_FORWARD", "WAIT"]
        assert run.state == "failed"


def test_a_digest_has_no_outputs(make: Make) -> None:
    tester, writer = make(log="digest")
    for _ in range(3):
        multiply(tester, LINES)
    writer.close("completed", {})
    found = content(writer.path)
    assert (found["offset"], found["output_offset"], found["scale_offset"]) == ([0, 1, 2], [0] * 3, [0] * 3)


@pytest.mark.parametrize("place", ["gather", "sort"])
def test_a_failure_of_the_file_loses_none_and_doubles_none(
    place: str, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    tester, writer = make()
    operate(tester, 15)
    before = writer.operations
    with monkeypatch.context() as patch:
        patch.setattr(columns, "ROW_BUFFER", 1)
        owner = Column if place == "gather" else columns.Table
        patch.setattr(owner, place, failing(StorageError("full")))
        with pytest.raises(StorageError, match="full"):
            writer.take_up()
    assert writer.operations == before
    writer.close("failed", {})
    whole, other = make()
    operate(whole, 15)
    other.close("completed", {})
    assert content(writer.path) == content(other.path)


@pytest.mark.parametrize("place", ["add", "gather", "pack"])
def test_ctrl_c_amid_putting_them_loses_none_and_doubles_none(
    place: str, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    tester, writer = make()
    operate(tester, 15)
    writer.flush()
    before = writer.operations
    operate(tester, 15)
    struck: list[bool] = []

    def strike(real: Callable[..., Any]) -> Callable[..., Any]:
        def struck_at(*arguments: Any) -> Any:
            if not struck:
                struck.append(True)
                signal.raise_signal(signal.SIGINT)
            return real(*arguments)

        return struck_at

    if place == "pack":
        monkeypatch.setattr(waiting, "pack_places", strike(waiting.pack_places))
    else:
        monkeypatch.setattr(Column, place, strike(getattr(Column, place)))
    with pytest.raises(KeyboardInterrupt):
        writer.take_up()
    assert struck
    assert writer.waiting.entries == []
    operate(tester, 15)
    assert writer.operations == 3 * before
    writer.close("completed", {})
    whole, other = make()
    for _ in range(3):
        operate(whole, 15)
    other.close("completed", {})
    assert content(writer.path) == content(other.path)


def test_products_are_flushed_at_least_once_a_second(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """However few they are."""
    tester, writer = make()
    for _ in range(2):
        multiply(tester, LINES)
    writer.flush()
    now = writer.flushed_ns
    for seconds, left in ((0.5, 1), (1.5, 0), (-3600, 0)):
        at = now + int(seconds * 1e9)
        for module in (recording, runfile):
            monkeypatch.setattr(module, "time_ns", lambda at=at: at)
        multiply(tester, LINES)
        assert len(writer.waiting.entries) == left
    monkeypatch.undo()
    writer.close("completed", {})
