"""The command line: results on standard output, one line for what is wrong, exit codes, Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from hil.cli import main
from hil.config import Settings
from hil.data.run import Run
from hil.mock_hw.chips import CHIPS
from hil.protocols.errors import DivergedError, StorageError, TesterError

HIL = Path(sys.executable).with_name("hil")
QUICK = ["--epochs", "1", "--set", "train_images=100", "--set", "tester=twin:pcm-analog?rows=80&columns=256"]
KEYS = {
    "run", "experiment", "system", "tester", "epochs", "seed", "test_accuracy", "images_per_second", "weights",
    "devices", "set_pulses", "reset_pulses", "refreshes", "operations",
}  # fmt: skip


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


OLD = b"\x89HDF\r\n\x1a\n what was there"  # what is left of a damaged run file, which may be replaced


def hil(*arguments: str) -> Result:
    """A command in this process; an error that is not turned into an exit code is raised here."""
    result = CliRunner().invoke(main, arguments, prog_name="hil")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def process(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """A command in a process of its own, as a person starts it."""
    return subprocess.run([HIL, *arguments], capture_output=True, text=True, check=False)


class TestTrain:
    def test_json_is_one_object_and_nothing_else(self, tmp_path: Path) -> None:
        done = process("train", "digits", *QUICK, "--seed", "3", "--out", "run.h5", "--json")
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert done.stdout.count("\n") == 1
        assert found.keys() >= KEYS
        assert (found["run"], found["experiment"], found["system"]) == ("run.h5", "digits", "mixed-precision")
        assert (found["epochs"], found["seed"], found["weights"], found["devices"]) == (1, 3, 4810, 9620)
        assert 0.1 < found["test_accuracy"] <= 1
        assert done.stderr == ""
        with Run.open(tmp_path / "run.h5") as run:
            assert run.start.argv[1:3] == ("train", "digits")
            assert run.state == "completed"

    def test_a_person_sees_progress_on_one_stream_and_a_summary_on_the_other(self) -> None:
        result = hil("train", "digits", *QUICK)
        assert result.exit_code == 0
        assert "digits on twin:pcm-analog?rows=80&columns=256, seed 1 -> runs/digits-1.h5" in result.stderr
        assert "epoch 1: test accuracy " in result.stderr
        for word in ("test accuracy", "images per second", "SET pulses", "refreshed", "9,620", "runs/digits-1.h5"):
            assert word in result.stdout
        assert Path("runs/digits-1.h5").is_file()

    def test_several_seeds_give_a_mean_with_its_standard_error(self) -> None:
        result = hil("train", "digits", *QUICK, "--seeds", "2", "--out", "run.h5", "--json")
        found = json.loads(result.stdout)
        assert found.keys() >= KEYS | {"standard_error"}
        assert found["seeds"] == [1, 2]
        assert found["test_accuracy"] == pytest.approx(sum(run["test_accuracy"] for run in found["runs"]) / 2)
        assert [run["run"] for run in found["runs"]] == ["run-1.h5", "run-2.h5"] == sorted(os.listdir())
        result = hil("train", "digits", *QUICK, "--seeds", "2", "--out", "run.h5", "--overwrite")
        assert "mean test accuracy" in result.stdout
        assert "(standard error)" in result.stdout

    def test_options_reach_the_run_file(self) -> None:
        options = ["--tester", "twin:ideal?rows=80&columns=256", "--set", "lr=0.2", "--meta", "operator=x"]
        assert hil("train", "digits", *QUICK, *options, "--out", "run.h5").exit_code == 0
        with Run.open(Path("run.h5")) as run:
            assert (run.config["lr"], run.config["tester"]) == (0.2, "twin:ideal?rows=80&columns=256")
            assert run.start.meta == {"operator": "x"}

    def test_an_experiment_of_ones_own_is_a_file(self) -> None:
        about = 'description = ""\nreproduces = ""\n'
        Path("mine.toml").write_text(about + 'data = "digits"\nhidden = []\nepochs = 1\nlr = 0.1')
        found = json.loads(hil("train", "mine.toml", "--set", "system=float", "--json").stdout)
        assert (found["experiment"], found["run"], found["weights"]) == ("mine", "runs/mine-1.h5", 650)

    def test_names_with_brackets_are_shown_as_they_are(self) -> None:
        Path("[b] [").mkdir()
        name = "[b] [/b] run.h5"
        result = hil("train", "digits", *QUICK, "--out", name)
        assert result.exit_code == 0
        for shown in (result.stdout, result.stderr, hil("info", name).stdout):
            assert name in shown

    def test_what_goes_wrong_is_told_while_it_runs_and_counted_at_the_end(self) -> None:
        options = ["--epochs", "4", "--set", "lr=100.0", "--set", "system=float", "--set", "batch_size=10"]
        result = hil("train", "digits", *options)
        assert result.exit_code == 0
        assert "Warning: accuracy is " in result.stderr
        assert result.stderr.count("Warning:") == 1
        assert "warnings" in result.stdout
        assert "Warning: accuracy is " in hil("info", "runs/digits-1.h5").stdout

    @pytest.mark.parametrize(
        ("error", "code"), [(TesterError("no answer"), 3), (StorageError("disk full"), 4), (DivergedError("NaN"), 1)]
    )
    def test_the_exit_code_says_whose_fault_it_was(
        self, error: Exception, code: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(job: object, observer: object) -> None:
            raise error

        monkeypatch.setattr("hil.train.train", fail)
        result = hil("train", "digits")
        assert (result.exit_code, result.stderr, result.stdout) == (code, f"Error: {error}\n", "")


class TestInfo:
    def test_it_tells_what_a_run_file_holds(self, digits_run: Any) -> None:
        result = hil("info", str(digits_run.path))
        assert result.exit_code == 0
        for word in ("completed", "digits", "twin: pcm-analog", "4 of 4", "test accuracy", "0.352", "set pulses"):
            assert word in result.stdout

    def test_json_is_one_object(self, digits_run: Any) -> None:
        found = json.loads(hil("info", str(digits_run.path), "--json").stdout)
        assert (found["state"], found["operations"]) == ("completed", digits_run.result.operations)
        assert len(found["metrics"]) == 4


class TestExperiments:
    def test_they_are_listed_with_what_they_reproduce(self) -> None:
        result = hil("experiments")
        assert "digits" in result.stdout
        assert "mnist-mlp" in result.stdout
        assert "97.73" in result.stdout

    def test_json_has_all_settings(self) -> None:
        found = json.loads(hil("experiments", "--json").stdout)
        assert found["mnist-mlp"]["hidden"] == [250]


@pytest.mark.parametrize("command", [[], ["train"], ["info"], ["experiments"]])
def test_every_command_explains_itself_with_an_example(command: list[str]) -> None:
    for option in ("--help", "-h"):
        result = hil(*command, option)
        assert result.exit_code == 0
        assert "  Example:\n    hil " in result.stdout


TRAIN = ("train", "digits")
BAD = {
    "unknown experiment": (("train", "nonsense"), "unknown experiment 'nonsense'"),
    "missing experiment file": (("train", "missing.toml"), "missing.toml cannot be read"),
    "unknown key": ((*TRAIN, "--set", "learning_rate=1"), "unknown setting 'learning_rate'"),
    "no value": ((*TRAIN, "--set", "lr"), "not of the form key=value"),
    "wrong type": ((*TRAIN, "--set", "lr=fast"), "setting lr='fast'"),
    "not a number": ((*TRAIN, "--set", "lr=nan"), "setting lr=nan"),
    "wrong range": ((*TRAIN, "--set", "lr=-1"), "setting lr=-1"),
    "wrong option": ((*TRAIN, "--epochs", "0"), "Invalid value for '--epochs': 0"),
    "option of the wrong type": ((*TRAIN, "--seed", "one"), "Invalid value for '--seed'"),
    "unknown option": ((*TRAIN, "--nonsense"), "No such option '--nonsense'"),
    "unknown command": (("nonsense",), "No such command 'nonsense'"),
    "missing argument": (("train",), "Missing argument 'EXPERIMENT'"),
    "bad note": ((*TRAIN, "--meta", "note"), "--meta 'note'"),
    "unknown tester": ((*TRAIN, "--tester", "gpu://nowhere"), "unknown tester 'gpu://nowhere'"),
    "unknown chip": ((*TRAIN, "--tester", "twin:nonsense"), "unknown chip 'nonsense'"),
    "unknown chip parameter": ((*TRAIN, "--tester", "twin:?colour=1"), "unknown chip parameter 'colour'"),
    "missing chip": ((*TRAIN, "--tester", "twin:missing.h5"), "no chip at missing.h5"),
    "no chip": ((*TRAIN, "--tester", "twin:old.h5"), "old.h5"),
    "chip too small": ((*TRAIN, "--tester", "twin:?rows=8&columns=8"), "the chip is too small"),
    "chip too small to read": ((*TRAIN, "--tester", "twin:pcm-90nm?rows=8&columns=8"), "the chip is too small"),
    "chip too large": ((*TRAIN, "--tester", "twin:?rows=65536&columns=65536"), "a twin has at most"),
    "range beyond the tester's": ((*TRAIN, "--set", "forward_range=1e6"), "largest range"),
    "no data directory": (("train", "mnist-mlp"), "needs a data directory"),
    "missing data directory": (("train", "mnist-mlp", "--data-dir", "missing"), "missing cannot be read"),
    "missing data": (("train", "mnist-mlp", "--data-dir", "."), "no folder of this name"),
    "data by path": ((*TRAIN, "--set", "data=../mnist", "--data-dir", "."), "no path"),
    "too few images": ((*TRAIN, "--set", "train_images=5000"), "has only 1438"),
    "weights too large": ((*TRAIN, "--set", "initial_spread=1.0"), "setting initial_spread=1 with weight_scale=1"),
    "refresh too large": ((*TRAIN, "--set", "refresh_below=1e-5"), "setting refresh_below=1e-05"),
    "too many held out": ((*TRAIN, "--set", "validation_images=5000"), "cannot hold out 5000"),
}


class TestBadInput:
    @pytest.mark.parametrize("overwrite", [False, True], ids=["", "overwrite"])
    @pytest.mark.parametrize("case", BAD)
    def test_it_is_one_line_and_exit_code_2_and_nothing_is_changed(self, case: str, overwrite: bool) -> None:
        arguments, says = BAD[case]
        old = Path("old.h5")
        old.write_bytes(OLD)
        out = ["--out", "old.h5" if overwrite else "new.h5"] if arguments[0] == "train" else []
        result = hil(*arguments, *out, *(["--overwrite"] if overwrite and out else []))
        assert (result.exit_code, result.stdout) == (2, "")
        assert says in result.stderr
        assert result.stderr.startswith("Error: ")
        assert result.stderr.count("\n") == 1
        assert old.read_bytes() == OLD
        assert os.listdir() == ["old.h5"]

    @pytest.mark.parametrize(
        ("out", "says"),
        [
            ("old.h5", "old.h5 exists: choose another name"),
            ("missing/deeper/run.h5", "folder missing/deeper cannot be made"),
            ("old.h5/run.h5", "folder old.h5 cannot be made"),
            (".", ". is a folder"),
            ("x" * 300, "cannot be created"),
        ],
    )
    def test_a_run_file_that_cannot_be_made_is_refused(self, out: str, says: str) -> None:
        Path("old.h5").write_bytes(OLD)
        for more in ([], ["--overwrite"]) if out != "old.h5" else ([],):
            result = hil("train", "digits", *QUICK, "--out", out, *more)
            assert (result.exit_code, result.stdout) == (2, "")
            assert says in result.stderr
            assert result.stderr.count("\n") == 1
        assert Path("old.h5").read_bytes() == OLD
        assert os.listdir() == ["old.h5"]

    @pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
    @pytest.mark.parametrize("mode", [0o500, 0o000])
    def test_a_folder_that_may_not_be_written_is_refused(self, mode: int, tmp_path: Path) -> None:
        folder = tmp_path / "locked"
        folder.mkdir(mode=mode)
        for options in (["--out", "locked/run.h5"], ["--tester", "twin:locked/chip.h5?chip=ideal"]):
            result = hil("train", "digits", *QUICK, *options)
            assert (result.exit_code, result.stderr.count("\n")) == (2, 1)

    @pytest.mark.parametrize("content", [None, b"", b"nonsense"])
    def test_info_on_what_is_no_run_file_is_refused(self, content: bytes | None) -> None:
        if content is not None:
            Path("run.h5").write_bytes(content)
        result = hil("info", "run.h5")
        assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
        assert "run.h5" in result.stderr

    def test_a_process_of_its_own_shows_no_traceback_either(self) -> None:
        Path("old.h5").write_bytes(OLD)
        done = process("train", "digits", "--tester", "twin:nonsense", "--out", "old.h5", "--overwrite", "--json")
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == f"Error: unknown chip 'nonsense'; there are {', '.join(CHIPS)}\n"
        assert Path("old.h5").read_bytes() == OLD


class TestInterrupt:
    @pytest.fixture
    def start(self) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
        """Starts `hil` in a process that takes Ctrl-C, whatever this one was started with."""
        started: list[subprocess.Popen[str]] = []
        before = signal.signal(signal.SIGINT, signal.default_int_handler)

        def begin(*arguments: str) -> "subprocess.Popen[str]":
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
            started.append(subprocess.Popen([HIL, *arguments], text=True, **pipes))  # type: ignore[call-overload]
            return started[-1]

        yield begin
        signal.signal(signal.SIGINT, before)
        for child in started:
            child.kill()
            child.wait()

    @staticmethod
    def wait_for_epoch(child: "subprocess.Popen[str]") -> None:
        assert child.stderr is not None
        for line in child.stderr:
            if line.startswith("epoch 1:"):
                return
        pytest.fail(f"ended with {child.wait()} before the first epoch did")

    def test_the_first_ends_the_image_and_closes_the_file(self, start: Callable[..., "subprocess.Popen[str]"]) -> None:
        options = ["--epochs", "1000", "--set", "train_images=100", "--out", "run.h5"]
        child = start("train", "digits", *options)
        self.wait_for_epoch(child)
        child.send_signal(signal.SIGINT)
        output, errors = child.communicate(timeout=30)
        assert child.returncode == 130
        last = errors.splitlines()[-1]
        assert last.startswith("Interrupted after ")
        assert last.endswith("`hil resume run.h5` goes on.")
        assert "Traceback" not in errors
        assert "run.h5" in output
        with Run.open(Path("run.h5")) as run:
            assert run.state == "interrupted"
            images = int(last.split()[2])
            assert run.counts["images"] == images
            assert run.counts["epochs"] == len(run.metrics["epoch"]) >= 1
            assert run.layers == ("layer1", "layer2")
            ids = run.operations["op_id"][:]
            assert (ids == range(1, len(ids) + 1)).all()
        assert json.loads(hil("info", "run.h5", "--json").stdout)["state"] == "interrupted"

    def test_json_is_still_one_object_without_an_epoch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("hil.display.Display.progress", lambda *_: signal.raise_signal(signal.SIGINT))
        result = hil("train", "digits", *QUICK, "--out", "run.h5", "--json")
        assert result.exit_code == 130
        found = json.loads(result.stdout, parse_constant=pytest.fail)
        assert (found["interrupted"], found["images"], found["epochs"], found["test_accuracy"]) == (True, 64, 0, None)

    def test_the_second_does_not_wait_for_the_image(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def strike(*arguments: object) -> None:
            for _ in range(2):
                signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr("hil.display.Display.progress", strike)
        result = hil("train", "digits", *QUICK, "--out", "run.h5")
        assert result.exit_code == 130
        assert result.stderr.splitlines()[-1] == "Interrupted."
        with Run.open(Path("run.h5")) as run:
            assert run.state == "interrupted"

    def test_one_after_the_last_image_leaves_a_whole_run_and_begins_no_other(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("hil.display.Display.epoch", lambda *_: signal.raise_signal(signal.SIGINT))
        result = hil("train", "digits", *QUICK, "--out", "run.h5", "--seeds", "2")
        assert result.exit_code == 130
        assert os.listdir() == ["run-1.h5"]
        with Run.open(Path("run-1.h5")) as run:
            assert run.state == "completed"

    def test_two_while_the_file_is_being_closed_leave_it_whole(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def strike(result: Any) -> dict[str, Any]:
            for _ in range(2):
                signal.raise_signal(signal.SIGINT)
            return asdict(result)

        monkeypatch.setattr("hil.train.asdict", strike)
        assert hil("train", "digits", *QUICK, "--out", "run.h5").exit_code == 130
        with Run.open(Path("run.h5")) as run:
            assert run.state == "completed"
            assert run.layers == ("layer1", "layer2")

    def test_two_end_at_once_and_leave_a_file_that_opens(self, start: Callable[..., "subprocess.Popen[str]"]) -> None:
        child = start("train", "digits", "--epochs", "1000", "--set", "train_images=300", "--out", "run.h5")
        self.wait_for_epoch(child)
        for _ in range(2):
            child.send_signal(signal.SIGINT)
            time.sleep(0.003)  # by then the first is being obeyed
        _, errors = child.communicate(timeout=30)
        assert child.returncode == 130
        assert "Traceback" not in errors
        assert errors.splitlines()[-1].startswith("Interrupted")
        with Run.open(Path("run.h5")) as run:
            assert run.state != "completed"
            assert len(run.operations["op_id"][:]) > 300


def test_the_settings_of_an_experiment_are_listed_with_their_meaning() -> None:
    shown = hil("experiments", "digits").stdout
    assert all(name in shown for name in Settings.model_fields)
    assert "learning rate" in shown
    assert hil("experiments", "digit").exit_code == 2
