"""Promises of SCPI's error queue, and of the common commands and registers where a tester has them.

A host needs no more of the standards than `*CLS` and `SYSTem:ERRor?`. What a tester has of the rest must be right, and
each check's commands must be there together or not at all.
"""

import re

from hil.check_line import MOST_ERRORS, NO_ERROR, TextLine
from hil.checking import Failed, Group, NotApplicable, expect, expect_equal, shown
from hil.protocols.messages import Cells
from hil.protocols.requests import Fault
from hil.protocols.scpi import encode_request

status: Group[TextLine] = Group("SCPI status")
COMMAND_ERROR, EXECUTION_ERROR, DEVICE_ERROR, OPERATION_COMPLETE = 32, 16, 8, 1
"""Bits of the standard event register (IEEE 488.2, 11.5.1)."""
QUEUE_BIT, EVENT_BIT, SERVICE_BIT = 4, 32, 64
"""Bits of the status byte: errors wait (SCPI-99), an enabled event happened, service is asked for (IEEE 488.2)."""
MANY = MOST_ERRORS - 44
"""Errors that overflow any reasonable queue."""
NODES = (b"STAT:OPER", b"STAT:QUES")
REGISTERS = (
    *(node + rest for node in NODES for rest in (b"?", b":EVEN?", b":COND?", b":ENAB 0", b":ENAB?")),
    b"STAT:PRES",
)
LISTED = 4
"""Missing commands that are named."""


@status("an empty error queue says so", "every exchange ends with that question")
def _no_error(line: TextLine) -> str:
    expect_equal("SYST:ERR? of an empty queue", line.query(b"SYST:ERR?"), NO_ERROR)
    expect_equal("SYST:ERR:NEXT? of an empty queue", line.query(b"SYST:ERR:NEXT?"), NO_ERROR)
    return shown(NO_ERROR)


@status("an unknown header is -113", "a host learns that its command is not known")
def _unknown(line: TextLine) -> str:
    for header in (b"NONSense", b"SYST:NONSense?", b"*XYZ?"):
        expect_equal(f"error after {header.decode()}", line.error_after(header), int(Fault.UNDEFINED_HEADER))
    return "three headers"


@status("too few and too many parameters are -109 and -108", "a host learns which command was wrong, and how")
def _parameters(line: TextLine) -> str:
    for command in (b"ARR:READ? 1", b"DIAG:ECHO?"):
        expect_equal(f"error after {command.decode()}", line.error_after(command), int(Fault.MISSING_PARAMETER))
    for command in (b"ARR:STAT? 1", b"DIAG:ECHO? #11a,2,3"):
        expect_equal(f"error after {command.decode()}", line.error_after(command), int(Fault.TOO_MANY))
    return "two of each"


@status("the error queue is first in, first out", "the first error tells the cause")
def _order(line: TextLine) -> str:
    line.tell(b"ARR:READ? 1", b"NONSense", b"ARR:STAT? 1")
    expected = [int(Fault.MISSING_PARAMETER), int(Fault.UNDEFINED_HEADER), int(Fault.TOO_MANY)]
    expect_equal("errors after ARR:READ? 1, NONSense and ARR:STAT? 1", line.errors(), expected)
    return ", ".join(map(str, expected))


@status("*CLS clears the error queue", "a host begins with it")
def _clear(line: TextLine) -> str:
    line.tell(b"NONSense", b"*CLS")
    expect_equal("SYST:ERR? after an error and *CLS", line.query(b"SYST:ERR?"), NO_ERROR)
    return "after one error"


@status("a full error queue ends with -350", "the oldest errors stay, and the loss is told (SCPI-99, 21.8.1)")
def _overflow(line: TextLine) -> str:
    _needs(line, b"*ESR?")
    line.tell(b"ARR:READ? 1", *[b"NONSense"] * MANY)
    codes = line.errors()
    expect(len(codes) >= 2, f"{MANY + 1} errors made: expected at least two in the queue, got {codes}")
    expect_equal(f"the first of {MANY + 1} errors, made by ARR:READ? 1", codes[0], int(Fault.MISSING_PARAMETER))
    expect_equal(f"the last in the queue after {MANY + 1} errors", codes[-1], int(Fault.QUEUE_OVERFLOW))
    return f"{len(codes)} errors are kept"


@status("*IDN? has four fields", "who answers, in a form that any SCPI host reads")
def _identification(line: TextLine) -> str:
    _needs(line, b"*IDN?")
    answer = line.query(b"*IDN?")
    fields = answer.split(b",")
    expect(
        len(fields) == 4 and all(fields),
        f"*IDN?: expected maker, model, serial number and firmware, parted by commas, got {shown(answer)}",
    )
    return shown(answer)


@status("SYSTem:VERSion? names the standard", "SCPI-99 demands it")
def _version(line: TextLine) -> str:
    _needs(line, b"SYST:VERS?")
    answer = line.query(b"SYST:VERS?")
    expect(re.fullmatch(rb"\d{4}\.\d", answer) is not None, f"SYST:VERS?: expected 1999.0 or alike, got {answer!r}")
    return shown(answer)


@status("a parameter out of range is -222", "a value is refused, never clipped")
def _range(line: TextLine) -> str:
    _needs(line, b"*ESE 0", b"*ESE?")
    expect_equal("error after *ESE 256", line.error_after(b"*ESE 256"), int(Fault.OUT_OF_RANGE))
    expect_equal("*ESE? after *ESE 256 was refused", line.query(b"*ESE?"), b"0")
    return "*ESE 256"


@status("*ESR? has a bit for each class of errors", "hosts of other makers watch these bits")
def _event_bits(line: TextLine) -> str:
    _needs(line, b"*ESR?", b"*ESE 0", b"*OPC")
    used, _ = line.read_next(Cells.of(0, 0, 0))
    line.read_next(used.cells)
    cases = {
        "an unknown header": (b"NONSense", COMMAND_ERROR),
        "a value out of range": (b"*ESE 256", EXECUTION_ERROR),
        "an operation id that was used": (b"".join(encode_request(used)), DEVICE_ERROR),
        "*OPC": (b"*OPC", OPERATION_COMPLETE),
    }
    for what, (command, bit) in cases.items():
        line.query(b"*ESR?")
        line.error_after(command)
        expect_equal(f"*ESR? after {what}", line.query(b"*ESR?"), b"%d" % bit)
        expect_equal("*ESR? read again", line.query(b"*ESR?"), b"0")
    line.tell(b"NONSense", b"*CLS")
    expect_equal("*ESR? after an error and *CLS", line.query(b"*ESR?"), b"0")
    return "32, 16, 8 and 1; reading and *CLS clear them"


@status("*STB? sums up", "one byte tells a host where to look")
def _status_byte(line: TextLine) -> str:
    _needs(line, b"*STB?", b"*ESR?", b"*ESE 0", b"*SRE 0")
    line.query(b"*ESR?")
    expect_equal("*STB? when nothing happened", _masked(line), 0)
    line.tell(b"*ESE 32", b"NONSense")
    expect_equal("*STB? after an error of which *ESE tells", _masked(line), QUEUE_BIT | EVENT_BIT)
    line.tell(b"*SRE 32")
    expect_equal("*STB? with *SRE 32", _masked(line), QUEUE_BIT | EVENT_BIT | SERVICE_BIT)
    line.query(b"*ESR?")
    line.errors()
    expect_equal("*STB? when both were read", _masked(line), 0)
    return "error queue, events, service"


@status("*ESE and *SRE keep what is set", "IEEE 488.2 demands them")
def _enables(line: TextLine) -> str:
    _needs(line, b"*ESE 0", b"*ESE?", b"*SRE 0", b"*SRE?")
    for command, value, kept in ((b"*ESE", b"255", b"255"), (b"*ESE", b"36", b"36"), (b"*SRE", b"255", b"191")):
        line.tell(command + b" " + value)
        expect_equal(f"{command.decode()}? after {command.decode()} {value.decode()}", line.query(command + b"?"), kept)
    return "bit 6 of *SRE stays 0"


@status("*OPC?, *TST?, *WAI and *RST are there", "IEEE 488.2 demands them, and hosts of other makers send them")
def _common(line: TextLine) -> str:
    _needs(line, b"*OPC?", b"*TST?", b"*WAI", b"*RST")
    expect_equal("*OPC?", line.query(b"*OPC?"), b"1")
    expect_equal("*TST?, a self-test that passes", line.query(b"*TST?"), b"0")
    for command in (b"*WAI", b"*RST"):
        expect_equal(f"error after {command.decode()}", line.error_after(command), 0)
    expect(line.state().grounded, "the state after *RST: expected grounded lines, got others")
    return "*OPC? gives 1, *TST? 0"


@status("STATus:OPERation and STATus:QUEStionable are there", "SCPI-99 demands them")
def _registers(line: TextLine) -> str:
    _needs(line, *REGISTERS)
    for node in NODES:
        for query in (node + b"?", node + b":EVEN?", node + b":COND?"):
            answer = line.query(query)
            expect(answer.isdigit(), f"{query.decode()}: expected a number, got {shown(answer)}")
        line.tell(node + b":ENAB 5")
        expect_equal(f"{node.decode()}:ENAB? after ENAB 5", line.query(node + b":ENAB?"), b"5")
    line.tell(b"STAT:PRES")
    for node in NODES:
        expect_equal(f"{node.decode()}:ENAB? after STAT:PRES", line.query(node + b":ENAB?"), b"0")
    return "event, condition, enable; STATus:PRESet"


def _needs(line: TextLine, *commands: bytes) -> None:
    """Raises `NotApplicable` for a tester that knows none of these, and `Failed` for one that knows only some."""
    missing = [command.split()[0].decode() for command in commands if _is_unknown(line, command)]
    if not missing:
        return
    rest = f" and {len(missing) - LISTED} more" if len(missing) > LISTED else ""
    told, verb = ", ".join(missing[:LISTED]) + rest, "is" if len(missing) == 1 else "are"
    code = int(Fault.UNDEFINED_HEADER)
    if len(missing) < len(commands):
        raise Failed(f"part of the mandatory set is there and {told} {verb} missing (answered with {code})")
    raise NotApplicable(
        f"not implemented: {told} {verb} answered with {code}; optional for a host, expected of an SCPI instrument"
    )


def _is_unknown(line: TextLine, command: bytes) -> bool:
    """Whether a command is refused as an undefined header."""
    line.tell(command, b"SYST:ERR?")
    for _ in range(2):  # its own answer, if it has one, and that of SYST:ERR?
        number, comma, _rest = line.receive(command + b"\n").partition(b',"')
        if comma and number.lstrip(b"+-").isdigit():
            return int(number) == Fault.UNDEFINED_HEADER
    return False


def _masked(line: TextLine) -> int:
    """The status byte, but for whether a message waits: that is of the question itself."""
    answer = line.query(b"*STB?")
    expect(answer.isdigit(), f"*STB?: expected a number, got {shown(answer)}")
    return int(answer) & (QUEUE_BIT | EVENT_BIT | SERVICE_BIT)
