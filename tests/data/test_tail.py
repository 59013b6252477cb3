"""What was logged since the last flush survives the process, wherever the tail ends, and is brought in once."""

import io
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest

from hil.data import columns, log_columns
from hil.data.column_reader import ColumnReader
from hil.data.merging import merge_tail
from hil.data.reference import Reference
from hil.data.run import Run
from hil.data.runfile import RunWriter
from hil.data.schema import NONE, OPERATIONS, STREAMS, Start
from hil.data.status import status_path
from hil.data.tail import Tail, TailedColumn, read_tail, tail_path
from hil.protocols.errors import DataError, InputError, ReplayError, StorageError
from hil.protocols.messages import Block, Operation, PulseBatch, PulseShape, Readings, Receipt, Region, Status

START = Start({}, "", (), 1, {}, {}, None, {}, None, None, outlives=True)
REGION = Region(0, (Block(0, np.arange(3, dtype=np.uint16), np.arange(2, dtype=np.uint16), None, 0, 0),))
Make = Callable[..., RunWriter]


def log(writer: RunWriter, number: int) -> None:
    """Operation `number`: every third a read, every third SETs of a new shape, every third a wait with a message."""
    cells = np.arange(number, number + 2, dtype=np.uint16)
    if number % 3 == 0:
        readings = Readings(number, number, cells.astype(np.uint8), "S", 1e-7, 20, 0)
        writer.check_readings(Operation.READ, NONE, readings)
        writer.operation(Operation.READ, [cells, cells, cells, readings.codes], readings, 2, 2)
    elif number % 3 == 1:
        receipt = Receipt(number, number, Status.COMPLETE, 2)
        shape = writer.shape(PulseShape(number * 1e-6, 1e-9))
        writer.operation(Operation.SET, [cells, cells, cells, cells], receipt, 2, 2, shape=shape)
    else:
        writer.message(f"before {number}")
        receipt = Receipt(number, number, Status.COMPLETE, 1)
        writer.operation(Operation.WAIT, [np.array([float(number)])], receipt, 1, 1)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Makes a writer at `RUN.h5`; closed in the end."""
    made: list[RunWriter] = []

    def create(name: str = "run.h5", **options: Any) -> RunWriter:
        made.append(RunWriter.create(tmp_path / name, START, **options))
        return made[-1]

    yield create
    for writer in made:
        writer.close("completed", {})


def killed(writer: RunWriter, name: str = "killed.h5") -> Path:
    """A copy of the run file and its tail, as a kill would leave them now."""
    copy = writer.path.with_name(name)
    shutil.copyfile(writer.path, copy)
    shutil.copyfile(tail_path(writer.path), tail_path(copy))
    return copy


def content(path: Path) -> dict[str, npt.NDArray[Any]]:
    """All columns and tables but the times of day."""
    tables = {"shapes": ("amplitude", "width"), "readings": ("kind", "scale", "unit"), "messages": ("offset", "size")}
    names = {f"operations/{field.name}" for field in OPERATIONS} | STREAMS.keys()
    names |= {f"{group}/{name}" for group, members in tables.items() for name in members}
    with h5py.File(io.BytesIO(path.read_bytes())) as file:  # which is not locked
        return {name: ColumnReader(file[name])[:] for name in names - {"operations/host_time_ns"} if name in file}


def assert_same(path: Path, other: Path) -> None:
    found, expected = content(path), content(other)
    for name in found.keys() | expected.keys():
        np.testing.assert_array_equal(found.get(name, []), expected.get(name, []), err_msg=name)


def test_everything_logged_since_the_last_flush_is_brought_in(make: Make) -> None:
    writer = make()
    for number in range(9):
        log(writer, number)
    cut = killed(writer)
    assert len(content(cut)["operations/op_id"]) == 0
    with Run.open(cut) as run:
        assert [run.operation(row).op_id for row in range(9)] == list(range(9))
        request = run.operation(4).request
        assert isinstance(request, PulseBatch)
        assert request.shape == PulseShape(4e-6, 1e-9)
        assert [text for _, text in run.messages] == ["before 2", "before 5", "before 8"]
    assert not tail_path(cut).exists()
    assert not status_path(cut).exists()
    writer.flush()
    assert_same(cut, writer.path)


def test_a_torn_tail_gives_the_whole_operations_before(make: Make) -> None:
    writer = make()
    ends = [0]
    for number in range(4):
        log(writer, number)
        ends.append(tail_path(writer.path).stat().st_size)
    cut = killed(writer)
    base, tail = cut.read_bytes(), tail_path(cut).read_bytes()
    writer.flush()
    whole = content(writer.path)
    records = list(read_tail(cut, writer.status["run_id"]))
    for size in range(len(tail) + 1):
        tail_path(cut).write_bytes(tail[:size])
        operations = 4 - sum(end > size for end in ends)
        read = list(read_tail(cut, writer.status["run_id"]))
        assert read == records[: len(read)]
        assert sum(piece.name == "operations" for record in read for piece in record) == operations
        if {size - 1, size, size + 1} & set(ends):
            cut.write_bytes(base)
            assert merge_tail(cut)
            ids = content(cut)["operations/op_id"]
            np.testing.assert_array_equal(ids, whole["operations/op_id"][:operations])


def test_a_damaged_record_and_what_follows_is_left_out(make: Make) -> None:
    writer = make()
    log(writer, 0)
    size = tail_path(writer.path).stat().st_size
    for number in (1, 3, 4):
        log(writer, number)
    cut = killed(writer)
    base, tail = cut.read_bytes(), tail_path(cut).read_bytes()
    for position in range(size, size + 200, 11):
        damaged = bytearray(tail)
        damaged[position] ^= 4
        cut.write_bytes(base)
        tail_path(cut).write_bytes(damaged)
        assert merge_tail(cut)
        assert content(cut)["operations/op_id"].tolist() == [0], position


def test_what_the_file_has_already_is_skipped(make: Make) -> None:
    """Killed between the commit of a flush and the emptying of the tail."""
    writer = make()
    for number in range(7):
        log(writer, number)
    before = killed(writer, "before.h5")
    writer.flush()
    half, tail = writer.path.with_name("half.h5"), tail_path(before).read_bytes()
    shutil.copyfile(writer.path, half)
    tail_path(half).write_bytes(tail)
    assert merge_tail(half)
    assert_same(half, writer.path)
    for number in range(7, 9):
        log(writer, number)
    mixed = killed(writer, "mixed.h5")
    tail_path(mixed).write_bytes(tail + tail_path(mixed).read_bytes())
    assert merge_tail(mixed)
    writer.flush()
    assert_same(mixed, writer.path)


def test_a_run_that_stopped_is_not_changed(make: Make) -> None:
    """Killed between the commit of the stop and the removal of the tail."""
    writer = make()
    log(writer, 0)
    tail = tail_path(writer.path).read_bytes()
    writer.close("completed", {})
    tail_path(writer.path).write_bytes(tail)
    before = writer.path.read_bytes()
    assert merge_tail(writer.path)
    assert writer.path.read_bytes() == before
    assert not tail_path(writer.path).exists()


def test_part_of_a_piece_that_is_there_is_skipped(make: Make) -> None:
    writer = make()
    writer.streams["wait/seconds"].append(np.arange(3.0))
    writer.flush()
    path = killed(writer)
    tail = Tail(path, writer.status["run_id"])
    tail.open()
    tail.add("wait/seconds", 1, "<f8", np.arange(1.0, 5.0).tobytes())
    tail.write()
    tail.close()
    assert merge_tail(path)
    assert content(path)["wait/seconds"].tolist() == [0, 1, 2, 3, 4]


def test_a_gap_ends_it(make: Make) -> None:
    writer = make()
    log(writer, 0)
    old = killed(writer)
    merge_tail(old)
    for number in (1, 2, 3):
        log(writer, number)
    writer.flush()
    for number in (4, 5):
        log(writer, number)
    shutil.copyfile(tail_path(writer.path), tail_path(old))
    before = content(old)
    assert merge_tail(old)
    assert content(old)["operations/op_id"].tolist() == [0]
    assert content(old).keys() == before.keys()  # nothing of the records that do not fit


def test_a_flush_empties_it_and_a_close_removes_it(make: Make) -> None:
    writer = make()
    for flush in (
        writer.flush,
        lambda: writer.region(REGION),
        lambda: writer.metrics({"a": 1.0}, {"a": ""}),
        lambda: writer.snapshot("s", {}, {}),
        lambda: writer.checkpoint({}, {}),
    ):
        log(writer, 0)
        assert tail_path(writer.path).stat().st_size > 0
        flush()
        assert tail_path(writer.path).stat().st_size == 0
    log(writer, 0)
    writer.close("completed", {})
    assert not tail_path(writer.path).exists()


def test_a_tail_of_another_run_is_not_applied(make: Make, tmp_path: Path) -> None:
    first, second = make(), make("second.h5")
    log(first, 0)
    cut = killed(second)
    shutil.copyfile(tail_path(first.path), tail_path(cut))
    assert merge_tail(cut)
    assert len(content(cut)["operations/op_id"]) == 0
    assert not tail_path(cut).exists()


@pytest.mark.parametrize("outlives", [True, False])
def test_a_new_run_removes_the_tail_of_an_older_one(make: Make, tmp_path: Path, outlives: bool) -> None:
    writer = make("old.h5")
    log(writer, 0)
    path = killed(writer)
    new = RunWriter.create(path, replace(START, outlives=outlives), overwrite=True)
    assert tail_path(path).exists() == outlives
    log(new, 5)
    new.close("completed", {})
    assert content(path)["operations/op_id"].tolist() == [5]


def test_a_refused_run_leaves_the_tail_of_the_older_one(make: Make) -> None:
    writer = make("old.h5")
    log(writer, 0)
    path = killed(writer)
    with pytest.raises(InputError, match="exists"):
        RunWriter.create(path, START)
    with Run.open(path) as run:
        assert run.operations.rows == 1


def test_a_run_that_is_being_written_is_left_alone(make: Make) -> None:
    writer = make()
    log(writer, 0)
    before = tail_path(writer.path).read_bytes()
    assert not merge_tail(writer.path)
    with pytest.raises(DataError, match="being written"):
        Run.open(writer.path)
    assert tail_path(writer.path).read_bytes() == before


def test_a_folder_that_cannot_be_written_is_left_alone(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = make()
    log(writer, 0)
    path = killed(writer)
    before = path.read_bytes(), tail_path(path).read_bytes()
    monkeypatch.setattr(os, "access", lambda *_: False)
    with Run.open(path) as run:
        assert run.operations.rows == 0
    assert (path.read_bytes(), tail_path(path).read_bytes()) == before


def test_a_damaged_file_is_refused_and_keeps_its_tail(make: Make) -> None:
    writer = make()
    log(writer, 0)
    path = killed(writer)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(DataError):
        Run.open(path)
    assert tail_path(path).exists()


def test_a_tail_of_another_version_is_refused_with_its_name(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = make()
    log(writer, 0)
    path = killed(writer)
    changed = (*OPERATIONS, replace(OPERATIONS[0], name="more"))
    monkeypatch.setitem(log_columns.TABLES, "operations", changed)
    with pytest.raises(DataError, match=r"killed\.h5\.tail: what it says of 'operations' is not known"):
        Run.open(path)
    assert tail_path(path).exists()


def test_a_resumed_run_begins_with_what_the_tail_held(make: Make) -> None:
    writer = make()
    for number in range(5):
        log(writer, number)
    path = killed(writer)
    resumed = RunWriter.reopen(path, {})
    assert resumed.outlives
    assert resumed.operations == 5
    log(resumed, 5)
    again = killed(resumed, "again.h5")
    resumed.close("completed", {})
    merge_tail(again)
    assert_same(again, path)


def test_long_streams_are_brought_in_over_many_chunks(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_columns, "CHUNK_BYTES", 64)
    monkeypatch.setattr(log_columns, "OPERATION_CHUNK", 16)
    monkeypatch.setattr(columns, "ROW_BUFFER", 200)
    writer = make()
    for number in range(100):
        log(writer, number)
        if number == 37:
            writer.flush()
    path = killed(writer)
    merge_tail(path)
    writer.flush()
    assert_same(path, writer.path)


@pytest.mark.parametrize(
    ("kind", "count", "said"),
    [(Operation.SET, 5, "SET of 5 cells"), (Operation.UPDATE, 8, "UPDATE of 8 slots"), (Operation.WAIT, 1, "WAIT")],
)
def test_what_was_announced_and_never_came_is_said(make: Make, kind: Operation, count: int, said: str) -> None:
    writer = make()
    log(writer, 0)
    writer.intend(Operation.SET, 2)
    log(writer, 1)
    writer.intend(kind, count)
    path = killed(writer)
    for _ in range(2):  # once
        with Run.open(path) as run:
            assert [text for _, text in run.messages] == [
                f"operation 2, {said}, was being sent when the run was cut; it is resolved by its id on resume"
            ]


def test_what_was_announced_and_came_is_not_said(make: Make) -> None:
    writer = make()
    writer.intend(Operation.SET, 2)
    log(writer, 1)
    with Run.open(killed(writer)) as run:
        assert run.messages == []


def test_a_remark_survives_with_its_operation_or_not_at_all(make: Make) -> None:
    writer = make()
    writer.remark("operation id 1 (SET of 2 cells) is uncertain: nobody knows what was done")
    with Run.open(killed(writer)) as run:
        assert run.messages == []
    log(writer, 1)
    with Run.open(killed(writer)) as run:
        assert len(run.messages) == run.operations.rows == 1


def test_one_operation_is_one_write(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    writer, real = make(), os.pwrite
    calls: list[int] = []

    def write(handle: int, data: Any, offset: int) -> int:
        calls.append(len(data))
        return real(handle, data, offset)

    monkeypatch.setattr(os, "pwrite", write)
    log(writer, 0)
    log(writer, 1)
    writer.intend(Operation.WAIT, 1)
    assert len(calls) == 3


def test_a_full_disk_leaves_whole_records(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = make()
    log(writer, 0)
    real = os.pwrite

    def full(handle: int, data: Any, offset: int) -> int:
        if len(data) < 20:
            raise OSError(28, "No space left on device")
        return real(handle, data[:20], offset)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(StorageError, match=r"run\.h5\.tail: cannot be written \(No space left on device\)"):
        log(writer, 1)
    monkeypatch.undo()
    with Run.open(killed(writer)) as run:
        assert run.operations.rows == 1


def test_a_run_on_a_tester_that_dies_with_the_process_keeps_none(tmp_path: Path) -> None:
    writer = RunWriter.create(tmp_path / "run.h5", replace(START, outlives=False))
    writer.intend(Operation.SET, 1)
    log(writer, 0)
    assert not tail_path(writer.path).exists()
    assert not any(isinstance(column, TailedColumn) for column in writer.streams.values())
    writer.close("completed", {})


def test_remarks_are_not_expected_of_a_run_that_is_done_again(make: Make) -> None:
    writer = make()
    for text in ("operation 0, WAIT", "stuck", "operation id 1", "operation id 2", "falling", "operation id 3"):
        writer.message(text)
    with Run.open(killed(writer)) as run:
        reference = Reference(run)
        assert reference.message("stuck")
        with pytest.raises(ReplayError, match="message 4 was 'falling', is 'rising'"):
            reference.message("rising")
        assert reference.said("messages") == 4
        assert reference.message("falling")
        assert reference.said("messages") is None
        assert not reference.message("more")
        reference.jump(0, 2)
        assert reference.message("falling")
