"""Procedures: what is done with a tester besides training, and kept in a run file like training."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from hil.bench import check_apart, kept_chip
from hil.data.recording import RecordingTester
from hil.data.runfile import COMPLETED, RunWriter
from hil.data.schema import Start
from hil.instruments.tester import ArrayTester
from hil.interrupt import Interrupt
from hil.loop import Log, memory_arrays
from hil.observers import SILENT
from hil.protocols.messages import Capabilities
from hil.session import recorded, released_on_error, start_of


class Steps(Protocol):
    """Told how a procedure goes."""

    def steps(self, done: int, total: int, what: str) -> None:
        """So many of its steps are done; what comes next."""

    def finding(self, text: str) -> None:
        """Something is wrong, and this is what."""


class StoppedError(Exception):
    """The user asked for an end between two steps."""


@dataclass
class Bench:
    """What a procedure works with."""

    tester: ArrayTester
    log: Log
    observer: Steps
    interrupt: Interrupt
    memory: Callable[[], bytes | None]
    """All that tester and chip remember, where they exist in this process only."""

    def step(self, done: int, total: int, what: str) -> None:
        """To be called before each step: shows it, and ends the procedure here if the user wants that."""
        if self.interrupt.requested:
            raise StoppedError
        self.observer.steps(done, total, what)

    def find(self, text: str) -> None:
        """Tell the user, and the log, what is wrong."""
        self.log.message(text)
        self.observer.finding(text)


class Procedure(Protocol):
    """One of them."""

    @property
    def name(self) -> str:
        """What it is, such as `characterize`."""

    def config(self) -> dict[str, Any]:
        """All that determines it, JSON-able."""

    def check(self, capabilities: Capabilities) -> None:
        """Raise `InputError` where it cannot be done on such a tester; nothing has been sent yet."""

    def run(self, bench: Bench) -> None:
        """Do it. Numbers go to `bench.log`; between steps it calls `bench.step`."""


@dataclass(frozen=True)
class Place:
    """Where a procedure is done, and where it is kept."""

    tester: str  # URI
    out: Path
    seed: int = 1
    overwrite: bool = False
    durable: bool = False
    argv: tuple[str, ...] = ()
    meta: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What came of a procedure."""

    run: str
    operations: int
    interrupted: bool


def perform(procedure: Procedure, place: Place, raw: ArrayTester, observer: Steps = SILENT) -> Outcome:
    """Do the procedure on a tester that was just opened. Raises `InputError` before anything is written or sent."""
    with released_on_error(raw):
        check_apart(place.tester, place.out)
        procedure.check(raw.capabilities())
        writer = RunWriter.create(place.out, _start(procedure, place, raw), place.overwrite, place.durable)
    return carry_out(procedure, place, raw, writer, lambda tester: RecordingTester(tester, writer), observer)


def carry_out(
    procedure: Procedure,
    place: Place,
    raw: ArrayTester,
    log: Log,
    wrap: Callable[[ArrayTester], ArrayTester],
    observer: Steps,
    restore: Callable[[], None] | None = None,
) -> Outcome:
    """Do it with a tester that is wrapped, and a log that is closed at the end. `restore` replaces the start."""
    interrupted = False
    with Interrupt() as interrupt, recorded(raw, wrap, log) as (tester, ending):
        if restore is not None:
            restore()
        elif kept_chip(place.tester) is not None:
            _keep_chip(log, raw)
        if tester is not None:
            try:
                procedure.run(Bench(tester, log, observer, interrupt, raw.memory))
            except StoppedError:
                interrupted = True
        interrupt.hold()
        ending.status = "interrupted" if interrupted else COMPLETED
        return Outcome(str(place.out), log.operations, interrupted)


def _keep_chip(log: Log, raw: ArrayTester) -> None:
    """A chip in a file is saved as it was left; going on begins with it as it was found."""
    memory = raw.memory()
    if memory is not None:
        log.checkpoint({"state": {}}, memory_arrays(memory))


def _start(procedure: Procedure, place: Place, raw: ArrayTester) -> Start:
    config = {"procedure": procedure.name, "tester": place.tester, "seed": place.seed} | procedure.config()
    return start_of(config, place.seed, place.argv, place.meta, raw)
