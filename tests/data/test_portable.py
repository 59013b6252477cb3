"""A portable copy says what the run says, to programs that have no plugin, and is there whole or not at all."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from hil.data import portable
from hil.data.journal import MOST_PAGES
from hil.data.portable import copy_portable
from hil.data.run import Run
from hil.data.runfile import RunWriter
from hil.data.schema import Start
from hil.protocols.errors import DataError, InputError, StorageError
from hil.protocols.messages import Block, Operation, Receipt, Region, Status

LINES = np.arange(8, dtype=np.uint16)
REGION = Region(3, (Block(0, LINES, LINES[:4], LINES[4:], 0, 0),))
START = Start({"seed": 1}, "seed = 1", ("train",), 1, {"numpy": "2"}, {}, None, {"operator": "Zoë"}, None, None)
WAITS = 70_000
"""More than the two chunks that a stream of float64 fills, so that some lie in its tail."""


def fill(path: Path) -> RunWriter:
    """A run file with every kind of content, flushed but open."""
    writer = RunWriter.create(path, START)
    writer.region(REGION)
    for number in range(WAITS):
        receipt = Receipt(number, 10 * number, Status.COMPLETE, 1)
        writer.operation(Operation.WAIT, [np.array([number / 3])], receipt, 1, 1)
    for epoch in range(3):
        writer.metrics({"epoch": epoch, "period": 1 / (1 + epoch)}, {"epoch": "", "period": "s"})
    writer.message("drift above 3 µS")
    chi = np.random.default_rng(1).normal(size=(300, 50)).astype(np.float32)
    arrays = {"chi": chi, "count": np.array(3), "none": np.zeros((0, 4)), "one": np.ones((1, 1))}
    writer.snapshot("final", arrays, dict.fromkeys(arrays, "S"), {"epoch": 3})
    named_as_columns = {name: np.arange(2) for name in ("values", "tail", "tail_range")}
    writer.snapshot("odd", named_as_columns, dict.fromkeys(named_as_columns, ""))
    writer.flush()
    return writer


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same run when its writer was killed, and when it had stopped."""
    folder = tmp_path_factory.mktemp("runs")
    paths = {state: folder / f"{state}.h5" for state in ("interrupted", "completed")}
    writer = fill(paths["completed"])
    shutil.copyfile(paths["completed"], paths["interrupted"])
    writer.close("completed", {"images": 7})
    return paths


@pytest.fixture(params=["interrupted", "completed"])
def path(request: pytest.FixtureRequest, runs: dict[str, Path]) -> Path:
    return runs[request.param]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "copy.h5"


def datasets(file: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    file.visititems(lambda name, item: found.update({name: item} if isinstance(item, h5py.Dataset) else {}))
    return found


def answers(path: Path) -> Any:
    """What a run says of itself, as text that can be compared."""
    with Run.open(path) as run:
        said = {
            "head": (run.run_id, run.created_utc, run.tester_kind, run.state, run.counts, run.messages),
            "start": asdict(run.start),
            "regions": {handle: asdict(region) for handle, region in run.regions.items()},
            "operations": {name: column[:] for name, column in run.operations.items()},
            "some": [asdict(run.operation(index)) for index in (0, 40_000, -1)],
            "metrics": run.metrics,
            "snapshots": {name: asdict(run.snapshot(name)) for name in run.snapshots},
        }
    return json.dumps(said, default=lambda value: [str(value.dtype), value.tolist()])


@pytest.mark.parametrize("block", [1, portable.BLOCK_BYTES])
def test_a_copy_gives_the_same_answers(path: Path, out: Path, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portable, "BLOCK_BYTES", block)
    copy_portable(path, out)
    assert answers(out) == answers(path)
    assert list(out.parent.iterdir()) == [out]


def test_every_column_is_in_one_piece(path: Path, out: Path) -> None:
    copy_portable(path, out)
    with h5py.File(out) as file:
        assert file["wait/seconds/values"][:].tolist() == [number / 3 for number in range(WAITS)]
        assert file["wait/seconds/tail_range"][:].tolist() == [WAITS, WAITS]
        tails = {name: len(item) for name, item in datasets(file).items() if name.endswith("/tail")}
        assert len(tails) > 20
        assert tails.pop("snapshots/odd/tail") == 2
        assert set(tails.values()) == {0}


def test_a_copy_has_the_same_datasets_types_and_attributes(path: Path, out: Path) -> None:
    copy_portable(path, out)
    with h5py.File(path) as before, h5py.File(out) as after:
        assert dict(after.attrs) == dict(before.attrs)
        assert dict(after["regions/3/0"].attrs) == dict(before["regions/3/0"].attrs)
        assert datasets(after).keys() == datasets(before).keys()
        for name, item in datasets(before).items():
            assert (name, after[name].dtype, dict(after[name].attrs)) == (name, item.dtype, dict(item.attrs))


def test_every_array_is_compressed_by_what_hdf5_has_built_in(path: Path, out: Path) -> None:
    copy_portable(path, out)
    with h5py.File(out) as file:
        arrays = {name: item for name, item in datasets(file).items() if item.size > 1 and "tail_range" not in name}
        assert len(arrays) > 20
        settings = {(item.compression, item.compression_opts, item.shuffle) for item in arrays.values()}
        assert settings == {("gzip", 4, True)}
    assert out.stat().st_size < path.stat().st_size


READ_ALL = """
import sys, h5py
unread = []
def read(name, item):
    if isinstance(item, h5py.Dataset):
        try:
            item[()]
        except OSError:
            unread.append(name)
h5py.File(sys.argv[1]).visititems(read)
assert "hdf5plugin" not in sys.modules
print(len(unread))
"""


def test_a_program_without_the_plugin_reads_every_dataset(path: Path, out: Path, tmp_path: Path) -> None:
    copy_portable(path, out)
    plugins = tmp_path / "no-plugins"
    plugins.mkdir()
    environment = {**os.environ, "HDF5_PLUGIN_PATH": str(plugins)}

    def unread(file: Path) -> int:
        command = [sys.executable, "-c", READ_ALL, str(file)]
        return int(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)

    assert unread(out) == 0
    assert unread(path) > 0


def test_an_existing_file_is_not_overwritten(runs: dict[str, Path], out: Path) -> None:
    out.write_bytes(b"precious")
    with pytest.raises(InputError, match=r"copy\.h5 exists: choose another name"):
        copy_portable(runs["completed"], out)
    assert out.read_bytes() == b"precious"
    with pytest.raises(InputError, match=r"completed\.h5 exists"):
        copy_portable(runs["completed"], runs["completed"])


def _cut_a_chunk(path: Path) -> None:
    with h5py.File(path, "r") as file:
        chunk = file["wait/seconds/values"].id.get_chunk_info(1)
    with path.open("r+b") as stream:
        stream.seek(chunk.byte_offset)
        stream.write(bytes(chunk.size))


def _drop_a_tail(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["operations/kind/tail"]
        file.attrs["format"] = "other"


@pytest.mark.parametrize("damage", [Path.unlink, _cut_a_chunk, _drop_a_tail])
def test_what_is_no_whole_run_file_is_refused(
    damage: Callable[[Path], object], runs: dict[str, Path], out: Path, tmp_path: Path
) -> None:
    path = tmp_path / "source" / "run.h5"
    path.parent.mkdir()
    shutil.copyfile(runs["completed"], path)
    damage(path)
    with pytest.raises(DataError, match=r"run\.h5"):
        copy_portable(path, out)
    assert list(tmp_path.iterdir()) == [path.parent]


def _name_a_type(file: Any) -> None:
    file["snapshots/type"] = np.dtype(np.float64)


def _name_a_group(file: Any) -> None:
    file["snapshots"].create_group(b"\xff")


def _name_a_dataset(file: Any) -> None:
    file["snapshots/final"].create_dataset(b"\xff", data=np.arange(3))


def _break_a_text(file: Any) -> None:
    file["regions/3"].attrs["note"] = np.array(b"\xff", h5py.string_dtype())


def _break_the_text_of_a_column(file: Any) -> None:
    file["wait/seconds/values"].attrs["note"] = np.array(b"\xff", h5py.string_dtype())


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (_name_a_type, r"type in /snapshots cannot be read \(neither a group nor a dataset\)"),
        (_name_a_group, r"b'\\xff' in /snapshots cannot be read \(its name is not UTF-8\)"),
        (_name_a_dataset, r"b'\\xff' in /snapshots/final cannot be read \(its name is not UTF-8\)"),
        (_break_a_text, r"/regions/3 cannot be read \(.*utf-8.*\)"),
        (_break_the_text_of_a_column, r"seconds in /wait cannot be read \(.*utf-8.*\)"),
    ],
)
def test_what_cannot_be_copied_is_named_in_one_line(
    edit: Callable[[Any], None], told: str, runs: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "run.h5"
    shutil.copyfile(runs["completed"], path)
    with h5py.File(path, "r+") as file:
        edit(file)
    with pytest.raises(DataError, match=rf"^.*run\.h5: {told}: damaged[^\n]*$"):
        copy_portable(path, tmp_path / "copy.h5")
    assert list(tmp_path.iterdir()) == [path]


def test_an_attribute_whose_name_is_not_utf_8_is_copied(runs: dict[str, Path], out: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    shutil.copyfile(runs["completed"], path)
    with h5py.File(path, "r+") as file:
        file["regions/3"].attrs[b"\xff"] = 7
    copy_portable(path, out)
    with h5py.File(out) as file:
        assert file["regions/3"].attrs[b"\xff"] == 7


FULL_DISK = """
import resource, sys
from pathlib import Path
from hil.data import journal
from hil.data.portable import copy_portable
from hil.protocols.errors import StorageError
journal.MOST_PAGES = int(sys.argv[4])
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
try:
    copy_portable(Path(sys.argv[1]), Path(sys.argv[2]))
except StorageError as error:
    print(error)
"""


@pytest.mark.parametrize("pages", [1, MOST_PAGES])  # written after each block, and at the end
@pytest.mark.parametrize("part", [0.0, 0.01, 0.3, 0.6, 0.99])
def test_a_full_disk_is_told_and_leaves_nothing(part: float, pages: int, runs: dict[str, Path], out: Path) -> None:
    copy_portable(runs["completed"], out)
    limit = int(part * out.stat().st_size)
    out.unlink()
    command = [sys.executable, "-c", FULL_DISK, str(runs["completed"]), str(out), str(limit), str(pages)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "copy.h5: cannot be written (" in done.stdout
    assert list(out.parent.iterdir()) == []


def test_a_folder_that_is_not_there_is_told(runs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"none/copy\.h5: cannot be written \(No such file or directory\)"):
        copy_portable(runs["completed"], tmp_path / "none" / "copy.h5")
