"""From options to runs, and from results to one summary."""

from dataclasses import replace
from pathlib import Path
from statistics import stdev

import pytest

from hil.campaign import plan, standard_error, summary
from hil.protocols.errors import InputError
from hil.train import Result

RESULT = Result(
    run="run.h5",
    experiment="digits",
    system="mixed-precision",
    tester="twin:",
    epochs=2,
    seed=1,
    test_accuracy=0.9,
    images_per_second=1000.0,
    weights=10,
    devices=20,
    set_pulses=30,
    reset_pulses=40,
    refreshes=50,
    operations=60,
    image_period=0.4,
    interrupted=False,
    images=70,
    findings=(),
    finding_counts={},
)


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_options_go_before_settings_and_settings_before_the_experiment() -> None:
    (job,) = plan("digits", changes=["epochs=3", "lr=0.2", "seed=5"], epochs=4, tester="twin:ideal")
    assert (job.settings.epochs, job.settings.lr, job.settings.seed) == (4, 0.2, 5)
    assert job.settings.tester == "twin:ideal"
    assert job.settings.hidden == (64,)


def test_a_run_file_is_named_after_experiment_and_seed(tmp_path: Path) -> None:
    (job,) = plan("digits", seed=7)
    assert job.out == Path("runs/digits-7.h5")
    assert (tmp_path / "runs").is_dir()


def test_nothing_is_made_where_a_run_file_is_named(tmp_path: Path) -> None:
    plan("digits", out=Path("here.h5"))
    assert list(tmp_path.iterdir()) == []


def test_several_seeds_are_several_runs_with_files_of_their_own() -> None:
    jobs = plan("digits", seed=3, seeds=3, out=Path("a.run.h5"), meta=["operator=x", "note=a=b"], argv=("hil",))
    assert [job.settings.seed for job in jobs] == [3, 4, 5]
    assert [job.out.name for job in jobs] == ["a.run-3.h5", "a.run-4.h5", "a.run-5.h5"]
    assert all(job.meta == {"operator": "x", "note": "a=b"} and job.argv == ("hil",) for job in jobs)
    assert [job.out.name for job in plan("digits", seed=3, seeds=2)] == ["digits-3.h5", "digits-4.h5"]


def test_a_file_of_ones_own_names_its_runs(tmp_path: Path) -> None:
    (job,) = plan("digits")
    (tmp_path / "mine.toml").write_text(job.config_text)
    (mine,) = plan(str(tmp_path / "mine.toml"))
    assert (mine.experiment, mine.out) == ("mine", Path("runs/mine-1.h5"))
    assert mine.settings == job.settings


def test_no_run_is_begun_if_the_file_of_any_exists(tmp_path: Path) -> None:
    (tmp_path / "run-3.h5").touch()
    with pytest.raises(InputError, match=r"run-3\.h5 exists: choose another name .* or give --overwrite"):
        plan("digits", seeds=3, out=Path("run.h5"))
    assert len(plan("digits", seeds=3, out=Path("run.h5"), overwrite=True)) == 3


@pytest.mark.parametrize("seeds", [1, 2])
@pytest.mark.parametrize("out", [".", "folder", "/"])
def test_a_folder_is_no_run_file(out: str, seeds: int, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="is a folder: name a run file"):
        plan("digits", out=Path(out), seeds=seeds, overwrite=True)


def test_a_file_called_runs_is_said_to_be_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("mine")
    with pytest.raises(InputError, match="folder runs cannot be made"):
        plan("digits")
    assert (tmp_path / "runs").read_text() == "mine"


@pytest.mark.parametrize("note", ["operator", "=x", ""])
def test_a_note_needs_a_key(note: str) -> None:
    with pytest.raises(InputError, match="not of the form key=value"):
        plan("digits", meta=[note])


def test_the_summary_of_one_run_is_its_result() -> None:
    assert summary([RESULT]) == vars(RESULT)


def test_the_summary_of_several_has_means_totals_and_the_standard_error() -> None:
    accuracies = (0.90, 0.92, 0.97)
    results = [replace(RESULT, seed=n, test_accuracy=accuracy) for n, accuracy in enumerate(accuracies, 4)]
    found = summary(results)
    assert found["test_accuracy"] == pytest.approx(0.93)
    assert found["standard_error"] == pytest.approx(stdev(accuracies) / 3**0.5)
    assert found["seeds"] == [4, 5, 6]
    assert (found["set_pulses"], found["operations"], found["images"]) == (90, 180, 210)
    assert found["images_per_second"] == 1000
    assert found["weights"] == 10
    assert found["runs"] == [vars(result) for result in results]


def test_the_summary_of_several_holds_what_was_found_in_any() -> None:
    second = replace(RESULT, findings=("not learning", "stuck"), finding_counts={"learning": 2, "stuck": 1})
    third = replace(RESULT, findings=("not learning",), finding_counts={"learning": 1})
    found = summary([RESULT, second, third])
    assert found["findings"] == ("not learning", "stuck")
    assert found["finding_counts"] == {"learning": 3, "stuck": 1}


def test_a_single_value_has_no_standard_error() -> None:
    assert standard_error([0.9]) is None
    assert standard_error([1.0, 3.0]) == pytest.approx(1.0)


def test_the_folder_of_a_run_file_is_made_where_only_it_is_missing(tmp_path: Path) -> None:
    plan("digits", out=tmp_path / "runs" / "first.h5")
    assert (tmp_path / "runs").is_dir()
    with pytest.raises(InputError, match="cannot be made"):
        plan("digits", out=tmp_path / "a" / "b" / "first.h5")


def test_a_run_file_is_not_put_where_the_chip_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "chip.h5"
    with pytest.raises(InputError, match="is where the chip is kept"):
        plan("digits", tester=f"twin:{path}?chip=ideal", out=path)


def test_several_runs_do_not_begin_with_a_chip_that_the_first_would_make() -> None:
    with pytest.raises(InputError, match="the first of 2 runs would make the chip"):
        plan("digits", tester="twin:chip.h5?chip=ideal", seeds=2)
    assert len(plan("digits", tester="twin:chip.h5", seeds=2)) == len(plan("digits", tester="twin:ideal?nu=0", seeds=2))


def test_a_run_file_is_not_put_where_the_recording_is_that_is_replayed(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    path.write_text("a recording")
    with pytest.raises(InputError, match="is the recording that is replayed"):
        plan("digits", tester=f"replay:{path}", out=path, overwrite=True)
    assert path.read_text() == "a recording"
