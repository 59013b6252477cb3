"""The history of cells, products and weights is what the log holds, operation by operation."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from hil.bench import connect
from hil.data import history, log, log_columns, waiting
from hil.data.recorded import Recorded
from hil.data.recording import RecordingTester
from hil.data.resumed import ResumedWriter
from hil.data.run import LoggedOperation, Run
from hil.data.runfile import RunWriter
from hil.data.schema import Start
from hil.protocols.errors import DataError, InputError
from hil.protocols.messages import (
    Block,
    Cells,
    Direction,
    Operation,
    PulseBatch,
    PulseShape,
    PulseTrains,
    Readings,
    Receipt,
    Region,
    Status,
    Vectors,
)

SIZE = 12  # word lines and bit lines of either array
ROWS = 16  # operations in a small block
TESTER = f"twin:pcm-analog?arrays=2&rows={SIZE}&columns={SIZE}"
SHAPE = PulseShape(90e-6, 50e-9)


def start(log: str = "full") -> Start:
    tester = connect(TESTER, np.random.SeedSequence(1))
    return Start({}, "", (), 1, {}, {}, None, {}, tester.identify(), tester.capabilities(), log)


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[RunWriter]:
    opened = RunWriter.create(tmp_path / "run.h5", start())
    yield opened
    opened.close("completed", {})


def read_back(writer: RunWriter) -> Run:
    writer.close("completed", {})
    return Run.open(writer.path)


def program(
    writer: RunWriter, kind: Operation, cells: Cells, counts: Any, status: Status = Status.COMPLETE, done: int = 0
) -> None:
    """Log pulses; of unknown status without an answer."""
    row = writer.operations
    receipt = None if status == Status.UNKNOWN else Receipt(row, 1000 * row, status, done)
    payload = cells.array, cells.row, cells.column, np.array(counts, np.uint16)
    writer.operation(kind, payload, receipt, len(cells), done, shape=writer.shape(SHAPE))


def read(writer: RunWriter, cells: Cells, codes: Any, failed: bool = False) -> None:
    """Log readings of as many cells as there are codes."""
    row = writer.operations
    status = Status.COMPLETE if len(codes) == len(cells) else Status.PARTIAL
    readings = Readings(row, 1000 * row, np.array(codes, np.uint8), "S", 0.5, 10, 0, status)
    writer.check_readings(Operation.READ, -1, readings)
    lines = cells.array, cells.row, cells.column
    payload, answer = (lines, None) if failed else ((*lines, readings.codes), readings)
    writer.operation(Operation.READ, payload, answer, len(cells), len(codes))


def wait(writer: RunWriter, time_ns: int | None) -> None:
    receipt = None if time_ns is None else Receipt(1, time_ns, Status.COMPLETE, 1)
    writer.operation(Operation.WAIT, [np.ones(1)], receipt, 1, 1)


def write_long(path: Path) -> Path:
    """Some hundred random operations on a twin, by a writer that is reopened once."""
    rng = np.random.default_rng(1)
    twin = connect(TESTER, np.random.SeedSequence(1))
    lines = np.arange(4, dtype=np.uint16)
    for columns in (2 * lines, 3 * lines):
        twin.register([Block(0, lines, columns, columns + 1, 0, 0), Block(1, lines, columns, columns + 1, 4, 0)])
    for part in range(2):
        writer = RunWriter.reopen(path, {}) if part else RunWriter.create(path, start())
        tester = RecordingTester(twin, writer)
        for _ in range(200):
            operate(tester, rng)
        writer.close("completed", {})
    return path


@pytest.fixture(scope="module")
def long_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_long(tmp_path_factory.mktemp("long") / "run.h5")


@pytest.fixture(scope="module")
def marked_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a mark for each few operations."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(waiting, "OPERATION_CHUNK", ROWS)
        patch.setattr(log_columns, "OPERATION_CHUNK", ROWS)
        return write_long(tmp_path_factory.mktemp("marked") / "run.h5")


@pytest.fixture
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (history, log):
        monkeypatch.setattr(module, "BLOCK", 16)
        monkeypatch.setattr(module, "ROWS", ROWS)


@pytest.fixture(params=["in one block", "in small blocks", "with marks"])
def long_run(request: pytest.FixtureRequest, long_path: Path) -> Iterator[Run]:
    path = long_path
    if request.param != "in one block":
        request.getfixturevalue("_small_blocks")
    if request.param == "with marks":
        path = request.getfixturevalue("marked_path")
    with Run.open(path) as run:
        yield run


def operate(tester: RecordingTester, rng: np.random.Generator) -> None:
    count = int(rng.integers(1, 30))
    cells = Cells.of(*(rng.integers(0, size, count) for size in (2, SIZE, SIZE)))
    chip = tester.capabilities()
    match rng.integers(5):
        case 0:
            tester.read(cells)
        case 1:
            tester.program(PulseBatch(cells, Operation.SET, rng.integers(1, 4, count, np.uint16), chip.set_pulse))
        case 2:
            tester.program(PulseBatch(cells, Operation.RESET, np.ones(count, np.uint16), chip.reset_pulse))
        case 3:
            region, direction = tester.regions()[rng.integers(2)], Direction(int(rng.integers(2)))
            codes = rng.integers(-127, 128, (count % 4 + 1, region.inputs(direction)), np.int8)
            tester.mvm(region, Vectors(codes, rng.random(len(codes), np.float32)), direction, int(rng.integers(2)))
        case 4:
            tester.wait(1e-3)


def operations(run: Run) -> list[tuple[int, LoggedOperation]]:
    return [(row, run.operation(row)) for row in range(run.operations.rows)]


def on_cell(cells: Cells, cell: tuple[int, int, int]) -> Any:
    return np.nonzero((cells.array == cell[0]) & (cells.row == cell[1]) & (cells.column == cell[2]))[0]


CELLS = [(0, 3, 4), (1, 3, 7), (1, SIZE - 1, SIZE - 1)]


@pytest.mark.parametrize("cell", CELLS)
def test_the_pulses_on_a_cell_are_those_of_each_operation(cell: tuple[int, int, int], long_run: Run) -> None:
    expected = [
        (row, operation.device_time_ns, operation.kind == Operation.RESET, int(operation.request.counts[place]))
        for row, operation in operations(long_run)
        if isinstance(operation.request, PulseBatch)
        for place in on_cell(operation.request.cells, cell)
    ]
    pulses = long_run.pulses(*cell)
    found = zip(pulses.operation, pulses.time_ns, pulses.reset, pulses.count, strict=True)
    assert list(found) == expected
    assert expected
    assert [part.dtype.str for part in (pulses.count, pulses.reset)] == ["<u2", "|b1"]


@pytest.mark.parametrize("cell", CELLS)
def test_the_readings_of_a_cell_are_those_of_each_operation(cell: tuple[int, int, int], long_run: Run) -> None:
    expected = [
        (row, operation.device_time_ns, operation.answer.values()[place])
        for row, operation in operations(long_run)
        if isinstance(operation.request, Cells) and isinstance(operation.answer, Readings)
        for place in on_cell(operation.request, cell)
    ]
    readings = long_run.readings(*cell)
    assert list(zip(readings.operation, readings.time_ns, readings.value, strict=True)) == expected
    assert expected


def test_marks_are_the_lengths_of_the_streams_after_each_so_many_operations(marked_path: Path) -> None:
    with Run.open(marked_path) as run, h5py.File(marked_path) as file:
        kind, count = (run.operations[name][:] for name in ("kind", "count"))
        for name, kinds in (("read", history.READ), ("program", history.PROGRAM)):
            lengths = np.cumsum(np.where(np.isin(kind, kinds), count, 0))
            assert file[f"marks/{name}/values"][:].tolist() == lengths[ROWS - 1 :: ROWS].tolist()


def without(file: Any) -> None:
    del file["marks"]


def shortened(file: Any) -> None:
    for name in ("read", "program"):
        file[f"marks/{name}/values"].resize((7,))
        file[f"marks/{name}/tail_range"][:] = 7


@pytest.mark.usefixtures("_small_blocks")
@pytest.mark.parametrize("edit", [without, shortened])
@pytest.mark.parametrize("goes_on", [False, True])
def test_a_file_that_lacks_marks_has_the_same_history(
    edit: Callable[[Any], None], goes_on: bool, marked_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.h5"
    shutil.copyfile(marked_path, path)
    with h5py.File(path, "r+") as file:
        edit(file)
    if goes_on:
        monkeypatch.setattr(waiting, "OPERATION_CHUNK", ROWS)
        writer = RunWriter.reopen(path, {})
        for _ in range(3 * ROWS):
            wait(writer, 0)
        writer.close("completed", {})
    with Run.open(marked_path) as original, Run.open(path) as run:
        for cell in CELLS:
            assert run.pulses(*cell).operation.tolist() == original.pulses(*cell).operation.tolist()
            assert run.readings(*cell).value.tolist() == original.readings(*cell).value.tolist()


@pytest.mark.usefixtures("_small_blocks")
def test_the_elements_on_either_side_of_a_mark_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "OPERATION_CHUNK", ROWS)
    writer = RunWriter.create(tmp_path / "run.h5", start())
    for row in range(2 * ROWS + 1):
        read(writer, Cells.of(0, *([part] for part in divmod(row, SIZE))), [20])
    with read_back(writer) as run:
        for row in range(2 * ROWS + 1):
            assert run.readings(0, *divmod(row, SIZE)).operation.tolist() == [row]


@pytest.mark.usefixtures("_small_blocks")
def test_marks_out_of_order_are_refused(marked_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    shutil.copyfile(marked_path, path)
    with h5py.File(path, "r+") as file:
        file["marks/read/values"][3] = 10**9
    with Run.open(path) as run, pytest.raises(DataError, match="marks do not ascend"):
        run.readings(*CELLS[0])


@pytest.mark.usefixtures("_small_blocks")
def test_with_marks_only_blocks_with_operations_on_the_cell_are_read(marked_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    shutil.copyfile(marked_path, path)
    with Run.open(path) as run:
        read = {int(row) // ROWS for row in run.readings(*CELLS[0]).operation}
    with h5py.File(path, "r+") as file:
        for block in set(range(400 // ROWS)) - read:
            file["operations/kind/values"].id.write_direct_chunk((block * ROWS,), b"damaged")
    with Run.open(path) as run:
        assert len(run.readings(*CELLS[0]).operation) >= len(read) > 0
        with pytest.raises(DataError, match="operations/kind cannot be read"):
            run.pulse_counts()


@pytest.mark.parametrize("at", [None, 0, 100, 400])
def test_the_state_of_the_array_is_that_of_its_cells_before_a_row(at: int | None, long_run: Run) -> None:
    sets, resets = long_run.pulse_counts(at)
    known = long_run.conductances(at)
    assert sets.shape == known.value.shape == (2, SIZE, SIZE)
    stop = 400 if at is None else at
    for cell in list(np.ndindex(sets.shape))[::23]:
        pulses, readings = long_run.pulses(*cell), long_run.readings(*cell)
        earlier = pulses.operation < stop
        assert sets[cell] == pulses.count[earlier & ~pulses.reset].sum()
        assert resets[cell] == pulses.count[earlier & pulses.reset].sum()
        read = np.nonzero(readings.operation < stop)[0]
        read_at = readings.operation[read[-1]] if len(read) else -1
        assert known.read_at[cell] == read_at
        np.testing.assert_equal(known.value[cell], readings.value[read[-1]] if len(read) else np.nan)
        since = earlier & (pulses.operation > read_at)
        assert known.set_pulses[cell] == pulses.count[since & ~pulses.reset].sum()
        assert known.reset[cell] == (since & pulses.reset).any()


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize(("first", "stop"), [(0, None), (57, 203), (9, 9)])
def test_products_are_those_of_each_operation(
    direction: Direction, first: int, stop: int | None, long_run: Run
) -> None:
    kind = (Operation.MVM_FORWARD, Operation.MVM_BACKWARD)[direction]
    asked = [
        (row, operation)
        for row, operation in operations(long_run)[first:stop]
        if operation.kind == kind and operation.region is not None and operation.region.handle == 1
    ]
    products = long_run.products(1, direction, first, stop)
    region = long_run.regions[1]
    empty = (np.empty((0, region.inputs(direction))), np.empty(0), np.empty((0, region.outputs(direction))))
    requests = [operation.request for _, operation in asked if isinstance(operation.request, Vectors)]
    answers = [operation.answer for _, operation in asked if isinstance(operation.answer, Readings)]
    np.testing.assert_array_equal(products.inputs, np.concatenate([empty[0], *(request.codes for request in requests)]))
    np.testing.assert_array_equal(products.scale, np.concatenate([empty[1], *(request.scale for request in requests)]))
    np.testing.assert_array_equal(products.outputs, np.concatenate([empty[2], *(answer.codes for answer in answers)]))
    np.testing.assert_array_equal(
        products.values(), np.concatenate([empty[2].astype(np.float32), *(answer.values() for answer in answers)])
    )
    sizes = [len(request.codes) for request in requests]
    np.testing.assert_array_equal(products.operation, np.repeat([row for row, _ in asked], sizes))
    times = [operation.device_time_ns for _, operation in asked]
    np.testing.assert_array_equal(products.time_ns, np.repeat(times, sizes))


def test_pulses_of_unknown_fate_count_as_sent_and_of_a_broken_operation_those_applied(writer: RunWriter) -> None:
    cells = Cells.of(0, [1, 2, 1, 3], 5)
    program(writer, Operation.SET, cells, [2, 3, 4, 5], Status.UNKNOWN)
    program(writer, Operation.SET, cells, [2, 3, 4, 5], Status.PARTIAL, 6)
    program(writer, Operation.RESET, cells, [2, 3, 4, 5], Status.PARTIAL, 2)
    program(writer, Operation.SET, cells, [2, 3, 4, 5], Status.COMPLETE, 14)
    with read_back(writer) as run:
        one, two, three = (run.pulses(0, row, 5) for row in (1, 2, 3))
        assert one.operation.tolist() == [0, 0, 1, 1, 2, 3, 3]
        assert one.count.tolist() == [2, 4, 2, 1, 2, 2, 4]
        assert one.time_ns.tolist() == [-1, -1, 1000, 1000, 2000, 3000, 3000]
        assert one.reset.tolist() == [False] * 4 + [True] + [False] * 2
        assert (two.operation.tolist(), two.count.tolist()) == ([0, 1, 3], [3, 3, 3])
        assert (three.operation.tolist(), three.count.tolist()) == ([0, 3], [5, 5])
        sets, resets = run.pulse_counts()
        assert sets[0, 1:4, 5].tolist() == [15, 9, 10]
        assert resets[0, 1:4, 5].tolist() == [2, 0, 0]
        assert run.conductances().reset[0, 1:4, 5].tolist() == [True, False, False]


def test_only_what_was_answered_is_a_reading(writer: RunWriter) -> None:
    cells = Cells.of(1, 4, [1, 2, 3])
    read(writer, cells, [20, 21, 22])
    read(writer, cells, [], failed=True)
    program(writer, Operation.SET, cells, [1, 1, 1])
    read(writer, cells, [30, 31])
    with read_back(writer) as run:
        assert run.readings(1, 4, 1).value.tolist() == [5.0, 10.0]
        assert run.readings(1, 4, 3).operation.tolist() == [0]
        known = run.conductances()
        assert known.value[1, 4, 1:4].tolist() == [10.0, 10.5, 6.0]
        assert known.read_at[1, 4, 1:4].tolist() == [3, 3, 0]
        assert known.set_pulses[1, 4, 1:4].tolist() == [0, 0, 1]


def test_payload_without_an_operation_belongs_to_none(writer: RunWriter) -> None:
    cells = Cells.of(0, 0, [0, 1])
    program(writer, Operation.SET, cells, [1, 1])
    writer.flush()
    for name in ("array", "row", "column", "counts"):
        writer.streams[f"program/{name}"].append(np.zeros(5, np.uint16))
    program(writer, Operation.SET, cells, [1, 1])
    with read_back(writer) as run:
        assert run.pulses(0, 0, 0).operation.tolist() == [0, 1]
        assert run.pulse_counts()[0].sum() == 4


def test_the_row_of_a_time_is_the_first_beyond_it_whatever_failed(writer: RunWriter) -> None:
    for time_ns in (None, 10, 20, None, None, 30, 30, None):
        wait(writer, time_ns)
    with read_back(writer) as run:
        rows = [run.operation_at(time_ns * 1e-9) for time_ns in (0, 9.9, 10, 20, 29, 30, 1e9)]
        assert rows == [1, 1, 2, 5, 5, 8, 8]
        with pytest.raises(InputError, match="a device time of nan s"):
            run.operation_at(float("nan"))


def test_weights_are_told_from_the_readings_of_their_devices(writer: RunWriter) -> None:
    plus, minus = Cells.of(0, [0, 0, 1, 1, 2, 2], [0, 2] * 3), Cells.of(1, [0, 0, 1, 1, 2, 2], [1, 3] * 3)
    arrays: dict[str, Any] = {}
    for side, cells in (("plus", plus), ("minus", minus)):
        arrays |= {f"{side}_array": cells.array, f"{side}_row": cells.row, f"{side}_column": cells.column}
    attrs = {"rows": 3, "columns": 2, "scale": 2.0, "unit_siemens": 0.25}
    for name in ("layer10", "layer2", "chi"):
        writer.snapshot(name, arrays, dict.fromkeys(arrays, ""), attrs)
    read(writer, plus, [20, 22, 24, 26, 28, 30])
    read(writer, minus, [10, 12, 10, 12, 10, 12])
    read(writer, minus, [10] * 6)
    with read_back(writer) as run:
        assert run.layers == ("layer2", "layer10")
        g_plus, g_minus = run.layer_conductances("layer2", 2)
        assert g_plus.tolist() == [[5, 6], [7, 8], [9, 10]]
        assert g_minus.tolist() == [[0, 1]] * 3
        np.testing.assert_array_equal(run.weights("layer2"), 8 * g_plus)
        assert run.weights("layer2").dtype == np.float32
        assert np.isnan(run.weights("layer10", 1)).all()
        with pytest.raises(InputError, match=r"no layer 'chi'; there is: layer2, layer10"):
            run.weights("chi")


@pytest.mark.parametrize("tester", [True, False])
def test_an_empty_run_has_an_empty_history(tester: bool, tmp_path: Path) -> None:
    given = start() if tester else Start({}, "", (), 1, {}, {}, None, {}, None, None)
    writer = RunWriter.create(tmp_path / "run.h5", given)
    if tester:
        writer.region(Region(0, (Block(0, np.arange(3, dtype=np.uint16), np.arange(2, dtype=np.uint16), None, 0, 0),)))
    with read_back(writer) as run:
        shape = (2, SIZE, SIZE) if tester else (0, 0, 0)
        assert run.conductances().value.shape == run.pulse_counts(0)[1].shape == shape
        assert (run.operation_at(1.0), run.layers) == (0, ())
        if tester:
            pulses, readings = run.pulses(0, 0, 0), run.readings(0, 0, 0)
            assert [len(part) for part in (pulses.operation, pulses.count, readings.value)] == [0, 0, 0]
            assert [part.dtype.str for part in (pulses.count, readings.value)] == ["<u2", "<f4"]
            products = run.products(0, Direction.FORWARD)
            assert (products.inputs.shape, products.values().shape, products.scale.shape) == ((0, 3), (0, 2), (0,))


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda run: run.pulses(2, 0, 0), rf"\(2, 0, 0\) is outside the chip of \(2, {SIZE}, {SIZE}\)"),
        (lambda run: run.readings(0, 0, SIZE), "outside the chip"),
        (lambda run: run.readings(0, -1, 0), "outside the chip"),
        (lambda run: run.conductances(2), "at 2: .* has 1 operations: give 0 to 1"),
        (lambda run: run.pulse_counts(-1), "at -1: .* has 1 operations"),
        (lambda run: run.products(3, Direction.FORWARD), "no region 3; there is: 0"),
        (lambda run: run.products(0, Direction.FORWARD, 0, 9), "stop 9: .* has 1 operations"),
        (lambda run: run.products(0, Direction.FORWARD, 5), "start 5: .* has 1 operations"),
        (lambda run: run.weights("layer1"), "no layer 'layer1'; there is: none"),
    ],
)
def test_what_a_run_does_not_have_is_told(ask: Callable[[Run], object], said: str, writer: RunWriter) -> None:
    writer.region(Region(0, (Block(0, np.arange(3, dtype=np.uint16), np.arange(2, dtype=np.uint16), None, 0, 0),)))
    wait(writer, 5)
    with read_back(writer) as run, pytest.raises(InputError, match=said):
        ask(run)


def test_a_digest_holds_no_products(tmp_path: Path) -> None:
    writer = RunWriter.create(tmp_path / "run.h5", start("digest"))
    tester = RecordingTester(connect(TESTER, np.random.SeedSequence(1)), writer)
    lines = np.arange(4, dtype=np.uint16)
    region = tester.register([Block(0, lines, lines, lines + 4, 0, 0)])
    tester.mvm(region, Vectors(np.ones((1, 4), np.int8), np.ones(1, np.float32)), Direction.FORWARD, 0)
    with read_back(writer) as run, pytest.raises(InputError, match="its log is a digest"):
        run.products(0, Direction.FORWARD)


def test_pulses_by_cell_are_refused_where_parallel_updates_hide_some(writer: RunWriter) -> None:
    trains = PulseTrains(np.ones((1, 2), np.uint8), np.ones((1, 2), np.uint8), 1)
    receipt = Receipt(1, 1, Status.COMPLETE, 1)
    writer.operation(Operation.UPDATE, [trains.rows], receipt, 1, 1, region=0, polarity=1)
    with read_back(writer) as run:
        for ask in (lambda: run.pulses(0, 0, 0), run.pulse_counts, run.conductances):
            with pytest.raises(InputError, match="holds parallel updates"):
                ask()
        assert len(run.readings(0, 0, 0).value) == 0


@pytest.mark.usefixtures("_small_blocks")
@pytest.mark.parametrize("rows", [ROWS - 1, ROWS, ROWS + 1])
def test_marks_are_right_after_a_failed_operation_was_forgotten(
    rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "OPERATION_CHUNK", ROWS)
    path = tmp_path / "run.h5"
    first = RunWriter.create(path, start())
    for row in range(rows - 1):
        read(first, Cells.of(0, row, 1), [20])
    read(first, Cells.of(0, 1, 2), [20], failed=True)
    first.close("failed", {})
    writer = ResumedWriter.reopen(path, {})
    assert writer.forget_failed(Run(path, writer.view()))
    view = Run(path, writer.view())
    (position := Recorded(view)).next = rows - 1
    writer.retrace(view, position)
    for row in range(rows - 1, 2 * ROWS):
        read(writer, Cells.of(0, row, 1), [20])
    writer.close("completed", {})
    with Run.open(path) as run:
        assert run.log.marks("read").tolist() == [ROWS, 2 * ROWS]
