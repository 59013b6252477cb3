"""What the tests of hil/ share: small software chips, weights on them, short runs and their logs."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

import h5py
import numpy as np
import numpy.typing as npt
import pytest

import hil.resume
import hil.train
from hil.bench import connect, open_tester
from hil.characterize import chosen
from hil.config import load_settings
from hil.data.column_reader import ColumnReader
from hil.data.schema import OPERATIONS, STREAMS, Start
from hil.instruments.tester import ArrayTester
from hil.logsize import LogPlan
from hil.mock_hw import chipfile
from hil.mock_hw.faults import FaultPlan
from hil.mock_hw.firmware import Firmware
from hil.mock_hw.server import Server
from hil.pairs import UNIT, DifferentialPairs
from hil.procedure import Place, perform
from hil.protocols.errors import InputError, TesterError
from hil.protocols.messages import (
    Block,
    Capabilities,
    Cells,
    Direction,
    Identity,
    PulseBatch,
    PulseTrains,
    Readings,
    Receipt,
    Region,
    TesterKind,
    Vectors,
)
from hil.serving import serving
from hil.session import twin_seed
from hil.train import Job, Result, train

Answer = TypeVar("Answer", Readings, Receipt)
SMALL_CHIP = "twin:pcm-analog?arrays=2&rows=80&columns=256"


@pytest.fixture
def make_tester() -> Callable[..., ArrayTester]:
    """Opens a small software chip: `make_tester("ideal", rows=64, drift="off")`, parameters as in a URI."""

    def make(name: str = "ideal", seed: int = 1, **parameters: Any) -> ArrayTester:
        sizes = {"arrays": 2, "rows": 64, "columns": 64} | parameters
        query = "&".join(f"{key}={value}" for key, value in sizes.items())
        return open_tester(f"twin:{name}?{query}", seed)

    return make


@pytest.fixture
def weights_of() -> Callable[[DifferentialPairs], npt.NDArray[np.float64]]:
    """Reads the weights (rows, columns) that lie on pairs, in weight units; exact on an `ideal` chip but for 5e-5."""

    def read(pairs: DifferentialPairs) -> npt.NDArray[np.float64]:
        plus, minus = (side.astype(np.float64) for side in pairs.measure(np.arange(len(pairs))))
        return (plus - minus).reshape(pairs.shape) * pairs.scale / UNIT

    return read


@pytest.fixture
def start() -> Start:
    """The start of a run file that a test writes itself."""
    return Start({}, "", (), 1, {}, {}, None, {}, None, None)


@pytest.fixture(scope="session")
def log_of() -> Callable[[Path], dict[str, npt.NDArray[Any]]]:
    """Reads all columns of a run file's log but the times of day."""

    def read(path: Path) -> dict[str, npt.NDArray[Any]]:
        names = {f"operations/{column.name}" for column in OPERATIONS} | STREAMS.keys()
        with h5py.File(path) as file:
            columns = {name: ColumnReader(file[name]) for name in names - {"operations/host_time_ns"} if name in file}
            return {name: column[0 : len(column)] for name, column in columns.items()}

    return read


@dataclass
class Watcher:
    """Keeps what an observer is told."""

    begun: list[tuple[int, int]] = field(default_factory=list)
    steps: list[tuple[int, float, int, int]] = field(default_factory=list)
    epochs: list[tuple[int, float]] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    plan: LogPlan | None = None

    def logging(self, plan: LogPlan) -> None:
        self.plan = plan

    def begin(self, images: int, epochs: int) -> None:
        self.begun.append((images, epochs))

    def progress(self, images: int, running_accuracy: float, pulses: int, refreshes: int) -> None:
        self.steps.append((images, running_accuracy, pulses, refreshes))

    def epoch(self, number: int, test_accuracy: float) -> None:
        self.epochs.append((number, test_accuracy))

    def finding(self, text: str) -> None:
        self.findings.append(text)


@pytest.fixture
def observer() -> Any:
    """An observer with what it was told: `begun`, `steps`, `epochs`, `findings`."""
    return Watcher()


def job(out: Path, experiment: str = "digits", **settings: Any) -> Job:
    """A run with some settings changed."""
    known, text = load_settings(experiment, [f"{key}={value}" for key, value in settings.items()])
    return Job(experiment, known, text, out)


SHORT: dict[str, Any] = {"train_images": 150, "epochs": 2, "tester": SMALL_CHIP}


@pytest.fixture(scope="session")
def short_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a run of 2 epochs of 150 images on a small chip; to be copied before it is changed."""
    path = tmp_path_factory.mktemp("short") / "run.h5"
    train(job(path, **SHORT), Watcher())
    return path


@pytest.fixture
def make_job(tmp_path: Path) -> Callable[..., Job]:
    """A short run on a small chip: `make_job(lr=0.1, out=path)`; by default 2 epochs of 150 images."""

    def make(out: Path | None = None, **settings: Any) -> Job:
        return job(out or tmp_path / "run.h5", **(SHORT | settings))

    return make


@dataclass(frozen=True)
class Finished:
    """A run that was made."""

    result: Result
    path: Path
    watcher: Watcher


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Four epochs of the digits with their own settings: `result`, `path`, `watcher`."""
    path, watcher = tmp_path_factory.mktemp("digits") / "run.h5", Watcher()
    return Finished(train(job(path, epochs=4), watcher), path, watcher)


@pytest.fixture(scope="session")
def digits_run_by_reading(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """As `digits_run`, two epochs on a chip that is read cell by cell."""
    path, watcher = tmp_path_factory.mktemp("digits-90nm") / "run.h5", Watcher()
    return Finished(train(job(path, epochs=2, tester="twin:pcm-90nm"), watcher), path, watcher)


class Rig:
    """A chip on a bench, which is there whether or not a process drives it, and what tells when to look at it."""

    def __init__(self) -> None:
        self.connection = Outliving
        self.identity = Identity("", "", "", "", "", TesterKind.TWIN)
        self.firmware: Firmware | None = None
        self.connected = 0
        self.hook: Callable[[str, int], None] = lambda moment, op_id: None

    def connect(self, uri: str, seed: Any) -> ArrayTester:
        """What stands in for `bench.connect`; the first to connect decides what chip there is."""
        if uri.startswith("twin:ideal"):
            return connect(uri, seed)  # another tester, which dies with the process
        self.connected += 1
        if self.firmware is None:
            new = connect(uri, seed)
            self.identity = new.identify()
            self.firmware, *_ = chipfile.parse(new.memory() or b"")
        return Outliving(self, self.firmware)

    def dump(self) -> bytes:
        assert self.firmware is not None
        return chipfile.dump(self.firmware, self.identity)

    def restore(self, memory: bytes) -> None:
        self.firmware, *_ = chipfile.parse(memory)


class Outliving(ArrayTester):
    """A connection to a rig. It knows no device time before its first answer, as a driver of hardware."""

    def __init__(self, rig: Rig, firmware: Firmware) -> None:
        self._rig, self._firmware = rig, firmware
        self._last = firmware.last_op_id
        self._time_ns: int | None = None
        self._regions: list[Region] = []

    def identify(self) -> Identity:
        return self._rig.identity

    def capabilities(self) -> Capabilities:
        return self._firmware.capabilities

    def register(self, blocks: Sequence[Block]) -> Region:
        region = Region(len(self._regions), tuple(blocks))
        self._firmware.define(region)
        self._regions.append(region)
        return region

    def regions(self) -> tuple[Region, ...]:
        return tuple(self._regions)

    def read(self, cells: Cells) -> Readings:
        return self._do(lambda op_id: self._firmware.read(op_id, cells))

    def mvm(self, region: Region, vectors: Vectors, direction: Direction, gain: int) -> Readings:
        return self._do(lambda op_id: self._firmware.mvm(op_id, region.handle, vectors, direction, gain))

    def program(self, pulses: PulseBatch) -> Receipt:
        return self._do(lambda op_id: self._firmware.program(op_id, pulses))

    def update(self, region: Region, trains: PulseTrains) -> Receipt:
        raise TesterError("no parallel update")

    def wait(self, seconds: float) -> Receipt:
        return self._do(lambda op_id: self._firmware.wait(op_id, seconds))

    def time_ns(self) -> int:
        if self._time_ns is None:
            raise TesterError("no answer yet that would tell the time")
        return self._time_ns

    def safe_state(self) -> None:
        """No lines to ground."""

    def close(self) -> None:
        self._rig.connected -= 1

    def continue_after(self, op_id: int) -> None:
        if self._firmware.last_op_id not in (op_id, op_id + 1):
            raise InputError(f"the chip was used since: its last id is {self._firmware.last_op_id}, not {op_id}")
        self._last = op_id

    def _do(self, send: Callable[[int], Answer]) -> Answer:
        op_id = self._last + 1
        self._rig.hook("before", op_id)
        answer = send(op_id)
        self._rig.hook("done", op_id)
        self._last, self._time_ns = op_id, answer.time_ns
        return answer


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    """What every URI leads to."""
    bench = Rig()
    monkeypatch.setattr(hil.train, "connect", bench.connect)
    monkeypatch.setattr(hil.resume, "connect", bench.connect)
    yield bench
    assert bench.connected == 0


@contextmanager
def _served(uri: str, where: tuple[str, int] | Path, plan: FaultPlan | None = None) -> Iterator[Server]:
    with serving(uri, where, plan=plan) as line:
        thread = Thread(target=line.run)
        thread.start()
        try:
            yield line
        finally:
            line.stop()
            thread.join()


@pytest.fixture(scope="session")
def served() -> Callable[..., AbstractContextManager[Server]]:
    """Serves the twin of a URI in a thread, while it is entered: at a host and port, or at a pseudo terminal."""
    return _served


@pytest.fixture
def studied(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Path]:
    """Does one study on the small chip that the test file names: `studied("drift", "nu=0.05", reads=4)`."""

    def make(study: str, chip: str = "", cells: str = "all", **given: Any) -> Path:
        place = Place(f"{request.module.CHIP}&{chip}".rstrip("&"), tmp_path / "run.h5", overwrite=True)
        perform(chosen([study], cells, given), place, connect(place.tester, twin_seed(1)))
        return place.out

    return make
