"""A run file is whole, says where it comes from, survives its writer, and is refused clearly when it is damaged."""

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from hil.data import runfile
from hil.data.run import Run
from hil.data.runfile import RunWriter
from hil.data.schema import OPERATIONS, STREAMS, Start
from hil.protocols.errors import DataError, InputError, StorageError
from hil.protocols.messages import Block, Identity, Operation, Receipt, Region, Status, TesterKind

START = Start(
    config={"seed": 1, "layers": [784, 10], "rate": 0.1},
    config_text="seed = 1  # a comment that stays\n",
    argv=("train", "mnist"),
    seed=2**63 + 5,
    versions={"numpy": "2.0"},
    host={"platform": "Linux"},
    git_commit=None,
    meta={"operator": "Zoë"},
    identity=None,
    capabilities=None,
)
RECEIPT = Receipt(7, 1000, Status.COMPLETE, 1)
REGION = Region(0, (Block(0, np.arange(3, dtype=np.uint16), np.arange(2, dtype=np.uint16), None, 0, 0),))

DAMAGED = b"\x89HDF\r\n\x1a\n and no more"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.h5"


@pytest.fixture
def writer(path: Path) -> Iterator[RunWriter]:
    opened = RunWriter.create(path, START)
    yield opened
    opened.close("completed", {})


def log_wait(writer: RunWriter, seconds: float = 1.0) -> None:
    writer.operation(Operation.WAIT, [np.array([seconds], np.float64)], RECEIPT, 1, 1)


def killed(path: Path) -> Run:
    """The run file as it would remain if its writer were killed now."""
    return Run.open(Path(shutil.copyfile(path, path.with_suffix(".killed.h5"))))


def edited(path: Path, edit: Callable[[Any], object]) -> Path:
    """A finished run file, changed by `edit`."""
    RunWriter.create(path, START).close("completed", {})
    with h5py.File(path, "r+") as file:
        edit(file)
    return path


def test_a_run_tells_how_it_started_and_stopped(path: Path, writer: RunWriter) -> None:
    writer.close("completed", {"images": 60_000})
    with Run.open(path) as run:
        assert run.start == START
        assert (run.config, run.identity, run.capabilities) == (START.config, None, None)
        assert (run.state, run.tester_kind, run.counts["images"], run.counts["wait"]) == (
            "completed",
            "none",
            60_000,
            0,
        )
        assert re.fullmatch(r"[0-9a-f-]{36}", run.run_id)
        assert run.created_utc.endswith("+00:00")


@pytest.mark.parametrize("kind", TesterKind)
def test_the_file_says_what_kind_of_tester_answered(path: Path, kind: TesterKind) -> None:
    RunWriter.create(path, replace(START, identity=Identity("v", "m", "s", "f", "c", kind))).close("completed", {})
    with h5py.File(path, "r") as file:
        assert file.attrs["tester_kind"] == kind.value
    with Run.open(path) as run:
        assert run.identity is not None
        assert run.identity.kind is kind


def test_a_run_without_a_stop_was_interrupted(path: Path, writer: RunWriter) -> None:
    log_wait(writer)
    writer.flush()
    with killed(path) as run:
        assert run.state == "interrupted"
        assert run.counts["wait"] == 1


def test_a_second_close_does_nothing(path: Path, writer: RunWriter) -> None:
    writer.close("completed", {})
    writer.close("failed", {})
    with Run.open(path) as run:
        assert run.state == "completed"


def test_operations_are_flushed_at_least_once_a_second(
    path: Path, writer: RunWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed_at = time.time_ns()
    writer.flush()
    for seconds, rows in ((0.5, 0), (1.5, 2), (-3600, 3)):  # a clock that is set back must not stop it
        now = flushed_at + int(seconds * 1e9)
        monkeypatch.setattr(runfile, "time_ns", lambda now=now: now)
        log_wait(writer)
        with killed(path) as run:
            assert run.operations.rows == rows


def test_columns_of_operations_are_read_in_part(path: Path, writer: RunWriter) -> None:
    for seconds in range(5):
        log_wait(writer, seconds)
    writer.close("completed", {})
    with Run.open(path) as run:
        assert run.operations["kind"][1:4].tolist() == [Operation.WAIT] * 3
        assert len(run.operations["op_id"]) == 5
        assert set(run.operations) == {field.name for field in OPERATIONS}
        assert [run.operation(index).request for index in (0, -1)] == [0.0, 4.0]
        with pytest.raises(IndexError):
            run.operation(5)


def test_metrics_have_a_row_per_call(path: Path, writer: RunWriter) -> None:
    units = {"epoch": "", "loss": "", "time": "s"}
    for epoch in range(3):
        writer.metrics({"epoch": epoch, "loss": 1 / 3, "time": np.float64(epoch)}, units)
    with killed(path) as run:  # each row is flushed
        assert list(run.metrics) == ["epoch", "loss", "time"]
        np.testing.assert_array_equal(run.metrics["epoch"], [0, 1, 2])
        assert run.metrics["epoch"].dtype == np.int64
        assert run.metrics["loss"].tolist() == [1 / 3] * 3


@pytest.mark.parametrize("values", [{"loss": 1.0}, {"epoch": 1, "loss": 1}, {"epoch": 1, "loss": 1.0, "x": 1.0}])
def test_metrics_of_other_names_or_types_than_the_first_are_refused(
    values: dict[str, float], writer: RunWriter
) -> None:
    writer.metrics({"epoch": 1, "loss": 1.0}, {"epoch": "", "loss": ""})
    with pytest.raises(InputError, match="names and types stay those of the first"):
        writer.metrics(values, {})


def test_metrics_and_snapshots_need_units_and_plain_names(writer: RunWriter) -> None:
    with pytest.raises(InputError, match=r"'loss' has no unit"):
        writer.metrics({"loss": 1.0}, {})
    with pytest.raises(InputError, match=r"'a/b'.*without '/'"):
        writer.metrics({"a/b": 1.0}, {"a/b": ""})
    with pytest.raises(InputError, match=r"'g' has no unit"):
        writer.snapshot("final", {"g": np.zeros(3)}, {})


def test_messages_keep_their_order_and_any_text(path: Path, writer: RunWriter) -> None:
    texts = ["drift above 3 µS", "", "long " * 200_000, "line\nline", "\udcff"]
    for text in texts:
        writer.message(text)
    writer.close("completed", {})
    with Run.open(path) as run:
        assert [text for _, text in run.messages] == [*texts[:4], "?"]
        times = [time for time, _ in run.messages]
        assert times == sorted(times)
        assert times[0] > 10**18


def test_a_snapshot_is_read_back(path: Path, writer: RunWriter) -> None:
    arrays = {
        "chi": np.random.default_rng(1).normal(size=(785, 250)).astype(np.float32),
        "count": np.array(3),
        "empty": np.zeros((0, 4)),
    }
    writer.snapshot("final", arrays, {"chi": "S", "count": "", "empty": ""}, {"epoch": 3})
    with killed(path) as run:
        snapshot = run.snapshot("final")
        assert run.snapshots == ("final",)
        for name, values in arrays.items():
            np.testing.assert_array_equal(snapshot.arrays[name], values, strict=True)
        assert (snapshot.units["chi"], snapshot.attrs["epoch"]) == ("S", 3)
        with pytest.raises(InputError, match=r"no snapshot 'first'; there is: final"):
            run.snapshot("first")
    with pytest.raises(InputError, match="'final' exists"):
        writer.snapshot("final", {}, {})


def test_an_existing_file_is_not_overwritten_unasked(path: Path) -> None:
    path.write_bytes(b"precious")
    with pytest.raises(InputError, match=r"run\.h5 exists: choose another name, or give --overwrite to replace it"):
        RunWriter.create(path, START)
    assert path.read_bytes() == b"precious"


def test_an_existing_file_is_replaced_when_asked(path: Path) -> None:
    path.write_bytes(DAMAGED)
    RunWriter.create(path, START, overwrite=True).close("completed", {})
    with Run.open(path) as run:
        assert run.state == "completed"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_run_that_cannot_start_leaves_no_trace(path: Path, overwrite: bool) -> None:
    if overwrite:
        path.write_bytes(DAMAGED)
    with pytest.raises(TypeError, match="not JSON serializable"):
        RunWriter.create(path, replace(START, config={"seed": object()}), overwrite)
    assert [file.read_bytes() for file in path.parent.iterdir()] == [DAMAGED] * overwrite


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_takes_no_file_is_named(path: Path, overwrite: bool) -> None:
    with pytest.raises(InputError, match=r"none/run\.h5: cannot be created \(No such file or directory\): give"):
        RunWriter.create(path.parent / "none" / "run.h5", START, overwrite)
    path.touch()
    with pytest.raises(InputError, match=r"run\.h5/x\.h5: cannot be created \(Not a directory\): give"):
        RunWriter.create(path / "x.h5", START, overwrite)
    with pytest.raises(InputError, match="is a folder: name a run file"):
        RunWriter.create(path.parent, START, overwrite)


def test_every_dataset_has_units_and_a_description_and_is_in_the_readme(path: Path, writer: RunWriter) -> None:
    for column in writer.streams.values():
        column.create(np.uint8)
    writer.region(REGION)
    writer.metrics({"loss": 1.0}, {"loss": ""})
    writer.snapshot("final", {"chi": np.zeros(3)}, {"chi": "S"})
    writer.close("completed", {})
    datasets: dict[str, Any] = {}
    with h5py.File(path, "r") as file:
        file.visititems(lambda name, item: datasets.update({name: dict(item.attrs)} if hasattr(item, "shape") else {}))
    assert len(datasets) > 3 * (len(STREAMS) + len(OPERATIONS))
    assert [name for name, attrs in datasets.items() if not {"units", "description"} <= set(attrs)] == []
    assert [name for name, attrs in datasets.items() if not attrs["description"]] == []
    readme = Path(__file__).parents[2].joinpath("data", "README.md").read_text()
    names = {re.sub(r"/(values|tail|tail_range)$", "", name) for name in datasets}
    plain = {name for name in names if name.split("/")[0] not in ("metrics", "snapshots", "regions")}
    assert [name for name in sorted(plain) if f"`{name}`" not in readme] == []


KILLED_WRITER = """
import os, signal, sys
from pathlib import Path
import numpy as np
from hil.data.runfile import RunWriter
from hil.data.schema import Start
from hil.protocols.messages import Operation, Receipt, Status
writer = RunWriter.create(Path(sys.argv[1]), Start({}, "", (), 1, {}, {}, None, {}, None, None))
for number in range(100_000):
    writer.operation(Operation.WAIT, [np.array([float(number)])], Receipt(number, number, Status.COMPLETE, 1), 1, 1)
writer.metrics({"loss": 0.5}, {"loss": ""})
for number in range(50_000):  # these may be lost
    writer.operation(Operation.WAIT, [np.array([0.0])], Receipt(number, number, Status.COMPLETE, 1), 1, 1)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_writer_leaves_what_was_flushed(path: Path) -> None:
    assert subprocess.run([sys.executable, "-c", KILLED_WRITER, str(path)], check=False).returncode == -9
    with Run.open(path) as run:
        assert run.state == "interrupted"
        assert run.operations.rows >= 100_000
        np.testing.assert_array_equal(run.operations["op_id"][:100_000], np.arange(100_000))
        assert [run.operation(number).request for number in (0, 50_000, 99_999)] == [0, 50_000, 99_999]
        assert run.metrics["loss"].tolist() == [0.5]


FULL_DISK = """
import resource, sys
from pathlib import Path
import numpy as np
from hil.data.columns import CHUNK_BYTES
from hil.data.runfile import RunWriter
from hil.data.schema import Start
from hil.protocols.errors import StorageError
writer = RunWriter.create(Path(sys.argv[1]), Start({}, "", (), 1, {}, {}, None, {}, None, None))
chunk = np.random.default_rng(1).integers(-127, 128, CHUNK_BYTES).astype(np.int8)
writer.streams["mvm/inputs"].append(chunk[1:])
writer.metrics({"loss": 0.5}, {"loss": ""})
limit = Path(sys.argv[1]).stat().st_size + 4 * CHUNK_BYTES
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
failures = []
for attempt in range(5):
    try:
        writer.streams["mvm/inputs"].append(chunk)
        writer.flush()
    except StorageError as error:
        assert "cannot be written (File too large); what was flushed before is intact" in str(error), error
        failures.append(attempt)
try:
    writer.close("failed", {})
except StorageError:
    failures.append("close")
assert failures == [*range(failures[0], 5), "close"] and failures[0] > 0, failures
"""


def test_a_full_disk_is_told_and_spares_what_was_flushed(path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    with Run.open(path) as run:
        assert run.state == "interrupted"
        assert run.metrics["loss"].tolist() == [0.5]
    with h5py.File(path) as file:
        assert len(file["mvm/inputs/values"]) >= 2**18  # the chunk that still found room


def test_a_snapshot_that_does_not_fit_is_a_storage_error(writer: RunWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "")

    monkeypatch.setattr(h5py.Group, "create_dataset", fail)
    with pytest.raises(StorageError, match=r"run\.h5: cannot be written \(No space left on device\)"):
        writer.snapshot("final", {"chi": np.zeros(3)}, {"chi": "S"})


def test_a_missing_file_is_told(path: Path) -> None:
    with pytest.raises(DataError, match=r"run\.h5: there is no such file"):
        Run.open(path)


def test_a_file_that_is_being_written_is_not_opened(path: Path, writer: RunWriter) -> None:
    program = "import sys, pathlib, hil.data.run as run; run.Run.open(pathlib.Path(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=False)
    assert re.search(r"DataError: .*run\.h5 is being written by another process: wait until it is done", done.stderr)


def test_a_file_that_is_not_hdf5_is_told(path: Path) -> None:
    path.write_text("seed = 1\n")
    with pytest.raises(DataError, match=r"run\.h5: the file cannot be read \(.*signature not found.*damaged, or not"):
        Run.open(path)


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.9])
def test_a_truncated_file_is_told(path: Path, kept: float) -> None:
    RunWriter.create(path, START).close("completed", {})
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    with pytest.raises(DataError, match="cannot be read"):
        Run.open(path)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda file: file.attrs.pop("format"), "not a run file: format is None"),
        (lambda file: file.attrs.update(format="labscript"), "not a run file: format is 'labscript'"),
        (lambda file: file.attrs.pop("format_version"), "the head cannot be read"),
        (lambda file: file.attrs.update(format_version="2.0"), r"format version 2\.0, this program reads 1\.\d"),
        (lambda file: file.pop("operations"), "operations cannot be read"),
        (lambda file: file["operations"].pop("kind"), "operations cannot be read"),
        (lambda file: file.pop("start"), "start cannot be read"),
        (lambda file: file["start"].pop("config"), "start cannot be read"),
        (lambda file: file["start/config"].write_direct(np.array(b"{", object)), "start cannot be read"),
        (lambda file: file.pop("regions"), "regions cannot be read"),
    ],
)
def test_a_foreign_or_damaged_file_is_told_in_one_line(path: Path, edit: Callable[[Any], object], said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        Run.open(edited(path, edit))
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_what_a_later_minor_version_added_is_ignored(path: Path) -> None:
    def add(file: Any) -> None:
        file.attrs["format_version"] = "1.7"
        file["start"].create_dataset("mood", data="good")
        file["operations"].create_group("colour")

    with Run.open(edited(path, add)) as run:
        assert run.start == START


@pytest.mark.parametrize("content", [b"a thesis", b""])
def test_a_file_that_is_no_run_file_is_not_overwritten(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(InputError, match="is no run file, so it is not overwritten"):
        RunWriter.create(path, START, overwrite=True)
    assert path.read_bytes() == content


def test_an_hdf5_file_of_another_kind_is_not_overwritten(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.attrs["format"] = "hil-chip"
    with pytest.raises(InputError, match="is no run file"):
        RunWriter.create(path, START, overwrite=True)


def test_a_damaged_run_file_may_be_overwritten(path: Path) -> None:
    RunWriter.create(path, START).close("completed", {})
    path.write_bytes(path.read_bytes()[:3000])
    RunWriter.create(path, START, overwrite=True).close("completed", {})
    assert Run.open(path).state == "completed"


def test_a_file_that_is_being_written_is_not_overwritten(path: Path, writer: RunWriter) -> None:
    writer.metrics({"loss": 0.5}, {"loss": ""})
    with pytest.raises(InputError, match=r"run\.h5 is being written by another process: choose another name"):
        RunWriter.create(path, START, overwrite=True)
    writer.metrics({"loss": 0.25}, {"loss": ""})
    writer.close("completed", {})
    with Run.open(str(path)) as run:  # a text will do
        assert run.metrics["loss"].tolist() == [0.5, 0.25]
        assert repr(run).endswith("run.h5: None, completed, 0 operations>")


def test_a_folder_is_told(path: Path) -> None:
    with pytest.raises(DataError, match="is a folder: give the name of a run file"):
        Run.open(path.parent)
