"""The commands that work on run files: resume, replay, report, export, info."""

import json
import shutil
import signal
from pathlib import Path

import h5py
import pytest
from click.testing import CliRunner, Result

from hil.cli import main
from hil.data.run import Run

QUICK = ["--epochs", "2", "--set", "train_images=150", "--tester", "twin:pcm-analog?arrays=2&rows=80&columns=256"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Commands run in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(folder: Path, short_run: Path) -> str:
    """A copy of a finished run."""
    return Path(shutil.copy(short_run, folder / "run.h5")).name


def hil(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


@pytest.fixture
def interrupted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A run that was ended with Ctrl-C after 64 images."""
    with monkeypatch.context() as patch:
        patch.setattr("hil.display.Display.progress", lambda *_: signal.raise_signal(signal.SIGINT))
        assert hil("train", "digits", *QUICK, "--out", "cut.h5").exit_code == 130
    return "cut.h5"


def test_an_interrupted_run_is_resumed(interrupted: str) -> None:
    result = hil("resume", interrupted, "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert (found["images"], found["epochs"], found["interrupted"], found["run"]) == (300, 2, False, interrupted)
    shown = json.loads(hil("info", interrupted, "--json").stdout)
    assert (shown["state"], shown["resumed"]) == ("completed", 1)
    assert hil("replay", interrupted).stdout.startswith("identical: ")


def test_a_resumed_run_may_be_interrupted_again(interrupted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("hil.display.Display.progress", lambda *_: signal.raise_signal(signal.SIGINT))
        result = hil("resume", interrupted)
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1].endswith("`hil resume cut.h5` goes on.")
    result = hil("resume", interrupted)
    assert result.exit_code == 0
    assert "epochs             2" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("resume", "run.h5"), "is complete: there is nothing to resume"),
        (("resume", "none.h5"), "there is no such file"),
        (("replay", "none.h5"), "there is no such file"),
        (("replay", "run.h5", "--data-dir", "nowhere", "--follow", "--bad"), "No such option"),
        (("report", "none.h5"), "there is no such file"),
        (("report",), "Missing argument"),
        (("report", "."), ". is a folder: give the name of a file"),
        (("report", ""), ". is a folder: give the name of a file"),
        (("export", "run.h5"), "say what to write"),
        (("export", "run.h5", "--portable", "run.h5"), "exists"),
        (("export", "none.h5", "--out", "tables"), "there is no such file"),
        (("info", "text.h5"), "damaged, or not a run file"),
        (("train", "digits", *QUICK, "--tester", "replay:none.h5"), "there is no such file"),
        (("train", "digits", *QUICK, "--set", "log=some"), "setting log='some'"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_exit_code_2(run: str, arguments: tuple[str, ...], says: str) -> None:
    Path("text.h5").write_text("not a run file")
    before = Path(run).read_bytes()
    result = hil(*arguments)
    assert result.exit_code == 2
    assert says in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
    assert Path(run).read_bytes() == before


def test_a_resume_on_another_tester_is_refused(interrupted: str) -> None:
    result = hil("resume", interrupted, "--tester", "twin:pcm-90nm")
    assert result.exit_code == 2
    assert "not on twin:pcm-90nm" in result.stderr


def test_a_replay_tells_its_verdict(run: str) -> None:
    result = hil("replay", run, "--verify")
    assert result.exit_code == 0
    with Run.open(Path(run)) as opened:
        rows = opened.operations.rows
    assert result.stdout == f"identical: {rows:,} operations, 4,810 weights\n"
    found = json.loads(hil("replay", run, "--follow", "--json").stdout)
    assert (found["identical"], found["operations"], found["weights"]) == (True, rows, 4810)


def test_a_replay_that_differs_ends_with_exit_code_1(run: str) -> None:
    with h5py.File(run, "r+") as file:
        file["mvm/inputs/values"][100_000] += 1
    result = hil("replay", run)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("Error: operation ")
    followed = hil("replay", run, "--follow")
    assert followed.exit_code == 0
    assert followed.stdout.startswith("followed: ")
    assert "first difference: operation " in followed.stdout


def test_a_report_lies_beside_its_run(run: str) -> None:
    assert hil("report", run).stdout == "run.html\n"
    assert "twin" in Path("run.html").read_text()
    assert hil("report", run, run, "--out", "both.html").exit_code == 0


def test_a_run_is_exported(run: str) -> None:
    result = hil("export", run, "--out", "tables", "--portable", "portable.h5")
    assert result.exit_code == 0
    assert "operations.parquet" in result.stdout
    assert (Path("tables") / "operations.parquet").is_file()
    with Run.open(Path("portable.h5")) as copy, Run.open(Path(run)) as original:
        assert copy.counts == original.counts
    refused = hil("resume", "portable.h5")
    assert refused.exit_code == 2


def test_a_run_without_room_for_its_log_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(".")._replace(free=100_000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    result = hil("train", "digits", "--out", "run.h5")
    assert result.exit_code == 2
    assert "the log will take about" in result.stderr
    assert not Path("run.h5").exists()


def test_a_digest_is_small_and_can_be_resumed_but_not_replayed() -> None:
    assert hil("train", "digits", *QUICK, "--out", "full.h5").exit_code == 0
    assert hil("train", "digits", *QUICK, "--out", "digest.h5", "--set", "log=digest").exit_code == 0
    with Run.open(Path("digest.h5")) as digest, Run.open(Path("full.h5")) as full:
        assert digest.start.log == "digest"
        assert digest.counts == full.counts
        assert digest.metrics["test_accuracy"].tolist() == full.metrics["test_accuracy"].tolist()
    with h5py.File("digest.h5") as file:
        assert "mvm/inputs" not in file
        assert len(file["mvm/digest/values"]) > 300
    assert "keeps only a checksum" in hil("replay", "digest.h5").stderr


def test_a_durable_run_is_the_same() -> None:
    assert hil("train", "digits", *QUICK, "--out", "run.h5", "--durable").exit_code == 0
    assert hil("replay", "run.h5").exit_code == 0
