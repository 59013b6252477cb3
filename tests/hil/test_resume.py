"""A run that was cut anywhere and resumed is the run that was never cut."""

import itertools
import json
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest
from pytest_mock import MockerFixture

from hil.data import runfile
from hil.data.reference import HOST_METRICS
from hil.data.run import Run
from hil.loop import CHIP
from hil.mock_hw import records
from hil.mock_hw.array import Chip, Product
from hil.mock_hw.chipfile import load
from hil.observers import Silent
from hil.placed import keep_chip
from hil.protocols.errors import InputError, ReplayError, TesterError
from hil.resume import resume
from hil.train import Job, train

MakeJob = Callable[..., Job]
LogOf = Callable[[Path], dict[str, npt.NDArray[Any]]]
SMALL_90NM = "twin:pcm-90nm?arrays=2&rows=80&columns=256"
CASES: dict[str, dict[str, Any]] = {
    "analog": {},
    "by reading": {"tester": SMALL_90NM, "reread_images": 70},
    "batches, linear outputs": {"batch_size": 7, "output": "linear", "lr": 0.05},
    "one pulse at most, scanned": {
        "max_pulses": 1,
        "scan_stuck": "true",
        "tester": f"{SMALL_90NM}&stuck_fraction=0.01",
    },
    "digest": {"log": "digest"},
    "floating point": {"system": "float"},
}


class Cuts:
    """An observer that copies the run file as a kill would leave it, each time it is told something."""

    def __init__(self, path: Path, folder: Path) -> None:
        self._path, self._folder = path, folder
        self.copies: list[Path] = []
        folder.mkdir()

    def progress(self, *_: Any) -> None:
        copy = self._folder / f"{len(self.copies)}.h5"
        shutil.copyfile(self._path, copy)
        self.copies.append(copy)

    logging = begin = epoch = finding = progress


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flush all the time, and make a checkpoint with each report."""
    monkeypatch.setattr(runfile, "FLUSH_NS", 5_000_000)
    monkeypatch.setattr(runfile, "CHECKPOINT_S", 0.0)


def said(path: Path) -> tuple[dict[str, Any], list[str], dict[str, Any], str]:
    """Metrics without the host's time, messages, final values, the chip at the end, and state."""
    with Run.open(path) as run:
        metrics = {name: values.tolist() for name, values in run.metrics.items() if name not in HOST_METRICS}
        ends = [run.snapshot(name).arrays for name in ("final", CHIP) if name in run.snapshots]
        final = {name: values.tobytes() for end in ends for name, values in end.items()}
        return metrics, [text for _, text in run.messages], final, run.state


def assert_same(path: Path, other: Path, log_of: LogOf) -> None:
    assert said(path) == said(other)
    log, expected = log_of(path), log_of(other)
    assert log.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(log[name], values, err_msg=name)


@pytest.fixture(params=list(CASES.values()), ids=list(CASES))
def cut(request: pytest.FixtureRequest, often: None, make_job: MakeJob, tmp_path: Path) -> Any:
    """A finished run, and copies of its file from the time when it was going on."""
    job = make_job(**request.param)
    cuts = Cuts(job.out, tmp_path / "cuts")
    train(job, cuts)
    return job.out, cuts.copies


def test_a_killed_run_goes_on_to_the_same_end(cut: Any, log_of: LogOf) -> None:
    whole, copies = cut
    for copy in (copies[1], copies[len(copies) // 2], copies[-1]):
        with Run.open(copy) as run:
            assert run.state == "interrupted"
            before = run.operations.rows
        result = resume(copy)
        assert not result.interrupted
        assert_same(copy, whole, log_of)
        with Run.open(copy) as run:
            assert [session["operations"] for session in run.sessions] == [before]


def test_a_run_killed_when_its_chip_was_written_down_goes_on_to_the_same_end(
    often: None, make_job: MakeJob, log_of: LogOf, tmp_path: Path, mocker: MockerFixture
) -> None:
    job, copy = make_job(), tmp_path / "copy.h5"

    def keep_and_copy(*given: Any) -> None:
        keep_chip(*given)
        shutil.copyfile(job.out, copy)

    mocker.patch("hil.train.keep_chip", keep_and_copy)
    train(job)
    mocker.stopall()
    with Run.open(copy) as run:
        assert run.state == "interrupted"
        assert CHIP in run.snapshots
    resume(copy)
    assert_same(copy, job.out, log_of)


@pytest.fixture
def killed(often: None, make_job: MakeJob, tmp_path: Path) -> Any:
    """A finished run, and its file as a kill left it in the second epoch."""
    job = make_job()
    cuts = Cuts(job.out, tmp_path / "cuts")
    train(job, cuts)
    return job.out, cuts.copies[-2]


def test_without_a_checkpoint_all_is_done_again(
    monkeypatch: pytest.MonkeyPatch, make_job: MakeJob, tmp_path: Path, log_of: LogOf
) -> None:
    monkeypatch.setattr(runfile, "FLUSH_NS", 5_000_000)
    job = make_job()
    cuts = Cuts(job.out, tmp_path / "cuts")
    train(job, cuts)
    with Run.open(cuts.copies[-2]) as run:
        assert run.checkpoint is None
    resume(cuts.copies[-2])
    assert_same(cuts.copies[-2], job.out, log_of)


def test_a_run_may_be_killed_again_and_again(killed: Any, log_of: LogOf, tmp_path: Path) -> None:
    whole, copy = killed
    for number in range(3):
        cuts = Cuts(copy, tmp_path / f"again{number}")
        resume(copy, cuts)
        copy = cuts.copies[1]
    resume(copy)
    assert_same(copy, whole, log_of)
    with Run.open(copy) as run:
        assert len(run.sessions) == 4


class Stopper(Silent):
    """Ctrl-C in the second epoch."""

    def __init__(self, at: int) -> None:
        self._at = at

    def progress(self, images: int, *_: Any) -> None:
        if images == self._at:
            signal.raise_signal(signal.SIGINT)


def test_an_interrupted_run_goes_on_from_where_it_was(make_job: MakeJob, tmp_path: Path, log_of: LogOf) -> None:
    whole, stopped = make_job(out=tmp_path / "whole.h5"), make_job(out=tmp_path / "stopped.h5")
    train(whole)
    assert train(stopped, Stopper(192)).interrupted
    with Run.open(stopped.out) as run:
        assert run.state == "interrupted"
        assert run.checkpoint is not None
        assert run.checkpoint.operations == run.operations.rows  # nothing is done twice
    result = resume(stopped.out)
    assert (result.images, result.epochs, result.interrupted) == (300, 2, False)
    assert_same(stopped.out, whole.out, log_of)


@pytest.mark.parametrize("kill", [True, False], ids=["killed", "Ctrl-C"])
def test_a_kept_chip_ends_as_if_the_run_had_never_been_cut(
    often: None, make_job: MakeJob, tmp_path: Path, log_of: LogOf, kill: bool
) -> None:
    new = "chip=pcm-analog&arrays=2&rows=80&columns=256&seed=4"
    train(make_job(out=tmp_path / "first.h5", tester=f"twin:{tmp_path / 'chip.h5'}?{new}"))
    shutil.copyfile(tmp_path / "chip.h5", tmp_path / "before.h5")
    job = make_job(tester=f"twin:{tmp_path / 'chip.h5'}")
    cuts = Cuts(job.out, tmp_path / "cuts")
    train(job, cuts)
    shutil.copyfile(job.out, tmp_path / "whole.h5")
    expected = load(tmp_path / "chip.h5")[0].chip
    shutil.copyfile(tmp_path / "before.h5", tmp_path / "chip.h5")
    if kill:
        job.out.write_bytes(cuts.copies[-2].read_bytes())
    else:
        train(replace(job, overwrite=True), Stopper(192))
    resume(job.out)
    assert_same(job.out, tmp_path / "whole.h5", log_of)
    chip = load(tmp_path / "chip.h5")[0].chip
    assert chip.now_ns == expected.now_ns
    for name in records.CELL.names or ():
        np.testing.assert_array_equal(chip.cells[name], expected.cells[name])


def test_a_chip_that_was_used_since_is_refused(often: None, make_job: MakeJob, tmp_path: Path) -> None:
    new = "?chip=pcm-analog&arrays=2&rows=80&columns=256"
    assert train(make_job(tester=f"twin:{tmp_path / 'chip.h5'}{new}"), Stopper(192)).interrupted
    train(make_job(out=tmp_path / "other.h5", tester=f"twin:{tmp_path / 'chip.h5'}"))
    before = (tmp_path / "run.h5").read_bytes()
    with pytest.raises(InputError, match=r"chip in .*chip\.h5 was used since: its last operation is \d+"):
        resume(tmp_path / "run.h5")
    assert (tmp_path / "run.h5").read_bytes() == before


@pytest.mark.parametrize("error", [KeyboardInterrupt(), TesterError("it smokes")])
@pytest.mark.parametrize(
    ("part", "operation", "after"), [(Chip, "program", 100), (Product, "multiply", 400), (Chip, "read", 5)]
)
def test_an_operation_that_failed_is_done_again(
    make_job: MakeJob, tmp_path: Path, log_of: LogOf, error: BaseException, part: type, operation: str, after: int
) -> None:
    whole, job = make_job(out=tmp_path / "whole.h5"), make_job()
    train(whole)
    calls, real = itertools.count(), getattr(part, operation)

    def fail(*arguments: Any) -> Any:
        if next(calls) == after:
            raise error
        return real(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(part, operation, fail)
        with pytest.raises(type(error)):
            train(job)
    with Run.open(job.out) as run:
        assert run.operations["op_id"][-1] == -1
    resume(job.out)
    assert_same(job.out, whole.out, log_of)


def test_a_completed_run_is_refused(killed: Any) -> None:
    with pytest.raises(InputError, match=r"run\.h5 is complete: there is nothing to resume"):
        resume(killed[0])


def test_another_tester_is_refused(killed: Any) -> None:
    before = killed[1].read_bytes()
    with pytest.raises(InputError, match=r"was made on twin:pcm-analog.*, not on twin:ideal"):
        resume(killed[1], tester="twin:ideal")
    assert killed[1].read_bytes() == before


def edit(path: Path, group: str, **changes: Any) -> None:
    """Change values in a JSON text of the start of a run file."""
    with h5py.File(path, "r+") as file:
        values = json.loads(file[group].asstr()[()])
        file[group][()] = json.dumps(values | changes)


def test_another_configuration_is_refused_where_it_first_differs(killed: Any) -> None:
    edit(killed[1], "start/config", lr=0.41)
    with pytest.raises(ReplayError, match=r"operation \d+"):
        resume(killed[1])
    with Run.open(killed[1]) as run:
        assert run.state.startswith("failed: ReplayError: operation")


@pytest.mark.parametrize(
    ("group", "change", "said"),
    [
        ("start/identity", {"chip": "pcm-analog-another"}, "tester is another than that of the run: chip was pcm-an"),
        ("start/capabilities", {"adc_bits": 9}, "adc_bits was 9, is 8"),
        ("start/config", {"colour": "red"}, "unknown setting 'colour'"),
        ("start/config", {"seed": 2}, "chip was pcm-analog-"),
    ],
)
def test_what_differs_is_named(
    make_job: MakeJob, tmp_path: Path, group: str, change: dict[str, Any], said: str
) -> None:
    job = make_job()
    cuts = Cuts(job.out, tmp_path / "cuts")
    train(job, cuts)
    copy = cuts.copies[-1]
    edit(copy, group, **change)
    before = copy.read_bytes()
    with pytest.raises(InputError, match=said):
        resume(copy)
    assert copy.read_bytes() == before


def test_a_log_that_was_changed_is_refused_with_the_difference(killed: Any) -> None:
    with h5py.File(killed[1], "r+") as file:
        stream = file["program/column"]
        part = stream["values"] if len(stream["values"]) > 10_000 else stream["tail"]
        length = int(stream["tail_range"][1])
        part[length - 1] += 1
    with pytest.raises(ReplayError, match=r"operation \d+ \((SET|RESET)\): program/column\[\d+\] was \d+, is \d+"):
        resume(killed[1])


def test_the_devices_of_a_weight_are_told(short_run: Path) -> None:
    with Run.open(short_run) as run:
        plus, minus = run.devices("layer1", 64, 63)
        weights = run.weights("layer1")
        values = [run.readings(*cell).value[-1] for cell in (plus, minus)]
        assert weights[64, 63] == pytest.approx((values[0] - values[1]) / 8e-6, abs=1e-5)
        with pytest.raises(InputError, match=r"weight \(65, 0\) of layer1: its matrix is \(65, 64\)"):
            run.devices("layer1", 65, 0)
        with pytest.raises(InputError, match="neither Direction"):
            run.products(0, "forward")  # type: ignore[arg-type]
