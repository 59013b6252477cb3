"""A run from end to end: its result, its file, its seed, and how it ends when something fails."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest

from hil.data.datasets import load
from hil.data.run import Run
from hil.mock_hw.array import Chip
from hil.mock_hw.chips import named_chip
from hil.mock_hw.firmware import Firmware
from hil.mock_hw.twin import TwinTester
from hil.protocols.errors import DataError, DivergedError, InputError, TesterError
from hil.protocols.messages import Direction, Operation, Readings, Region, Vectors
from hil.replay import verify
from hil.train import Job, train

MakeJob = Callable[..., Job]
LogOf = Callable[[Path], dict[str, npt.NDArray[Any]]]
SMALL_90NM = "twin:pcm-90nm?arrays=2&rows=80&columns=256"


class TestResult:
    def test_the_digits_are_learnt_in_a_few_epochs(self, digits_run: Any, digits_run_by_reading: Any) -> None:
        assert digits_run.result.test_accuracy > 0.91
        assert digits_run_by_reading.result.test_accuracy > 0.88

    def test_it_says_what_was_made(self, digits_run: Any) -> None:
        result = digits_run.result
        assert (result.experiment, result.system, result.tester) == ("digits", "mixed-precision", "twin:pcm-analog")
        assert (result.run, result.seed, result.epochs, result.images) == (str(digits_run.path), 1, 4, 4 * 1438)
        assert (result.weights, result.devices) == (65 * 64 + 65 * 10, 2 * (65 * 64 + 65 * 10))
        assert result.image_period == pytest.approx(0.4)
        assert result.images_per_second > 0
        assert not result.interrupted

    def test_the_observer_is_told_how_it_goes(self, digits_run: Any) -> None:
        watcher, result = digits_run.watcher, digits_run.result
        assert watcher.begun == [(1438, 4)]
        assert [number for number, _ in watcher.epochs] == [1, 2, 3, 4]
        assert watcher.epochs[-1][1] == result.test_accuracy
        images, accuracies, pulses, refreshes = zip(*watcher.steps, strict=True)
        assert list(images) == sorted(set(images))
        assert np.diff(images).max() <= 64
        assert accuracies[-1] > 0.85
        assert list(pulses) == sorted(pulses)
        assert refreshes[-1] <= result.refreshes

    def test_held_out_images_take_the_place_of_the_test_set(self, make_job: MakeJob, observer: Any) -> None:
        result = train(make_job(validation_images=38, epochs=1, train_images=1400), observer)
        assert round(result.test_accuracy * 38, 9) == int(result.test_accuracy * 38 + 0.5)
        assert result.test_accuracy > 0.5

    def test_batches_train_all_images_once(self, make_job: MakeJob, observer: Any) -> None:
        result = train(make_job(batch_size=64, epochs=1, lr=0.05), observer)  # 150 images: 64, 64, 22
        assert result.images == 150
        with Run.open(Path(result.run)) as run:
            assert run.operations["device_time_ns"][-1] > 150 * 0.4e9
            kinds = run.operations["kind"][:]
            counts = run.operations["count"][:]
        assert counts[kinds == Operation.MVM_BACKWARD].tolist() == [64, 64, 22]

    @pytest.mark.parametrize(
        ("hidden", "activation", "output"), [("[]", "relu", "sigmoid"), ("[12, 8]", "tanh", "linear")]
    )
    def test_other_networks_run_too(
        self, hidden: str, activation: str, output: str, make_job: MakeJob, observer: Any
    ) -> None:
        result = train(make_job(hidden=hidden, activation=activation, output=output, lr=0.02), observer)
        assert result.weights == (650 if hidden == "[]" else 65 * 12 + 13 * 8 + 9 * 10)
        assert result.epochs == 2

    def test_stuck_cells_are_scanned_for_and_avoided(self, make_job: MakeJob, observer: Any) -> None:
        chip = f"{SMALL_90NM}&stuck_fraction=0.05"
        job = make_job(tester=chip, scan_stuck="true", epochs=1)
        result = train(job, observer)
        with Run.open(job.out) as run:
            assert [run.operation(n).kind for n in range(5)] == [
                Operation.RESET,
                Operation.READ,
                Operation.SET,
                Operation.READ,
                Operation.RESET,
            ]
            high = run.operation(1).answer.values() > 5e-6  # type: ignore[union-attr]
            cells = run.operation(1).request
            stuck = set(zip(cells.array[high], cells.row[high], cells.column[high], strict=True))  # type: ignore[union-attr]
            placed = {cell for name in run.layers for cell in placed_cells(run.snapshot(name).arrays)}
        assert len(stuck) > 500
        assert len(placed) == result.devices
        assert not placed & stuck


def placed_cells(arrays: dict[str, npt.NDArray[Any]]) -> list[tuple[int, int, int]]:
    """The devices that a layer's snapshot names."""
    return [
        cell
        for side in ("plus", "minus")
        for cell in zip(arrays[f"{side}_array"], arrays[f"{side}_row"], arrays[f"{side}_column"], strict=True)
    ]


@pytest.mark.parametrize("run", ["digits_run", "digits_run_by_reading"])
class TestRunFile:
    @pytest.fixture
    def made(self, run: str, request: pytest.FixtureRequest) -> Any:
        return request.getfixturevalue(run)

    def test_operation_ids_are_contiguous_and_time_never_goes_back(self, made: Any) -> None:
        with Run.open(made.path) as run:
            ids, times = run.operations["op_id"][:], run.operations["device_time_ns"][:]
            assert not run.operations["status"][:].any()
        np.testing.assert_array_equal(ids, np.arange(1, made.result.operations + 1))
        assert (np.diff(times) >= 0).all()
        assert times[-1] > 0.4e9 * made.result.images

    def test_the_log_holds_as_many_pulses_as_the_result_counts(self, made: Any) -> None:
        with Run.open(made.path) as run:
            kinds, done = run.operations["kind"][:], run.operations["done"][:]
            assert run.counts["set_pulses"] == made.result.set_pulses
            assert run.state == "completed"
        assert done[kinds == Operation.SET].sum() == made.result.set_pulses
        assert done[kinds == Operation.RESET].sum() == made.result.reset_pulses
        assert made.result.reset_pulses == made.result.devices + 2 * made.result.refreshes

    def test_it_holds_the_configuration_and_where_the_run_comes_from(self, made: Any) -> None:
        with Run.open(made.path) as run:
            assert run.config["experiment"] == "digits"
            assert run.config["lr"] == 0.4
            assert 'data = "digits"' in run.start.config_text
            assert run.start.versions.keys() >= {"python", "torch", "numpy", "numba", "pcm-hil"}
            assert run.start.host["cpu_capability"]
            assert run.start.seed == 1
            assert run.identity is not None
            assert run.identity.kind == "twin"
            assert run.capabilities is not None

    def test_metrics_of_each_epoch_agree_with_the_result(self, made: Any) -> None:
        with Run.open(made.path) as run:
            metrics = run.metrics
        result = made.result
        np.testing.assert_array_equal(metrics["epoch"], np.arange(1, result.epochs + 1))
        np.testing.assert_array_equal(metrics["images"], 1438 * metrics["epoch"])
        np.testing.assert_allclose(metrics["lr"], 0.4 * 0.88 ** np.arange(result.epochs))
        np.testing.assert_allclose(metrics["test_accuracy"], [accuracy for _, accuracy in made.watcher.epochs])
        assert metrics["set_pulses"][-1] == result.set_pulses
        assert metrics["refreshes"][-1] == result.refreshes
        assert metrics["layer1_refreshes"][-1] + metrics["layer2_refreshes"][-1] == result.refreshes
        assert metrics["loss"][-1] < metrics["loss"][0]
        assert metrics["train_accuracy"][-1] > 0.85
        np.testing.assert_allclose(metrics["image_period"], 0.4, rtol=0.02)

    def test_each_layer_has_chi_and_the_place_of_its_devices(self, made: Any) -> None:
        with Run.open(made.path) as run:
            assert run.layers == ("layer1", "layer2")
            snapshots = [run.snapshot(name).arrays for name in run.layers]
            chi = [run.snapshot("final").arrays[f"{name}_chi"] for name in run.layers]
        assert [values.shape for values in chi] == [(65, 64), (65, 10)]
        assert all((np.abs(values) < 0.0961).all() and values.any() for values in chi)
        cells = [cell for snapshot in snapshots for cell in placed_cells(snapshot)]
        assert len(set(cells)) == len(cells) == made.result.devices


def test_an_array_that_multiplies_is_logged_image_by_image(digits_run: Any) -> None:
    with Run.open(digits_run.path) as run:
        kinds, counts = run.operations["kind"][:], run.operations["count"][:]
        first = next(run.operation(int(n)) for n in np.flatnonzero(kinds == Operation.MVM_FORWARD)[:1])
    forward, backward = counts[kinds == Operation.MVM_FORWARD], counts[kinds == Operation.MVM_BACKWARD]
    assert (forward == 1).sum() == 2 * 4 * 1438
    assert (forward == 359).sum() == 2 * 4  # evaluations
    assert (backward == 1).all()
    assert len(backward) == 4 * 1438  # nothing asks for the gradient of the pixels
    assert isinstance(first.request, Vectors)
    assert first.request.codes.shape == (1, 65)
    assert isinstance(first.answer, Readings)
    assert first.answer.codes.shape == (1, 64)


def test_an_array_that_is_read_says_so_in_its_log(digits_run_by_reading: Any) -> None:
    result = digits_run_by_reading.result
    with Run.open(digits_run_by_reading.path) as run:
        assert run.counts["mvm_forward"] == run.counts["mvm_backward"] == 0
        kinds, counts = run.operations["kind"][:], run.operations["count"][:]
    reads = counts[kinds == Operation.READ]
    whole = [2 * 65 * 64, 2 * 65 * 10]
    assert [int((reads == cells).sum()) for cells in whole] == [3, 3]  # at the start, and after each evaluation began
    assert result.devices == sum(whole)


class TestSeeds:
    @staticmethod
    def outcome(job: Job, observer: Any) -> tuple[dict[str, Any], list[npt.NDArray[np.float32]]]:
        """The result but for its times and name, and chi."""
        result = vars(train(job, observer)) | {"run": "", "images_per_second": 0.0}
        with Run.open(job.out) as run:
            return result, list(run.snapshot("final").arrays.values())

    @pytest.mark.parametrize("chip", ["twin:pcm-analog?rows=80&columns=256", SMALL_90NM])
    def test_the_same_seed_gives_the_same_run_to_the_last_code(
        self, chip: str, make_job: MakeJob, observer: Any, log_of: LogOf, tmp_path: Path
    ) -> None:
        jobs = [make_job(out=tmp_path / f"{n}.h5", tester=chip, seed=3) for n in range(2)]
        (first, chi), (second, chi_again) = (self.outcome(job, observer) for job in jobs)
        assert first == second
        for layer, again in zip(chi, chi_again, strict=True):
            np.testing.assert_array_equal(layer, again)
        log, log_again = (log_of(job.out) for job in jobs)
        assert log.keys() == log_again.keys()
        for name, column in log.items():
            np.testing.assert_array_equal(column, log_again[name], err_msg=name)

    def test_the_same_seed_leaves_the_same_chip(self, make_job: MakeJob, observer: Any, tmp_path: Path) -> None:
        chips = []
        for n in range(2):
            path = tmp_path / f"chip{n}.h5"
            uri = f"twin:{path}?chip=pcm-analog&rows=80&columns=256"
            train(make_job(out=tmp_path / f"{n}.h5", tester=uri, epochs=1), observer)
            with h5py.File(path) as file:
                chips.append({name: values[()] for name, values in file["arrays"].items()})
        for name, values in chips[0].items():
            np.testing.assert_array_equal(values, chips[1][name], err_msg=name)

    def test_another_seed_gives_another_chip_order_and_network(
        self, make_job: MakeJob, observer: Any, log_of: LogOf, tmp_path: Path
    ) -> None:
        jobs = [make_job(out=tmp_path / f"{seed}.h5", seed=seed, epochs=1) for seed in (3, 4)]
        results = [train(job, observer) for job in jobs]
        assert results[0].set_pulses != results[1].set_pulses
        logs = [log_of(job.out) for job in jobs]
        read = [log["mvm/outputs"][:64] for log in logs]
        assert (read[0] != read[1]).mean() > 0.5
        first_image = [log["mvm/inputs"][:65] for log in logs]
        assert (first_image[0] != first_image[1]).any()

    def test_the_baseline_has_the_same_network_and_order(
        self, make_job: MakeJob, observer: Any, tmp_path: Path
    ) -> None:
        """On an ideal chip with fine steps the two systems train alike."""
        fine = {"tester": "twin:ideal?rows=80&columns=256&mean_offset=2e-8", "granularity": 0.0025, "refresh_images": 0}
        small = {"hidden": "[]", "train_images": 400, "epochs": 1, "lr": 0.1, "initial_spread": 0.01}
        losses = []
        for n, changes in enumerate([small | fine, small | {"system": "float"}]):
            job = make_job(out=tmp_path / f"{n}.h5", **changes)
            train(job, observer)
            with Run.open(job.out) as run:
                losses.append((run.metrics["loss"][0], run.metrics["test_accuracy"][0]))
        assert losses[0][0] == pytest.approx(losses[1][0], rel=0.02)
        assert losses[0][1] == pytest.approx(losses[1][1], abs=0.02)


def test_floating_point_needs_no_devices_and_learns(make_job: MakeJob, observer: Any) -> None:
    job = make_job(system="float", train_images=1400, epochs=3)
    result = train(job, observer)
    assert result.test_accuracy > 0.9
    assert (result.tester, result.weights, result.devices, result.operations) == ("none", 4810, 0, 0)
    assert (result.set_pulses, result.reset_pulses, result.refreshes, result.image_period) == (0, 0, 0, 0.0)
    with Run.open(job.out) as run:
        assert run.identity is None
        assert run.tester_kind == "none"
        assert run.state == "completed"
        assert len(run.metrics["epoch"]) == 3


class Failing(TwinTester):
    """A twin whose cable falls out at an MVM."""

    def __init__(self, at: int) -> None:
        chip = named_chip("pcm-analog", {"rows": "80", "columns": "256"})
        super().__init__(Firmware(Chip(chip, np.random.SeedSequence(1))), "pcm-analog", "chip-1")
        self._left = itertools.count(at, -1)
        self.closed = 0

    def mvm(self, region: Region, vectors: Vectors, direction: Direction, gain: int) -> Readings:
        if next(self._left) == 0:
            raise TesterError("the cable fell out")
        return super().mvm(region, vectors, direction, gain)

    def close(self) -> None:
        self.closed += 1
        super().close()


class TestFailures:
    def test_a_failing_tester_is_closed_and_the_run_file_says_why(
        self, make_job: MakeJob, observer: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tester = Failing(at=500)
        monkeypatch.setattr("hil.train.connect", lambda uri, seed: tester)
        job = make_job()
        with pytest.raises(TesterError, match="the cable fell out"):
            train(job, observer)
        assert tester.closed  # closing brings a tester to its safe state
        with Run.open(job.out) as run:
            assert run.state == "failed: TesterError: the cable fell out"
            operations = run.operations["op_id"][:]
            last = run.operation(len(operations) - 1)
        np.testing.assert_array_equal(operations[:-1], np.arange(1, len(operations)))
        assert (last.op_id, last.status.name, last.answer) == (-1, "UNKNOWN", None)

    def test_a_run_that_diverges_says_so_in_its_file(self, make_job: MakeJob, observer: Any) -> None:
        job = make_job(
            lr=1e30, activation="relu", output="linear", max_pulses=1, hidden="[8]", system="mixed-precision"
        )
        with pytest.raises(DivergedError, match="not finite"):
            self.train_with_a_broken_image(job, observer)
        with Run.open(job.out) as run:
            assert run.state.startswith("failed: DivergedError: a forward product")

    @staticmethod
    def train_with_a_broken_image(job: Job, observer: Any) -> None:
        data = load("digits", None)
        images = data.train_images.copy()
        images[5, 7] = np.nan
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("hil.images.load", lambda name, folder: replace(data, train_images=images))
            train(job, observer)

    @pytest.mark.parametrize(
        ("changes", "error", "says"),
        [
            ({"tester": "twin:nonsense"}, InputError, "unknown chip"),
            ({"tester": "twin:pcm-analog?rows=8&columns=8"}, InputError, "too small"),
            ({"tester": "twin:pcm-90nm?rows=8&columns=8"}, InputError, "too small"),
            ({"forward_range": 1e6}, InputError, "largest range"),
            ({"backward_range": 1e6}, InputError, "largest range"),
            ({"train_images": 5000}, InputError, "has only 1438"),
            ({"validation_images": 5000}, DataError, "cannot hold out"),
            ({"data": "nonsense"}, DataError, "data directory"),
        ],
    )
    def test_a_run_that_cannot_be_made_leaves_what_was_there(
        self, changes: dict[str, Any], error: type[Exception], says: str, make_job: MakeJob, observer: Any
    ) -> None:
        job = replace(make_job(**changes), overwrite=True)
        job.out.write_bytes(b"what was there")
        with pytest.raises(error, match=says):
            train(job, observer)
        assert job.out.read_bytes() == b"what was there"
        assert list(job.out.parent.iterdir()) == [job.out]

    def test_an_older_run_is_replaced_only_when_asked(self, make_job: MakeJob, observer: Any) -> None:
        job = make_job(epochs=1)
        damaged = b"\x89HDF\r\n\x1a\n and no more"
        job.out.write_bytes(damaged)
        with pytest.raises(InputError, match="exists"):
            train(job, observer)
        assert job.out.read_bytes() == damaged
        train(replace(job, overwrite=True), observer)
        with Run.open(job.out) as run:
            assert run.state == "completed"


def test_a_chip_in_a_file_goes_on_in_the_next_run(make_job: MakeJob, observer: Any, tmp_path: Path) -> None:
    chip = tmp_path / "chip.h5"
    first = make_job(out=tmp_path / "1.h5", tester=f"twin:{chip}?chip=pcm-analog&rows=80&columns=256", epochs=1)
    operations = train(first, observer).operations
    second = make_job(out=tmp_path / "2.h5", tester=f"twin:{chip}", epochs=1)
    train(second, observer)
    with Run.open(second.out) as run, Run.open(first.out) as earlier:
        assert run.operations["op_id"][0] == operations + 1
        assert run.operations["device_time_ns"][0] > earlier.operations["device_time_ns"][operations - 1]
        assert run.identity == earlier.identity


def test_a_chip_that_was_used_before_is_trained_as_well(make_job: MakeJob, observer: Any, tmp_path: Path) -> None:
    chip = f"twin:{tmp_path}/chip.h5"
    made = f"{chip}?chip=pcm-analog&rows=80&columns=256"
    for n, tester in enumerate([made, chip]):
        result = train(make_job(out=tmp_path / f"{n}.h5", tester=tester, train_images=700), observer)
        assert result.test_accuracy > 0.7


def test_initial_weights_can_be_programmed_and_verified(make_job: MakeJob, tmp_path: Path) -> None:
    spreads = []
    for writing in ("blind", "verified"):
        job = make_job(out=tmp_path / f"{writing}.h5", initial_writing=writing, epochs=1, initial_spread=0.3)
        train(job)
        with Run.open(job.out) as run:
            start = run.operations["kind"][: run.operations.rows].tolist().index(Operation.MVM_FORWARD)
            plus, minus = run.layer_conductances("layer1", at=start)
            spreads.append(float((plus - minus).std()))
            assert run.counts["set"] > 0
    blind, verified = spreads
    assert verified < blind  # 2.4 uS are aimed at; blind writing adds its noise
    assert verify(tmp_path / "verified.h5").identical
