"""Train the network of an experiment on a tester, and keep all of it in a run file."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch

from hil.bench import connect, kept_chip
from hil.cells import keep_cells
from hil.config import Settings
from hil.data.datasets import DataSet
from hil.data.recording import RecordingTester
from hil.data.runfile import COMPLETED, RunWriter
from hil.data.schema import Start
from hil.images import chosen, keep
from hil.instruments.tester import ArrayTester
from hil.interrupt import Interrupt
from hil.logsize import plan_log
from hil.loop import Log, Training
from hil.mapping import floorplan
from hil.network import analog_layers, build, initial_weights
from hil.observers import SILENT, LoopObserver, Observer
from hil.placed import STUCK, keep_chip, keep_layer
from hil.protocols.messages import Capabilities
from hil.session import recorded, released_on_error, start_of, twin_seed
from hil.stuck import all_cells, find_stuck


@dataclass(frozen=True)
class Job:
    """A run to be made: what, from where, and where to."""

    experiment: str
    settings: Settings
    config_text: str
    out: Path
    data_dir: Path | None = None
    overwrite: bool = False
    durable: bool = False  # what is logged survives a loss of power
    argv: tuple[str, ...] = ()
    meta: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """What came of a run; the accuracies are fractions. `system` float has no tester and no devices."""

    run: str
    experiment: str
    system: str
    tester: str
    epochs: int  # finished
    seed: int
    test_accuracy: float  # after the last finished epoch; of held-out training images if there are any
    images_per_second: float  # in training
    weights: int
    devices: int
    set_pulses: int
    reset_pulses: int
    refreshes: int
    operations: int
    image_period: float  # s of device time, as it was
    interrupted: bool
    images: int
    findings: tuple[str, ...]  # why the run goes wrong, each cause once
    finding_counts: dict[str, int]  # how often each cause was seen


@dataclass(frozen=True)
class Setup:
    """What a run is made with, once it is known that it can be made."""

    job: Job
    data: DataSet
    weights: list[torch.Tensor]  # initial, of each layer
    tester: ArrayTester | None  # unrecorded; None in floating point


def train(job: Job, observer: Observer = SILENT) -> Result:
    """Run the job. Raises `InputError` if it cannot be done: before anything is written or sent where that is known."""
    settings = job.settings
    data = chosen(settings, job.data_dir)
    raw = None if settings.system == "float" else connect(settings.tester, twin_seed(settings.seed))
    with released_on_error(raw):
        capabilities = raw.capabilities() if raw else None
        setup = Setup(job, data, first_weights(settings, data, capabilities), raw)
        plan = plan_log(settings, data, capabilities, job.out)
        writer = RunWriter.create(job.out, _start(job, raw, plan.kind), job.overwrite, job.durable)
    observer.logging(plan)
    return execute(setup, writer, lambda tester: RecordingTester(tester, writer), observer)


def first_weights(settings: Settings, data: DataSet, capabilities: Capabilities | None) -> list[torch.Tensor]:
    """The initial weights of a run. Raises `InputError` if a tester with these capabilities cannot hold them."""
    sizes = [data.train_images.shape[1], *settings.hidden, data.classes]
    return initial_weights(settings, sizes, np.random.SeedSequence(settings.seed).spawn(2)[1], capabilities)


def execute(
    setup: Setup,
    log: Log,
    wrap: Callable[[ArrayTester], ArrayTester],
    observer: LoopObserver,
    restore: Callable[[Training], None] | None = None,
) -> Result:
    """Make the run: its tester is wrapped, its log is written and closed. `restore` replaces the start of training."""
    torch.set_num_threads(1)
    settings, raw = setup.job.settings, setup.tester
    with Interrupt() as interrupt, recorded(raw, wrap, log) as (tester, ending):
        keep(log, setup.data)
        if tester is not None and settings.scan_stuck:
            stuck = find_stuck(tester, all_cells(tester))
            floorplan(tester).avoid(stuck)
            keep_cells(log, STUCK, stuck)
            log.message(f"{len(stuck)} stuck cells found; weights are placed around them")
        model = build(settings, setup.weights, tester)
        for number, layer in enumerate(analog_layers(model), 1):
            keep_layer(log, f"layer{number}", layer)
        memory = raw.memory if raw is not None else _no_memory
        training = Training(settings, setup.data, model, tester, memory, log, observer)
        if restore is None:
            training.begin(keep=raw is not None and kept_chip(settings.tester) is not None)
        else:
            restore(training)
        training.run(interrupt)
        if not training.interrupted:
            keep_chip(log, memory())
        interrupt.hold()
        result = _result(setup, training, log)
        ending.status = "interrupted" if result.interrupted else COMPLETED
        ending.counts = {name: value for name, value in asdict(result).items() if isinstance(value, int)}
    if interrupt.requested and not result.interrupted:
        raise KeyboardInterrupt  # it came when this run was done; no other is to be begun
    return result


def _no_memory() -> None:
    return None


def _result(setup: Setup, training: Training, log: Log) -> Result:
    job, tally, settings = setup.job, training.tally, setup.job.settings
    return Result(
        run=str(job.out),
        experiment=job.experiment,
        system=settings.system,
        tester="none" if setup.tester is None else settings.tester,
        epochs=training.epochs,
        seed=settings.seed,
        test_accuracy=training.test_accuracy,
        images_per_second=training.images / training.seconds if training.seconds else 0.0,
        weights=sum(parameter.numel() for parameter in training.model.parameters()),
        devices=tally.devices,
        set_pulses=tally.set_pulses,
        reset_pulses=tally.reset_pulses,
        refreshes=tally.refreshes,
        operations=log.operations,
        image_period=training.pace.period if training.pace else 0.0,
        images=training.images,
        interrupted=training.interrupted,
        findings=tuple(training.diagnosis.findings) + _doubts(tally.in_doubt),
        finding_counts=dict(training.diagnosis.counts)
        | ({"uncertain operations": tally.in_doubt} if tally.in_doubt else {}),
    )


def _doubts(count: int) -> tuple[str, ...]:
    if not count:
        return ()
    return (f"{count} programming operations are uncertain; their cells were read again: `hil info` names them",)


def _start(job: Job, tester: ArrayTester | None, log: str) -> Start:
    config = {"experiment": job.experiment} | job.settings.model_dump(mode="json") | {"log": log}
    return start_of(config, job.settings.seed, job.argv, job.meta, tester, job.config_text, log)
