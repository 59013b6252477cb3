"""A run file says what it holds."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from hil.cli import main
from hil.data.runfile import RunWriter
from hil.data.schema import Start
from hil.mock_hw.chips import CHIPS
from hil.protocols.errors import InputError
from hil.runinfo import describe
from hil.train import Job, train


def test_a_finished_run_is_described_by_what_it_did(digits_run: Any) -> None:
    result, found = digits_run.result, describe(digits_run.path)
    assert found["state"] == "completed"
    assert found["run"] == str(digits_run.path)
    assert (found["experiment"], found["system"], found["data"]) == ("digits", "mixed-precision", "digits")
    assert found["tester"].startswith("twin: pcm-analog, chip pcm-analog-")
    assert (found["seed"], found["epochs"]) == (1, "4 of 4")
    assert found["test_accuracy"] == result.test_accuracy
    assert found["operations"] == result.operations
    assert found["counts"]["set_pulses"] == result.set_pulses
    assert found["bytes"] == digits_run.path.stat().st_size
    assert found["config"]["lr"] == 0.4
    assert [row["epoch"] for row in found["metrics"]] == [1, 2, 3, 4]
    assert found["metrics"][-1]["test_accuracy"] == result.test_accuracy
    assert found["messages"] == []
    assert found["identity"]["kind"] == "twin"


def test_a_description_is_json(digits_run: Any) -> None:
    found = describe(digits_run.path)
    assert json.loads(json.dumps(found, allow_nan=False)) == json.loads(json.dumps(found))


def test_a_run_without_a_tester_says_so(make_job: Callable[..., Job], observer: Any) -> None:
    job = make_job(system="float")
    train(job, observer)
    found = describe(job.out)
    assert (found["system"], found["tester"], found["identity"], found["operations"]) == ("float", "none", {}, 0)
    assert found["test_accuracy"] > 0


def test_a_run_with_findings_keeps_them(make_job: Callable[..., Job], observer: Any) -> None:
    job = make_job(lr=100.0, train_images=1400, system="float", epochs=4, batch_size=10)
    train(job, observer)
    assert describe(job.out)["messages"] == observer.findings
    assert observer.findings


def test_a_chip_in_a_file_is_named(make_job: Callable[..., Job], observer: Any, tmp_path: Path) -> None:
    job = make_job(tester=f"twin:{tmp_path}/chip.h5?chip=ideal&rows=80&columns=256", epochs=1)
    train(job, observer)
    assert describe(job.out)["tester"].startswith("twin: ideal, chip ideal-")
    assert "ideal" in CHIPS


@pytest.mark.parametrize("content", [None, b"", b"nonsense"])
def test_what_is_no_run_file_is_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"run\.h5"):
        describe(path)


def test_a_truncated_run_file_is_refused(digits_run: Any, tmp_path: Path) -> None:
    path = tmp_path / "cut.h5"
    whole = digits_run.path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"cut\.h5"):
        describe(path)


def test_a_chip_file_is_no_run_file(make_job: Callable[..., Job], observer: Any, tmp_path: Path) -> None:
    chip = tmp_path / "chip.h5"
    train(make_job(tester=f"twin:{chip}?chip=pcm-analog&rows=80&columns=256", epochs=1), observer)
    with pytest.raises(InputError, match=r"chip\.h5: not a run file"):
        describe(chip)


def test_settings_of_a_procedure_have_units_and_a_failure_is_told_in_full(start: Start, tmp_path: Path) -> None:
    network = {"data": "digits", "hidden": [250], "forward_range": 1.0}
    of = {"procedure": "program", "tester": "twin:", "seed": 1, "experiment": "digits", "network": network}
    asked = {"margin": 8e-7, "settle": 1.0, "times": [25.0, 3600.0, 86400.0], "iterations": 20}
    cause = "x" * 300
    writer = RunWriter.create(tmp_path / "run.h5", replace(start, config=of | asked))
    writer.close(f"failed: TesterError: {cause}", {})
    shown = CliRunner().invoke(main, ["info", str(tmp_path / "run.h5")]).stdout
    rows = dict(re.findall(r"^(\w+)  +(\S.*?) *$", shown, re.MULTILINE))
    assert {key: rows[key] for key in (*asked, "experiment", "data")} == {
        "margin": "0.8 uS",
        "settle": "1s",
        "times": "25s,1h,1d",
        "iterations": "20",
        "experiment": "digits",
        "data": "digits",
    }
    assert "hidden" not in shown
    assert cause in re.sub(r"\s", "", shown)
