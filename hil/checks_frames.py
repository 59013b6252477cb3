"""Promises of the binary codec: frames are told from noise, and a reply from another's."""

import time
import zlib

from hil.check_line import FORGOTTEN_S, FrameLine
from hil.checking import Failed, Group, expect, expect_echo, expect_equal, shown
from hil.protocols import frames
from hil.protocols.messages import Cells
from hil.protocols.requests import Echo, Failure, Fault, Read, Request

framed: Group[FrameLine] = Group("frames")
ECHO, READ, UNKNOWN = frames.COMMAND_OF[Echo], frames.COMMAND_OF[Read], 0x7E
PAYLOADS = {
    "an empty payload": b"",
    "a payload with every byte value": bytes(range(256)),
    "a payload with A5 5A in it": frames.MAGIC * 20,
    "a payload that is a frame": b"".join(frames.pack(ECHO, 5, b"inner")),
}


@framed("a frame is echoed", "arrays travel as payloads, whatever bytes they have")
def _echoed(line: FrameLine) -> str:
    for what, data in PAYLOADS.items():
        expect_echo(what, data, line.echo(data))
    return f"{len(PAYLOADS)} payloads"


@framed("a large frame is echoed", "a batch of pulses is as large")
def _large_frame(line: FrameLine) -> str:
    data = line.large_data()
    expect_echo(f"a payload of {len(data)} bytes", data, line.echo(data))
    return f"{len(data)} bytes"


@framed("a reply has its request's sequence number", "a late reply must not pass for another")
def _sequence(line: FrameLine) -> str:
    for number in (0, 1, 0x01020304, 0xFFFFFFFF):
        sent = b"".join(frames.pack(ECHO, number, b"numbered"))
        line.send(sent)
        frame = line.frame(sent)
        expect_equal(f"sequence number of the reply to frame {number}", frame.sequence, number)
        expect_equal("command of the reply to an echo, 0x05 with its top bit set", frame.command, ECHO | frames.ANSWER)
    return "0 to 0xFFFFFFFF"


@framed("a frame with a wrong checksum is passed over", "noise on the line must not become an operation")
def _wrong_checksum(line: FrameLine) -> str:
    before = line.state()
    whole = line.encode(Read(before.last_op_id + 1, Cells.of(0, 0, 0)))
    for what, at in (("the frame", len(whole) - 1), ("the header", frames.HEADER.size)):
        damaged = whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :]
        _expect_passed_over(line, f"a read with a wrong checksum of {what}", damaged)
        after = line.state()
        expect_equal(f"last operation id after a wrong checksum of {what}", after.last_op_id, before.last_op_id)
        expect_equal(f"device time (ns) after a wrong checksum of {what}", after.time_ns, before.time_ns)
    return "of the header, and of all"


@framed("garbage before a frame is passed over", "after noise or a broken frame, the next one counts")
def _garbage(line: FrameLine) -> str:
    line.needs_stream()
    rubbish = {
        "a lone A5": b"\xa5",
        "A5 5A and noise": b"\xa5\x5a" + bytes(range(40)),
        "A5 and a whole line of text": b"\xa5*IDN?\n",
        "the first half of a frame's header": line.encode(Echo(b"whole"))[:9],
    }
    for what, noise in rubbish.items():
        _expect_passed_over(line, what, noise)
    return f"{len(rubbish)} kinds"


@framed("a frame may come byte by byte", "a serial line delivers it so")
def _byte_by_byte(line: FrameLine) -> str:
    line.needs_stream()
    whole = line.encode(Echo(b"slow"))
    for at in range(len(whole)):
        line.send(whole[at : at + 1])
    expect_echo("an echo sent byte by byte", b"slow", line.receive(whole)[1:])
    return f"{len(whole)} bytes"


@framed("two frames may come at once", "a host need not wait for the first answer")
def _two_at_once(line: FrameLine) -> str:
    line.needs_stream()
    both = b"".join(frames.pack(ECHO, 1, b"first") + frames.pack(ECHO, 2, b"second"))
    line.send(both)
    for number, data in ((1, b"first"), (2, b"second")):
        frame = line.frame(both)
        expect_equal(f"sequence number of reply {number} to two frames sent at once", frame.sequence, number)
        expect_echo(f"echo {number} of two frames sent at once", data, bytes(frame.payload))
    return "answered one after the other"


@framed("an unknown command is a FAILURE with -113", "a host learns that its command is not known")
def _unknown(line: FrameLine) -> str:
    _expect_failure(line, f"command 0x{UNKNOWN:02x}", UNKNOWN, b"", int(Fault.UNDEFINED_HEADER))
    return f"command 0x{UNKNOWN:02x}"


@framed("a payload of a wrong size is a FAILURE with -161", "a frame that is whole may still be no request")
def _wrong_size(line: FrameLine) -> str:
    before = line.state()
    for size in (0, 3, 9):
        _expect_failure(line, f"a read with {size} bytes of payload", READ, b"\1" * size, int(Fault.INVALID_BLOCK))
    expect_equal("last operation id after reads of a wrong size", line.state().last_op_id, before.last_op_id)
    return "of a read"


@framed("another version of frames is passed over", "a later version may mean something else by the same bytes")
def _version(line: FrameLine) -> str:
    for version in (0, 2, 255):
        header = frames.HEADER.pack(frames.MAGIC, version, ECHO, 7, 4)
        crc = zlib.crc32(b"data", zlib.crc32(header))
        whole = header + frames.CRC.pack(zlib.crc32(header)) + b"data" + frames.CRC.pack(crc)
        _expect_passed_over(line, f"a frame of version {version}", whole)
    return "0, 2 and 255"


@framed("half a frame is forgotten after 0.5 s", "a host that broke off finds the tester alive")
def _half_a_frame(line: FrameLine) -> str:
    line.needs_stream()
    line.send(line.encode(Echo(bytes(200)))[:100])
    time.sleep(FORGOTTEN_S)
    try:
        line.echo(b"whole")
    except Failed as failure:
        raise Failed(f"100 of 220 bytes of a frame, {FORGOTTEN_S:g} s of silence, then {failure}") from None
    return f"an echo is answered after {FORGOTTEN_S:g} s"


def _expect_passed_over(line: FrameLine, what: str, noise: bytes) -> None:
    """Raises `Failed` unless the first reply is to the frame that follows."""
    request: Request = Echo(b"after it")
    sent = noise + line.encode(request)
    line.send(sent)
    try:
        frame = line.frame(sent)
    except Failed as failure:
        raise Failed(f"{what}, then an echo: {failure}") from None
    expect(
        frame.sequence == line.sequence,
        f"{what}: expected no reply, got command 0x{frame.command:02x} with {shown(bytes(frame.payload))}",
    )


def _expect_failure(line: FrameLine, what: str, command: int, payload: bytes, code: int) -> None:
    """Raises `Failed` unless a frame gets a FAILURE of this number."""
    line.sequence += 1
    sent = b"".join(frames.pack(command, line.sequence, payload))
    line.send(sent)
    reply = line.receive(sent)
    failure = line.decode(Echo(b""), reply) if reply[0] == frames.FAILURE else None
    if not isinstance(failure, Failure):
        raise Failed(f"{what}: expected a FAILURE (0xff), got {shown(reply)}")
    expect_equal(f"number of the FAILURE after {what}", failure.code, code)
