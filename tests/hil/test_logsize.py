"""The size of a log is told before the run, and is near what it becomes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hil.bench import open_tester
from hil.config import load_settings
from hil.data.datasets import load
from hil.logsize import plan_log
from hil.protocols.errors import InputError
from hil.train import Job, train

MakeJob = Callable[..., Job]


def test_the_expected_size_is_near_the_real_one(make_job: MakeJob, observer: Any) -> None:
    job = make_job(train_images=1400, epochs=2)
    train(job, observer)
    assert observer.plan.kind == "full"
    assert 0.7 * observer.plan.size < job.out.stat().st_size < 1.4 * observer.plan.size


@pytest.mark.parametrize(
    ("hidden", "log", "kind"),
    [
        ("[64]", "auto", "full"),
        ("[64]", "digest", "digest"),
        ("[2000,2000]", "auto", "digest"),
        ("[2000]", "full", "full"),
    ],
)
def test_large_networks_keep_checksums_by_default(tmp_path: Path, hidden: str, log: str, kind: str) -> None:
    settings = load_settings("digits", [f"hidden={hidden}", f"log={log}"])[0]
    with open_tester("twin:pcm-analog?arrays=20") as tester:
        plan = plan_log(settings, load("digits"), tester.capabilities(), tmp_path / "run.h5")
    assert plan.kind == kind


def test_a_checksum_is_smaller_than_what_it_stands_for(tmp_path: Path) -> None:
    with open_tester("twin:pcm-analog") as tester:
        sizes = [
            plan_log(
                load_settings("digits", [f"log={log}"])[0], load("digits"), tester.capabilities(), tmp_path / "x.h5"
            ).size
            for log in ("digest", "full")
        ]
    assert 0 < sizes[0] < 0.9 * sizes[1]


def test_a_disk_without_room_is_told_with_what_to_do(tmp_path: Path) -> None:
    settings = load_settings("digits", ["epochs=1000000000"])[0]
    with (
        open_tester("twin:pcm-analog") as tester,
        pytest.raises(InputError, match=r"about \d+\.\d GB and .* left: .*--out"),
    ):
        plan_log(settings, load("digits"), tester.capabilities(), tmp_path / "run.h5")
