"""Real processes, killed at random moments: what was flushed is there with its values, and the run goes on."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest

from hil.data.run import Run
from hil.data.status import read_status
from hil.resume import resume
from hil.runinfo import describe

LogOf = Callable[[Path], dict[str, npt.NDArray[Any]]]
SETTINGS = [
    "--json", "--epochs", "3", "--set", "train_images=200",
    "--tester", "twin:pcm-analog?arrays=2&rows=80&columns=256",
]  # fmt: skip
PROGRAM = """
import sys
from hil.data import runfile
runfile.FLUSH_NS, runfile.CHECKPOINT_S = int(sys.argv.pop(1)), 0.3
from hil.cli import main
main()
"""


def started(path: Path, flush_ns: int, *more: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-c", PROGRAM, str(flush_ns), "train", "digits", "--out", str(path), *SETTINGS, *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def wait_for(process: "subprocess.Popen[bytes]", path: Path, key: str, count: int) -> None:
    while process.poll() is None and read_status(path).get(key, 0) < count:
        time.sleep(0.001)


def killed(path: Path, operations: int, wait: float, flush_ns: int) -> int:
    """Kill a run some time after so many operations; the operations that the writer had said were flushed."""
    process = started(path, flush_ns)
    wait_for(process, path, "operations", operations)
    time.sleep(wait)
    told = int(read_status(path).get("operations", 0))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return told


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nobody kills."""
    path = tmp_path_factory.mktemp("whole") / "run.h5"
    _, said = (process := started(path, 100_000_000)).communicate()
    assert process.returncode == 0, said
    return path


def assert_prefix(path: Path, whole: Path, told: int, log_of: LogOf) -> None:
    """What the file holds is the beginning of the whole run, and no less than was told."""
    log, expected = log_of(path), log_of(whole)
    rows = len(log["operations/op_id"])
    assert told <= rows
    for name, values in log.items():
        np.testing.assert_array_equal(values, expected[name][: len(values)], err_msg=name)
    assert {len(values) for name, values in log.items() if name.startswith("operations/")} == {rows}


def kill_often(count: int, whole: Path, folder: Path, log_of: LogOf, flush_ns: int, share: float) -> None:
    chance, plain, cut = np.random.default_rng(count), 0, 0
    with Run.open(whole) as run:
        total = run.operations.rows
    for number in range(count):
        copy = folder / f"{number}.h5"
        told = killed(copy, int(chance.integers(1, int(total * share))), chance.uniform(0, 0.05), flush_ns)
        try:
            h5py.File(copy, "r").close()
            plain += 1
        except OSError:
            assert copy.stat().st_size > 0  # killed between a journal and its pages: the next line mends it
        state = describe(copy)["state"]
        assert state in ("interrupted", "completed")  # it may have been quick
        cut += state == "interrupted"
        assert_prefix(copy, whole, told, log_of)
        if number % 10 == 0 and state == "interrupted":
            resume(copy)
            assert {name: values.tolist() for name, values in log_of(copy).items()} == {
                name: values.tolist() for name, values in log_of(whole).items()
            }
        copy.unlink()
    assert cut >= count * 3 // 4
    assert plain >= count - 1 - count // 50


def test_a_killed_run_keeps_what_was_flushed_and_goes_on(whole: Path, tmp_path: Path, log_of: LogOf) -> None:
    kill_often(2, whole, tmp_path, log_of, 100_000_000, 0.9)


@pytest.mark.torture
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("count", "flush_ns", "share"), [(50, 1_000_000, 0.1), (70, 100_000_000, 0.9)])
def test_a_hundred_kills(whole: Path, tmp_path: Path, log_of: LogOf, count: int, flush_ns: int, share: float) -> None:
    """In the first part of runs that flush all the time, and anywhere in runs that do now and then."""
    kill_often(count, whole, tmp_path, log_of, flush_ns, share)


def test_a_running_file_is_told_from_its_status_alone(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    process = started(path, 20_000_000, "--epochs", "20000")
    try:
        wait_for(process, path, "images", 1)
        shown = subprocess.run(
            [str(Path(sys.executable).with_name("hil")), "info", str(path), "--json"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        found = json.loads(shown.stdout)
        assert (found["state"], found["run"]) == ("running", str(path))
        assert found["process"] == process.pid
        assert found["images"] > 0
        assert found["operations"] > 100
    finally:
        process.kill()
        process.communicate()
    assert describe(path)["state"] == "interrupted"
    assert read_status(path)["state"] == "running"  # nobody was there to change it


@pytest.mark.parametrize("harm", ["folder removed", "file replaced", "disk full"])
def test_a_run_that_cannot_be_logged_stops(tmp_path: Path, harm: str) -> None:
    path = tmp_path / "runs" / "run.h5"
    path.parent.mkdir()
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))\n"
    program = ("import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n" + limit) if harm == "disk full" else ""
    process = subprocess.Popen(
        [sys.executable, "-c", program + PROGRAM, "20000000", "train", "digits", "--out", str(path), *SETTINGS],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while process.poll() is None and not read_status(path).get("operations"):
        time.sleep(0.001)
    if harm == "folder removed":
        path.parent.rename(tmp_path / "elsewhere")
    elif harm == "file replaced":
        path.rename(tmp_path / "moved.h5")
        path.write_text("another")
    _, said = process.communicate(timeout=60)
    assert process.returncode == 4
    assert said.splitlines()[-1].startswith("Error: ")
    assert "cannot be written" in said.splitlines()[-1]
    assert "Traceback" not in said
    kept = {"folder removed": tmp_path / "elsewhere" / "run.h5", "file replaced": tmp_path / "moved.h5"}.get(harm, path)
    with Run.open(kept) as run:
        assert run.state == "interrupted"
        assert run.metrics == {} or len(run.metrics["epoch"]) < 3
