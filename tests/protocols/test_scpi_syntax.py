"""The grammar of SCPI messages: where they end, what they consist of, and what is none."""

import tracemalloc
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hil.protocols.requests import Fault, ProtocolError
from hil.protocols.scpi_syntax import (
    LONGEST_TEXT,
    MessageReader,
    block_header,
    choice,
    forms,
    integer,
    number,
    quoted,
    short,
    split,
    unquoted,
)

MODERATE = settings(max_examples=100, deadline=None)
AWKWARD = [b"", b"\n", b'"', b"'", b"#", b"#15", b"#9999999999", b";,\n", b"#0\n", b'";\n"']
BLOCKS = st.sampled_from(AWKWARD) | st.binary(max_size=120)
WORDS = st.sampled_from([b"ARR:READ?", b"1", b"-2.5e-3", b"#H0A1B2C3D", b"#B101", b"SET", b""])
STRINGS = st.text("ab,;#1'\"", max_size=8).map(quoted)


def messages_of(reader: MessageReader) -> list[bytes]:
    """The complete messages, without the newline that each ends with."""
    messages = list(reader.messages())
    assert all(message.endswith(b"\n") for message in messages)
    return [message[:-1] for message in messages]


def blocked(data: bytes) -> bytes:
    return block_header(len(data)) + data


ELEMENTS = WORDS | STRINGS | BLOCKS.map(blocked)
UNITS = st.lists(ELEMENTS, min_size=1, max_size=5)
MESSAGES = st.lists(UNITS, min_size=1, max_size=3)


def joined(units: list[list[bytes]]) -> bytes:
    return b";".join(b",".join(unit) for unit in units)


def read(*pieces: bytes) -> list[bytes]:
    """The messages in bytes that come in pieces."""
    reader = MessageReader()
    found: list[bytes] = []
    for piece in pieces:
        reader.feed(piece)
        found += messages_of(reader)
    return found


@given(messages=st.lists(MESSAGES.map(joined), min_size=1, max_size=4), data=st.data())
@MODERATE
def test_messages_come_out_however_their_bytes_are_cut(messages: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(message + b"\n" for message in messages)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    pieces = [stream[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert read(*pieces) == messages
    assert read(*(bytes([byte]) for byte in stream)) == messages


@given(message=MESSAGES.map(joined), data=st.data())
@MODERATE
def test_half_a_message_is_none_and_is_forgotten_when_cleared(message: bytes, data: st.DataObject) -> None:
    half = message[: data.draw(st.integers(0, len(message)))]
    reader = MessageReader()
    reader.feed(half)
    assert messages_of(reader) == []
    assert reader.partial == bool(half)
    assert reader.text() == half[:200]
    reader.clear()
    reader.feed(b"*IDN?\n")
    assert messages_of(reader) == [b"*IDN?"]
    assert not reader.partial


@given(MESSAGES)
@MODERATE
def test_a_message_is_split_into_what_it_was_made_of(units: list[list[bytes]]) -> None:
    found = split(joined(units))
    assert [len(unit.elements) for unit in found] == [len(unit) for unit in units]
    for unit, made in zip(found, units, strict=True):
        for element, part in zip(unit.elements, made, strict=True):
            whole = element.text if element.block is None else blocked(bytes(element.block))
            assert whole == part
        if len(made) > 1:
            assert bytes(unit.checked) == b",".join(made[:-1])


def test_blanks_around_elements_and_before_units_do_not_count() -> None:
    first, second = split(b"  A? 1 ,\t#12ab , 2\r; B?")
    assert [element.text for element in first.elements] == [b"A? 1", b"", b"2"]
    assert bytes(first.checked) == b"A? 1 ,\t#12ab "
    assert second.elements[0].text == b"B?"


def test_a_reader_tells_whether_the_rest_of_a_block_is_awaited() -> None:
    reader = MessageReader()
    reader.feed(b"X #3")
    assert messages_of(reader) == []
    assert not reader.in_block
    reader.feed(b"005ab\n")
    assert messages_of(reader) == []
    assert reader.in_block
    reader.feed(b"\n\n\n")
    assert messages_of(reader) == [b"X #3005ab\n\n\n"]


@pytest.mark.parametrize("line", [b'A "b', b"it's", b"A #0xyz", b"A #2x1", b"#", b"#9", b"", b"\r"])
def test_what_is_no_string_and_no_block_ends_with_its_line(line: bytes) -> None:
    assert read(line + b"\nB?\n")[-1] == b"B?"
    assert read(*(bytes([byte]) for byte in line + b"\nB?\n"))[-1] == b"B?"


@pytest.mark.parametrize("message", [b"A 'x,#13a\nb", b'A "x#15;",2', b"A 'x#19',\"#12\""])
def test_quotes_count_where_they_are_closed_in_their_line(message: bytes) -> None:
    stream = message + b"\nB?\n"
    assert read(stream) == [message, b"B?"]
    assert read(*(bytes([byte]) for byte in stream)) == [message, b"B?"]


def overruns(reader: MessageReader, data: bytes) -> None:
    reader.feed(data)
    with pytest.raises(ProtocolError) as caught:
        messages_of(reader)
    assert caught.value.fault == Fault.INPUT_OVERRUN
    reader.feed(b"rest\nB?\n")
    assert messages_of(reader)[-1] == b"B?"


def test_text_without_an_end_is_cut_off() -> None:
    reader = MessageReader()
    reader.feed(b"x" * LONGEST_TEXT)
    assert messages_of(reader) == []
    overruns(reader, b"x")


def test_the_bytes_of_blocks_are_no_text() -> None:
    reader = MessageReader(longest_text=20)
    reader.feed(b"A #3100" + bytes(100))
    assert messages_of(reader) == []
    overruns(reader, b"x" * 14)


def test_the_blocks_of_a_message_are_limited_in_all() -> None:
    assert read(b"A #3100" + bytes(100) + b"\n") != []
    overruns(MessageReader(largest_block=99), b"A #3100")
    overruns(MessageReader(largest_block=150), b"A #3100" + bytes(100) + b",#3100")


@given(st.lists(st.binary(max_size=60) | st.sampled_from([*AWKWARD, b"\n"]), max_size=12))
@MODERATE
def test_noise_is_a_message_or_a_protocol_error(noise: list[bytes]) -> None:
    reader = MessageReader(longest_text=100, largest_block=500)
    for piece in noise:
        reader.feed(piece)
        with suppress(ProtocolError):
            for message in messages_of(reader):
                split(message)
    reader.clear()
    reader.feed(b"B?\n")
    assert messages_of(reader) == [b"B?"]


def test_noise_takes_no_memory() -> None:
    noise = np.random.default_rng(1).bytes(1 << 15).translate(None, b"\n#")
    reader = MessageReader()
    tracemalloc.start()
    cut = 0
    for _ in range(30):
        reader.feed(noise)
        try:
            assert messages_of(reader) == []
        except ProtocolError:
            cut += 1
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert cut == 10
    assert peak < 1 << 20


@pytest.mark.parametrize("message", [b"A #15ab", b"A #12abc", b"A #2x1", b"A #9", b"A #11a#11b", b"A #11a b"])
def test_a_block_that_is_none_is_refused(message: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        split(message)
    assert caught.value.fault == Fault.INVALID_BLOCK


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126)))
def test_ascii_text_survives_quoting(text: str) -> None:
    assert unquoted(quoted(text)) == text


def test_what_is_not_ascii_is_replaced_in_quotes() -> None:
    assert quoted('90 µA\n"') == b'"90 ?A?"""'


@given(st.integers(-(2**70), 2**70))
def test_whole_numbers_are_exact(value: int) -> None:
    assert integer(b"%d" % value) == value


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_floats_are_exact(value: float) -> None:
    assert repr(number(repr(value).encode())) == repr(value)


@pytest.mark.parametrize(
    ("text", "value"), [(b"#HfF", 255), (b"#h10", 16), (b"#Q17", 15), (b"#B101", 5), (b"+7", 7), (b"1.2E1", 12)]
)
def test_whole_numbers_have_other_forms(text: bytes, value: int) -> None:
    assert integer(text) == value


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (b"", Fault.MISSING_PARAMETER),
        (b"90uA", Fault.SUFFIX),
        (b"1e", Fault.SUFFIX),
        (b"1_0", Fault.SUFFIX),
        (b"nan", Fault.DATA_TYPE),
        (b"inf", Fault.DATA_TYPE),
        (b"--1", Fault.DATA_TYPE),
        (b"1.5", Fault.DATA_TYPE),
        (b"1e999", Fault.DATA_TYPE),
        (b"#HG", Fault.DATA_TYPE),
        (b"#H", Fault.DATA_TYPE),
        (b"#B12", Fault.DATA_TYPE),
        (b"9" * 5000, Fault.DATA_TYPE),
    ],
)
def test_what_is_no_whole_number_is_refused(text: bytes, fault: Fault) -> None:
    with pytest.raises(ProtocolError) as caught:
        integer(text)
    assert caught.value.fault == fault


def test_a_word_is_long_or_short_and_nothing_between() -> None:
    assert short("FORWard") == "FORW"
    assert [choice(word, "FORWard", "BACKward") for word in (b"forw", b"Forward", b"BACK")] == [0, 0, 1]
    for word in (b"FORWA", b"FOR", b"", b"FORW "):
        with pytest.raises(ProtocolError) as caught:
            choice(word, "FORWard", "BACKward")
        assert caught.value.fault == Fault.ILLEGAL_VALUE


def test_a_header_has_all_its_forms() -> None:
    assert set(forms("SYSTem:ERRor[:NEXT]?")) == {
        f"{first}:{second}{third}?"
        for first in ("SYST", "SYSTEM")
        for second in ("ERR", "ERROR")
        for third in ("", ":NEXT")
    }
    assert set(forms("*IDN?")) == {"*IDN?"}
