"""Go on with a run where it stopped or was killed; it ends as if nothing had happened."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from hil.bench import connect, kept_chip, revive
from hil.checkpoint import unpack
from hil.config import Settings, stored_settings
from hil.data.recorded import Recorded
from hil.data.recording import RecordingTester
from hil.data.remarks import is_remark
from hil.data.replay import ReplayTester
from hil.data.resumed import ResumedWriter
from hil.data.retracing import RetracingTester
from hil.data.run import Checkpoint, Run
from hil.data.runfile import COMPLETED
from hil.data.schema import NONE
from hil.images import kept
from hil.instruments.tester import ArrayTester
from hil.loop import CHIP, Training
from hil.mock_hw import chipfile
from hil.observers import SILENT, LoopObserver
from hil.protocols.errors import InputError
from hil.protocols.messages import MVM_DIRECTION
from hil.provenance import git_commit, host, versions
from hil.train import Job, Result, Setup, execute, first_weights, outlives, released_on_error, twin_seed


def resume(
    path: Path,
    observer: LoopObserver = SILENT,
    tester: str | None = None,
    data_dir: Path | None = None,
    durable: bool = False,
    argv: tuple[str, ...] = (),
) -> Result:
    """Go on with the run file from its newest checkpoint. What it holds beyond that is done again and compared; on a
    tester that outlives the process, the recorded answers are taken instead, and nothing is sent twice.

    `tester` is the URI of the run's tester, if that outlives the process and is now to be found elsewhere. Raises
    `InputError` where it cannot go on (another tester, chip or data set; a completed run), before anything is changed,
    and `ReplayError` where what is done again differs from the log.
    """
    with Run.open(path) as run:
        settings = _settings(run, tester)
        data = kept(run, settings, data_dir)
        raw = None if run.identity is None else _tester(run, settings)
        job = Job(run.config["experiment"], settings, run.start.config_text, path, data_dir, argv=argv)
    session = {"argv": argv, "versions": versions(), "host": host(), "git_commit": git_commit()}
    with released_on_error(raw):
        setup = Setup(job, data, first_weights(settings, data, raw.capabilities() if raw else None), raw)
        writer = ResumedWriter.reopen(path, session, durable)
    writer.forget_failed(Run(path, writer.view()))
    view = Run(path, writer.view())
    retracing = _Retracing(writer, view, _usable(view))
    return execute(setup, writer, retracing.wrap, observer, retracing.restorer())


class _Retracing:
    """Ties the log of a run that goes on to its writer and tester."""

    def __init__(self, writer: ResumedWriter, view: Run, checkpoint: Checkpoint | None) -> None:
        self._writer, self._view, self._checkpoint = writer, view, checkpoint
        self._tester: RetracingTester | None = None
        self._replay = ReplayTester(view) if view.identity else None
        self._reference = writer.retrace(view, self._replay.recorded if self._replay else Recorded(view))

    def wrap(self, raw: ArrayTester) -> ArrayTester:
        """The tester that repeats what is logged, then records."""
        if self._replay is None:
            return raw
        self._tester = RetracingTester(raw, RecordingTester(raw, self._writer), self._replay, self._writer.outlives)
        if self._checkpoint is not None:
            self._tester.serve_recorded()
        return self._tester

    def restorer(self) -> Callable[[Training], None] | None:
        """What brings training to the checkpoint; None where there is none."""
        return None if self._checkpoint is None else self._restore

    def _restore(self, training: Training) -> None:
        if self._checkpoint is None:
            return
        training.restore(unpack(self._checkpoint.state["state"], self._checkpoint.arrays))
        self._reference.jump(self._checkpoint.metrics, self._checkpoint.messages)
        if self._tester is not None:
            self._tester.jump(self._checkpoint.operations)


def _settings(run: Run, tester: str | None) -> Settings:
    if run.state == COMPLETED:
        raise InputError(f"{run.path} is complete: there is nothing to resume")
    settings = stored_settings(run.config, str(run.path))
    if tester is None or tester == settings.tester:
        return settings
    if not run.start.outlives:
        raise InputError(f"{run.path} was made on {settings.tester}, not on {tester}: a run is resumed on its own chip")
    return settings.model_copy(update={"tester": tester})


def _tester(run: Run, settings: Settings) -> ArrayTester:
    """The tester of the run. One that died with its process is in the state of the checkpoint, or of the run's start
    where there is none.
    """
    if run.start.outlives:
        return _outliving(run, settings)
    chip_file = kept_chip(settings.tester)
    if chip_file is not None and chip_file.exists():
        _check_chip(run, chip_file)
    memory = run.checkpoint.arrays.get(CHIP) if run.checkpoint else None
    if memory is not None:
        raw = revive(settings.tester, memory.tobytes())
    else:
        raw = connect(settings.tester, twin_seed(settings))
    _check_tester(run, raw)
    return raw


def _outliving(run: Run, settings: Settings) -> ArrayTester:
    """The tester, as it was left, with at most one operation that the log does not know."""
    last = _last_id(run)
    _check_products(run)
    raw = connect(settings.tester, twin_seed(settings))
    if not outlives(raw):
        raise InputError(
            f"{run.path} was made on a tester that outlives the process, and {settings.tester} does not: "
            "a run is resumed on its own chip"
        )
    with released_on_error(raw):
        _check_tester(run, raw)
        if last is not None:
            raw.continue_after(last)
    return raw


def _last_id(run: Run) -> int | None:
    """The last operation id that the log knows; None where nothing was done yet."""
    ids = run.operations["op_id"][: run.operations.rows]
    known = ids[ids != NONE]
    if len(known):
        return int(known[-1])
    if len(ids) or any(is_remark(message) for _, message in run.messages):
        raise InputError(f"{run.path} was cut in its first operation, and nobody knows what came of it: begin anew")
    return None


def _check_products(run: Run) -> None:
    """Refuse a log whose answers would be needed and are not there."""
    rows = slice(run.checkpoint.operations if run.checkpoint else 0, run.operations.rows)
    answered = run.operations["kind"][rows][run.operations["op_id"][rows] != NONE]
    if run.start.log == "digest" and np.isin(answered, list(MVM_DIRECTION)).any():
        raise InputError(
            f"{run.path} keeps only a checksum of each product (log=digest) and was not stopped with Ctrl-C: "
            "its tester is beyond the last checkpoint, and nothing leads there"
        )


def _check_tester(run: Run, raw: ArrayTester) -> None:
    _check_same(asdict(run.identity) if run.identity else {}, asdict(raw.identify()))
    _check_same(asdict(run.capabilities) if run.capabilities else {}, asdict(raw.capabilities()))


def _check_same(recorded: dict[str, Any], found: dict[str, Any]) -> None:
    for key, value in recorded.items():
        if found[key] != value:
            raise InputError(f"the tester is another than that of the run: {key} was {value}, is {found[key]}")


def _check_chip(run: Run, path: Path) -> None:
    """Refuse a chip that was used for something else since; a run that was killed has not saved it."""
    firmware, _, chip = chipfile.load(path)
    if run.identity is not None and chip != run.identity.chip:
        raise InputError(f"{path} holds chip {chip}, the run was made on {run.identity.chip}")
    ids = run.operations["op_id"][: run.operations.rows]
    known = ids[ids >= 0]
    failed = len(ids) > len(known)  # the operation that failed took an id
    if len(known) and firmware.last_op_id not in (int(known[0]) - 1, int(known[-1]) + failed):
        raise InputError(
            f"the chip in {path} was used since: its last operation is {firmware.last_op_id}, "
            f"the run's was {np.max(known)}"
        )


def _usable(view: Run) -> Checkpoint | None:
    """A checkpoint helps only where the tester is brought to it, or has gone on from there: else all is done again."""
    checkpoint = view.checkpoint
    if checkpoint is None or view.identity is None or view.start.outlives or CHIP in checkpoint.arrays:
        return checkpoint
    return None
