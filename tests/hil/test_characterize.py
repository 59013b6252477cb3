"""`hil characterize`: what it costs is known before, and nothing that stops it changes what is measured."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner, Result

from hil.bench import connect
from hil.characterize import chosen
from hil.cli import main
from hil.data.run import Run
from hil.data.status import read_status
from hil.estimate import counted
from hil.mock_hw import chipfile
from hil.mock_hw.server import Server
from hil.procedure import Place, perform
from hil.protocols.errors import InputError
from hil.resume import resume_procedure
from hil.session import twin_seed
from hil.studies import STUDIES

LogOf = Callable[[Path], dict[str, npt.NDArray[Any]]]
SIZE = "arrays=2&rows=16&columns=16"
SMALL = f"twin:pcm-analog?{SIZE}"
HIL = str(Path(sys.executable).with_name("hil"))
QUICK: dict[str, Any] = {"reads": 3, "pulses": 4, "cycles": 5}
COMMAND = ("characterize", SMALL, "--cells", "0:0-7:0-7", "--out", "run.h5")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Commands run in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def hil(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def measure(uri: str, out: Path, *studies: str, cells: str = "0:0-7:0-7", seed: int = 1) -> Path:
    given = {key: value for key, value in QUICK.items() if any(key in STUDIES[name].defaults for name in studies)}
    perform(chosen(studies, cells, given), Place(uri, out, seed), connect(uri, twin_seed(seed)))
    return out


def assert_same(path: Path, other: Path, log_of: LogOf) -> None:
    log, expected = log_of(path), log_of(other)
    log.pop("messages/text", None)  # says which operation was on its way when the run was cut
    assert log.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(log[name], values, err_msg=name)
    with Run.open(path) as run, Run.open(other) as whole:
        assert run.snapshots == whole.snapshots
        assert {name: values.tobytes() for name, values in run.metrics.items()} == {
            name: values.tobytes() for name, values in whole.metrics.items()
        }
        assert (run.state, whole.state) == ("completed", "completed")


@pytest.mark.parametrize(
    "uri", [SMALL, f"{SMALL}&readout=single&largest_batch=50", f"{SMALL}&mvm=none&largest_batch=64"]
)
@pytest.mark.parametrize("cells", ["0:0-7:0-6", "all"])
def test_the_estimate_is_what_the_log_then_holds(uri: str, cells: str, folder: Path) -> None:
    path = measure(uri, folder / "run.h5", *STUDIES, cells=cells)
    with Run.open(path) as run:
        assert run.capabilities is not None
        estimate = chosen(list(STUDIES), cells, QUICK).estimate(run.capabilities)
        assert counted(run) == estimate.amounts
        assert [text for _, text in run.messages] == list(estimate.findings)


def test_a_dry_run_says_the_same_and_sends_nothing(folder: Path) -> None:
    options = ["--study", "staircase", "--study", "endurance", "--cycles", "20", "--json"]
    dry = json.loads(hil(*COMMAND, *options, "--dry-run").stdout)
    assert list(folder.iterdir()) == []
    found = json.loads(hil(*COMMAND, *options).stdout)
    assert found["estimate"] == found["done"] == dry["estimate"]
    assert found["estimate"]["reset_pulses_per_cell"] == 21
    assert found["estimate"]["set_pulses_per_cell"] == 20 + 20 * 10
    assert (found["run"], found["interrupted"], found["findings"]) == ("run.h5", False, [])


def test_a_dry_run_leaves_a_kept_chip_as_it_is(folder: Path) -> None:
    uri = f"twin:chip.h5?chip=pcm-analog&{SIZE}"
    command = [HIL, "characterize", uri, "--study=stuck", "--cells=0:0:0"]
    dry = subprocess.run([*command, "--dry-run"], capture_output=True, text=True, check=True)
    assert "estimate" in dry.stdout
    assert not (folder / "chip.h5").exists()
    assert hil(*command[1:], "--out=run.h5").exit_code == 0


def test_the_estimate_is_shown_before_and_what_was_done_after() -> None:
    result = hil(*COMMAND, "--study", "staircase")
    assert result.exit_code == 0
    assert "estimate" in result.stderr
    assert "done" not in result.stderr.split("device time")[0]
    words = result.stdout.split()
    assert words[:3] == ["run.h5", "estimate", "done"]
    assert words[3:6] == ["operations", "1,092", "1,092"]


def test_the_help_lists_every_study() -> None:
    said = " ".join(hil("characterize", "--help").stdout.split())
    for name, study in STUDIES.items():
        assert f"{name} {study.about}" in said


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((), "Missing option '--study'"),
        (("--study", "nonsense"), "unknown study 'nonsense'; there are read-noise, reset"),
        (("--study", "map", "--study", "map"), "study map is named twice"),
        (("--study", "map", "--reads", "0"), "reads 0 is outside 1 to 100000"),
        (("--study", "endurance", "--cycles", "1000001"), "cycles 1000001 is outside 1 to 1000000"),
        (("--study", "map", "--pulses", "-1"), "pulses -1 is outside"),
        (("--study", "map", "--interval", "soon"), "'soon' is no time"),
        (("--study", "map", "--times", "1s,2s"), "times is of no use to map, only to drift"),
        (("--study", "drift", "--times", "10s,1s"), "time 1 s comes after 10 s"),
        (("--study", "drift", "--times", ""), "'' is no time"),
        (("--study", "drift", "--cells", "0:0:16"), "column 16 is outside 0 to 15"),
        (("--study", "drift", "--cells", "0:0:3"), "cell 0:0:3 is named twice"),
        (("--study", "linearity", "--cells", "0:9:9"), "no rectangle"),
        (("--study", "drift", "--meta", "note"), "'note' is not of the form key=value"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_nothing_is_written(
    options: tuple[str, ...], says: str, folder: Path
) -> None:
    result = hil(*COMMAND, *options)
    assert result.exit_code == 2
    assert says in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
    assert list(folder.iterdir()) == []


def test_stuck_cells_cannot_be_sought_where_no_staircase_is_known() -> None:
    raw = connect(SMALL, twin_seed(1))
    with pytest.raises(InputError, match="knows no staircase"):
        chosen(["stuck"], "all", {}).estimate(replace(raw.capabilities(), staircase=()))


def test_a_file_that_is_there_is_kept(folder: Path) -> None:
    assert hil(*COMMAND, "--study", "stuck").exit_code == 0
    before = (folder / "run.h5").read_bytes()
    refused = hil(*COMMAND, "--study", "read-noise")
    assert (refused.exit_code, "run.h5 exists" in refused.stderr) == (2, True)
    assert (folder / "run.h5").read_bytes() == before
    assert hil(*COMMAND, "--study", "read-noise", "--overwrite", "--meta", "operator=me").exit_code == 0
    with Run.open("run.h5") as run:
        assert list(run.config["studies"]) == ["read-noise"]
        assert run.start.meta == {"operator": "me"}


@pytest.mark.parametrize(
    ("out", "says"),
    [
        ("run.h5", "run.h5 exists: choose another name, or give --overwrite to replace it"),
        ("none/run.h5", "none/run.h5: cannot be created (No such file or directory)"),
        (".", ". is a folder"),
    ],
)
def test_a_place_that_cannot_be_is_refused_before_the_tester_is_asked(out: str, says: str, folder: Path) -> None:
    (folder / "run.h5").touch()
    result = hil("characterize", "tcp://127.0.0.1:1", "--study", "stuck", "--out", out)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"Error: {says}")
    assert result.stderr.count("\n") == 1


def test_the_chip_is_not_overwritten_by_its_measurements(folder: Path) -> None:
    command = [HIL, "characterize", f"twin:run.h5?chip=pcm-analog&{SIZE}", "--study=stuck", "--cells=0:0:0"]
    done = subprocess.run([*command, "--out=run.h5"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "run.h5 is where the chip is kept" in done.stderr.splitlines()[-1]
    assert not (folder / "run.h5").exists()


def interrupt_after(patch: pytest.MonkeyPatch, operations: int) -> None:
    """Ctrl-C when so many operations are done."""

    def steps(display: Any, done: int, total: int, what: str) -> None:
        if done == operations:
            signal.raise_signal(signal.SIGINT)

    patch.setattr("hil.display.Display.steps", steps)


@pytest.mark.parametrize("uri", [SMALL, f"twin:chip.h5?chip=pcm-analog&{SIZE}"])
def test_what_ctrl_c_stopped_goes_on_to_the_same_end(
    uri: str, folder: Path, monkeypatch: pytest.MonkeyPatch, log_of: LogOf
) -> None:
    studies = ("drift", "linearity", "map", "stuck")
    whole = measure(SMALL, folder / "whole.h5", *studies)
    options = [f"--{key}={value}" for key, value in QUICK.items()] + [f"--study={name}" for name in studies]
    with monkeypatch.context() as patch:
        interrupt_after(patch, 10)
        cut = hil("characterize", uri, "--cells", "0:0-7:0-7", "--out", "run.h5", *options)
    assert cut.exit_code == 130
    assert cut.stderr.splitlines()[-1] == (
        "Interrupted after 11 operations. run.h5 holds them: `hil resume run.h5` goes on."
    )
    assert "interrupted" in hil("info", "run.h5").stdout
    with monkeypatch.context() as patch:
        interrupt_after(patch, 30)
        assert hil("resume", "run.h5").exit_code == 130
    result = hil("resume", "run.h5", "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert found["estimate"] == found["done"]
    assert_same(folder / "run.h5", whole, log_of)
    assert "nothing to resume" in hil("resume", "run.h5").stderr
    if uri != SMALL:
        firmware, *_ = chipfile.load(folder / "chip.h5")
        assert firmware.last_op_id == found["operations"]


QUICKLY = """
import sys
from hil.data import runfile
runfile.FLUSH_NS = 20_000_000
from hil.cli import main
main()
"""


def test_what_was_killed_on_a_served_twin_goes_on_to_the_same_end(
    served: Callable[..., AbstractContextManager[Server]], folder: Path, log_of: LogOf
) -> None:
    chip = f"pcm-analog?{SIZE}&seed=5"
    studies = ("staircase", "linearity")
    whole, path = measure(f"twin:{chip}", folder / "whole.h5", *studies), folder / "run.h5"
    options = [f"--{key}={QUICK[key]}" for key in ("reads", "pulses")] + [f"--study={name}" for name in studies]
    with served(f"twin:{chip}", ("127.0.0.1", 0)) as line:
        command = [sys.executable, "-c", QUICKLY, "characterize", f"{line.uri}?codec=frames", "--cells=0:0-7:0-7"]
        process = subprocess.Popen(
            [*command, f"--out={path}", *options, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        while process.poll() is None and read_status(path).get("operations", 0) < 10:
            time.sleep(0.0002)
        process.send_signal(signal.SIGKILL)
        _, said = process.communicate()
        assert process.returncode == -signal.SIGKILL, said
        outcome = resume_procedure(path)
        assert not outcome.interrupted
    assert_same(path, whole, log_of)


def test_a_driver_that_knows_no_time_before_its_first_answer_is_enough(rig: Any, folder: Path, log_of: LogOf) -> None:
    whole = measure(SMALL, folder / "whole.h5", "read-noise", "drift")
    raw = rig.connect(SMALL, twin_seed(1))
    perform(chosen(["read-noise", "drift"], "0:0-7:0-7", {"reads": 3}), Place("rig:", folder / "run.h5"), raw)
    assert_same(folder / "run.h5", whole, log_of)


def test_studies_are_not_replayed(folder: Path) -> None:
    measure(SMALL, folder / "run.h5", "read-noise")
    result = hil("replay", "run.h5")
    assert result.exit_code == 2
    assert result.stderr == "Error: run.h5 is of hil characterize: only training runs (hil train) are replayed\n"


def test_info_says_what_was_studied(folder: Path) -> None:
    measure(SMALL, folder / "run.h5", "staircase", "stuck")
    found = json.loads(hil("info", "run.h5", "--json").stdout)
    assert (found["procedure"], found["state"], found["cells"]) == ("characterize", "completed", "0:0-7:0-7")
    assert found["studies"] == "staircase (reads 3, pulses 4, interval 38.6s), stuck"
    assert (found["measurements"], found["metrics"][4]["pulses"]) == (5, 4)
    shown = hil("info", "run.h5").stdout
    assert "0:0-7:0-7" in shown
    assert "read 17, set 5, reset 3, wait 5" in shown


def test_measurements_are_exported(folder: Path) -> None:
    measure(SMALL, folder / "run.h5", "staircase")
    result = hil("export", "run.h5", "--out", "tables", "--portable", "portable.h5")
    assert result.exit_code == 0
    assert "tables/metrics.parquet: 5 rows" in result.stdout
    with Run.open(folder / "portable.h5") as run:
        assert run.metrics["pulses"].tolist() == [0, 1, 2, 3, 4]
