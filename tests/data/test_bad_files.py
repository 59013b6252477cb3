"""Whatever a file holds, reading it gives a result or one line that says what is wrong, in time and little memory."""

import json
import re
import resource
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest

from hil.bench import connect
from hil.data import log_columns, waiting
from hil.data.recording import RecordingTester
from hil.data.run import Run
from hil.data.runfile import RunWriter
from hil.data.schema import Start
from hil.protocols.errors import InputError
from hil.protocols.messages import Block, Cells, Direction, Operation, PulseBatch, Vectors
from hil.runinfo import describe

SEED = 20
MUTATIONS = {"flip": 66, "byte": 25, "cut": 15, "zero": 20, "swap": 15}
"""How many of each: a flipped bit, another byte, a truncation, a zeroed page, two pages swapped."""

PAGE = 4096
MEMORY = 4 * 2**30  # bytes of address space
TIMEOUT = 100  # s for all files, of which each takes some tens of milliseconds


def summary(path: Path) -> Iterator[Callable[[], object]]:
    """The least that may be asked of a run file."""
    yield lambda: json.dumps(describe(path))


def answers(path: Path) -> Iterator[Callable[[], object]]:
    """What else may be asked of it."""
    with Run.open(path) as run:
        yield lambda: (run.pulses(0, 1, 2), run.readings(0, 1, 2))
        yield lambda: run.pulse_counts(run.operation_at(1e-5))
        yield lambda: [run.weights(layer) for layer in run.layers]
        yield lambda: [run.products(region, direction).values() for region in run.regions for direction in Direction]
        for row in range(0, run.operations.rows, 5):
            yield partial(run.operation, row)
        yield lambda: ([run.snapshot(name) for name in run.snapshots], run.checkpoint, run.sessions)


def write_run(path: Path) -> None:
    """A run with every kind of content."""
    tester = connect("twin:pcm-analog?arrays=1&rows=32&columns=32", np.random.SeedSequence(1))
    chip = tester.capabilities()
    config = {"experiment": "e", "system": "s", "tester": "twin:", "data": "d", "seed": 1, "epochs": 2}
    start = Start(config, "seed = 1", ("train",), 1, {"numpy": "2"}, {"python": "3"}, None, {}, tester.identify(), chip)
    writer = RunWriter.create(path, start)
    recording = RecordingTester(tester, writer)
    lines = np.arange(8, dtype=np.uint16)
    region = recording.register([Block(0, lines, 2 * lines, 2 * lines + 1, 0, 0)])
    cells = Cells.of(0, np.repeat(lines, 8), np.tile(lines, 8))
    vectors = Vectors(np.ones((3, 8), np.int8), np.ones(3, np.float32))
    places = {"array": cells.array, "row": cells.row, "column": cells.column}
    arrays = {f"{side}_{name}": values for side in ("plus", "minus") for name, values in places.items()}
    attrs = {"rows": 8, "columns": 8, "scale": 1.0, "unit_siemens": 8e-6}
    writer.snapshot("layer1", arrays, dict.fromkeys(arrays, ""), attrs)
    for epoch in range(3):
        recording.program(PulseBatch(cells, Operation.RESET, np.ones(64, np.uint16), chip.reset_pulse))
        recording.program(PulseBatch(cells, Operation.SET, np.full(64, 2, np.uint16), chip.set_pulse))
        recording.read(cells)
        recording.mvm(region, vectors, Direction.FORWARD, 0)
        recording.mvm(region, vectors, Direction.BACKWARD, 1)
        recording.wait(1e-5)
        writer.message("a message")
        writer.metrics({"epoch": epoch, "test_accuracy": 0.5}, {"epoch": "", "test_accuracy": ""})
    writer.close("completed", {"images": 3})


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With short chunks the file is small, and as much of it as can be holds HDF5's own structures."""
    path = tmp_path_factory.mktemp("base") / "run.h5"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log_columns, "CHUNK_BYTES", PAGE)
        patch.setattr(log_columns, "OPERATION_CHUNK", 64)
        patch.setattr(waiting, "OPERATION_CHUNK", 64)
        write_run(path)
    return path


def mutations(path: Path) -> list[tuple[str, int, int]]:
    """Kind, place and value; places are bytes that are not zero, most of which HDF5's own structures hold."""
    rng = np.random.default_rng(SEED)
    places = np.nonzero(np.fromfile(path, np.uint8))[0]
    size = path.stat().st_size
    jobs: list[Any] = [
        (kind, rng.choice(places), rng.integers(256)) for kind in ("flip", "byte") for _ in range(MUTATIONS[kind])
    ]
    jobs += [("cut", rng.integers(size), 0) for _ in range(MUTATIONS["cut"])]
    jobs += [(kind, *rng.choice(places, 2)) for kind in ("zero", "swap") for _ in range(MUTATIONS[kind])]
    return [(kind, int(place), int(value)) for kind, place, value in jobs]


def mutated(data: npt.NDArray[np.uint8], kind: str, place: int, value: int) -> npt.NDArray[np.uint8]:
    """A copy of the data with one mutation."""
    one, two = (slice(start, start + PAGE) for start in (place // PAGE * PAGE, value // PAGE * PAGE))
    data = data[:place].copy() if kind == "cut" else data.copy()
    if kind == "flip":
        data[place] ^= 1 << value % 8
    elif kind == "byte":
        data[place] = value
    elif kind == "zero":
        data[one] = 0
    elif kind == "swap":
        data[one], data[two] = data[two].copy(), data[one].copy()
    return data


def refusals(asked: Iterator[Callable[[], object]]) -> list[str]:
    """What is said where there is no answer; what is no refusal of a file has several lines."""
    said: list[str] = []
    while True:
        try:
            next(asked)()
        except StopIteration:
            return said
        except InputError as error:
            said.append(f"{type(error).__name__}: {error}")
        except Exception:
            said.append(traceback.format_exc())


def child(base: str, scratch: str, jobs: str) -> None:
    """Change the file and ask, in little memory; writes each job and the refusals as a line of JSON."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.RLIM_INFINITY))
    data, path = np.fromfile(base, np.uint8), Path(scratch)
    for number, job in enumerate(json.loads(jobs)):
        sys.stderr.write(f"at {job}\n")
        if job[0] == "edit":
            edited(Path(base), path, EDITS[job[1]][0])
        else:
            mutated(data, *job).tofile(path)
        everything = job[0] == "edit" or number % 6 == 0  # else only what it is: that takes half as long
        sys.stdout.write(json.dumps([job, refusals(answers(path) if everything else summary(path))]) + "\n")
    if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > 2**20:
        raise MemoryError("more than a gigabyte of memory was taken")


@dataclass(frozen=True)
class Outcome:
    path: Path
    refusals: list[tuple[Any, list[str]]]  # by job
    crash: str


@pytest.fixture(scope="module")
def outcome(base: Path) -> Outcome:
    """How changed files are read, by a process of its own: a crash of HDF5 must not go unseen."""
    path = base.with_name("changed.h5")
    jobs = [*(("edit", name) for name in EDITS), *mutations(base)]
    command = [sys.executable, __file__, str(base), str(path), json.dumps(jobs)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    crash = f"exit {done.returncode}, last: {done.stderr.splitlines()[-3:]}" if done.returncode else ""
    return Outcome(path, [(job, said) for job, said in map(json.loads, done.stdout.splitlines())], crash)


def test_the_file_itself_is_read(base: Path) -> None:
    assert refusals(summary(base)) + refusals(answers(base)) == []


def test_damaged_files_are_read_or_refused_in_one_line_that_names_the_file(outcome: Outcome) -> None:
    assert outcome.crash == ""
    assert len(outcome.refusals) >= 200
    said = [(job, text) for job, texts in outcome.refusals for text in texts]
    assert [(job, text) for job, text in said if "\n" in text or str(outcome.path) not in text] == []


def put(name: str, data: Any, **options: Any) -> Callable[[Any], None]:
    """An edit: another dataset of this name."""

    def edit(file: Any) -> None:
        if name in file:
            del file[name]
        new = file.create_dataset(name, data=data, **options)
        new.attrs.update({"units": "", "description": "x"})

    return edit


def column(name: str, values: Any, tail: Any = None) -> Callable[[Any], None]:
    """An edit: another column of this name."""
    values = np.asarray(values)

    def edit(file: Any) -> None:
        put(f"{name}/values", values)(file)
        put(f"{name}/tail", values[:0] if tail is None else tail)(file)
        put(f"{name}/tail_range", [len(values), len(values)])(file)

    return edit


def element(name: str, index: int, value: Any) -> Callable[[Any], None]:
    """An edit: one element of a dataset or column is another."""

    def edit(file: Any) -> None:
        (file[name] if isinstance(file[name], h5py.Dataset) else file[name]["values"])[index] = value

    return edit


def attribute(name: str, key: str, value: Any) -> Callable[[Any], None]:
    """An edit: an attribute is another."""
    return lambda file: file[name].attrs.__setitem__(key, value)


def instead(name: str, link: Any) -> Callable[[Any], None]:
    """An edit: a link of this name."""

    def edit(file: Any) -> None:
        if name in file:
            del file[name]
        file[name] = link

    return edit


def capability(**changes: Any) -> Callable[[Any], None]:
    """An edit: a tester of other capabilities."""

    def edit(file: Any) -> None:
        stored = json.loads(file["start/capabilities"].asstr()[()])
        put("start/capabilities", json.dumps(stored | changes))(file)

    return edit


def resized(name: str, length: int) -> Callable[[Any], None]:
    return lambda file: file[name].resize((length,))


def virtual(file: Any) -> None:
    layout = h5py.VirtualLayout((4,), "u2")
    layout[:] = h5py.VirtualSource("other.h5", "x", (4,))
    file.create_virtual_dataset("snapshots/layer1/x", layout)


def huge_chunk(file: Any) -> None:
    file.create_dataset("snapshots/layer1/x", (2**30,), "u2", chunks=(2**30,))


EDITS: dict[str, tuple[Callable[[Any], object], str]] = {
    "no start": (lambda file: file.pop("start"), "start cannot be read"),
    "no identity": (lambda file: file["start"].pop("identity"), "start cannot be read"),
    "no column": (lambda file: file["operations"].pop("offset"), "operations cannot be read"),
    "no values": (lambda file: file["operations/count"].pop("values"), "operations/count cannot be read"),
    "no stream": (lambda file: file["program"].pop("row"), "program/row cannot be read"),
    "no tail": (lambda file: file["read/codes"].pop("tail"), "read/codes cannot be read"),
    "no readings": (lambda file: file.pop("readings"), "readings cannot be read"),
    "a dataset for a group": (put("regions", [1]), "regions cannot be read"),
    "a group for a dataset": (instead("operations/kind/values", h5py.SoftLink("/start")), "link to elsewhere"),
    "column of floats": (column("operations/kind", np.ones(18)), "kind holds float64, expected u1"),
    "stream of wide integers": (column("program/row", np.ones(384, np.int64)), "row holds int64, expected <u2"),
    "codes that are text": (column("read/codes", np.full(192, b"x")), "codes holds |S1, expected integers"),
    "matrix": (column("operations/count", np.ones((18, 2), np.uint32)), "expected vectors"),
    "tail of another type": (column("operations/count", np.ones(18, np.uint32), np.ones(3)), "expected vectors"),
    "short tail range": (put("operations/count/tail_range", [1]), "operations/count cannot be read"),
    "huge tail range": (put("operations/count/tail_range", [0, 2**62]), "do not fit together"),
    "region of matrices": (put("regions/0/0/rows", np.ones((2, 2), np.uint16)), "regions cannot be read"),
    "region of no array": (attribute("regions/0/0", "array", 7), r"row and column \(7,"),
    "region beyond the lines": (element("regions/0/0/columns", 3, 40000), "40000"),
    "region at a negative offset": (attribute("regions/0/0", "row_offset", -1), "offsets -1"),
    "region without blocks": (lambda file: file["regions/0"].pop("0"), "region 0 has no blocks"),
    "partners that lack": (put("regions/0/0/partners", np.ones(2, np.uint16)), "8 bit lines and 2 partners"),
    "region without a number": (lambda file: file["regions"].create_group("x"), "regions cannot be read"),
    "unknown region": (element("operations/region", 5, 9), r"operation 5 cannot be read \(9\)"),
    "negative offset": (element("operations/offset", 2, -5), "beyond its 192, or out of order"),
    "huge offset": (element("operations/offset", 2, 2**62), "beyond its 192, or out of order"),
    "huge count": (element("operations/count", 1, 2**32 - 1), "beyond its 384, or out of order"),
    "offsets out of order": (element("operations/offset", 7, 3), "beyond its 384, or out of order"),
    "more answers than questions": (element("operations/done", 2, 65), "more answers than questions"),
    "huge output offset": (element("operations/output_offset", 2, 2**60), "beyond its 192, or out of order"),
    "huge scale offset": (element("operations/scale_offset", 3, 2**60), "beyond its 18, or out of order"),
    "unknown kind": (element("operations/kind", 5, 99), "99 is not a valid Operation"),
    "negative shape": (element("operations/shape", 0, -3), "operation 0 cannot be read"),
    "cell outside the chip": (element("program/row", 5, 9999), r"a cell outside the chip's \(1, 32, 32\)"),
    "readings in volts": (element("readings/unit", 0, b"V"), "cells were read in 'V'"),
    "layer of another size": (attribute("snapshots/layer1", "rows", 9), "layer1 cannot be read"),
    "layer without cells": (lambda file: file["snapshots/layer1"].pop("plus_row"), "layer1 cannot be read"),
    "layer beyond the chip": (element("snapshots/layer1/plus_row", 0, 9999), "layer1 cannot be read"),
    "soft link": (instead("start/config", h5py.SoftLink("/start/meta")), "config is a link to elsewhere"),
    "dangling link": (instead("snapshots/x", h5py.SoftLink("/nowhere")), "x is a link to elsewhere"),
    "external link": (instead("start/config", h5py.ExternalLink("/etc/passwd", "/x")), "config is a link to elsewhere"),
    "two names": (lambda file: file.__setitem__("snapshots/x", file["start"]), "an object has two names"),
    "cycle": (lambda file: file["snapshots"].__setitem__("x", file["/"]), "an object has two names"),
    "external storage": (
        lambda file: file.create_dataset("snapshots/layer1/x", (4,), "u1", external=[("/etc/passwd", 0, 4)]),
        "its values lie in another file",
    ),
    "virtual dataset": (virtual, "its values lie in another file"),
    "absurd length": (resized("operations/kind/values", 2**60), "its shape .* needs"),
    "absurd array": (
        lambda file: file.create_dataset("snapshots/layer1/x", (2**20, 2**20, 2**20), "f8", chunks=(1, 1, 9)),
        "it has 0 chunks",
    ),
    "array of nothing": (lambda file: file.create_dataset("snapshots/layer1/x", (2**40,), "u1"), "bytes are missing"),
    "chunks that lack": (resized("mvm/inputs/values", 10**6), "it has 1 chunks"),
    "huge chunk": (huge_chunk, "its chunks of .* are larger than"),
    "records": (put("snapshots/layer1/x", np.zeros(3, "u1,f4")), "neither numbers nor text"),
    "references": (put("snapshots/layer1/x", h5py.Reference(), dtype=h5py.ref_dtype), "neither numbers nor text"),
    "no values at all": (put("snapshots/layer1/x", h5py.Empty("f4")), "it has no values"),
    "configuration that is a list": (put("start/config", "[]"), r"start/config is \[\], expected a table"),
    "nested too deep": (put("start/config", "[" * 100_000), "start cannot be read"),
    "chip of too many cells": (capability(rows=65536, columns=65536), "has more than 268435456 cells"),
    "chip of too many arrays": (capability(arrays=10**9), "a chip of"),
    "chip of text": (capability(rows="many"), "key 'rows' is"),
    "format of numbers": (attribute("/", "format", [1, 2]), "not a run file"),
    "run without a name": (attribute("/", "run_id", 5), "run_id is"),
    "newer major version": (attribute("/", "format_version", "2.0"), "this program reads"),
}


def edited(base: Path, path: Path, edit: Callable[[Any], object]) -> Path:
    """A copy of the run file, changed by h5py."""
    shutil.copyfile(base, path)
    with h5py.File(path, "r+") as file:
        edit(file)
    return path


@pytest.mark.parametrize("name", EDITS)
def test_a_file_that_was_tampered_with_is_refused(name: str, outcome: Outcome) -> None:
    first = next(said for job, said in outcome.refusals if job == ["edit", name])[0]
    assert first.startswith(f"DataError: {outcome.path}: ")
    assert re.search(EDITS[name][1], first)


if __name__ == "__main__":
    child(*sys.argv[1:])
