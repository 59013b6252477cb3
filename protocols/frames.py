"""The binary codec: requests and replies as frames, for serial lines and FPGA boards.

    magic A5 5A | version u8 | command u8 | sequence u32 | length u32 | CRC-32 of these 12 | payload | CRC-32 of all

Little-endian throughout. A reply repeats the sequence number of its request and has its command's top bit set, or is a
FAILURE. Byte by byte, with examples: `protocols/README.md`.
"""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from hil.protocols import payloads
from hil.protocols.checksum import crc32
from hil.protocols.errors import InputError
from hil.protocols.inbox import Inbox
from hil.protocols.messages import (
    Cells,
    Codes,
    Direction,
    Operation,
    PulseBatch,
    PulseShape,
    Readings,
    Receipt,
    Status,
)
from hil.protocols.payloads import Buffer
from hil.protocols.requests import (
    Define,
    Describe,
    Description,
    Done,
    Echo,
    Echoed,
    Failure,
    Fault,
    GetState,
    Ground,
    Multiply,
    OperationRequest,
    Program,
    ProtocolError,
    Read,
    Reply,
    Request,
    State,
    Update,
    Wait,
)

MAGIC = b"\xa5\x5a"
"""What no SCPI message begins with, so that a tester can tell the codecs apart."""
VERSION = 1
HEADER = struct.Struct("<2sBBII")
CRC = struct.Struct("<I")
START = HEADER.size + CRC.size
"""Bytes before the payload."""
OVERHEAD = START + CRC.size
"""Bytes of a frame without payload."""
LARGEST_PAYLOAD = 1 << 28
"""Bytes; a longer length is taken for a damaged frame."""
SHOWN = 200
"""Bytes that were no frame which are kept to be shown."""
ANSWER = 0x80
"""Set in the command of a reply."""
FAILURE = 0xFF

COMMANDS: dict[int, type[Request]] = {
    0x01: Describe,
    0x02: GetState,
    0x03: Define,
    0x04: Ground,
    0x05: Echo,
    0x10: Read,
    0x11: Multiply,
    0x12: Program,
    0x13: Update,
    0x14: Wait,
}
COMMAND_OF = {kind: command for command, kind in COMMANDS.items()}

READ = struct.Struct("<Q")
MULTIPLY = struct.Struct("<QIBBBxI")
PROGRAM = struct.Struct("<QB7xdddd")
UPDATE = struct.Struct("<QIbxxxII")
WAIT = struct.Struct("<Qd")
DEFINE = struct.Struct("<I")
READINGS = struct.Struct("<QqBBxxIdi4sI")
RECEIPT = struct.Struct("<QqBxxxII")
STATE = struct.Struct("<QqIB3x")
FAULT = struct.Struct("<h")


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame as it was on the wire, its checksums verified."""

    command: int
    sequence: int
    payload: Buffer


def pack(command: int, sequence: int, *parts: Buffer) -> list[Buffer]:
    """A frame as parts to be sent one after the other; large payloads are not copied."""
    header = HEADER.pack(MAGIC, VERSION, command, sequence, sum(map(len, parts)))
    crc = crc32(header)
    start = header + CRC.pack(crc)
    for part in parts:
        crc = crc32(part, crc)
    return [start, *parts, CRC.pack(crc)]


class FrameReader:
    """Takes bytes as they come, and gives whole frames; what is none is passed over, up to the next magic."""

    def __init__(self) -> None:
        self._inbox = Inbox()
        self._need = 0  # bytes of the frame that has begun
        self.skipped = b""
        """The newest bytes that were no frame."""

    @property
    def partial(self) -> bool:
        """Whether a frame has begun and is not complete."""
        return self._inbox.size > 0

    def clear(self) -> None:
        """Forget what is not complete."""
        self._inbox.clear()
        self._need = 0
        self.skipped = b""

    def feed(self, data: Buffer) -> None:
        """Take bytes."""
        self._inbox.add(data)

    def frames(self) -> Iterator[Frame]:
        """The frames that are complete."""
        while self._inbox.size >= max(self._need, 1):
            frame = self._next(self._inbox)
            if frame is None:
                return
            yield frame

    def _next(self, inbox: Inbox) -> Frame | None:
        """The first frame; None, and how much is needed, where it is not complete."""
        at = self._need = 0
        while True:
            start = _to_magic(inbox, at)
            size = _frame_size(inbox, start)
            if size is None or start + size > inbox.size:
                self._pass_over(start)
                self._need = size or 0
                return None
            if size and _is_whole(inbox, start, size):
                break
            at = start + 1
        self._pass_over(start)
        whole = inbox.first(size)
        inbox.drop(size)
        _, _, command, sequence, length = HEADER.unpack_from(whole)
        return Frame(command, sequence, memoryview(whole)[START : START + length])

    def _pass_over(self, count: int) -> None:
        if count:
            self.skipped = (self.skipped + self._inbox.first(count))[-SHOWN:]
            self._inbox.drop(count)


def _to_magic(inbox: Inbox, at: int) -> int:
    """Where, from `at` on, a frame may begin."""
    found = inbox.store.find(MAGIC, at, inbox.size)
    if found >= 0:
        return found
    half = inbox.size > at and inbox.store[inbox.size - 1] == MAGIC[0]
    return inbox.size - half


def _frame_size(inbox: Inbox, at: int) -> int | None:
    """Bytes of the frame that begins there, 0 if none does, None where its header is not complete."""
    if inbox.size - at < START:
        return None
    _, version, _, _, length = HEADER.unpack_from(inbox.store, at)
    (crc,) = CRC.unpack_from(inbox.store, at + HEADER.size)
    sound = version == VERSION and length <= LARGEST_PAYLOAD and crc == crc32(inbox.store[at : at + HEADER.size])
    return OVERHEAD + length if sound else 0


def _is_whole(inbox: Inbox, at: int, size: int) -> bool:
    """Whether the checksum, which goes on from that of the header over the payload, is right."""
    (crc,) = CRC.unpack_from(inbox.store, at + HEADER.size)
    (told,) = CRC.unpack_from(inbox.store, at + size - CRC.size)
    with memoryview(inbox.store) as view:
        return bool(told == crc32(view[at + START : at + size - CRC.size], crc))


def encode_request(request: Request, sequence: int) -> list[Buffer]:
    """A request as a frame, in parts."""
    return pack(COMMAND_OF[type(request)], sequence, *_request_parts(request))


def _request_parts(request: Request) -> list[Buffer]:
    match request:
        case Read(op_id, cells):
            return [READ.pack(op_id), payloads.lines(cells.array, cells.row, cells.column)]
        case Multiply(op_id, region, direction, gain, codes):
            head = MULTIPLY.pack(op_id, region, direction, gain, payloads.code_type(codes), len(codes))
            return [head, codes.tobytes()]
        case Program(op_id, pulses):
            shape, cells = pulses.shape, pulses.cells
            head = PROGRAM.pack(op_id, pulses.kind, shape.amplitude, shape.width, shape.rise, shape.fall)
            return [head, payloads.lines(cells.array, cells.row, cells.column, pulses.counts)]
        case Update(op_id, region, trains):
            sizes = len(trains.rows), trains.rows.size
            head = UPDATE.pack(op_id, region, trains.polarity, *sizes)
            return [head, trains.rows.tobytes(), trains.columns.tobytes()]
        case Wait(op_id, seconds):
            return [WAIT.pack(op_id, seconds)]
        case Define(region):
            return [DEFINE.pack(region.handle), payloads.region_bytes(region)]
        case Echo(data):
            return [data]
        case Describe() | GetState() | Ground():
            return []


def decode_request(frame: Frame) -> Request:
    """The request in a frame. Raises `ProtocolError` on what is none."""
    kind = COMMANDS.get(frame.command)
    if kind is None:
        raise ProtocolError(Fault.UNDEFINED_HEADER, f"command 0x{frame.command:02x} is not known")
    try:
        request = _REQUEST_PARSERS[kind](frame.payload)
    except (struct.error, ValueError, InputError) as error:
        raise ProtocolError(Fault.INVALID_BLOCK, f"payload of {kind.__name__}: {error}") from error
    if isinstance(request, OperationRequest) and request.op_id >> 63:
        raise ProtocolError(Fault.OUT_OF_RANGE, f"operation id {request.op_id} is outside 0 to 2^63 - 1")
    return request


def _read(data: Buffer) -> Request:
    (op_id,) = READ.unpack_from(data)
    return Read(op_id, payloads.cells_of(data[READ.size :]))


def _multiply(data: Buffer) -> Request:
    op_id, region, direction, gain, kind, batch = MULTIPLY.unpack_from(data)
    codes = payloads.codes_of(data[MULTIPLY.size :], kind, batch)
    return Multiply(op_id, region, Direction(direction), gain, codes)


def _program(data: Buffer) -> Request:
    op_id, kind, *shape = PROGRAM.unpack_from(data)
    array, row, column, counts = payloads.split_lines(data[PROGRAM.size :], 4)
    return Program(op_id, PulseBatch(Cells(array, row, column), Operation(kind), counts, PulseShape(*shape)))


def _update(data: Buffer) -> Request:
    op_id, region, polarity, slots, size = UPDATE.unpack_from(data)
    rest = data[UPDATE.size :]
    if size > len(rest):
        raise ProtocolError(Fault.INVALID_BLOCK, f"rows of {size} bytes in a payload that has {len(rest)} for trains")
    return Update(op_id, region, payloads.trains_of(rest[:size], rest[size:], slots, polarity))


def _define(data: Buffer) -> Request:
    (handle,) = DEFINE.unpack_from(data)
    return Define(payloads.region_of(handle, data[DEFINE.size :]))


def _without_payload(request: Request) -> Callable[[Buffer], Request]:
    def parse(data: Buffer) -> Request:
        if len(data):
            raise ProtocolError(Fault.INVALID_BLOCK, f"{len(data)} bytes where none are expected")
        return request

    return parse


_REQUEST_PARSERS: dict[type[Request], Callable[[Buffer], Request]] = {
    Describe: _without_payload(Describe()),
    GetState: _without_payload(GetState()),
    Ground: _without_payload(Ground()),
    Echo: Echo,
    Define: _define,
    Read: _read,
    Multiply: _multiply,
    Program: _program,
    Update: _update,
    Wait: lambda data: Wait(*WAIT.unpack(data)),
}


def encode_reply(command: int, sequence: int, reply: Reply) -> list[Buffer]:
    """A reply to the request of this command and sequence number, in parts."""
    return pack(FAILURE if isinstance(reply, Failure) else command | ANSWER, sequence, *_reply_parts(reply))


def _reply_parts(reply: Reply) -> list[Buffer]:
    match reply:
        case Readings():
            return _readings_parts(reply)
        case Receipt(op_id, time_ns, status, done, saturated):
            return [RECEIPT.pack(op_id, time_ns, status, done, saturated)]
        case State(last_op_id, time_ns, boot, grounded):
            return [STATE.pack(last_op_id, time_ns, boot, grounded)]
        case Description():
            return [payloads.describe(reply)]
        case Echoed(data):
            return [data]
        case Failure(code, text):
            return [FAULT.pack(code), text.encode()]
        case Done():
            return []


def _readings_parts(reply: Readings) -> list[Buffer]:
    codes = reply.codes
    head = READINGS.pack(
        reply.op_id, reply.time_ns, reply.status, payloads.code_type(codes), reply.saturated, reply.scale,
        reply.offset, reply.unit.encode(), codes.size,
    )  # fmt: skip
    return [head, codes.tobytes()]


def decode_reply(request: Request, frame: Frame) -> Reply:
    """The reply to `request` in a frame. Raises `ProtocolError` on what is none."""
    expected = COMMAND_OF[type(request)] | ANSWER
    if frame.command not in (expected, FAILURE):
        raise ProtocolError(Fault.CORRUPT, f"a reply 0x{frame.command:02x} where 0x{expected:02x} was expected")
    try:
        return _reply(request, frame)
    except (struct.error, ValueError, InputError) as error:
        raise ProtocolError(Fault.INVALID_BLOCK, f"reply to {type(request).__name__}: {error}") from error


def _reply(request: Request, frame: Frame) -> Reply:
    data = frame.payload
    if frame.command == FAILURE:
        return Failure(FAULT.unpack_from(data)[0], bytes(data[FAULT.size :]).decode())
    match request:
        case Read():
            return _readings(data, None)
        case Multiply(codes=codes):
            return _readings(data, len(codes))
        case Program() | Update() | Wait():
            op_id, time_ns, status, done, saturated = RECEIPT.unpack(data)
            return Receipt(op_id, time_ns, Status(status), done, saturated)
        case GetState():
            last, time_ns, boot, grounded = STATE.unpack(data)
            return State(last, time_ns, boot, bool(grounded))
        case Describe():
            return payloads.description_of(data)
        case Echo():
            return Echoed(data)
        case Define() | Ground():
            return Done()


def _readings(data: Buffer, rows: int | None) -> Readings:
    op_id, time_ns, status, kind, saturated, scale, offset, unit, count = READINGS.unpack_from(data)
    codes: Codes = payloads.codes_of(data[READINGS.size :], kind, rows)
    if codes.size != count:
        raise ProtocolError(Fault.INVALID_BLOCK, f"{codes.size} codes where {count} were announced")
    name = unit.rstrip(b"\0").decode()
    return Readings(op_id, time_ns, codes, name, scale, offset, saturated, Status(status))
