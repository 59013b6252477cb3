"""A run file says what it holds."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

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
