"""What studies left in a run file is loaded whole or refused, and shown on a page."""

import json
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from hil.bench import connect
from hil.characterize import chosen, stored
from hil.data.run import Run
from hil.measured import about_cut_off
from hil.observers import Silent
from hil.procedure import Place, perform
from hil.protocols.errors import DataError, InputError
from hil.protocols.messages import Operation
from hil.report import write_report
from hil.resume import resume_procedure
from hil.session import twin_seed
from hil.studies import STUDIES
from hil.study_data import cells_of, drift_of, is_stuck, linearity_of, rows_of, staircase_of

CHIP = "twin:pcm-analog?arrays=1&rows=16&columns=16&stuck_fraction=0.02&largest_batch=100"


def measure(out: Path, *studies: str, observer: Any = None, chip: str = CHIP) -> Path:
    given = {"reads": 4, "pulses": 4, "cycles": 4}
    given = {key: value for key, value in given.items() if any(key in STUDIES[name].defaults for name in studies)}
    perform(chosen(studies, "all", given), Place(chip, out), connect(chip, twin_seed(1)), observer or Silent())
    return out


@pytest.fixture(scope="module")
def all_studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All studies on a small chip; to be copied before it is changed."""
    return measure(tmp_path_factory.mktemp("studies") / "all.h5", *STUDIES)


class Stops(Silent):
    """Ctrl-C when so many operations are done."""

    def __init__(self, operations: int) -> None:
        self._operations = operations
        self._stopped = False

    def steps(self, done: int, total: int, what: str) -> None:
        if done >= self._operations and not self._stopped:
            self._stopped = True
            signal.raise_signal(signal.SIGINT)


@pytest.fixture
def cut(tmp_path: Path) -> Path:
    """A staircase that was stopped in its third measurement."""
    return measure(tmp_path / "cut.h5", "staircase", "drift", observer=Stops(40))


def change(path: Path, dataset: str, row: int, value: int) -> None:
    with h5py.File(path, "r+") as file:
        file[dataset][row] = value


def test_each_measurement_has_its_row(all_studies: Path) -> None:
    with Run.open(all_studies) as run:
        assert len(cells_of(run)) == 256
        for study, count in {
            "read-noise": 1,
            "reset": 4,
            "staircase": 5,
            "drift": 5,
            "linearity": 17,
            "map": 4,
        }.items():
            rows = rows_of(run, study)
            assert len(rows) == count
            assert rows.step.tolist() == list(range(count))
            kinds = run.operations["kind"][:][rows.operation]
            assert set(kinds[: 1 if study == "linearity" else count]) == {Operation.READ}
            assert set(rows.reads) == {4}
        assert set(rows_of(run, "drift").pulses) == {-1}
        assert rows_of(run, "drift").age_s.tolist() == [1.0, 10.0, 100.0, 1e3, 1e4]
        known = json.loads(json.dumps(stored(run.config).config()))
        assert known == {"cells": "all", "studies": run.config["studies"]}


def test_reads_are_those_of_the_log_although_they_were_sent_in_parts(all_studies: Path) -> None:
    with Run.open(all_studies) as run:
        staircase, rows = staircase_of(run), rows_of(run, "staircase")
        first = int(rows.operation[3])
        parts = [run.operation(row).answer for row in range(first, first + 12)]  # 4 reads of 256 in batches of 100
        values = np.concatenate([part.values() for part in parts if part is not None]).reshape(4, 256)  # type: ignore[union-attr]
        np.testing.assert_allclose(staircase.reads.mean[3], values.mean(0), rtol=1e-5)
        np.testing.assert_allclose(staircase.reads.variance[3], values.var(0, ddof=1), rtol=1e-3, atol=1e-18)
        times = run.operations["device_time_ns"]
        pulsed = max(row for row in range(first) if run.operations["kind"][row] == Operation.SET)
        middle = (times[first - 1] + times[first + 11]) / 2
        assert staircase.reads.age[3] == pytest.approx((middle - times[pulsed]) * 1e-9, rel=1e-6)
    assert staircase.reads.quantum == pytest.approx(1e-7)


def test_reads_beyond_the_range_are_counted_over_all_parts(tmp_path: Path) -> None:
    chip = f"{CHIP}&mean_offset=20e-6"
    with Run.open(measure(tmp_path / "run.h5", "staircase", chip=chip)) as run:
        kinds, saturated = run.operations["kind"][:], run.operations["saturated"][:]
        assert min(saturated[kinds == Operation.SET].sum(), saturated[kinds == Operation.READ].sum()) > 0
        reads = staircase_of(run).reads
        assert reads.cut_off == saturated[kinds == Operation.READ].sum()
        text = f"{reads.cut_off:,} of 5,120 readings of the staircase study ({reads.cut_off / 5120:.1%}) met an end"
        assert about_cut_off("staircase", reads).startswith(text)
        assert about_cut_off("staircase", replace(reads, cut_off=51)) == ""


@pytest.mark.parametrize("load", [staircase_of, drift_of, linearity_of, is_stuck])
def test_a_study_that_was_not_made_is_missed_in_one_line(load: Callable[[Run], Any], tmp_path: Path) -> None:
    path = measure(tmp_path / "run.h5", "read-noise")
    with Run.open(path) as run, pytest.raises(InputError, match="hil characterize URI --study") as missed:
        load(run)
    assert "\n" not in str(missed.value)


def test_training_holds_no_studies(short_run: Path) -> None:
    with Run.open(short_run) as run, pytest.raises(InputError, match="holds no staircase study"):
        staircase_of(run)


def test_a_study_that_was_stopped_is_missed_until_it_was_resumed(cut: Path) -> None:
    with Run.open(cut) as run:
        with pytest.raises(InputError, match=r"2 of the 5 measurements of its staircase study \(interrupted\)"):
            staircase_of(run)
        with pytest.raises(InputError, match=r"0 of the 5 measurements of its drift study"):
            drift_of(run)
    assert not resume_procedure(cut).interrupted
    with Run.open(cut) as run:
        assert staircase_of(run).pulses.tolist() == [0, 1, 2, 3, 4]
        assert drift_of(run).pulses.tolist() == [2, 4, 8, 16] * 64


@pytest.mark.parametrize("offset", [-1, 0, 5])
def test_an_operation_that_was_not_done_in_full_spoils_its_measurement(
    offset: int, all_studies: Path, tmp_path: Path
) -> None:
    path = Path(shutil.copy(all_studies, tmp_path / "run.h5"))
    with Run.open(path) as run:
        row = int(rows_of(run, "staircase").operation[2]) + offset
    change(path, "operations/status/values", row, 2)
    with Run.open(path) as run:
        with pytest.raises(DataError, match=rf"operation {row} \((READ|WAIT)\) is unknown"):
            staircase_of(run)
        drift_of(run)


def page_of(folder: Path, *runs: Path) -> str:
    write_report(runs, folder / "page.html")
    return (folder / "page.html").read_text()


def test_a_page_shows_every_study(all_studies: Path, tmp_path: Path) -> None:
    page = page_of(tmp_path, all_studies)
    assert "TWIN DATA" in page
    for name, study in STUDIES.items():
        assert f"<h2>{name}</h2>" in page
        assert study.about[1:] in page
    assert page.count("<img") == page.count("<figcaption>") == 14
    with Run.open(all_studies) as run:
        assert page.count(f"<td>{run.operations.rows:,}</td><td>{run.operations.rows:,}</td>") == 1
        assert f"Stuck: {is_stuck(run).sum()} of 256 cells" in page
    assert "Nandakumar et al., J. Appl. Phys. 124, 152135 (2018)" in page


def test_a_page_on_a_stopped_run_shows_what_there_is(cut: Path, tmp_path: Path) -> None:
    page = page_of(tmp_path, cut)
    assert "2 measurements." in page
    assert "holds no measurement of this study yet" in page
    assert page.count("<img") == 3


def test_a_run_that_was_stopped_at_once_has_a_page(tmp_path: Path) -> None:
    path = measure(tmp_path / "run.h5", *STUDIES, observer=Stops(0))
    assert "holds no finished stuck study" in page_of(tmp_path, path)


@pytest.mark.parametrize("reads", [1, 2])
def test_a_page_can_be_made_of_next_to_nothing(reads: int, tmp_path: Path) -> None:
    given = {"reads": reads, "pulses": 1, "cycles": 1, "times": (1.0,)}
    chip = CHIP.replace("pcm-analog?", "pcm-analog?readout=single&")
    procedure = chosen(list(STUDIES), "0:3:8", given)
    perform(procedure, Place(chip, tmp_path / "run.h5"), connect(chip, twin_seed(1)))
    page = page_of(tmp_path, tmp_path / "run.h5")
    assert all(f"<h2>{name}</h2>" in page for name in STUDIES)
    assert "Read noise over conductance" not in page


def test_several_files_share_a_page(all_studies: Path, tmp_path: Path) -> None:
    other = measure(tmp_path / "other.h5", "linearity", "read-noise", chip="twin:pcm-90nm?arrays=1&rows=8&columns=8")
    page = page_of(tmp_path, all_studies, other)
    assert ("1: all (twin)" in page, "2: other (twin)" in page) == (True, True)
    assert page.count("What it cost the devices") == 2
    assert "The tester does not multiply;" in page


def test_training_and_studies_do_not_go_on_one_page(all_studies: Path, short_run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"all.h5 \(hil characterize\) and run.h5 \(hil train\) do not go on one page"):
        page_of(tmp_path, all_studies, short_run)
