"""The text port, by the bytes that go in and come out."""

import itertools
import re
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hil.mock_hw.array import Chip
from hil.mock_hw.firmware import Firmware
from hil.mock_hw.instrument import Instrument, perform
from hil.mock_hw.scpi_port import ScpiPort, error_text, identification
from hil.protocols.messages import (
    Block,
    Cells,
    Direction,
    Identity,
    Operation,
    PulseBatch,
    PulseTrains,
    Region,
    TesterKind,
    Vectors,
)
from hil.protocols.requests import (
    FAULT_TEXT,
    Define,
    Describe,
    Description,
    Echo,
    Echoed,
    Failure,
    Fault,
    GetState,
    Ground,
    Multiply,
    Program,
    Read,
    Reply,
    Request,
    Update,
    Wait,
)
from hil.protocols.scpi import encode_reply, encode_request
from hil.protocols.scpi_syntax import LARGEST_BLOCK, LONGEST_TEXT, block_header

IDENTITY = Identity("PCM-HIL", "pcm-analog", "twin", "1", "chip-1", TesterKind.TWIN)
IDN = b"PCM-HIL,pcm-analog,twin,1"
CELLS = Cells.of(0, np.arange(40), 3)
BLOCK = Block(0, np.arange(20, dtype=np.uint16), np.array([3], np.uint16), np.array([4], np.uint16), 0, 0)
REGION = Region(0, (BLOCK,))
CODES = np.arange(60, dtype=np.int8).reshape(3, 20)
AWKWARD = b"\n#15;\",:\r'*IDN?\n\x00\xff"
"""Data that looks like the syntax around it."""


@pytest.fixture
def make_firmware(make_chip: Callable[..., Chip]) -> Callable[[], Firmware]:
    return lambda: Firmware(make_chip())


@pytest.fixture
def firmware(make_firmware: Callable[[], Firmware]) -> Firmware:
    return make_firmware()


@pytest.fixture
def port(firmware: Firmware) -> ScpiPort:
    """A port on which nothing has happened since the event of power-on was cleared."""
    port = ScpiPort(Instrument(firmware, IDENTITY))
    port.feed(b"*CLS\n")
    return port


def ask(port: ScpiPort, *units: bytes) -> bytes:
    """The answer to a message of these units."""
    return b"".join(port.feed(b";".join(units) + b"\n"))


def errors(port: ScpiPort) -> list[bytes]:
    """What is in the error queue, taken out of it."""
    answers = iter(lambda: ask(port, b"SYST:ERR?").rstrip(b"\n"), b'0,"No error"')
    return list(itertools.islice(answers, 100))


def codes(port: ScpiPort) -> list[int]:
    return [int(error.partition(b",")[0]) for error in errors(port)]


def unit_of(request: Request) -> bytes:
    return b"".join(encode_request(request))


def response_of(reply: Reply) -> bytes:
    return b"".join(encode_reply(reply)) + b"\n"


def with_checksum(unit: bytes) -> bytes:
    return unit + b",#H%08X" % zlib.crc32(unit)


def pulses(firmware: Firmware, kind: Operation = Operation.SET) -> PulseBatch:
    c = firmware.capabilities
    return PulseBatch(CELLS, kind, np.full(40, 2, np.uint16), c.set_pulse if kind == Operation.SET else c.reset_pulse)


def state(firmware: Firmware) -> tuple[Any, ...]:
    """All that a request can change."""
    chip = firmware.chip
    cells = (chip.cells.tobytes(), chip.row_reads.tobytes(), chip.column_reads.tobytes(), repr(chip.normals.state()))
    return *cells, firmware.state(), tuple(firmware.regions)


# Responses


def test_only_queries_are_answered_and_one_line_holds_the_answers(port: ScpiPort) -> None:
    assert ask(port, b"*IDN?", b"*OPC", b"*IDN?") == IDN + b";" + IDN + b"\n"


def test_a_message_of_commands_has_no_answer(port: ScpiPort) -> None:
    assert port.feed(b"*CLS;*WAI;*RST;*SRE 0\n") == []


@pytest.mark.parametrize("message", [b"", b"\r", b"  \t", b";", b" ; "])
def test_an_empty_message_is_no_error_and_has_no_answer(port: ScpiPort, message: bytes) -> None:
    assert ask(port, message) == b""
    assert errors(port) == []


@pytest.mark.parametrize(
    ("message", "answer"),
    [
        (b"*oPc?", b"1"),
        (b"*TST?", b"0"),
        (b"*ESE?;*SRE?;*ESR?", b"0;0;0"),
        (b"*OPC;*ESR?;*ESR?", b"1;0"),
        (b"SYST:VERS?", b"1999.0"),
        (b"SYST:ERR:COUN?", b"0"),
        (b"STAT:OPER?;QUES?;:STAT:OPER:COND?;:STAT:QUES:COND?", b"0;0;0;0"),
        (b"STAT:OPER:ENAB 65535;ENAB?;:STAT:QUES:ENAB #H10;ENAB?", b"32767;16"),
        (b"STAT:OPER:ENAB 5;:STAT:PRES;OPER:ENAB?", b"0"),
        (b"*ESE 255;*ESE?;*SRE 255;*SRE?", b"255;191"),
        (b"*ESE #B101;*ESE?;*ESE\t7 \r", b"5"),
        (b"*WAI;*OPC?\r", b"1"),
    ],
)
def test_messages_and_their_answers(port: ScpiPort, message: bytes, answer: bytes) -> None:
    assert ask(port, message) == answer + b"\n"
    assert errors(port) == []


def test_a_port_begins_with_the_event_of_power_on(firmware: Firmware) -> None:
    port = ScpiPort(Instrument(firmware, IDENTITY))
    assert ask(port, b"*ESR?", b"*ESR?", b"SYST:ERR?") == b'128;0;0,"No error"\n'


def test_an_identification_has_four_fields_whatever_they_hold(port: ScpiPort) -> None:
    assert ask(port, b"*IDN?") == IDN + b"\n"
    odd = Identity('A, "B"; #1\n', "µ", "", "v1.0/2", "c", TesterKind.TWIN)
    assert identification(odd) == b"A_ _B__ _1_,_,0,v1.0/2"


# Headers


@pytest.mark.parametrize("header", [b"SYSTEM:ERROR:NEXT?", b"syst:err:next?", b"System:Err?", b":sYsT:eRRoR?"])
def test_a_header_may_be_long_or_short_in_any_case(port: ScpiPort, header: bytes) -> None:
    assert ask(port, header) == b'0,"No error"\n'


@pytest.mark.parametrize("header", [b"ARR:STAT?", b"ARRAY:STATE?", b":array:Stat?", b"arr:STATE?"])
def test_our_headers_may_be_long_or_short_in_any_case(port: ScpiPort, firmware: Firmware, header: bytes) -> None:
    assert ask(port, header) == response_of(firmware.state())


UNDEFINED = b"""FOO? SYSTE:ERR? SYS:ERR? SYST:ERRO? SYST:ERR SYST? SYST:NEXT? ARR1:STAT? SYST:ERR2? ARR:STAT
    *CLS? *IDN *FOO STAT:OPER:COND STAT:PRES?""".split()
NO_HEADERS = b'ARR::READ? ::ARR:READ? ARR: ARR:*IDN? :*IDN? **IDN? *IDN?? 123 ? ,1 #15hello "*IDN?"'.split()
INVALID = [b"\xffIDN?", b"*ID\x00N?", b"SYST:\x7fERR?"]
REFUSED = {-113: UNDEFINED, -102: NO_HEADERS, -101: INVALID}


@pytest.mark.parametrize(
    ("header", "code"), [(header, code) for code, headers in REFUSED.items() for header in headers]
)
def test_a_header_that_no_command_has(port: ScpiPort, header: bytes, code: int) -> None:
    assert ask(port, header) == b""
    assert codes(port) == [code]
    assert ask(port, b"*ESR?") == b"32\n"


def test_the_error_of_an_unknown_header_names_it(port: ScpiPort) -> None:
    assert ask(port, b"ARR:FOO? 1", b"\x01") == b""
    assert errors(port) == [b'-113,"Undefined header;ARR:FOO?"', b'-101,"Invalid character;?"']


@pytest.mark.parametrize(
    ("message", "answer"),
    [
        (b"SYST:ERR:COUN?;NEXT?", b'0;0,"No error"'),
        (b"SYST:VERS?;ERR:COUN?;COUN?", b"1999.0;0;0"),
        (b"SYST:VERS?;:SYST:VERS?;VERS?", b"1999.0;1999.0;1999.0"),
        (b"SYST:VERS?;*OPC?;VERS?", b"1999.0;1;1999.0"),
        (b"SYST:VERS?;*CLS;VERS?", b"1999.0;1999.0"),
        (b"STAT:OPER:ENAB 3;ENAB?;:STAT:QUES:ENAB?", b"3;0"),
        (b"SYST:FOO?;VERS?", b"1999.0"),
    ],
)
def test_a_header_continues_at_the_node_of_the_last_one(port: ScpiPort, message: bytes, answer: bytes) -> None:
    assert ask(port, message) == answer + b"\n"


@pytest.mark.parametrize("message", [b"SYST:VERS?;SYST:VERS?", b"SYST:VERS?;:VERS?", b"SYST:ERR:COUN?;VERS?"])
def test_a_header_does_not_begin_anywhere_else(port: ScpiPort, message: bytes) -> None:
    assert ask(port, message).count(b";") == 0
    assert codes(port) == [-113]


def test_a_new_message_begins_at_the_root(port: ScpiPort) -> None:
    assert b"".join(port.feed(b"SYST:VERS?\nVERS?\nSYST:VERS?\n")) == b"1999.0\n1999.0\n"
    assert codes(port) == [-113]


# Parameters


@pytest.mark.parametrize(
    ("unit", "code"),
    [
        (b"*ESE", -109),
        (b"*SRE", -109),
        (b"STAT:OPER:ENAB", -109),
        (b"*ESE ,", -108),
        (b"*ESE 1,2", -108),
        (b"*CLS 1", -108),
        (b"*IDN? 1", -108),
        (b"*CLS #15hello", -108),
        (b"SYST:ERR? 1", -108),
        (b"ARR:STAT? 1", -108),
        (b"ARR:GRO? #10", -108),
        (b"ARR:WAIT?", -109),
        (b"*ESE 256", -222),
        (b"*ESE -1", -222),
        (b"*SRE 256", -222),
        (b"*ESE #H" + b"F" * 5000, -222),
        (b"STAT:OPER:ENAB 65536", -222),
        (b"STAT:QUES:ENAB -1", -222),
        (b"*ESE 1.5", -104),
        (b"*ESE word", -104),
        (b"*ESE #HG", -104),
        (b"*ESE " + b"0" * 5000, -104),
        (b"*ESE 1V", -138),
        (b"*ESE #15hello", -168),
    ],
)
def test_a_parameter_that_does_not_fit_changes_nothing(port: ScpiPort, unit: bytes, code: int) -> None:
    before = ask(port, b"*ESE 3", b"*SRE 5", b":STAT:OPER:ENAB 7", b"*ESE?", b"*SRE?", b":STAT:OPER:ENAB?")
    assert before == b"3;5;7\n"
    assert ask(port, unit) == b""
    assert codes(port) == [code]
    assert ask(port, b"*ESE?", b"*SRE?", b":STAT:OPER:ENAB?") == before


@pytest.mark.parametrize(
    ("unit", "code", "bit"),
    [
        (b"FOO?", -113, 32),
        (b"*ESE 256", -222, 16),
        (with_checksum(b"ARR:MVM? 1,9,FORW,0,INT8,1,#11\x01"), 3, 8),
        (with_checksum(b"ARR:WAIT? 0,1.0"), 1, 8),
        (b"ARR:WAIT? 1,1.0,#H0", -230, 16),
        (with_checksum(b"ARR:READ? 1,#15hello"), -161, 32),
        (with_checksum(b"ARR:WAIT? 1,-1"), -222, 16),
    ],
)
def test_an_error_sets_the_event_of_its_class(port: ScpiPort, unit: bytes, code: int, bit: int) -> None:
    assert ask(port, unit, b"*ESR?") == b"%d\n" % bit
    assert codes(port) == [code]


# Status


def test_an_unknown_header_shows_in_the_status_byte_until_it_is_read(port: ScpiPort) -> None:
    ask(port, b"*ESE 32", b"*SRE 255", b"FOO?")
    assert ask(port, b"*STB?") == b"100\n"
    assert ask(port, b"*ESR?") == b"32\n"
    assert ask(port, b"*STB?") == b"68\n"
    assert codes(port) == [-113]
    assert ask(port, b"*STB?") == b"0\n"


def test_an_answer_of_the_same_message_is_available_and_one_that_was_sent_is_not(port: ScpiPort) -> None:
    assert ask(port, b"*STB?", b"*STB?") == b"0;16\n"
    assert ask(port, b"*SRE 16", b"*OPC?", b"*STB?") == b"1;80\n"
    assert b"".join(port.feed(b"*OPC?\n*STB?\n")) == b"1\n0\n"


def test_units_after_a_failed_one_are_done_and_errors_keep_the_order_of_units(port: ScpiPort) -> None:
    assert ask(port, b"FOO?", b"*OPC?", b"*ESE 300", b"*ESE", b"*TST?") == b"1;0\n"
    assert codes(port) == [-113, -222, -109]


def test_the_queue_keeps_the_oldest_errors(port: ScpiPort) -> None:
    assert ask(port, *[b"BAD%d" % number for number in range(25)], b"SYST:ERR:COUN?") == b"20\n"
    kept = [b'-113,"Undefined header;BAD%d"' % number for number in range(19)]
    assert errors(port) == [*kept, b'-350,"Queue overflow"']


def test_clearing_empties_the_queue(port: ScpiPort) -> None:
    assert ask(port, b"FOO?", b"*CLS", b"SYST:ERR?", b"*STB?") == b'0,"No error";16\n'


def test_an_error_is_its_code_the_text_of_the_standard_and_what_happened(port: ScpiPort) -> None:
    ask(port, with_checksum(b"ARR:WAIT? 1,-1"))
    assert re.fullmatch(rb'-222,"Data out of range;.*-1.*"', errors(port)[0])


@pytest.mark.parametrize("fault", Fault)
def test_a_long_text_is_cut_at_the_limit_of_the_standard(fault: Fault) -> None:
    text = error_text(Failure(fault, "x" * 300))
    meaning = FAULT_TEXT[fault]
    assert text == b'%d,"%s;%s"' % (fault, meaning.encode(), b"x" * (254 - len(meaning)))


def test_a_reset_grounds_the_lines_and_does_nothing_else(port: ScpiPort, firmware: Firmware) -> None:
    ask(port, unit_of(Define(REGION)))
    ask(port, unit_of(Program(1, pulses(firmware))), b"*ESE 32", b"*SRE 4", b"*OPC", b":FOO?")
    *before, known, regions = state(firmware)
    assert not known.grounded
    assert ask(port, b"*RST") == b""
    *after, known_after, regions_after = state(firmware)
    assert (after, regions_after) == (before, regions)
    assert known_after.grounded
    assert (known_after.last_op_id, known_after.time_ns) == (known.last_op_id, known.time_ns)
    assert ask(port, b"*ESE?", b"*SRE?", b"*ESR?") == b"32;4;33\n"
    assert codes(port) == [-113]


# Our commands


def requests(firmware: Firmware) -> Iterator[tuple[Request, Callable[[Firmware], Reply]]]:
    """Each of our commands, and the same by a call of the firmware."""
    vectors = Vectors(CODES, np.ones(3, np.float32))
    back = Vectors(np.full((2, 1), 100, np.int8), np.ones(2, np.float32))
    set_pulses, reset_pulses = pulses(firmware), pulses(firmware, Operation.RESET)
    yield Describe(), lambda f: Description(IDENTITY, f.capabilities)
    yield GetState(), lambda f: f.state()
    yield Echo(AWKWARD), lambda f: Echoed(AWKWARD)
    yield Define(REGION), lambda f: perform(f, Define(REGION))
    yield Read(1, CELLS), lambda f: f.read(1, CELLS)
    yield Program(2, set_pulses), lambda f: f.program(2, set_pulses)
    yield Multiply(3, 0, Direction.FORWARD, 6, CODES), lambda f: f.mvm(3, 0, vectors, Direction.FORWARD, 6)
    yield Multiply(4, 0, Direction.BACKWARD, 6, back.codes), lambda f: f.mvm(4, 0, back, Direction.BACKWARD, 6)
    yield Program(5, reset_pulses), lambda f: f.program(5, reset_pulses)
    yield Wait(6, 2.5), lambda f: f.wait(6, 2.5)
    yield Wait(6, 2.5), lambda f: f.wait(6, 2.5)
    yield GetState(), lambda f: f.state()
    yield Ground(), lambda f: Instrument(f, IDENTITY).answer(Ground())
    yield GetState(), lambda f: f.state()


def test_each_command_does_what_a_call_of_the_firmware_does(
    port: ScpiPort, firmware: Firmware, make_firmware: Callable[[], Firmware]
) -> None:
    other = make_firmware()
    for request, call in requests(firmware):
        assert ask(port, unit_of(request)) == response_of(call(other)), request
        assert state(firmware) == state(other), request
    assert errors(port) == []


def test_commands_in_one_message_are_answered_in_one_line(
    port: ScpiPort, firmware: Firmware, make_firmware: Callable[[], Firmware]
) -> None:
    units = [b":" + unit_of(request) for request, _ in requests(firmware)]
    other = make_firmware()
    expected = [response_of(call(other))[:-1] for _, call in requests(other)]
    assert ask(port, *units) == b";".join(expected) + b"\n"


def test_a_parallel_update_is_refused_by_an_array_that_has_none(port: ScpiPort) -> None:
    slots = np.ones((4, 3), np.uint8)
    assert ask(port, unit_of(Update(1, 0, PulseTrains(slots, slots, 1)))) == b""
    assert errors(port)[0].startswith(b'-222,"Data out of range;this array has no parallel update')


def test_a_wrong_checksum_is_refused_before_anything_is_done(port: ScpiPort, firmware: Firmware) -> None:
    ask(port, unit_of(Define(REGION)))
    before = state(firmware)
    for unit in (
        unit_of(Program(1, pulses(firmware))),
        unit_of(Multiply(1, 0, Direction.FORWARD, 6, CODES)),
        unit_of(Read(1, CELLS)),
        unit_of(Wait(1, 2.5)),
    ):
        # Any digit of the last parameter before the checksum, in which a flipped bit leaves the syntax as it is.
        place = unit.rfind(b",#H") - 1
        damaged = unit[:place] + bytes([unit[place] ^ 1]) + unit[place + 1 :]
        assert ask(port, damaged, b"*OPC?") == b"1\n"
        assert codes(port) == [-230]
        assert state(firmware) == before


def test_a_damaged_block_length_stops_its_whole_message_and_no_other(port: ScpiPort, firmware: Firmware) -> None:
    before = state(firmware)
    bad = unit_of(Wait(1, 1.0)) + b";DIAG:ECHO? #9000;*OPC?\n"
    assert b"".join(port.feed(bad + b"*TST?\n")) == b"0\n"
    assert codes(port) == [-161]
    assert state(firmware) == before


# Framing


def conversation() -> bytes:
    echo = unit_of(Echo(AWKWARD))
    return b"\r\n*IDN?;" + echo + b"\r\nFOO?;*STB?\n*ESR?\n" + echo + b";*OPC?\nSYST:ERR?;" + b'*ESE "a\'b;c"\n*TST?\n'


def test_the_answers_do_not_depend_on_how_the_bytes_arrive(make_firmware: Callable[[], Firmware]) -> None:
    message = conversation()

    def answers(parts: list[bytes]) -> bytes:
        port = ScpiPort(Instrument(make_firmware(), IDENTITY))
        return b"".join(piece for part in parts for piece in port.feed(part))

    whole = answers([message])
    echoed = response_of(Echoed(AWKWARD))[:-1]
    lines = [IDN + b";" + echoed, b"4", b"160", echoed + b";1", b'-113,"Undefined header;FOO?"', b"0"]
    assert whole == b"\n".join(lines) + b"\n"
    assert answers([message[at : at + 1] for at in range(len(message))]) == whole
    for at in range(len(message)):
        assert answers([message[:at], message[at:]]) == whole


def test_the_rest_of_a_block_is_awaited_and_may_be_given_up(port: ScpiPort) -> None:
    assert not port.waits
    port.feed(b"*IDN?;DIAG:EC")
    assert not port.waits
    port.feed(b"HO? #15he")
    assert port.waits
    assert port.feed(b"\n*OPC?"[:2]) == []
    port.abandon()
    assert not port.waits
    assert ask(port, b"*TST?") == b"0\n"
    assert errors(port) == []


@pytest.mark.parametrize(
    "flood",
    [b"A" * (LONGEST_TEXT + 1), b"DIAG:ECHO? " + block_header(LARGEST_BLOCK + 1)],
    ids=["text", "block"],
)
def test_what_is_too_long_is_an_overrun_and_the_port_lives_on(port: ScpiPort, flood: bytes) -> None:
    assert port.feed(flood) == []
    assert not port.waits
    assert ask(port) == b""
    assert ask(port, b"*ESR?", b"*IDN?") == b"8;" + IDN + b"\n"
    assert codes(port) == [-363]


FRAGMENTS = [
    b"*IDN?", b"*ESE", b"*CLS", b"*STB?", b"*RST", b":", b";", b",", b" ", b"\n", b"\r", b"?", b"*", b'"', b"'",
    b"SYST", b"SYSTem:ERRor?", b"ARR:STAT?", b"ARR:WAIT?", b"ARR:MVM?", b"READ?", b"#", b"#15hello", b"#3", b"#0",
    b"#H", b"#9999999999", b"1", b"-1", b"1e999", b"FORW", b"INT8", b"\x00", b"\xff",
]  # fmt: skip
PIECE = st.one_of(st.sampled_from(FRAGMENTS), st.binary(max_size=5))


@given(pieces=st.lists(PIECE, max_size=40), more=st.binary(max_size=60))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_comes_the_port_stays_alive(port: ScpiPort, pieces: list[bytes], more: bytes) -> None:
    for piece in (*pieces, more):
        port.feed(piece)
    port.abandon()
    port.feed(b"\n")
    assert ask(port, b"*IDN?") == IDN + b"\n"


PARAMETERS = [b"0", b"1", b"2.5", b"-3", b"1e999", b"9223372036854775807", b"FORW", b"INT8", b"SET", b"#10", b"#12ab"]


@given(data=st.data())
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_parameters_that_are_well_checked_and_make_no_sense_are_refused_without_harm(
    port: ScpiPort, data: st.DataObject
) -> None:
    header, count = data.draw(st.sampled_from([(b"REG", 2), (b"READ", 2), (b"PROG", 7), (b"WAIT", 2)]))
    parameters = data.draw(st.lists(st.sampled_from(PARAMETERS), min_size=count, max_size=count))
    answer = ask(port, b"*CLS", with_checksum(b"ARR:%s? " % header + b",".join(parameters)))
    assert bool(answer) != bool(errors(port))
    assert ask(port, b"*IDN?") == IDN + b"\n"
