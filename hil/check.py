"""Does a tester keep its promises? First the bytes on its line, then what it does as a tester."""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from hil.bench import connect
from hil.check_line import TextLine, open_line
from hil.checking import Check, Group, Outcome, Places, Result, Some, attempt, cells_at
from hil.checks_frames import framed
from hil.checks_products import products
from hil.checks_programming import programming
from hil.checks_scpi import text
from hil.checks_seam import Seam, seam
from hil.checks_status import status
from hil.checks_wire import wire
from hil.instruments.conversation import CONVERSATIONS
from hil.instruments.exchange import Exchange
from hil.instruments.resource import WireAddress, open_link, parse_address
from hil.instruments.tester import ArrayTester
from hil.instruments.wire import WireTester
from hil.protocols.errors import HilError, InputError
from hil.protocols.limits import check_cells
from hil.protocols.messages import Identity, TesterKind

Begin = Callable[[str], None]
"""Told the name of each check before it is made."""
MOST_PULSED = 64
"""Cells that may be given up for the checks."""


@dataclass(frozen=True)
class Report:
    """What came of all checks. `identity` is None where the tester did not open."""

    uri: str
    identity: Identity | None
    outcomes: tuple[Outcome, ...]

    @property
    def failed(self) -> tuple[Outcome, ...]:
        """The checks that failed."""
        return tuple(outcome for outcome in self.outcomes if outcome.result == Result.FAILED)

    def count(self, result: Result) -> int:
        """How many checks came out so."""
        return Counter(outcome.result for outcome in self.outcomes)[result]

    def __str__(self) -> str:
        return ", ".join(f"{self.count(result)} {result}" for result in Result)

    def as_dict(self) -> dict[str, Any]:
        """For a machine."""
        counts = {result.replace(" ", "_"): self.count(result) for result in Result}
        identity = asdict(self.identity) if self.identity else None
        return {"uri": self.uri, "identity": identity, **counts, "checks": [asdict(one) for one in self.outcomes]}


def run_checks(
    uri: str,
    allow_programming: bool = False,
    pulsed: Places = (),
    timeout: float | None = None,
    begin: Begin = lambda name: None,
    leave_out: Collection[str] = (),
) -> Report:
    """Try out all that a tester at `uri` promises. Takes operation ids and device time, and pulses cells only where
    that is allowed: those at `pulsed`, or the last four. Ends in the safe state.

    `timeout` (s) is how long a silent line is waited for, in place of the URI's; `begin` is told the name of each check
    before it is made; `leave_out` names checks that are not made. Raises `InputError` for a malformed
    URI or cells that the chip has not, `TesterError` where there is no tester.
    """
    if not len(pulsed) == len(set(pulsed)) <= MOST_PULSED:
        raise InputError(f"{len(pulsed)} cells to be pulsed: name up to {MOST_PULSED}, each once")
    run = _Run(allow_programming, begin, leave_out)
    address = parse_address(uri)
    if address is None:
        why = "spoken to in this process: no bytes pass" if uri.startswith("twin:") else "not a line of this protocol"
        for group in (text, status, framed, wire):
            run.leave_out(group.checks, why)
    else:
        if timeout is not None:
            address = replace(address, timeout=timeout)
        _check_line(run, address, pulsed)
    return Report(uri, _check_tester(run, uri, address, pulsed), tuple(run.outcomes))


class _Run:
    """Checks that are being made, and what came of them."""

    def __init__(self, allow_programming: bool, begin: Begin, left_out: Collection[str]) -> None:
        self._allow_programming = allow_programming
        self._begin = begin
        self._left_out = left_out
        self.outcomes: list[Outcome] = []

    def make(self, checks: Sequence[Check[Some]], subject: Some) -> None:
        """Make them, one after the other."""
        for check in checks:
            if check.programs and not self._allow_programming:
                self.leave_out([check], "pulses cells: needs --allow-programming")
            elif check.name in self._left_out:
                self.leave_out([check], "left out")
            else:
                self._begin(check.name)
                self.outcomes.append(attempt(check, subject))

    def leave_out(self, checks: Sequence[Check[Any]], why: str) -> None:
        """Do not make them."""
        self.outcomes += [check.outcome(Result.NOT_APPLICABLE, why) for check in checks]


def _check_line(run: _Run, address: WireAddress, pulsed: Places) -> None:
    line = open_line(address, pulsed)
    try:
        if isinstance(line, TextLine):
            run.make(text.checks, line)
            run.make(status.checks, line)
        else:
            run.make(framed.checks, line)
        run.make(wire.checks, line)
    except BaseException:  # Ctrl-C, at any byte
        line.in_step = False
        raise
    finally:
        line.close()


def _check_tester(run: _Run, uri: str, address: WireAddress | None, pulsed: Places) -> Identity | None:
    try:
        tester = connect(uri, 1) if address is None else _open_once(address)
    except HilError as error:
        if address is None:
            raise
        run.outcomes.append(OPENING.outcome(Result.FAILED, str(error)))
        for group in GROUPS:
            run.leave_out(group.checks, "the tester does not open")
        return None
    try:
        identity = tester.identify()
        if identity.kind == TesterKind.REPLAY:
            raise InputError(f"{uri} is a recording, which answers only what was asked before; name a tester")
        if pulsed:
            check_cells(tester.capabilities(), cells_at(pulsed))
        subject = Seam(tester, pulsed)
        for check in (OPENING, *(check for group in GROUPS for check in group.checks), CLOSING):
            run.make([check], subject)
    except BaseException:
        with suppress(HilError):
            tester.close()
        raise
    return identity


def _open(seam: Seam) -> str:
    return "opened, and asked who it is"


def _close(seam: Seam) -> str:
    seam.tester.close()
    return "closed"


GROUPS: tuple[Group[Seam], ...] = (seam, products, programming)
OPENING = Check("tester", "it opens", "as a run opens it", _open, False)
CLOSING = Check("tester", "it closes in the safe state", "as a run leaves it", _close, False)


def _open_once(address: WireAddress) -> ArrayTester:
    """The tester as a run opens it, but nothing is asked twice: a repetition would hide what it makes good."""
    exchange = Exchange(open_link(address), CONVERSATIONS[address.codec](), address.timeout, pauses=())
    return WireTester(exchange)
