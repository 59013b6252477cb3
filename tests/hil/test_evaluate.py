"""Accuracy over time: drift takes place, a digital factor makes up for it, and nothing is asked in vain."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from hil.data.run import Run
from hil.evaluate import evaluate, place_of
from hil.procedure import Place
from hil.program_weights import program_weights
from hil.programming import Verify
from hil.protocols.errors import InputError
from hil.protocols.messages import Operation
from hil.train import Job, train
from hil.weights import write_weights

MONTH, YEAR = 30 * 86400.0, 3.15e7
TIMES = (25.0, 3600.0, MONTH)


def metrics_of(path: Path) -> dict[str, Any]:
    with Run.open(path) as run:
        assert run.state == "completed"
        return run.metrics


@pytest.mark.parametrize("run", ["digits_run", "digits_run_by_reading"])
def test_a_trained_network_is_followed_as_its_devices_drift(
    run: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    source = request.getfixturevalue(run).path
    place = place_of(source, None, tmp_path / "e.h5", False, ())
    outcome = evaluate(source, TIMES, place)
    assert not outcome.interrupted
    found = metrics_of(tmp_path / "e.h5")
    assert found["time"].tolist() == [0, *TIMES]
    trained = metrics_of(source)["test_accuracy"][-1]
    assert abs(found["test_accuracy"][0] - trained) < 0.03
    assert found["compensated_accuracy"].min() > trained - 0.05


def test_the_factor_is_what_drift_has_taken(digits_run: Any, tmp_path: Path) -> None:
    evaluate(digits_run.path, (1e5, 1e7), place_of(digits_run.path, None, tmp_path / "e.h5", False, ()))
    factors = metrics_of(tmp_path / "e.h5")["factor_layer1"]
    with Run.open(digits_run.path) as run:
        age = run.config["image_period"] * 1437 * run.config["epochs"] / 2  # about: devices were pulsed at all times
    assert factors[0] == pytest.approx(1, abs=0.05)
    assert factors[2] / factors[1] == pytest.approx((1e7 / 1e5) ** 0.04, rel=0.04)  # age and all: a power law of time
    assert 1 < factors[1] < (1e5 / 1) ** 0.04 * 1.1
    assert age > 0


def test_sums_beyond_the_range_of_training_are_compensated_as_well(
    make_job: Callable[..., Job], tmp_path: Path
) -> None:
    job = make_job(forward_range="0.5")
    train(job)
    evaluate(job.out, (1e5, 1e7), place_of(job.out, None, tmp_path / "e.h5", False, ()))
    found = metrics_of(tmp_path / "e.h5")
    for factors in (found["factor_layer1"], found["factor_layer2"]):
        assert factors[2] / factors[1] == pytest.approx((1e7 / 1e5) ** 0.04, rel=0.03)  # a power law of time
    with Run.open(tmp_path / "e.h5") as run:
        assert not run.messages


def test_sums_beyond_all_ranges_are_told(make_job: Callable[..., Job], tmp_path: Path) -> None:
    (tmp_path / "chip.toml").write_text('base = "pcm-analog"\nmvm_spans = [0.5]\n')
    job = make_job(tester=f"twin:{tmp_path}/chip.toml", forward_range="0.5", backward_range="0.5")
    train(job)
    evaluate(job.out, (YEAR,), place_of(job.out, None, tmp_path / "e.h5", False, ()))
    with Run.open(tmp_path / "e.h5") as run:
        texts = [text for _, text in run.messages]
    assert texts[0].startswith("layer 1: sums of inputs are beyond the largest range of the converter")


def test_without_drift_nothing_changes(make_job: Callable[..., Job], tmp_path: Path) -> None:
    job = make_job(tester="twin:pcm-analog?arrays=2&rows=80&columns=256&drift=off&read_noise=off")
    train(job)
    evaluate(job.out, (YEAR,), place_of(job.out, None, tmp_path / "e.h5", False, ()))
    found = metrics_of(tmp_path / "e.h5")
    assert found["test_accuracy"][0] == found["test_accuracy"][1] == metrics_of(job.out)["test_accuracy"][-1]
    np.testing.assert_array_equal(found["factor_layer1"], 1)


def test_an_evaluation_that_begins_late_is_kept_under_the_time_when_it_began(
    make_job: Callable[..., Job], tmp_path: Path
) -> None:
    job = make_job(tester="twin:pcm-90nm?arrays=2&rows=80&columns=256")  # to read all cells takes longer than 1 ms
    train(job)
    evaluate(job.out, (1e-3, 100.0), place_of(job.out, None, tmp_path / "e.h5", False, ()))
    start, late, due = metrics_of(tmp_path / "e.h5")["time"]
    assert start == 0
    assert 5e-3 < late < 1
    assert due == 100
    with Run.open(tmp_path / "e.h5") as run:
        ((_, text),) = run.messages
    assert text == f"the evaluation before that at 0.001 s took until {late:.3g} s, so it is one of then"


def test_an_evaluation_changes_neither_the_run_nor_its_chip(short_run: Path, tmp_path: Path) -> None:
    before = short_run.read_bytes()
    results = []
    for name in ("a.h5", "b.h5"):
        evaluate(short_run, (25.0,), place_of(short_run, None, tmp_path / name, False, ()))
        results.append(metrics_of(tmp_path / name))
    assert short_run.read_bytes() == before
    for name, values in results[0].items():
        np.testing.assert_array_equal(values, results[1][name])


def test_an_evaluation_sends_no_pulse(short_run: Path, tmp_path: Path) -> None:
    evaluate(short_run, (25.0,), place_of(short_run, None, tmp_path / "e.h5", False, ()))
    with Run.open(tmp_path / "e.h5") as run:
        assert run.counts["set"] == run.counts["reset"] == 0
        assert run.counts["mvm_forward"] > 0
        times = run.operations["device_time_ns"][: run.operations.rows]
        waits = run.operations["kind"][: run.operations.rows] == Operation.WAIT
        assert np.diff(times)[waits[1:]].sum() == pytest.approx(25e9, rel=1e-3)


def test_a_network_with_stuck_cells_is_found_where_it_lies(make_job: Callable[..., Job], tmp_path: Path) -> None:
    job = make_job(tester="twin:pcm-analog?arrays=2&rows=80&columns=256&stuck_fraction=0.02", scan_stuck="true")
    train(job)
    evaluate(job.out, (25.0,), place_of(job.out, None, tmp_path / "e.h5", False, ()))
    assert abs(metrics_of(tmp_path / "e.h5")["test_accuracy"][0] - metrics_of(job.out)["test_accuracy"][-1]) < 0.05


def test_a_chip_behind_a_port_is_asked_itself(make_job: Callable[..., Job], served: Any, tmp_path: Path) -> None:
    with served("twin:pcm-analog?arrays=2&rows=80&columns=256", ("127.0.0.1", 0)) as server:
        job = make_job(tester=server.uri, epochs=1)
        train(job)
        evaluate(job.out, (25.0, YEAR), place_of(job.out, None, tmp_path / "e.h5", False, ()))
        evaluate(job.out, (25.0,), place_of(job.out, None, tmp_path / "again.h5", False, ()))
    found = metrics_of(tmp_path / "e.h5")
    assert abs(found["test_accuracy"][0] - metrics_of(job.out)["test_accuracy"][-1]) < 0.05
    assert found["factor_layer1"][2] > 1.2
    with Run.open(tmp_path / "e.h5") as run, Run.open(tmp_path / "again.h5") as again:
        assert not run.messages
        assert "may hold other weights" in again.messages[0][1]  # a year older, for one
    with (
        served("twin:pcm-analog?arrays=2&rows=80&columns=256&seed=9", ("127.0.0.1", 0)) as other,
        pytest.raises(InputError, match=r"was made on chip .*; at .* is chip"),
    ):
        evaluate(job.out, (25.0,), place_of(job.out, other.uri, tmp_path / "f.h5", False, ()))
    assert not (tmp_path / "f.h5").exists()


@pytest.mark.parametrize(
    ("times", "error"),
    [
        ((), "no times"),
        ((25.0, 25.0), "25 s comes after 25 s: give times that increase"),
        ((3600.0, 25.0), "25 s comes after 3600 s"),
        ((0.0, 25.0), "0 s is not after 0"),
        ((-1.0,), "-1 s is not after 0"),
        ((float("nan"),), "nan s is not after 0"),
        ((1e10,), r"1e\+10 s is beyond the latest"),
    ],
)
def test_times_that_do_not_increase_are_refused(
    times: tuple[float, ...], error: str, short_run: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=error):
        evaluate(short_run, times, Place("twin:", tmp_path / "e.h5"))
    assert not (tmp_path / "e.h5").exists()


def test_runs_without_a_network_on_devices_are_refused(
    make_job: Callable[..., Job], short_run: Path, tmp_path: Path
) -> None:
    job = make_job(system="float")
    train(job)
    place = Place("twin:", tmp_path / "e.h5")
    with pytest.raises(InputError, match="floating point"):
        evaluate(job.out, (25.0,), place)
    evaluate(short_run, (25.0,), place)
    with pytest.raises(InputError, match="does not say where weights lie"):
        evaluate(tmp_path / "e.h5", (25.0,), Place("twin:", tmp_path / "f.h5"))
    assert not (tmp_path / "f.h5").exists()


def test_the_run_that_is_evaluated_stays_where_it_is(short_run: Path, tmp_path: Path) -> None:
    source = Path(shutil.copy(short_run, tmp_path / "run.h5"))
    with pytest.raises(InputError, match="is the run that is evaluated"):
        evaluate(source, (25.0,), Place("twin:", tmp_path / "." / "run.h5", overwrite=True))
    assert source.read_bytes() == short_run.read_bytes()


def test_a_network_of_which_a_layer_was_not_written_is_refused(short_run: Path, tmp_path: Path) -> None:
    source = Path(shutil.copy(short_run, tmp_path / "run.h5"))
    with h5py.File(source, "r+") as file:
        del file["snapshots/layer2"]
    with pytest.raises(InputError, match="was stopped when 1 of 2 layers had been written"):
        evaluate(source, (25.0,), Place("twin:", tmp_path / "e.h5"))
    assert not (tmp_path / "e.h5").exists()


def test_a_run_that_was_killed_does_not_hold_its_chip(short_run: Path, tmp_path: Path) -> None:
    shutil.copy(short_run, tmp_path / "run.h5")
    with h5py.File(tmp_path / "run.h5", "r+") as file:
        del file["snapshots/chip"]
    with pytest.raises(InputError, match="does not hold its chip"):
        evaluate(tmp_path / "run.h5", (25.0,), Place("twin:", tmp_path / "e.h5"))


def test_programmed_weights_are_as_right_as_the_margin_lets_them_and_can_be_followed(
    make_job: Callable[..., Job], tmp_path: Path
) -> None:
    job = make_job(system="float", train_images=0, epochs=8)
    trained = train(job).test_accuracy
    with Run.open(job.out) as run:
        write_weights(run, tmp_path / "w.safetensors")
    place = Place("twin:pcm-90nm", tmp_path / "p.h5")
    program_weights(tmp_path / "w.safetensors", place, Verify(), "digits")
    found = metrics_of(tmp_path / "p.h5")
    assert found["converged"][0] > 0.98
    assert found["cells"][0] == 2 * (65 * 64 + 65 * 10)
    assert found["test_accuracy"][0] > trained - 0.08
    with Run.open(tmp_path / "p.h5") as run:
        assert run.counts["set"] > 0
        errors = run.snapshot("convergence1").arrays["error"]
        assert len(errors) == 2 * 65 * 64
        assert errors.std() < 0.8e-6
    evaluate(tmp_path / "p.h5", (25.0,), Place("twin:", tmp_path / "e.h5"))
    assert metrics_of(tmp_path / "e.h5")["test_accuracy"][1] > trained - 0.1


@pytest.mark.parametrize(
    ("settings", "how", "error"),
    [
        ({"hidden": "[32]"}, Verify(), "holds a network of 64-32-10, digits is one of 64-64-10"),
        ({}, Verify(margin=-1), "margin=-1 S"),
    ],
)
def test_weights_that_cannot_be_programmed_are_refused(
    make_job: Callable[..., Job], tmp_path: Path, settings: dict[str, str], how: Verify, error: str
) -> None:
    job = make_job(system="float", epochs=1, **settings)
    train(job)
    with Run.open(job.out) as run:
        write_weights(run, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=error):
        program_weights(tmp_path / "w.safetensors", Place("twin:", tmp_path / "p.h5"), how, "digits")
    assert not (tmp_path / "p.h5").exists()
