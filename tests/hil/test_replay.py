"""The host's part of a run, done again from its file alone, is the same to the last bit; and says so if it is not."""

import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from hil.bench import open_tester
from hil.data.run import Run
from hil.protocols.errors import InputError, ReplayError, TesterError
from hil.protocols.messages import TesterKind
from hil.replay import follow, verify
from hil.train import Job, train

MakeJob = Callable[..., Job]
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
}


class Quiet:
    """An observer that may press Ctrl-C."""

    def __init__(self, stop_at: int = -1) -> None:
        self._stop_at = stop_at

    def progress(self, images: int, *_: Any) -> None:
        if images == self._stop_at:
            signal.raise_signal(signal.SIGINT)

    def logging(self, *_: Any) -> None:
        """Nothing."""

    begin = epoch = finding = logging


@pytest.fixture
def recorded(short_run: Path) -> Path:
    """A short run; nobody writes to it."""
    return short_run


@pytest.fixture
def copy(recorded: Path, tmp_path: Path) -> Path:
    """A copy of the run to be changed."""
    return Path(shutil.copy(recorded, tmp_path / "run.h5"))


def change(path: Path, column: str, index: int, by: float) -> None:
    with h5py.File(path, "r+") as file:
        file[f"{column}/values"][index] += by


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES.keys())
def test_a_run_is_repeated_from_its_file_alone(make_job: MakeJob, settings: dict[str, Any]) -> None:
    job = make_job(**settings)
    result = train(job, Quiet())
    for verdict in (verify(job.out, Quiet()), follow(job.out, Quiet())):
        assert (verdict.operations, verdict.weights) == (result.operations, result.weights)
        assert str(verdict) == f"identical: {result.operations:,} operations, 4,810 weights"


def test_a_run_that_was_interrupted_is_repeated_up_to_there(make_job: MakeJob) -> None:
    job = make_job()
    result = train(job, Quiet(stop_at=192))
    verdict = verify(job.out, Quiet())
    assert verdict.operations == result.operations
    assert verdict.weights == 4810  # of the state that the interrupted run left
    assert str(verdict).endswith("weights (the recorded run ends there)")


def test_a_state_that_differs_where_the_run_was_interrupted_is_found(make_job: MakeJob) -> None:
    job = make_job()
    train(job, Quiet(stop_at=192))
    with h5py.File(job.out, "r+") as file:
        (checkpoint,) = file["checkpoints"].values()
        for name in [name for name in checkpoint if name.endswith(".chi")]:
            checkpoint[name][...] += 1
    with pytest.raises(ReplayError, match=r"the checkpoint: 4160 of 4160 values of .*\.chi differ"):
        verify(job.out, Quiet())
    assert follow(job.out, Quiet()).identical  # nothing is compared in the middle


def test_the_state_of_an_interrupted_run_is_compared_after_as_many_images(make_job: MakeJob) -> None:
    job = make_job(tester=SMALL_90NM, image_period=0, lr=1e-5, train_images=700, epochs=1)
    result = train(job, Quiet(stop_at=640))
    assert (result.images, result.operations) == (640, 7)  # most images made none
    verdict = verify(job.out, Quiet())
    assert (verdict.operations, verdict.weights, verdict.identical) == (result.operations, 4810, True)


def test_following_ends_where_an_interrupted_recording_does(make_job: MakeJob) -> None:
    job = make_job(tester=SMALL_90NM, train_images=700, epochs=1)
    result = train(job, Quiet(stop_at=192))
    verdict = follow(job.out, Quiet())
    assert (verdict.operations, verdict.identical) == (result.operations, True)


def test_a_replay_may_be_interrupted(recorded: Path) -> None:
    verdict = verify(recorded, Quiet(stop_at=64))
    assert verdict.interrupted
    assert "so far (the replay was interrupted)" in str(verdict)


def operation_of(path: Path, kind: int, number: int) -> int:
    with Run.open(path) as run:
        return int(np.flatnonzero(run.operations["kind"][:] == kind)[number])


def test_the_first_request_that_differs_is_named(copy: Path) -> None:
    number = operation_of(copy, 2, 100)
    with Run.open(copy) as run:
        offset, was = int(run.operations["offset"][number]) + 5, int(run.operation(number).request.codes[0, 5])  # type: ignore[union-attr]
    change(copy, "mvm/inputs", offset, 1)
    message = rf"operation {number} \(MVM_FORWARD\): mvm/inputs\[5\] was {was + 1}, is {was}"
    with pytest.raises(ReplayError, match=message):
        verify(copy, Quiet())
    verdict = follow(copy, Quiet())
    assert not verdict.identical
    assert (verdict.differences.products, verdict.differences.largest_code) == (1, 1)
    assert verdict.largest_weight == 0  # the answers are the recorded ones
    assert f"first difference: operation {number}: DAC codes differ by up to 1" in str(verdict)


def test_an_answer_that_was_changed_shows_in_what_follows_from_it(copy: Path) -> None:
    number = operation_of(copy, 2, 100)
    with Run.open(copy) as run:
        change_at = int(run.operations["output_offset"][number])
    change(copy, "mvm/outputs", change_at, 40)
    with pytest.raises(ReplayError, match=r"operation \d+") as caught:
        verify(copy, Quiet())
    assert number < int(str(caught.value).split()[1].rstrip(":")) < number + 10
    verdict = follow(copy, Quiet())
    assert verdict.operations == len(Run.open(copy).operations["kind"])
    assert 0 < verdict.largest_weight < 1


@pytest.mark.parametrize(
    ("column", "said"),
    [
        ("program/counts", r"operation \d+ \((SET|RESET)\): program/counts\[\d+\] was \d+, is \d+"),
        ("program/row", r"program/row\[\d+\] was \d+, is \d+"),
        ("read/column", r"operation \d+ \(READ\): read/column\[\d+\] was \d+, is \d+"),
        ("wait/seconds", r"operation \d+ \(WAIT\): wait/seconds\[0\] was "),
        ("mvm/scales", r"mvm/scales\[\d+\] was "),
        ("metrics/test_accuracy", r"metric test_accuracy, row 1: was 1\.\d+, is 0\.\d+"),
        ("operations/kind", r"operation \d+: was \w+"),
        ("operations/count", r"operation \d+: was \w+"),
    ],
)
def test_whatever_was_changed_is_found(copy: Path, column: str, said: str) -> None:
    change(copy, column, -1, 1)
    with pytest.raises(ReplayError, match=said):
        verify(copy, Quiet())


def test_final_weights_are_compared_bit_for_bit(copy: Path) -> None:
    with h5py.File(copy, "r+") as file:
        chi = file["snapshots/final/layer2_chi"]
        chi[3, 4] = np.nextafter(chi[3, 4], np.float32(1))
    with pytest.raises(
        ReplayError, match=r"snapshot final: 1 of 650 values of layer2_chi differ, the first is number 34"
    ):
        verify(copy, Quiet())
    assert 0 < follow(copy, Quiet()).largest_weight < 1e-6


def test_a_recording_without_products_is_refused(make_job: MakeJob) -> None:
    job = make_job(log="digest")
    train(job, Quiet())
    with pytest.raises(InputError, match="keeps only a checksum of each product"):
        verify(job.out, Quiet())


def test_a_run_without_a_tester_is_refused(make_job: MakeJob) -> None:
    job = make_job(system="float")
    train(job, Quiet())
    with pytest.raises(InputError, match="made without a tester: there is nothing to replay"):
        verify(job.out, Quiet())


def test_a_recording_is_a_tester_like_any_other(recorded: Path, make_job: MakeJob, tmp_path: Path) -> None:
    with open_tester(f"replay:{recorded}") as tester:
        assert tester.identify().kind == TesterKind.REPLAY
    job = make_job(out=tmp_path / "again.h5", tester=f"replay:{recorded}")
    train(job, Quiet())
    with Run.open(job.out) as run, Run.open(recorded) as original:
        assert run.tester_kind == "replay"
        np.testing.assert_array_equal(run.metrics["test_accuracy"], original.metrics["test_accuracy"])


def test_a_run_with_other_settings_parts_from_the_recording(recorded: Path, make_job: MakeJob) -> None:
    with pytest.raises(ReplayError, match=r"operation \d+"):
        train(make_job(tester=f"replay:{recorded}", lr=0.3), Quiet())


def test_an_operation_that_failed_fails_again(recorded: Path, copy: Path) -> None:
    number = operation_of(copy, 4, 20)
    with h5py.File(copy, "r+") as file:
        file["operations/op_id/values"][number] = -1
    with pytest.raises(TesterError, match=f"operation {number}: the tester failed here when this was recorded"):
        verify(copy, Quiet())


def test_a_host_that_reads_other_cells_is_followed_with_their_last_codes(make_job: MakeJob) -> None:
    job = make_job(tester=SMALL_90NM)
    train(job, Quiet())
    number = operation_of(job.out, 1, 0)
    with Run.open(job.out) as run:
        first, count = (int(run.operations[name][number]) for name in ("output_offset", "count"))
    with h5py.File(job.out, "r+") as file:
        file["read/codes/values"][first : first + count // 2] += 60  # of G+ alone
    with pytest.raises(ReplayError):
        verify(job.out, Quiet())
    verdict = follow(job.out, Quiet())
    assert verdict.differences.pulses > 0
    assert verdict.differences.reads > 0
    assert 0 < verdict.largest_weight < 0.2
