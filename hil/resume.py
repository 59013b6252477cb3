"""Go on with a run where it stopped or was killed; it ends as if nothing had happened."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import numpy as np

from hil.bench import connect, kept_chip, revive
from hil.characterize import stored
from hil.checkpoint import unpack
from hil.config import stored_settings
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
from hil.procedure import Outcome, Place, Procedure, Steps, carry_out
from hil.protocols.errors import InputError
from hil.protocols.messages import MVM_DIRECTION
from hil.provenance import git_commit, host, versions
from hil.session import outlives, released_on_error, twin_seed
from hil.studies import NAME as CHARACTERIZE
from hil.train import Job, Result, Setup, execute, first_weights


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
        settings = stored_settings(run.config | {"tester": _address(run, tester)}, str(run.path))
        data = kept(run, settings, data_dir)
        raw = None if run.identity is None else _tester(run, settings.tester)
        job = Job(run.config["experiment"], settings, run.start.config_text, path, data_dir, argv=argv)
    with released_on_error(raw):
        setup = Setup(job, data, first_weights(settings, data, raw.capabilities() if raw else None), raw)
        retracing = _Retracing.reopen(path, argv, durable)
    restore = retracing.restore if retracing.checkpoint is not None else None
    return execute(setup, retracing.writer, retracing.wrap, observer, restore)


def resume_procedure(
    path: Path, observer: Steps = SILENT, tester: str | None = None, durable: bool = False, argv: tuple[str, ...] = ()
) -> Outcome:
    """Go on with a procedure as with a run: what the file holds is done again and compared, or taken as recorded."""
    with Run.open(path) as run:
        place = Place(_address(run, tester), path, run.start.seed, durable=durable, argv=argv)
        procedure = _stored_procedure(run)
        raw = _tester(run, place.tester)
    with released_on_error(raw):
        retracing = _Retracing.reopen(path, argv, durable)
    restore = retracing.jump if retracing.checkpoint is not None else None
    return carry_out(procedure, place, raw, retracing.writer, retracing.wrap, observer, restore)


def _stored_procedure(run: Run) -> Procedure:
    name = run.config.get("procedure")
    if name != CHARACTERIZE:
        raise InputError(f"{run.path} is of hil {name}, which cannot be resumed: do it again")
    return stored(run.config)


class _Retracing:
    """Ties the log of a run that goes on to its writer and tester."""

    def __init__(self, writer: ResumedWriter, view: Run, checkpoint: Checkpoint | None) -> None:
        self.writer, self.checkpoint = writer, checkpoint
        self._tester: RetracingTester | None = None
        self._replay = ReplayTester(view) if view.identity else None
        self._reference = writer.retrace(view, self._replay.recorded if self._replay else Recorded(view))

    @classmethod
    def reopen(cls, path: Path, argv: tuple[str, ...], durable: bool) -> Self:
        """Go on with the file."""
        session = {"argv": argv, "versions": versions(), "host": host(), "git_commit": git_commit()}
        writer = ResumedWriter.reopen(path, session, durable)
        writer.forget_failed(Run(path, writer.view()))
        view = Run(path, writer.view())
        return cls(writer, view, _usable(view))

    def wrap(self, raw: ArrayTester) -> ArrayTester:
        """The tester that repeats what is logged, then records."""
        if self._replay is None:
            return raw
        self._tester = RetracingTester(raw, RecordingTester(raw, self.writer), self._replay, self.writer.outlives)
        if self.checkpoint is not None:
            self._tester.serve_recorded()
        return self._tester

    def restore(self, training: Training) -> None:
        """Bring training to the checkpoint."""
        if self.checkpoint is not None:
            training.restore(unpack(self.checkpoint.state["state"], self.checkpoint.arrays))
        self.jump()

    def jump(self) -> None:
        """Go on from the checkpoint."""
        if self.checkpoint is None:
            return
        self._reference.jump(self.checkpoint.metrics, self.checkpoint.messages)
        if self._tester is not None:
            self._tester.jump(self.checkpoint.operations)


def _address(run: Run, tester: str | None) -> str:
    """Where the run's tester is now."""
    if run.state == COMPLETED:
        raise InputError(f"{run.path} is complete: there is nothing to resume")
    was = str(run.config["tester"])
    if tester is not None and tester != was and not run.start.outlives:
        raise InputError(f"{run.path} was made on {was}, not on {tester}: a run is resumed on its own chip")
    return tester or was


def _tester(run: Run, uri: str) -> ArrayTester:
    """The tester of the run. One that died with its process is in the state of the checkpoint, or of the run's start
    where there is none.
    """
    if run.start.outlives:
        return _outliving(run, uri)
    chip_file = kept_chip(uri)
    if chip_file is not None and chip_file.exists():
        _check_chip(run, chip_file)
    memory = run.checkpoint.arrays.get(CHIP) if run.checkpoint else None
    seed = twin_seed(int(run.config["seed"]))
    raw = connect(uri, seed) if memory is None else revive(uri, memory.tobytes())
    _check_tester(run, raw)
    return raw


def _outliving(run: Run, uri: str) -> ArrayTester:
    """The tester, as it was left, with at most one operation that the log does not know."""
    last = last_id(run)
    _check_products(run)
    raw = connect(uri, twin_seed(int(run.config["seed"])))
    if not outlives(raw):
        raise InputError(
            f"{run.path} was made on a tester that outlives the process, and {uri} does not: "
            "a run is resumed on its own chip"
        )
    with released_on_error(raw):
        _check_tester(run, raw)
        if last is not None:
            raw.continue_after(last)
    return raw


def last_id(run: Run) -> int | None:
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
