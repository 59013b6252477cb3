"""The same run in process, over TCP and over a pseudo terminal, in both codecs, with and without faults."""

import signal
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from hil.data.run import Run
from hil.instruments import link
from hil.instruments.conversation import ScpiConversation
from hil.instruments.exchange import Exchange
from hil.instruments.resource import open_link, parse_address
from hil.mock_hw import server
from hil.mock_hw.faults import FaultPlan, FaultRule
from hil.mock_hw.server import Server
from hil.observers import Silent
from hil.protocols.errors import InputError, TesterError
from hil.protocols.messages import Operation, Status, TesterKind
from hil.resume import resume
from hil.serving import serving
from hil.train import Job, train

MakeJob = Callable[..., Job]
LogOf = Callable[[Path], dict[str, npt.NDArray[Any]]]
Serve = Callable[..., AbstractContextManager[Server]]
SHORT: dict[str, Any] = {"train_images": 60, "epochs": 1}
SMALL = "twin:pcm-analog?arrays=2&rows=80&columns=256&seed=5"
SMALL_90NM = "twin:pcm-90nm?arrays=2&rows=80&columns=256&seed=5"
RECOVERABLE = (
    FaultRule("drop", "request", every=211),
    FaultRule("drop", "reply", every=223),
    FaultRule("corrupt", "request", every=97),
    FaultRule("corrupt", "reply", every=101),
    FaultRule("truncate", "request", every=227),
    FaultRule("truncate", "reply", every=229),
    FaultRule("duplicate", "request", every=23),
    FaultRule("duplicate", "reply", every=29),
    FaultRule("split", "reply", every=17),
    FaultRule("close", "reply", every=233),
    FaultRule("late", "reply", every=239, seconds=0.15),
    FaultRule("busy", every=103),
)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Serial lines fall silent sooner; their two times stay in order. A slow machine is waited for."""
    monkeypatch.setattr("hil.instruments.exchange.PAUSES", (0.0, 0.05, 0.1, 0.2, 0.5, *[1.0] * 30))
    monkeypatch.setattr(link, "QUIET_S", 0.03)
    monkeypatch.setattr(server, "PARTIAL_S", 0.02)


def chi_of(path: Path) -> dict[str, bytes]:
    with Run.open(path) as run:
        return {name: values.tobytes() for name, values in run.snapshot("final").arrays.items()}


@pytest.fixture(scope="module")
def in_process(tmp_path_factory: pytest.TempPathFactory) -> Callable[[MakeJob, str], Path]:
    """The run in process, made once for each chip."""
    folder = tmp_path_factory.mktemp("in-process")
    made: dict[str, Path] = {}

    def make(make_job: MakeJob, uri: str) -> Path:
        if uri not in made:
            made[uri] = folder / f"{len(made)}.h5"
            train(make_job(out=made[uri], tester=uri, **SHORT))
        return made[uri]

    return make


@pytest.mark.timeout(300)  # the first of them may compile all kernels
@pytest.mark.parametrize("faults", [False, True], ids=["sound", "with faults"])
@pytest.mark.parametrize("codec", ["scpi", "frames"])
@pytest.mark.parametrize("where", ["TCP", "pty"])
@pytest.mark.parametrize("chip", [SMALL, SMALL_90NM], ids=["analog", "serial"])
def test_a_run_is_the_same_over_every_wire(
    served: Serve,
    make_job: MakeJob,
    in_process: Any,
    log_of: LogOf,
    tmp_path: Path,
    chip: str,
    where: str,
    codec: str,
    faults: bool,
) -> None:
    expected = in_process(make_job, chip)
    plan = FaultPlan(RECOVERABLE, 3) if faults else None
    with served(chip, ("127.0.0.1", 0) if where == "TCP" else tmp_path / "tty", plan) as line:
        uri = f"{line.uri}?codec={codec}&timeout={0.1 if faults else 30}"
        result = train(make_job(tester=uri, **SHORT))
    log, other = log_of(tmp_path / "run.h5"), log_of(expected)
    assert log.keys() == other.keys()
    for name, values in other.items():
        np.testing.assert_array_equal(log[name], values, err_msg=name)
    assert chi_of(tmp_path / "run.h5") == chi_of(expected)
    with Run.open(tmp_path / "run.h5") as run:
        assert run.identity is not None
        assert run.identity.kind == TesterKind.TWIN
        assert run.metrics["test_accuracy"][-1] == result.test_accuracy
    if plan is not None:
        assert plan.summary() != ""


@pytest.mark.parametrize(
    "resource", ["TCPIP0::127.0.0.1::{port}::SOCKET", "TCPIP::127.0.0.1::{port}::SOCKET?backend=@py"]
)
def test_a_visa_resource_string_is_all_that_is_needed(
    served: Serve, make_job: MakeJob, in_process: Any, log_of: LogOf, tmp_path: Path, resource: str
) -> None:
    expected = in_process(make_job, SMALL)
    with served(SMALL, ("127.0.0.1", 0)) as line:
        uri = resource.format(port=line.uri.rpartition(":")[2])
        train(make_job(tester=uri, **SHORT))
    for name, values in log_of(expected).items():
        np.testing.assert_array_equal(log_of(tmp_path / "run.h5")[name], values, err_msg=name)


def test_reboots_leave_operations_in_doubt_that_are_read_again_and_said(
    served: Serve, make_job: MakeJob, tmp_path: Path
) -> None:
    plan = FaultPlan((FaultRule("reboot", probability=0.05),), 3)
    with served(SMALL, ("127.0.0.1", 0), plan) as line:
        result = train(make_job(tester=f"{line.uri}?timeout=5", **SHORT))
    assert result.images == 60
    assert any("programming operations are uncertain" in finding for finding in result.findings)
    with Run.open(tmp_path / "run.h5") as run:
        kinds, statuses = (run.operations[name][:] for name in ("kind", "status"))
        doubtful = np.flatnonzero(statuses == Status.UNKNOWN)
        assert len(doubtful) >= 1
        pulsed = np.isin(kinds[doubtful], (Operation.SET, Operation.RESET))
        assert (kinds[doubtful[pulsed] + 1] == Operation.READ).all()
        assert len([text for _, text in run.messages if "uncertain" in text]) == len(doubtful)


def grounded(uri: str) -> bool:
    """Whether all lines of the tester are grounded."""
    address = parse_address(uri)
    assert address is not None
    exchange = Exchange(open_link(address), ScpiConversation(), 5.0)
    try:
        return exchange.open().grounded
    finally:
        exchange.close()


class Stopper(Silent):
    """Ends the run in the middle: with Ctrl-C, once or twice, or an error."""

    def __init__(self, how: str) -> None:
        self._how = how

    def progress(self, images: int, *_: Any) -> None:
        if self._how == "error":
            raise InputError("enough")
        signal.raise_signal(signal.SIGINT)
        if self._how == "Ctrl-C twice":
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("codec", ["scpi", "frames"])
@pytest.mark.parametrize("how", ["Ctrl-C", "Ctrl-C twice", "error"])
def test_however_a_run_ends_the_lines_are_grounded_and_its_file_is_whole(
    served: Serve, make_job: MakeJob, log_of: LogOf, tmp_path: Path, how: str, codec: str
) -> None:
    with served(SMALL, ("127.0.0.1", 0)) as line:
        assert grounded(line.uri)
        job = make_job(tester=f"{line.uri}?codec={codec}", train_images=64, epochs=1)
        with suppress(KeyboardInterrupt, InputError):
            assert train(job, Stopper(how)).interrupted
        assert grounded(line.uri)
        with Run.open(job.out) as run:
            assert run.state in ("interrupted", "failed: InputError: enough")
        resume(job.out)
    whole = tmp_path / "whole.h5"
    train(make_job(out=whole, tester=SMALL, train_images=64, epochs=1))
    for name, values in log_of(whole).items():
        np.testing.assert_array_equal(log_of(job.out)[name], values, err_msg=name)


class Cutter(Silent):
    """Stops the server in the middle of the run."""

    def __init__(self, line: Server) -> None:
        self._line = line

    def progress(self, images: int, *_: Any) -> None:
        self._line.stop()


def test_a_lost_tester_ends_the_run_with_its_file_intact(
    make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hil.instruments.exchange.PAUSES", (0.0, 0.01))
    with serving(SMALL, ("127.0.0.1", 0)) as line:
        job = make_job(tester=f"{line.uri}?timeout=0.2", train_images=200)
        thread = Thread(target=line.run)
        thread.start()
        with pytest.raises(TesterError, match="was not answered"):
            train(job, Cutter(line))
        thread.join()
    with Run.open(tmp_path / "run.h5") as run:
        assert run.state.startswith("failed: ")
        assert run.operations.rows > 100
