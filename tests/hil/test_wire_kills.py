"""Real processes on both sides of a real line, killed at random moments."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from hil.bench import connect
from hil.data.run import Run
from hil.data.status import read_status
from hil.instruments import link
from hil.mock_hw import server
from hil.mock_hw.server import Server
from hil.observers import Silent
from hil.replay import verify
from hil.resume import resume
from hil.train import Job, train

MakeJob = Callable[..., Job]
LogOf = Callable[[Path], dict[str, npt.NDArray[Any]]]
Serve = Callable[..., AbstractContextManager[Server]]
CHIP = "arrays=2&rows=80&columns=256&seed=5"
HIL = str(Path(sys.executable).with_name("hil"))
QUICKLY = """
import sys
from hil.data import runfile
from hil.instruments import link
runfile.FLUSH_NS, runfile.CHECKPOINT_S, link.QUIET_S = 100_000_000, 0.2, 0.05
from hil.cli import main
main()
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Serial lines fall silent sooner; their two times stay in order. A slow machine is waited for."""
    monkeypatch.setattr("hil.instruments.exchange.PAUSES", (0.0, 0.05, 0.1, 0.2, 0.5, *[1.0] * 60))
    monkeypatch.setattr(link, "QUIET_S", 0.05)
    monkeypatch.setattr(server, "PARTIAL_S", 0.03)


def assert_same(path: Path, other: Path, log_of: LogOf) -> None:
    log, expected = log_of(path), log_of(other)
    log.pop("messages/text", None)  # says which operation was on its way when the run was cut
    assert log.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(log[name], values, err_msg=name)
    with Run.open(path) as run, Run.open(other) as whole:
        final, wanted = run.snapshot("final").arrays, whole.snapshot("final").arrays
        assert {name: values.tobytes() for name, values in final.items()} == {
            name: values.tobytes() for name, values in wanted.items()
        }


def killed(path: Path, uri: str, settings: list[str], operations: int) -> None:
    """Train in a process of its own, and kill it after some more than so many operations."""
    command = [sys.executable, "-c", QUICKLY, "train", "digits", "--out", str(path), "--tester", uri, *settings]
    process = subprocess.Popen([*command, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while process.poll() is None and read_status(path).get("operations", 0) < operations:
        time.sleep(0.0005)
    time.sleep(np.random.default_rng(operations).uniform(0, 0.05))
    process.send_signal(signal.SIGKILL)
    _, said = process.communicate()
    assert process.returncode == -signal.SIGKILL, said


def kill_and_resume(
    served: Serve, make_job: MakeJob, log_of: LogOf, folder: Path, chip: str, where: str, codec: str, moments: list[int]
) -> None:
    uri = f"twin:{chip}?{CHIP}"
    settings = {"train_images": 120, "epochs": 2}
    whole, path = folder / "whole.h5", folder / "killed.h5"
    train(make_job(out=whole, tester=uri, **settings))
    options = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    with served(uri, ("127.0.0.1", 0) if where == "TCP" else folder / "tty") as line:
        killed(path, f"{line.uri}?codec={codec}", options, moments[0])
        for moment in moments[1:]:
            resume_and_kill(path, moment)
        with Run.open(path) as run:
            cut = run.state == "interrupted"
        if cut:
            assert not resume(path).interrupted
        last = int(log_of(whole)["operations/op_id"][-1])
        with connect(line.uri, 1) as tester:
            assert tester.wait(0.0).op_id == last + 1  # nothing was asked that the whole run has not asked
    assert_same(path, whole, log_of)
    assert verify(path).identical


def resume_and_kill(path: Path, operations: int) -> None:
    command = [sys.executable, "-c", QUICKLY, "resume", str(path), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while process.poll() is None and read_status(path).get("operations", 0) < operations:
        time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    _, said = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), said  # it may have been quick


@pytest.mark.parametrize(
    ("chip", "where", "codec", "moments"),
    [("pcm-analog", "TCP", "scpi", [300, 700]), ("pcm-90nm", "pty", "frames", [100, 200])],
)
def test_a_killed_run_on_a_served_twin_goes_on_to_the_same_end(
    served: Serve,
    make_job: MakeJob,
    log_of: LogOf,
    tmp_path: Path,
    chip: str,
    where: str,
    codec: str,
    moments: list[int],
) -> None:
    kill_and_resume(served, make_job, log_of, tmp_path, chip, where, codec, moments)


@pytest.mark.torture
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(("chip", "where", "codec"), [("pcm-analog", "TCP", "frames"), ("pcm-90nm", "pty", "scpi")])
def test_kills_at_any_moment(
    served: Serve, make_job: MakeJob, log_of: LogOf, tmp_path: Path, chip: str, where: str, codec: str, seed: int
) -> None:
    moments = sorted(np.random.default_rng(seed).integers(1, 900 if chip == "pcm-analog" else 300, 2).tolist())
    kill_and_resume(served, make_job, log_of, tmp_path, chip, where, codec, moments)


def serve(chip: str, port: int) -> tuple["subprocess.Popen[str]", str]:
    command = [HIL, "twin", "serve", "--tcp", str(port), "--twin", chip, "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    return process, json.loads(process.stdout.readline())["uri"]


class KillsTheServer(Silent):
    """Kills the server in the middle of the run, and starts it again at the same port."""

    def __init__(self, process: "subprocess.Popen[str]", chip: Path, uri: str) -> None:
        self.process, self._chip, self._uri = process, chip, uri
        self._killed = False

    def progress(self, images: int, *_: Any) -> None:
        if not self._killed:
            self._killed = True
            os.kill(self.process.pid, signal.SIGKILL)
            self.process.communicate()
            Thread(target=self._again).start()

    def _again(self) -> None:
        self.process, _ = serve(str(self._chip), int(self._uri.rpartition(":")[2]))


def test_a_run_survives_the_kill_of_its_server(make_job: MakeJob, log_of: LogOf, tmp_path: Path) -> None:
    settings = {"train_images": 120, "epochs": 1}
    whole, chip = tmp_path / "whole.h5", tmp_path / "chip.h5"
    train(make_job(out=whole, tester=f"twin:pcm-analog?{CHIP}", **settings))
    process, uri = serve(f"{chip}?chip=pcm-analog&{CHIP}", 0)
    killer = KillsTheServer(process, chip, uri)
    try:
        train(make_job(tester=f"{uri}?timeout=5", **settings), killer)
    finally:
        killer.process.send_signal(signal.SIGINT)
        killer.process.communicate()
    assert killer.process.returncode == 0
    assert killer.process is not process
    assert_same(tmp_path / "run.h5", whole, log_of)
