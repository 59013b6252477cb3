"""Promises of the text codec: SCPI-99 and IEEE 488.2 as far as a host relies on them, and blocks and checksums."""

import re
import time

from hil.check_line import FORGOTTEN_S, NO_ERROR, TextLine
from hil.checking import Failed, Group, expect, expect_echo, expect_equal, shown
from hil.protocols import scpi
from hil.protocols.messages import Cells
from hil.protocols.requests import Echo, Echoed, Failure, Fault, ProtocolError, Read
from hil.protocols.scpi_syntax import split

text: Group[TextLine] = Group("SCPI")
BLOCKS = {
    "an empty block": b"",
    "a block with every byte value": bytes(range(256)),
    "a block with a newline in it": b"\n" * 3 + b"*IDN?\n",
    "a block that begins like another": b"#15ab\n",
    'a block with ; and " and , in it': b';,";:SYST:ERR?\'"',
}


@text("short and long forms, in any case", "SCPI lets a host write either")
def _forms(line: TextLine) -> str:
    for form in (b"SYST:ERR?", b"SYSTem:ERRor?", b"syst:error:next?", b":SYSTEM:ERR:NEXT?"):
        expect_equal(f"{form.decode()}, with no error", line.query(form), NO_ERROR)
    state = line.query(b"ARR:STAT?")
    for form in (b"ARRay:STATe?", b"arr:state?", b":ARRAY:STAT?"):
        expect_equal(f"{form.decode()}, as ARR:STAT?", line.query(form), state)
    wrong = line.error_after(b"ARRA:STAT?")
    expect_equal("error after ARRA:STAT?, neither short nor long", wrong, int(Fault.UNDEFINED_HEADER))
    return "eight ways"


@text("messages may hold several units", "the host asks for a reply and the error queue at once")
def _compound(line: TextLine) -> str:
    answer = line.query(b"ARR:STAT?;:SYST:ERR?")
    expect(
        answer.count(b";") == 1,
        "ARR:STAT?;:SYST:ERR?: expected two responses parted by a semicolon in one line, got " + shown(answer),
    )
    return shown(answer)


@text("a header continues at the node of the one before", "SCPI-99, volume 1, 6.2.4")
def _path(line: TextLine) -> str:
    state = line.query(b"ARR:STAT?")
    for message in (
        b"ARR:STAT?;STAT?",
        b"ARR:STAT?;*CLS;STAT?",
        b"ARR:STAT?;:ARR:STAT?",
        b"SYST:ERR?;:ARR:STAT?;STAT?",
    ):
        answer = line.query(message).removeprefix(NO_ERROR + b";")
        expect_equal(message.decode(), answer, state + b";" + state)
    expect_equal("ARR:STAT?;ARR:STAT?, the second below ARR", line.query(b"ARR:STAT?;ARR:STAT?"), state)
    expect_equal("errors after that", line.errors(), [int(Fault.UNDEFINED_HEADER)])
    return "also behind *CLS, and from the root behind a colon"


@text("empty lines and \\r\\n are harmless", "terminals and VISA libraries send them")
def _empty_lines(line: TextLine) -> str:
    line.needs_stream()
    state = line.query(b"ARR:STAT?")
    expect_equal("ARR:STAT? after empty lines", line.query(b"\n\r\n\nARR:STAT?"), state)
    expect_equal("ARR:STAT? with \\r\\n behind it", line.query(b"ARR:STAT?\r"), state)
    expect_equal("errors after these", line.errors(), [])
    return "answered alike"


@text("a message may come byte by byte", "a serial line delivers it so")
def _byte_by_byte(line: TextLine) -> str:
    line.needs_stream()
    request = Echo(b"slow\nblock;")
    message = line.encode(request)
    for at in range(len(message)):
        line.send(message[at : at + 1])
    reply = line.decode(request, line.receive(message))
    if not isinstance(reply, Echoed):
        raise Failed(f"an echo sent byte by byte: expected an echo, got {reply}")
    expect_echo("an echo sent byte by byte", bytes(request.data), bytes(reply.data))
    return f"{len(message)} bytes"


@text("two messages may come at once", "a host need not wait for the first answer")
def _two_at_once(line: TextLine) -> str:
    line.needs_stream()
    state = line.query(b"ARR:STAT?")
    line.send(b"ARR:STAT?\nSYST:ERR?\n")
    expect_equal("the first of ARR:STAT? and SYST:ERR?, sent at once", line.receive(b"ARR:STAT?\n"), state)
    expect_equal("the second of ARR:STAT? and SYST:ERR?, sent at once", line.receive(b"SYST:ERR?\n"), NO_ERROR)
    return "answered one after the other"


@text("blocks carry any bytes", "arrays travel in blocks; a newline in one ends no message")
def _blocks(line: TextLine) -> str:
    for what, data in BLOCKS.items():
        _expect_echo(line, what, data)
    return f"{len(BLOCKS)} blocks"


@text("a large block is echoed", "a batch of pulses is as large")
def _large_block(line: TextLine) -> str:
    data = line.large_data()
    _expect_echo(line, f"a block of {len(data)} bytes", data)
    return f"{len(data)} bytes"


@text("a bad block length is refused", "the line must live on after a damaged message")
def _bad_block(line: TextLine) -> str:
    codes = []
    for damaged in (b"DIAG:ECHO? #2x5abcde,#H0", b"DIAG:ECHO? #3 12abcde,#H0"):
        code = line.error_after(damaged)
        expect(
            code == Fault.CORRUPT or -200 < code <= -100,  # its length or its checksum may be looked at first
            f"error after {shown(damaged)}: expected {Fault.INVALID_BLOCK:d} (or another command error, -1xx) or "
            f"{Fault.CORRUPT:d}, got {code}",
        )
        line.state()
        codes.append(code)
    return f"refused with {' and '.join(map(str, codes))}, and the next message is answered"


@text("a wrong checksum is refused, and nothing is done", "noise on the line must not become an operation")
def _wrong_checksum(line: TextLine) -> str:
    before = line.state()
    for request in (Read(before.last_op_id + 1, Cells.of(0, 0, 0)), Echo(b"data")):
        whole = b"".join(scpi.encode_request(request))
        damaged = whole[:-1] + (b"1" if whole.endswith(b"0") else b"0")
        what = f"{shown(damaged)}, whose checksum should end in {whole[-1:].decode()}"
        expect_equal(f"error after {what}", line.error_after(damaged), int(Fault.CORRUPT))
        after = line.state()
        expect(
            (after.last_op_id, after.time_ns) == (before.last_op_id, before.time_ns),
            f"{what}: expected nothing done, got operation id {before.last_op_id} -> {after.last_op_id}",
        )
    return f"refused with {Fault.CORRUPT:d}"


@text("a reply's checksum covers it", "the host refuses a reply with another one, and asks again for ever")
def _reply_checksum(line: TextLine) -> str:
    for query, request in ((b"ARR:STAT?", None), (b"".join(scpi.encode_request(Echo(b"sum"))), Echo(b"sum"))):
        answer = line.query(query)
        last = answer.rpartition(b",")[2]
        expect(
            re.fullmatch(rb"#H[0-9A-Fa-f]{8}", last) is not None,
            f"{shown(query)}: expected a checksum like #H01234567 at the end of the reply, got {shown(answer[-20:])}",
        )
        if request is not None:
            scpi.decode_reply(request, split(answer)[0])
    line.state()
    return "CRC-32 as #H and eight digits"


@text("half a block is forgotten after 0.5 s", "a host that broke off finds the tester alive")
def _half_a_block(line: TextLine) -> str:
    line.needs_stream()
    line.send(b"DIAG:ECHO? #3200half of it")
    time.sleep(FORGOTTEN_S)
    try:
        line.query(b"ARR:STAT?")
    except Failed as failure:
        raise Failed(f"12 of 200 bytes of a block, {FORGOTTEN_S:g} s of silence, then {failure}") from None
    return f"ARR:STAT? is answered after {FORGOTTEN_S:g} s"


def _expect_echo(line: TextLine, what: str, data: bytes) -> None:
    """Raises `Failed` unless a block comes back as it is."""
    request = b"".join(scpi.encode_request(Echo(data)))
    try:
        reply = line.reply(Echo(data))
    except (ProtocolError, Failed) as error:
        raise Failed(f"{what}: sent {len(data)} bytes, got no echo: {error}") from None
    if isinstance(reply, Failure):
        raise Failed(f"{what}: {shown(request)} is refused: {reply.code}, {reply.text}")
    expect_echo(what, data, bytes(reply.data) if isinstance(reply, Echoed) else b"")
