"""Exported tables hold the run's operations, cells, metrics and messages, and are there whole or not at all."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest

from hil import export
from hil.data.recording import RecordingTester
from hil.data.run import Run
from hil.data.runfile import RunWriter
from hil.data.schema import Start
from hil.export import export_tables
from hil.instruments.tester import ArrayTester
from hil.protocols.errors import DataError, InputError, StorageError, TesterError
from hil.protocols.messages import Cells, Operation, PulseBatch, Readings, Receipt, Status
from hil.train import Job, train

TABLES = ["messages", "metrics", "operations", "pulses", "readings"]


def cells(rng: np.random.Generator, count: int) -> Cells:
    places = rng.choice(64 * 64, count, replace=False)
    return Cells(np.ones(count, np.uint16), (places // 64).astype(np.uint16), (places % 64).astype(np.uint16))


def read_in_part(recorder: RecordingTester, tester: ArrayTester, asked: Cells, done: int) -> None:
    """A read that stops after `done` cells."""
    readings = tester.read(asked)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tester, "read", lambda _: replace(readings, codes=readings.codes[:done], status=Status.PARTIAL))
        recorder.read(asked)


def fail(*_: Any) -> None:
    raise TesterError("the link broke")


def read_and_program_in_vain(recorder: RecordingTester, tester: ArrayTester, pulses: PulseBatch) -> None:
    """A read and pulses at which the tester fails."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tester, "read", fail)
        patch.setattr(tester, "program", fail)
        with pytest.raises(TesterError):
            recorder.read(pulses.cells)
        with pytest.raises(TesterError):
            recorder.program(pulses)


def write(path: Path, tester: ArrayTester, start: Start) -> None:
    """Operations of all kinds on cells: whole, partial, failed and with cells that no operation names."""
    rng = np.random.default_rng(1)
    writer = RunWriter.create(path, replace(start, identity=tester.identify(), capabilities=tester.capabilities()))
    recorder = RecordingTester(tester, writer)
    can = tester.capabilities()
    for count in (5, 1, 12, 3):
        asked = cells(rng, count)
        for kind, shape in ((Operation.RESET, can.reset_pulse), (Operation.SET, can.set_pulse)):
            recorder.program(PulseBatch(asked, kind, rng.integers(1, 4, count).astype(np.uint16), shape))
        recorder.wait(0.5)
        recorder.read(asked)
        read_in_part(recorder, tester, cells(rng, 6), done=count % 5)
        writer.flush()
        for name in ("array", "row", "column"):  # as an interrupt between payload and row leaves them
            writer.streams[f"read/{name}"].append(np.array([9, 9], np.uint16))
    pulses = PulseBatch(cells(rng, 4), Operation.SET, np.full(4, 2, np.uint16), can.set_pulse)
    read_and_program_in_vain(recorder, tester, pulses)
    for epoch in range(3):
        writer.metrics({"status": epoch, "loss": 0.5**epoch}, {"status": "", "loss": "W"})
    writer.message("drift above 3 µS")
    writer.message("line\nline")
    writer.close("completed", {"images": 7})


@pytest.fixture
def path(tmp_path: Path, make_tester: Callable[..., ArrayTester], start: Start) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    write(folder / "run.h5", make_tester("ideal"), start)
    return folder / "run.h5"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "tables"


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(folder / f"{name}.parquet").to_pylist()
    return found


def expected_cells(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Pulses and readings, operation by operation, as the run decodes them."""
    pulses: list[dict[str, Any]] = []
    readings: list[dict[str, Any]] = []
    with Run.open(path) as run:
        for number in range(run.operations.rows):
            one = run.operation(number)
            about: dict[str, Any] = {
                "operation": number,
                "device_time_ns": None if one.answer is None else one.device_time_ns,
            }
            if isinstance(one.request, PulseBatch):
                about["kind"] = one.kind.name.lower()
                pulses += listed(about, one.request.cells, "count", one.request.counts)
            elif isinstance(one.request, Cells) and isinstance(one.answer, Readings):
                readings += listed(about, one.request, "conductance", one.answer.values())
    return pulses, readings


def listed(about: dict[str, Any], asked: Cells, name: str, values: Any) -> list[dict[str, Any]]:
    places = zip(asked.array.tolist(), asked.row.tolist(), asked.column.tolist(), values.tolist(), strict=False)
    return [
        {**about, "array": array, "row": row, "column": column, name: value} for array, row, column, value in places
    ]


@pytest.mark.parametrize("block", [1, 3, 7, export.BLOCK])
def test_each_cell_pulsed_or_read_has_a_row(
    path: Path, folder: Path, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "BLOCK", block)
    counts = export_tables(path, folder)
    pulses, readings = expected_cells(path)
    assert len(pulses) == 2 * (5 + 1 + 12 + 3) + 4
    assert pulses[-1]["device_time_ns"] is None
    assert len(readings) == (5 + 1 + 12 + 3) + (0 + 1 + 2 + 3)
    assert rows(folder, "pulses") == pulses
    assert rows(folder, "readings") == readings
    assert counts == {f"{name}.parquet": len(rows(folder, name)) for name in TABLES}
    groups = pq.ParquetFile(folder / "pulses.parquet").metadata
    assert max(groups.row_group(number).num_rows for number in range(groups.num_row_groups)) <= block


def test_operations_have_words_for_kinds_and_null_for_what_there_is_not(path: Path, folder: Path) -> None:
    export_tables(path, folder)
    found = rows(folder, "operations")
    assert [row["kind"] for row in found[:5]] == ["reset", "set", "wait", "read", "read"]
    assert [row["status"] for row in found[3:5]] == ["complete", "partial"]
    assert {name: found[-1][name] for name in ("status", "op_id", "device_time_ns", "done")} == {
        "status": "unknown",
        "op_id": None,
        "device_time_ns": None,
        "done": 0,
    }
    assert [row["shape"] for row in found[:3]] == [0, 1, None]
    assert [row["kind"] for row in found[-2:]] == ["read", "set"]
    assert {(row["region"], row["gain"]) for row in found} == {(None, None)}


def test_all_columns_of_operations_are_there_as_they_are(digits_run: Any, folder: Path) -> None:
    export_tables(digits_run.path, folder)
    table = pq.read_table(folder / "operations.parquet")
    with Run.open(digits_run.path) as run:
        assert table.column_names == list(run.operations)
        for name, column in run.operations.items():
            if name in ("kind", "status"):
                words: Any = Operation if name == "kind" else Status
                assert table[name].to_pylist() == [words(number).name.lower() for number in column[:]]
            else:
                assert table[name].type == column.dtype.name
                expected = [None if number == -1 else number for number in column[:].tolist()]
                assert table[name].to_pylist() == expected
        pulses = pq.read_table(folder / "pulses.parquet").to_pydict()
        for kind in ("set", "reset"):
            given = [count for count, each in zip(pulses["count"], pulses["kind"], strict=True) if each == kind]
            assert sum(given) == run.counts[f"{kind}_pulses"]


def test_metrics_and_messages_are_tables(path: Path, folder: Path) -> None:
    export_tables(path, folder)
    assert rows(folder, "metrics") == [{"loss": 0.5**epoch, "status": epoch} for epoch in range(3)]
    with Run.open(path) as run:
        assert [(row["time_ns"], row["text"]) for row in rows(folder, "messages")] == run.messages
        assert len(run.messages) == 2


def test_every_column_says_its_units_and_meaning_and_every_table_its_run(path: Path, folder: Path) -> None:
    export_tables(path, folder)
    units = {}
    with Run.open(path) as run:
        about = {b"run_id": run.run_id.encode(), b"tester_kind": b"twin"}
    for name in TABLES:
        schema = pq.read_schema(folder / f"{name}.parquet")
        assert about.items() <= schema.metadata.items()
        assert [column.name for column in schema if not column.metadata[b"description"]] == []
        assert [column.name for column in schema if b"-1" in column.metadata[b"description"]] == []
        units.update({f"{name}/{column.name}": column.metadata[b"units"].decode() for column in schema})
    assert {name: unit for name, unit in units.items() if unit} == {
        "messages/time_ns": "ns",
        "metrics/loss": "W",
        "operations/device_time_ns": "ns",
        "operations/host_time_ns": "ns",
        "pulses/device_time_ns": "ns",
        "readings/conductance": "S",
        "readings/device_time_ns": "ns",
    }


def test_tables_are_compressed_with_zstandard(path: Path, folder: Path) -> None:
    export_tables(path, folder)
    assert pq.ParquetFile(folder / "pulses.parquet").metadata.row_group(0).column(0).compression == "ZSTD"


def test_run_json_tells_start_identity_counts_and_state(
    tmp_path: Path, folder: Path, make_tester: Callable[..., ArrayTester], start: Start
) -> None:
    path = tmp_path / "run.h5"
    write(path, make_tester("ideal"), replace(start, config={"top": float("inf")}, meta={"operator": "Zoë"}))
    export_tables(path, folder)
    text = (folder / "run.json").read_text(encoding="utf-8")
    head = json.loads(text, parse_constant=pytest.fail)
    assert "Zoë" in text
    assert (head["state"], head["counts"]["images"], head["counts"]["set"]) == ("completed", 7, 5)
    assert (head["identity"]["model"], head["identity"]["kind"], head["tester_kind"]) == ("ideal", "twin", "twin")
    assert (head["start"]["seed"], head["start"]["config"]) == (1, {"top": None})
    reset = head["start"]["capabilities"]["reset_pulse"]
    assert head["shapes"][rows(folder, "operations")[0]["shape"]] == reset


def test_a_run_without_a_tester_has_empty_tables(make_job: Callable[..., Job], observer: Any, folder: Path) -> None:
    job = make_job(system="float")
    train(job, observer)
    counts = export_tables(job.out, folder)
    assert counts == {f"{name}.parquet": 2 * (name == "metrics") for name in TABLES}
    assert rows(folder, "pulses") == []
    assert json.loads((folder / "run.json").read_text(encoding="utf-8"))["identity"] is None


def test_an_interrupted_run_without_metrics_is_exported_up_to_there(tmp_path: Path, folder: Path, start: Start) -> None:
    writer = RunWriter.create(tmp_path / "run.h5", start)
    writer.operation(Operation.WAIT, [np.array([1.0])], Receipt(1, 10, Status.COMPLETE, 1), 1, 1)
    writer.flush()
    path = Path(shutil.copyfile(tmp_path / "run.h5", tmp_path / "killed.h5"))
    writer.close("completed", {})
    counts = export_tables(path, folder)
    assert "metrics.parquet" not in counts
    assert [row["kind"] for row in rows(folder, "operations")] == ["wait"]
    assert json.loads((folder / "run.json").read_text(encoding="utf-8"))["state"] == "interrupted"


def test_an_empty_folder_is_taken_and_files_are_never_overwritten(path: Path, folder: Path) -> None:
    folder.mkdir()
    export_tables(path, folder)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(InputError, match=r"tables/\w+\.(parquet|json) exists: choose a new or an empty folder"):
        export_tables(path, folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    with pytest.raises(InputError, match=r"run\.h5 is a file: choose"):
        export_tables(path, path)
    assert sorted(folder.parent.iterdir()) == [path.parent, folder]


def test_a_missing_pyarrow_is_told_with_what_to_install(
    path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "pyarrow.parquet")
    with pytest.raises(InputError, match=re.escape("pip install 'pcm-hil[export]'")):
        export_tables(path, folder)
    assert not folder.exists()


def change(name: str, index: int, value: Any) -> Callable[[Any], None]:
    def edit(file: Any) -> None:
        file[f"{name}/values"][index] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (change("operations/kind", 0, 99), r"kind is \[99\], expected \[1, .*damaged"),
        (change("operations/offset", 0, 10**6), "name elements that program does not have"),
        (change("operations/offset", 3, -5), "name elements that read does not have"),
        (change("operations/count", 0, 2**32 - 1), "name elements that program does not have"),
        (change("messages/text", 0, 0xFF), "messages cannot be read"),
        (change("readings/unit", 0, b"A"), "does not tell the conductance"),
        (lambda file: file.pop("program/row"), "program cannot be read"),
    ],
)
def test_a_damaged_run_is_told_and_leaves_nothing(
    edit: Callable[[Any], object], said: str, path: Path, folder: Path
) -> None:
    with h5py.File(path, "r+") as file:
        edit(file)
    with pytest.raises(DataError, match=said):
        export_tables(path, folder)
    assert list(folder.parent.iterdir()) == [path.parent]


def test_what_is_no_run_file_is_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(DataError, match="there is no such file"):
        export_tables(tmp_path / "none.h5", folder)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_told(path: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"none/tables: cannot be written \(No such file or directory\)"):
        export_tables(path, tmp_path / "none" / "tables")


FULL_DISK = """
import resource, sys
from pathlib import Path
from hil.export import export_tables
from hil.protocols.errors import StorageError
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
try:
    export_tables(Path(sys.argv[1]), Path(sys.argv[2]))
except StorageError as error:
    print(error)
"""


@pytest.mark.parametrize("part", [0.0, 0.5, 0.9])
def test_a_full_disk_is_told_and_leaves_nothing(part: float, digits_run: Any, folder: Path) -> None:
    export_tables(digits_run.path, folder)
    limit = int(part * max(file.stat().st_size for file in folder.iterdir()))
    shutil.rmtree(folder)
    command = [sys.executable, "-c", FULL_DISK, str(digits_run.path), str(folder), str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "tables: cannot be written (File too large): make room" in done.stdout
    assert list(folder.parent.iterdir()) == []
