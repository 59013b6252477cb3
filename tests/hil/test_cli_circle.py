"""From a chip to its twin at the command line: characterize, fit, train, evaluate, compare, program."""

import json
import signal
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from hil.cli import main

SMALL = "twin:pcm-90nm?arrays=2&rows=80&columns=256"
QUICK = ["--epochs", "2", "--set", "train_images=150"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Commands run in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def hil(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def measured(uri: str, out: str) -> Result:
    studies = ["--study", "staircase", "--study", "drift", "--cells", "0:0-19:0-19", "--reads", "10"]
    return hil("characterize", uri, *studies, "--out", out)


def test_the_circle_from_a_chip_to_its_twin_closes() -> None:
    assert measured(f"{SMALL}&nu=0.06&step_spread=0.2", "chip.h5").exit_code == 0
    fitted = hil("fit", "chip.h5", "--out", "chip.toml", "--report", "chip.html", "--json")
    assert fitted.exit_code == 0, fitted.output
    found = json.loads(fitted.stdout)
    low, high = found["intervals"]["nu"]
    assert 0.055 < low < 0.06 < high < 0.065
    assert Path("chip.html").read_text().startswith("<!DOCTYPE html>")
    assert (
        hil("train", "digits", *QUICK, "--tester", f"{SMALL}&nu=0.06&step_spread=0.2", "--out", "a.h5").exit_code == 0
    )
    assert hil("train", "digits", *QUICK, "--tester", "twin:chip.toml", "--out", "b.h5").exit_code == 0
    compared = hil("compare", "a.h5", "b.h5", "--out", "compared.html")
    assert compared.exit_code == 0, compared.output
    assert "conductance" in compared.stdout
    assert Path("compared.html").read_text().startswith("<!DOCTYPE html>")
    again = measured("twin:chip.toml?seed=3", "twin.h5")
    assert again.exit_code == 0, again.output
    parts = [one["parts"] for one in json.loads(hil("compare", "chip.h5", "twin.h5", "--json").stdout)["quantities"]]
    assert parts == [None, None, None]


def test_a_fit_takes_one_study_of_each_kind_and_no_file_in_vain(short_run: Path) -> None:
    Path("t.h5").write_bytes(short_run.read_bytes())
    measured(SMALL, "a.h5")
    measured(SMALL, "b.h5")
    both = hil("fit", "a.h5", "b.h5", "--out", "c.toml")
    assert (both.exit_code, "a.h5 and b.h5 both hold a staircase study" in both.stderr) == (2, True)
    other = hil("fit", "a.h5", "t.h5", "--out", "c.toml")
    assert (other.exit_code, "t.h5 is of no use to the fit" in other.stderr) == (2, True)
    assert not Path("c.toml").exists()


def test_a_fitted_chip_is_shown_with_its_intervals() -> None:
    measured(SMALL, "chip.h5")
    result = hil("fit", "chip.h5", "--out", "chip.toml")
    assert "read_offset" in result.stdout
    assert result.stdout.splitlines()[-1] == "twin:chip.toml"
    again = hil("fit", "chip.h5", "--out", "chip.toml")
    assert again.exit_code == 2
    assert "chip.toml exists" in again.stderr


def test_weights_go_from_a_run_onto_a_chip_and_are_followed() -> None:
    assert hil("train", "digits", "--epochs", "4", "--set", "system=float", "--out", "float.h5").exit_code == 0
    assert hil("export", "float.h5", "--weights", "w.safetensors").exit_code == 0
    programmed = hil("program", "w.safetensors", "--tester", SMALL, "--experiment", "digits")
    assert programmed.exit_code == 0, programmed.output
    assert "converged" in programmed.stdout
    info = json.loads(hil("info", "w.h5", "--json").stdout)
    assert (info["state"], info["counts"]["reset"] > 0) == ("completed", True)
    followed = hil("evaluate", "w.h5", "--times", "25s,1h")
    assert followed.exit_code == 0, followed.output
    assert "with drift compensation" in followed.stdout
    rows = json.loads(hil("evaluate", "w.h5", "--times", "25s,1h", "--overwrite", "--json").stdout)["metrics"]
    assert [row["time"] for row in rows] == [0, 25, 3600]
    assert hil("report", "w-evaluated.h5").exit_code == 0
    assert hil("report", "w.h5").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("fit", "none.h5", "--out", "c.toml"), "there is no such file"),
        (("fit", "t.h5", "--out", "c.toml"), "holds no staircase study"),
        (("fit", "t.h5", "--out", "c.txt"), "ends with .toml"),
        (("fit", "t.h5", "--out", "c.toml", "--report", "nowhere/c.html"), "no folder"),
        (("evaluate", "none.h5"), "there is no such file"),
        (("evaluate", "t.h5", "--times", "1h,25s"), "increas"),
        (("evaluate", "t.h5", "--times", "soon"), "soon"),
        (("evaluate", "t.h5", "--times", "25s", "--out", "t.h5"), "choose another name"),
        (("compare", "t.h5", "none.h5"), "there is no such file"),
        (("program", "."), ". is a folder: give the name of a file"),
        (("program", "none.safetensors"), "cannot be read as a safetensors file"),
        (("program", "bad.safetensors"), "cannot be read as a safetensors file"),
        (("export", "t.h5", "--weights", "t.h5"), "exists"),
        (("train", "digits", *QUICK, "--tester", "twin:none.toml"), "none.toml cannot be read as a chip"),
    ],
)
def test_what_cannot_be_done_is_one_line(arguments: tuple[str, ...], says: str, short_run: Path) -> None:
    Path("t.h5").write_bytes(short_run.read_bytes())
    Path("bad.safetensors").write_bytes(b"nothing")
    result = hil(*arguments)
    assert result.exit_code == 2, result.output
    assert says in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert Path("t.h5").read_bytes() == short_run.read_bytes()


def test_a_weight_beyond_the_range_of_a_chip_is_refused_before_a_file_is_made(short_run: Path) -> None:
    Path("t.h5").write_bytes(short_run.read_bytes())
    assert hil("export", "t.h5", "--weights", "w.safetensors").exit_code == 0
    refused = hil("program", "w.safetensors", "--tester", f"{SMALL}&g_max=8.05e-6", "--out", "p.h5")
    assert refused.exit_code == 2
    assert "SET pulses reach from 1e-07 to 8.05e-06 S" in refused.stderr.splitlines()[-1]
    assert not Path("p.h5").exists()
    assert hil("program", "w.safetensors", "--tester", f"{SMALL}&g_max=8.2e-6", "--out", "p.h5").exit_code == 0


@pytest.mark.parametrize("command", ["program", "evaluate"])
def test_ctrl_c_ends_between_two_steps_with_the_file_whole(
    command: str, short_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("t.h5").write_bytes(short_run.read_bytes())
    assert hil("export", "t.h5", "--weights", "w.safetensors").exit_code == 0
    monkeypatch.setattr("hil.display.Display.steps", lambda *_: signal.raise_signal(signal.SIGINT))
    arguments = ["w.safetensors", "--tester", SMALL] if command == "program" else ["t.h5", "--times", "25s,1h"]
    result = hil(command, *arguments, "--out", "cut.h5")
    assert result.exit_code == 130, result.output
    assert result.stderr.splitlines()[-1] == "Interrupted. cut.h5 holds what was done."
    shown = json.loads(hil("info", "cut.h5", "--json").stdout)
    assert shown["state"] == "interrupted"
    assert shown["operations"] > 0
    again = hil("resume", "cut.h5")
    assert (again.exit_code, len(again.stderr.splitlines())) == (2, 1)
    assert "cannot be resumed: do it again" in again.stderr
