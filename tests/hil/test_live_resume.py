"""A run on a tester that outlives the process goes on with what the tester did, and nothing is done twice."""

import itertools
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from hil.data import runfile
from hil.data.reference import HOST_METRICS
from hil.data.remarks import is_remark
from hil.data.run import Run
from hil.data.runfile import RunWriter
from hil.data.tail import tail_path
from hil.instruments.tester import ArrayTester
from hil.mock_hw import chipfile, records
from hil.observers import Silent
from hil.protocols.errors import InputError, TesterError
from hil.protocols.messages import (
    Operation,
    PulseBatch,
    Receipt,
    Status,
)
from hil.replay import verify
from hil.resume import resume
from hil.runinfo import describe
from hil.train import Job, train

MakeJob = Callable[..., Job]
LogOf = Callable[[Path], dict[str, npt.NDArray[Any]]]
SMALL_90NM = "twin:pcm-90nm?arrays=2&rows=80&columns=256"
SHORT: dict[str, Any] = {"train_images": 70, "epochs": 1}
CASES: dict[str, dict[str, Any]] = {
    "analog": {"epochs": 2},
    "by reading": {"tester": SMALL_90NM, "reread_images": 70},
    "batches": {"batch_size": 7, "output": "linear", "lr": 0.05, "epochs": 2},
    "scanned": {"scan_stuck": "true", "tester": f"{SMALL_90NM}&stuck_fraction=0.01"},
}


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flush often, and make a checkpoint with each report."""
    monkeypatch.setattr(runfile, "FLUSH_NS", 30_000_000)
    monkeypatch.setattr(runfile, "CHECKPOINT_S", 0.0)


@dataclass
class Kill:
    """What a `kill -9` left: the run file with its tail, and the chip."""

    path: Path
    chip: bytes


@dataclass
class Killer:
    """Takes what a kill would leave at some moments: before an operation, when it is done, when it is logged."""

    rig: Any
    path: Path
    folder: Path
    when: set[tuple[str, int]]
    kills: dict[tuple[str, int], Kill] = field(default_factory=dict)

    def __call__(self, moment: str, op_id: int) -> None:
        if (moment, op_id) in self.when:
            copy = self.folder / f"{moment}-{op_id}.h5"
            shutil.copyfile(self.path, copy)
            shutil.copyfile(tail_path(self.path), tail_path(copy))
            self.kills[moment, op_id] = Kill(copy, self.rig.dump())


@pytest.fixture
def kills(rig: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[tuple[str, int], Kill]]:
    """Does something that writes a run file, and returns what kills at these moments would have left."""
    folders = itertools.count()
    real = RunWriter.operation

    def logged(writer: RunWriter, kind: Operation, payload: Any, answer: Any, *rest: Any, **names: Any) -> None:
        real(writer, kind, payload, answer, *rest, **names)
        if answer is not None:
            rig.hook("logged", answer.op_id)

    monkeypatch.setattr(RunWriter, "operation", logged)

    def take(path: Path, when: set[tuple[str, int]], make: Callable[[], Any]) -> dict[tuple[str, int], Kill]:
        folder = tmp_path / f"kills{next(folders)}"
        folder.mkdir()
        rig.hook = killer = Killer(rig, path, folder, when)
        make()
        rig.hook = lambda moment, op_id: None
        assert killer.kills.keys() == when
        return killer.kills

    return take


def said(path: Path) -> tuple[Any, ...]:
    """Metrics without the host's time, messages of the run, final values and state."""
    with Run.open(path) as run:
        metrics = {name: values.tolist() for name, values in run.metrics.items() if name not in HOST_METRICS}
        final = {name: values.tobytes() for name, values in run.snapshot("final").arrays.items()}
        return metrics, [text for _, text in run.messages if not is_remark(text)], final, run.state


def chip_of(memory: bytes) -> dict[str, Any]:
    firmware, *_ = chipfile.parse(memory)
    chip = firmware.chip
    cells = {name: chip.cells[name].tobytes() for name in records.CELL.names or ()}
    lines = chip.row_reads.tobytes(), chip.column_reads.tobytes()
    return cells | {"now": chip.now_ns, "id": firmware.last_op_id, "lines": lines, "noise": str(chip.normals.state())}


@dataclass
class Whole:
    """The run that nobody kills."""

    path: Path
    chip: bytes
    log_of: LogOf

    def assert_same(self, path: Path, chip: bytes) -> None:
        assert said(path) == said(self.path)
        log, expected = self.log_of(path), self.log_of(self.path)
        for name in (log.keys() | expected.keys()) - {"messages/text"}:
            np.testing.assert_array_equal(log[name], expected[name], err_msg=name)
        assert chip_of(chip) == chip_of(self.chip)
        assert not tail_path(path).exists()

    def ids(self, *kinds: Operation) -> list[int]:
        """The ids of operations of these kinds, in order."""
        with Run.open(self.path) as run:
            ids = run.operations["op_id"][:][np.isin(run.operations["kind"][:], kinds or tuple(Operation))]
            return [int(op_id) for op_id in ids]

    def pulse(self, part: float) -> int:
        """The id of a SET so far into the run."""
        pulses = self.ids(Operation.SET)
        return pulses[int(part * len(pulses))]


@pytest.fixture
def make_whole(rig: Any, make_job: MakeJob, tmp_path: Path, log_of: LogOf) -> Callable[..., tuple[Job, Whole]]:
    """A job, and what comes of it when nobody kills it; the chip is then new again."""

    def make(**settings: Any) -> tuple[Job, Whole]:
        job = make_job(out=tmp_path / "run.h5", **(SHORT | settings))
        whole = replace(job, out=tmp_path / "whole.h5")
        train(whole)
        found = Whole(whole.out, rig.dump(), log_of)
        rig.firmware = None
        return job, found

    return make


def go_on(rig: Any, kill: Kill) -> None:
    rig.restore(kill.chip)
    resume(kill.path)


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("case", CASES)
def test_a_killed_run_goes_on_wherever_it_was_killed(case: str, rig: Any, make_whole: Any, kills: Any) -> None:
    job, whole = make_whole(**CASES[case])
    every, pulses = whole.ids(), whole.ids(Operation.SET, Operation.RESET)
    with Run.open(whole.path) as run:
        evaluated = every[int(run.metrics["operations"][0]) - 3]
    when = {
        ("done", pulses[1]),
        ("before", pulses[len(pulses) // 3]),
        ("done", pulses[len(pulses) // 2]),
        ("logged", every[2 * len(every) // 3]),
        ("done", evaluated),
        ("logged", every[-1]),
    }
    if case != "analog":
        when -= {("done", pulses[1]), ("logged", every[-1]), ("logged", every[2 * len(every) // 3])}
    for moment, kill in kills(job.out, when, lambda: train(job)).items():
        go_on(rig, kill)
        whole.assert_same(kill.path, rig.dump())
        with Run.open(kill.path) as run:
            assert len(run.sessions) == 1, moment


@pytest.mark.parametrize("moment", ["before", "done", "logged"])
def test_without_a_checkpoint_the_log_leads_there(moment: str, rig: Any, make_whole: Any, kills: Any) -> None:
    job, whole = make_whole()
    op_id = whole.pulse(0.8)
    (kill,) = kills(job.out, {(moment, op_id)}, lambda: train(job)).values()
    with Run.open(kill.path) as run:
        assert run.checkpoint is None
        rows = run.operations.rows
        remarks = [text for _, text in run.messages if is_remark(text)]
    asked = len(whole.ids()[:rows])
    assert whole.ids()[rows - 1] == (op_id if moment == "logged" else op_id - 1)
    sent: list[str] = []
    rig.hook = lambda when, _: sent.append(when)
    go_on(rig, kill)
    assert sent.count("before") == len(whole.ids()) - asked  # the log answered for the rest
    whole.assert_same(kill.path, rig.dump())
    assert len(remarks) == (moment != "logged")
    for text in remarks:
        assert text.startswith(f"operation {rows}, SET of ")
        assert text.endswith(" cells, was being sent when the run was cut; it is resolved by its id on resume")


@pytest.mark.usefixtures("often")
def test_a_run_may_be_cut_again_and_again(rig: Any, make_whole: Any, kills: Any) -> None:
    job, whole = make_whole()
    first, second = whole.pulse(0.4), whole.pulse(0.7)
    moments = [("done", first), ("done", second), ("done", second), ("before", second), ("logged", whole.ids()[-1])]
    (kill,) = kills(job.out, {moments[0]}, lambda: train(job)).values()
    for moment in moments[1:]:
        (kill,) = kills(kill.path, {moment}, lambda last=kill: go_on(rig, last)).values()
    go_on(rig, kill)
    whole.assert_same(kill.path, rig.dump())
    with Run.open(kill.path) as run:
        assert len(run.sessions) == len(moments)
        assert len([text for _, text in run.messages if is_remark(text)]) == 4


class Stopper(Silent):
    """Ctrl-C in the second epoch."""

    def progress(self, images: int, *_: Any) -> None:
        if images == 128:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("log", ["full", "digest"])
def test_an_interrupted_run_goes_on_from_where_it_was(log: str, rig: Any, make_whole: Any) -> None:
    job, whole = make_whole(epochs=2, log=log)
    assert train(job, Stopper()).interrupted
    with Run.open(job.out) as run:
        assert run.checkpoint is not None
        assert run.checkpoint.operations == run.operations.rows
    resume(job.out)
    whole.assert_same(job.out, rig.dump())


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize(
    ("moment", "error"),
    [("before", TesterError("it smokes")), ("done", TesterError("it smokes")), ("done", KeyboardInterrupt())],
)
def test_an_operation_that_failed_is_resolved(moment: str, error: BaseException, rig: Any, make_whole: Any) -> None:
    job, whole = make_whole()
    op_id = whole.pulse(0.8)

    def fail(when: str, asked: int) -> None:
        if (when, asked) == (moment, op_id):
            raise error

    rig.hook = fail
    with pytest.raises(type(error)):
        train(job)
    rig.hook = lambda *_: None
    with Run.open(job.out) as run:
        assert run.operations["op_id"][-1] == -1
    resume(job.out)
    whole.assert_same(job.out, rig.dump())


@pytest.mark.usefixtures("often")
def test_a_killed_run_without_its_products_is_refused(rig: Any, make_whole: Any, kills: Any) -> None:
    job, whole = make_whole(log="digest")
    (kill,) = kills(job.out, {("logged", whole.pulse(0.8))}, lambda: train(job)).values()
    rig.restore(kill.chip)
    with pytest.raises(InputError, match=r"logged-\d+\.h5 keeps only a checksum of each product \(log=digest\)"):
        resume(kill.path)
    assert chip_of(rig.dump()) == chip_of(kill.chip)


@pytest.fixture
def killed(rig: Any, make_whole: Any, kills: Any) -> tuple[Kill, Whole]:
    job, whole = make_whole()
    (kill,) = kills(job.out, {("done", whole.pulse(0.8))}, lambda: train(job)).values()
    Run.open(kill.path).close()  # brings the tail in
    rig.restore(kill.chip)
    return kill, whole


def use(rig: Any) -> None:
    tester = rig.connect("", 1)
    tester.wait(1.0)
    tester.close()


def forget(rig: Any) -> None:
    assert rig.firmware is not None
    rig.firmware.last_op_id = 0


def exchange(rig: Any) -> None:
    rig.identity = replace(rig.identity, chip="another")


@pytest.mark.parametrize(
    ("change", "tester", "said"),
    [
        (use, None, "was used since"),
        (forget, None, "last id is 0"),
        (exchange, "tcp://elsewhere:5025", r"another than that of the run: chip was pcm-analog-.*, is another"),
        (id, "twin:ideal", "was made on a tester that outlives the process, and twin:ideal does not"),
    ],
)
def test_another_chip_or_another_state_of_it_is_refused(
    change: Callable[[Any], Any], tester: str | None, said: str, rig: Any, killed: tuple[Kill, Whole]
) -> None:
    path = killed[0].path
    change(rig)
    before = path.read_bytes()
    with pytest.raises(InputError, match=said):
        resume(path, tester=tester)
    assert path.read_bytes() == before


def test_a_tester_that_cannot_tell_is_refused(
    rig: Any, killed: tuple[Kill, Whole], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rig.connection, "continue_after", ArrayTester.continue_after)
    with pytest.raises(InputError, match="cannot tell what became of its last operation"):
        resume(killed[0].path)


def test_another_address_of_the_same_chip_is_taken(rig: Any, killed: tuple[Kill, Whole]) -> None:
    kill, whole = killed
    resume(kill.path, tester="tcp://elsewhere:5025")
    whole.assert_same(kill.path, rig.dump())


@pytest.mark.parametrize("moment", ["before", "done"])
def test_a_run_that_was_cut_in_its_first_operation_is_refused(
    moment: str, rig: Any, make_whole: Any, kills: Any
) -> None:
    """The log knows no id then that the tester could be asked about."""
    job, whole = make_whole()
    (kill,) = kills(job.out, {(moment, whole.ids()[0])}, lambda: train(job)).values()
    rig.restore(kill.chip)
    with pytest.raises(InputError, match="was cut in its first operation"):
        resume(kill.path)


def test_a_run_that_was_cut_before_its_first_operation_begins(rig: Any, make_whole: Any, kills: Any) -> None:
    job, whole = make_whole()
    (kill,) = kills(job.out, {("before", whole.ids()[0])}, lambda: train(job)).values()
    tail_path(kill.path).unlink()  # it was not even announced
    go_on(rig, kill)
    whole.assert_same(kill.path, rig.dump())


def test_what_was_killed_is_described_and_replayed(rig: Any, make_whole: Any, kills: Any) -> None:
    job, whole = make_whole()
    op_id = whole.pulse(0.8)
    (kill,) = kills(job.out, {("done", op_id)}, lambda: train(job)).values()
    found = describe(kill.path)
    assert (found["state"], found["operations"]) == ("interrupted", whole.ids().index(op_id))
    assert verify(kill.path).operations == found["operations"]
    go_on(rig, kill)
    assert verify(kill.path).operations == len(whole.ids())


def test_what_was_uncertain_is_said_and_no_difference_when_done_again(
    rig: Any, make_whole: Any, kills: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = rig.connection.program, itertools.count()

    def program(tester: ArrayTester, pulses: PulseBatch) -> Receipt:
        receipt: Receipt = real(tester, pulses)
        return replace(receipt, status=Status.UNKNOWN, done=0) if next(calls) % 10 == 7 else receipt

    monkeypatch.setattr(rig.connection, "program", program)
    job, whole = make_whole()
    with Run.open(whole.path) as run:
        remarks = [text for _, text in run.messages if is_remark(text)]
    assert remarks
    assert all(text.endswith(" cells) is uncertain: nobody knows what was done") for text in remarks)
    assert verify(whole.path).complete
    (kill,) = kills(job.out, {("logged", whole.pulse(0.9))}, lambda: train(job)).values()
    go_on(rig, kill)
    assert verify(kill.path).complete


def test_a_run_that_cannot_begin_lets_go_of_its_tester(rig: Any, make_job: MakeJob, tmp_path: Path) -> None:
    (tmp_path / "run.h5").write_text("taken")
    with pytest.raises(InputError, match="exists"):
        train(make_job(**SHORT))
    assert rig.connected == 0
