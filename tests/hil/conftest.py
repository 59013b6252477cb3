"""What the tests of hil/ share: small software chips, weights on them, short runs and their logs."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest

from hil.bench import open_tester
from hil.config import load_settings
from hil.data.column_reader import ColumnReader
from hil.data.schema import OPERATIONS, STREAMS, Start
from hil.instruments.tester import ArrayTester
from hil.logsize import LogPlan
from hil.pairs import UNIT, DifferentialPairs
from hil.train import Job, Result, train

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
