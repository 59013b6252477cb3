"""The text codec: what is sent arrives, and what is damaged is refused."""

import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hil.protocols import scpi
from hil.protocols.messages import Cells, Operation, PulseBatch, PulseShape, Readings
from hil.protocols.requests import FAULT_TEXT, Failure, Fault, Program, ProtocolError, Read, Reply, Request, Wait
from hil.protocols.scpi_syntax import MessageReader, Unit, block_header, forms, split

Plain = Callable[[Any], Any]
RequestsIn = Callable[[bytes], Iterator[Request]]
Requests = st.SearchStrategy[Request]
Exchanges = st.SearchStrategy[tuple[Request, Reply]]
MODERATE = settings(max_examples=80, deadline=None)


def wire(*requests: Request) -> bytes:
    """Requests as one message."""
    return b";:".join(b"".join(scpi.encode_request(request)) for request in requests) + b"\n"


def checked(text: bytes) -> bytes:
    """A unit with its checksum, as a message."""
    return b"%s,#H%08X\n" % (text, zlib.crc32(text))


def units(data: bytes) -> list[Unit]:
    """The units of all messages in bytes."""
    reader = MessageReader()
    reader.feed(data)
    return [unit for message in reader.messages() for unit in split(message)]


def reply_wire(reply: Reply) -> bytes:
    return b"".join(scpi.encode_reply(reply)) + b"\n"


def flips(data: bytes) -> list[bytes]:
    """The bytes, with each bit flipped in turn."""
    whole = int.from_bytes(data, "little")
    return [(whole ^ 1 << bit).to_bytes(len(data), "little") for bit in range(8 * len(data))]


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_every_request_arrives_as_it_was_sent(
    any_request: Requests, requests_in: RequestsIn, plain: Plain, data: st.DataObject
) -> None:
    sent = data.draw(any_request)
    (found,) = requests_in(wire(sent))
    assert plain(found) == plain(sent)


@given(data=st.data())
@MODERATE
def test_requests_in_one_message_do_not_disturb_each_other(
    any_request: Requests, requests_in: RequestsIn, plain: Plain, data: st.DataObject
) -> None:
    sent = data.draw(st.lists(any_request, min_size=2, max_size=4))
    assert [plain(request) for request in requests_in(wire(*sent))] == [plain(request) for request in sent]


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_every_reply_arrives_as_it_was_sent(any_exchange: Exchanges, plain: Plain, data: st.DataObject) -> None:
    request, reply = data.draw(any_exchange)
    message = reply_wire(reply)[:-1] + b';0,"No error"\n'
    found, no_error = units(message)
    assert plain(scpi.decode_reply(request, found)) == plain(reply)
    assert scpi.decode_error(no_error) is None


@pytest.mark.parametrize("count", [0, 65536])
def test_batches_of_any_size_arrive(count: int, requests_in: RequestsIn, plain: Plain) -> None:
    numbers = np.arange(count, dtype=np.uint16)
    batch = PulseBatch(Cells(numbers, numbers, numbers), Operation.RESET, numbers, PulseShape(1.0, 1.0))
    sent = Read(2**63 - 1, batch.cells), Program(2**63 - 1, batch)
    assert [plain(request) for request in requests_in(wire(*sent))] == [plain(request) for request in sent]


def test_numbers_of_numpy_are_sent_as_numbers(program: Program, requests_in: RequestsIn) -> None:
    shape = PulseShape(np.float64(9e-5), np.float64(5e-8), np.float64(0), np.float64(1))
    pulses = replace(program, pulses=replace(program.pulses, shape=shape))
    assert b",9e-05,5e-08,0.0,1.0," in wire(pulses)
    assert list(requests_in(wire(Wait(1, np.float64(2.5))))) == [Wait(1, 2.5)]
    readings = Readings(1, 2, np.zeros(1, np.int8), "S", np.float64(1e-7), 0, 0)
    assert scpi.decode_reply(Read(1, Cells.of(0, 0, 0)), units(reply_wire(readings))[0]).scale == 1e-7  # type: ignore[union-attr]


def test_pulses_that_are_neither_set_nor_reset_are_not_sent(program: Program) -> None:
    with pytest.raises(KeyError):
        scpi.encode_request(Program(1, replace(program.pulses, kind=Operation.READ)))


def test_no_flipped_bit_gives_other_pulses(program: Program, requests_in: RequestsIn, plain: Plain) -> None:
    good, same = wire(program), 0
    for bad in flips(good):
        try:
            found = [plain(request) for request in requests_in(bad)]
        except ProtocolError:
            continue
        assert found in ([], [plain(program)])
        same += len(found)
    assert same < 10  # of upper and lower case in the checksum


def test_no_flipped_bit_gives_another_answer(reading: tuple[Read, Readings], plain: Plain) -> None:
    request, reply = reading
    for bad in flips(reply_wire(reply)):
        try:
            found = [scpi.decode_reply(request, unit) for unit in units(bad)]
        except ProtocolError:
            continue
        assert [plain(one) for one in found] in ([], [plain(reply)])


def test_no_two_commands_share_a_header() -> None:
    every = [form for pattern in scpi.HEADERS.values() for form in forms(pattern)]
    assert len(every) == len(set(every))


LINES = block_header(8) + bytes(8)
PROGRAM = b"ARR:PROG? 1,SET,9e-5,5e-8,0,0," + LINES


@pytest.mark.parametrize(
    ("message", "fault"),
    [
        (checked(b"ARR:READ? 1"), Fault.MISSING_PARAMETER),
        (checked(b"ARR:READ? 1," + block_header(0) + b",2"), Fault.TOO_MANY),
        (b"ARR:GRO? 1\n", Fault.TOO_MANY),
        (b"ARR:READ? 1," + block_header(0) + b",#H00000000\n", Fault.CORRUPT),
        (b"ARR:READ? 1," + block_header(0) + b",abc\n", Fault.DATA_TYPE),
        (b"ARR:READ? 1," + block_header(0) + b",\n", Fault.MISSING_PARAMETER),
        (checked(b"ARR:READ? 1,2"), Fault.DATA_TYPE),
        (checked(b"ARR:READ? 1,x" + block_header(0)), Fault.INVALID_BLOCK),
        (checked(b"ARR:READ? 1," + block_header(5) + bytes(5)), Fault.INVALID_BLOCK),
        (checked(b"ARR:READ? -1," + block_header(0)), Fault.OUT_OF_RANGE),
        (checked(b"ARR:READ? 9223372036854775808," + block_header(0)), Fault.OUT_OF_RANGE),
        (checked(b"ARR:READ? 1.5," + block_header(0)), Fault.DATA_TYPE),
        (checked(b"ARR:READ? #11a," + block_header(0)), Fault.BLOCK_NOT_ALLOWED),
        (checked(PROGRAM.replace(b"SET", b"SETT")), Fault.ILLEGAL_VALUE),
        (checked(PROGRAM.replace(b"9e-5", b"90uA")), Fault.SUFFIX),
        (checked(b"ARR:MVM? 1,0,FORW,0,INT64,1," + LINES), Fault.ILLEGAL_VALUE),
        (checked(b"ARR:MVM? 1,0,FORW,0,INT8,3," + LINES), Fault.INVALID_BLOCK),
        (checked(b"ARR:MVM? 1,0,FORW,0,INT8,0," + LINES), Fault.INVALID_BLOCK),
        (checked(b"ARR:UPD? 1,0,1,3," + LINES + b"," + LINES), Fault.INVALID_BLOCK),
        (checked(b"ARR:REG? 1," + LINES), Fault.INVALID_BLOCK),
    ],
)
def test_what_no_host_sends_is_refused_with_its_reason(message: bytes, fault: Fault, requests_in: RequestsIn) -> None:
    with pytest.raises(ProtocolError) as caught:
        list(requests_in(message))
    assert caught.value.fault == fault


WORDS = st.text("0123456789.eE+-#HQB SETRFORWINT_\u00e9", max_size=12).map(str.encode)
STRANGE = WORDS | st.binary(max_size=20).map(lambda data: block_header(len(data)) + data)
HEADERS = st.sampled_from([form for pattern in scpi.HEADERS.values() for form in forms(pattern)])


@given(header=HEADERS, parameters=st.lists(STRANGE, max_size=8))
@settings(max_examples=150, deadline=None)
def test_nonsense_with_a_right_checksum_is_a_request_or_a_protocol_error(
    header: str, parameters: list[bytes], requests_in: RequestsIn
) -> None:
    message = checked(header.encode() + b" " + b",".join(parameters))
    with suppress(ProtocolError):
        list(requests_in(message))


@given(data=st.data(), fields=st.lists(STRANGE | st.just(b"COMP"), max_size=10), sum_is_right=st.booleans())
@settings(max_examples=150, deadline=None)
def test_nonsense_in_an_answer_is_a_reply_or_a_protocol_error(
    any_request: Requests, data: st.DataObject, fields: list[bytes], sum_is_right: bool
) -> None:
    request = data.draw(any_request)
    text = b",".join(fields)
    with suppress(ProtocolError):
        for unit in units(checked(text) if sum_is_right else text + b"\n"):
            scpi.decode_reply(request, unit)


PRINTABLE = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1)


@given(
    code=st.integers(-(2**15), 2**15 - 1).filter(bool), text=PRINTABLE, standard=st.sampled_from(["", "Query error"])
)
@MODERATE
def test_a_refusal_is_told_with_its_text(code: int, text: str, standard: str) -> None:
    (unit,) = units(scpi.error_reply(Failure(code, text), standard) + b"\n")
    assert scpi.decode_error(unit) == Failure(code, text)


def test_a_refusal_without_text_has_that_of_its_number() -> None:
    (unit,) = units(scpi.error_reply(Failure(Fault.BUSY, ""), FAULT_TEXT[Fault.BUSY]) + b"\n")
    assert scpi.decode_error(unit) == Failure(-213, "Init ignored")


def test_text_beyond_ascii_is_told_with_question_marks() -> None:
    (unit,) = units(scpi.error_reply(Failure(2, "95 µA\nand 3 Ω")) + b"\n")
    assert scpi.decode_error(unit) == Failure(2, "95 ?A?and 3 ?")


@pytest.mark.parametrize("answer", [b"1", b'1,"a",2', b'x,"a"', b',"a"', b""])
def test_what_tells_no_error_is_refused(answer: bytes) -> None:
    (unit,) = units(answer + b"\n")
    with pytest.raises(ProtocolError):
        scpi.decode_error(unit)


def test_a_failure_is_no_response() -> None:
    assert scpi.encode_reply(Failure(1, "used")) == []
