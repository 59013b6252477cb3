"""The text codec: requests and replies as SCPI messages, with arrays in IEEE 488.2 definite-length blocks.

Every command of ours is a query that answers when it is done. Where a command has a checksum, it is its last parameter:
the CRC-32 of the command from the first letter of its header (behind a leading colon) to the comma before the checksum.
Replies likewise. Command by command, with examples: `protocols/README.md`.
"""

from collections.abc import Callable, Sequence

from hil.protocols import payloads
from hil.protocols.checksum import crc32
from hil.protocols.errors import InputError
from hil.protocols.messages import (
    Cells,
    Direction,
    Operation,
    PulseBatch,
    PulseShape,
    Readings,
    Receipt,
    Status,
)
from hil.protocols.payloads import CODE_NAMES, Buffer
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
from hil.protocols.scpi_syntax import (
    Element,
    Unit,
    block_header,
    choice,
    integer,
    number,
    quoted,
    unquoted,
)

DIRECTIONS = ("FORWard", "BACKward")
PULSES = {"SET": Operation.SET, "RESet": Operation.RESET}
PULSE_WORDS = {Operation.SET: b"SET", Operation.RESET: b"RES"}
STATUSES = ("COMPlete", "PARTial", "UNKNown")
ERROR_QUERY = b"SYST:ERR?"

HEADERS: dict[type[Request], str] = {
    Describe: "ARRay:DESCribe?",
    GetState: "ARRay:STATe?",
    Define: "ARRay:REGion?",
    Ground: "ARRay:GROund?",
    Echo: "DIAGnostic:ECHO?",
    Read: "ARRay:READ?",
    Multiply: "ARRay:MVM?",
    Program: "ARRay:PROGram?",
    Update: "ARRay:UPDate?",
    Wait: "ARRay:WAIT?",
}


def encode_request(request: Request) -> list[Buffer]:
    """A request as one message unit, without a separator, in parts; large blocks are not copied."""
    match request:
        case Describe():
            return [b"ARR:DESC?"]
        case GetState():
            return [b"ARR:STAT?"]
        case Ground():
            return [b"ARR:GRO?"]
        case Echo(data):
            return _checked([b"DIAG:ECHO? " + block_header(len(data)), data])
        case Define(region):
            data = payloads.region_bytes(region)
            return _checked([b"ARR:REG? %d," % region.handle + block_header(len(data)), data])
        case _:
            return _checked(_operation(request))


def _operation(request: OperationRequest) -> list[Buffer]:
    match request:
        case Read(op_id, cells):
            data: Buffer = payloads.lines(cells.array, cells.row, cells.column)
            return [b"ARR:READ? %d," % op_id + block_header(len(data)), data]
        case Multiply(op_id, region, direction, gain, codes):
            way = b"FORW" if direction == Direction.FORWARD else b"BACK"
            kind = CODE_NAMES[payloads.code_type(codes)].encode()
            head = b"ARR:MVM? %d,%d,%s,%d,%s,%d," % (op_id, region, way, gain, kind, len(codes))
            return [head + block_header(codes.nbytes), codes.tobytes()]
        case Program(op_id, pulses):
            s, cells = pulses.shape, pulses.cells
            data = payloads.lines(cells.array, cells.row, cells.column, pulses.counts)
            shape = b",".join(map(_real, (s.amplitude, s.width, s.rise, s.fall)))
            return [b"ARR:PROG? %d,%s,%s," % (op_id, PULSE_WORDS[pulses.kind], shape) + block_header(len(data)), data]
        case Update(op_id, region, trains):
            head = b"ARR:UPD? %d,%d,%d,%d," % (op_id, region, trains.polarity, len(trains.rows))
            rows, columns = trains.rows.tobytes(), trains.columns.tobytes()
            return [head + block_header(len(rows)), rows, b"," + block_header(len(columns)), columns]
        case Wait(op_id, seconds):
            return [b"ARR:WAIT? %d,%s" % (op_id, _real(seconds))]


def _real(value: float) -> bytes:
    """A number with as many digits as bring back the same float; numpy's floats would print their type."""
    return repr(float(value)).encode()


def _checked(parts: list[Buffer]) -> list[Buffer]:
    crc = 0
    for part in parts:
        crc = crc32(part, crc)
    return [*parts, b",#H%08X" % crc]


def _check(unit: Unit) -> None:
    """Raises `ProtocolError` where the checksum in the last element is not that of what stands before it."""
    told = integer(unit.elements[-1].text)
    crc = crc32(unit.checked)
    if told != crc:
        raise ProtocolError(Fault.CORRUPT, f"checksum #H{told:08X} where #H{crc:08X} is expected")


def parse_request(kind: type[Request], parameters: Sequence[Element], unit: Unit) -> Request:
    """The request of a command of ours, `parameters` without its header. Raises `ProtocolError` on what is none."""
    count, parse = _PARSERS[kind]
    if len(parameters) != count:
        fault = Fault.MISSING_PARAMETER if len(parameters) < count else Fault.TOO_MANY
        raise ProtocolError(fault, f"{HEADERS[kind]} takes {count} parameters, got {len(parameters)}")
    if count:
        _check(unit)
    try:
        return parse(parameters)
    except (InputError, ValueError) as error:
        raise ProtocolError(Fault.ILLEGAL_VALUE, f"{HEADERS[kind]} {error}") from error


def block(element: Element) -> memoryview:
    """The data of a parameter that must be a block. Raises `ProtocolError` if it is none."""
    if element.block is None:
        raise ProtocolError(Fault.DATA_TYPE, f"{element.text[:30]!r} where a block is expected")
    if element.text:
        raise ProtocolError(Fault.INVALID_BLOCK, f"{element.text[:30]!r} stands before a block")
    return element.block


def unsigned(element: Element) -> int:
    """A parameter that is a whole number from 0 to 2^63 - 1. Raises `ProtocolError` if it is none."""
    value = integer(_text(element))
    if not 0 <= value < 1 << 63:
        raise ProtocolError(Fault.OUT_OF_RANGE, f"{value} is outside 0 to 2^63 - 1")
    return value


def _text(element: Element) -> bytes:
    if element.block is not None:
        raise ProtocolError(Fault.BLOCK_NOT_ALLOWED, "a block where a number or word is expected")
    return element.text


def _read(p: Sequence[Element]) -> Request:
    return Read(unsigned(p[0]), payloads.cells_of(block(p[1])))


def _multiply(p: Sequence[Element]) -> Request:
    direction = Direction(choice(_text(p[2]), *DIRECTIONS))
    codes = payloads.codes_of(block(p[6]), choice(_text(p[4]), *CODE_NAMES), unsigned(p[5]))
    return Multiply(unsigned(p[0]), unsigned(p[1]), direction, unsigned(p[3]), codes)


def _program(p: Sequence[Element]) -> Request:
    kind = list(PULSES.values())[choice(_text(p[1]), *PULSES)]
    array, row, column, counts = payloads.split_lines(block(p[6]), 4)
    shape = PulseShape(*(number(_text(element)) for element in p[2:6]))
    return Program(unsigned(p[0]), PulseBatch(Cells(array, row, column), kind, counts, shape))


def _update(p: Sequence[Element]) -> Request:
    trains = payloads.trains_of(block(p[4]), block(p[5]), unsigned(p[3]), integer(_text(p[2])))
    return Update(unsigned(p[0]), unsigned(p[1]), trains)


_PARSERS: dict[type[Request], tuple[int, Callable[[Sequence[Element]], Request]]] = {
    Describe: (0, lambda p: Describe()),
    GetState: (0, lambda p: GetState()),
    Ground: (0, lambda p: Ground()),
    Echo: (2, lambda p: Echo(block(p[0]))),
    Define: (3, lambda p: Define(payloads.region_of(unsigned(p[0]), block(p[1])))),
    Read: (3, _read),
    Multiply: (8, _multiply),
    Program: (8, _program),
    Update: (7, _update),
    Wait: (3, lambda p: Wait(unsigned(p[0]), number(_text(p[1])))),
}
"""For each command, the number of its parameters and what they mean."""


def encode_reply(reply: Reply) -> list[Buffer]:
    """A reply as one response unit, without a separator, in parts. A failure has none: it goes to the error queue."""
    match reply:
        case Readings():
            return _checked(_readings_parts(reply))
        case Receipt(op_id, time_ns, status, done, saturated):
            word = STATUSES[status][:4].encode()
            return _checked([b"%d,%d,%s,%d,%d" % (op_id, time_ns, word, done, saturated)])
        case State(last_op_id, time_ns, boot, grounded):
            return _checked([b"%d,%d,%d,%d" % (last_op_id, time_ns, boot, grounded)])
        case Description():
            data = payloads.describe(reply)
            return _checked([block_header(len(data)), data])
        case Echoed(data):
            return _checked([block_header(len(data)), data])
        case Done():
            return _checked([b"1"])
        case Failure():
            return []


def _readings_parts(reply: Readings) -> list[Buffer]:
    kind = CODE_NAMES[payloads.code_type(reply.codes)]
    status = STATUSES[reply.status][:4]
    head = f"{reply.op_id},{reply.time_ns},{status},{reply.saturated},{float(reply.scale)!r},{reply.offset},"
    codes = reply.codes
    head += f'"{reply.unit}",{kind},'
    return [head.encode() + block_header(codes.nbytes), codes.tobytes()]


def error_reply(failure: Failure | None, text: str = "") -> bytes:
    """The answer to `SYSTem:ERRor?`; `text` is the standard's for the failure's code."""
    if failure is None:
        return b'0,"No error"'
    return b"%d,%s" % (failure.code, quoted(f"{text};{failure.text}" if failure.text else text))


def decode_error(unit: Unit) -> Failure | None:
    """What an answer to `SYSTem:ERRor?` says; None for no error. Raises `ProtocolError` on what is none."""
    if len(unit.elements) != 2:
        raise ProtocolError(Fault.CORRUPT, "the answer to SYSTem:ERRor? is not a number and a text")
    code, text = integer(unit.elements[0].text), unquoted(unit.elements[1].text)
    return Failure(code, text.partition(";")[2] or text) if code else None


def decode_reply(request: Request, unit: Unit) -> Reply:
    """The reply to `request` in a response unit. Raises `ProtocolError` on what is none."""
    _check(unit)
    try:
        return _reply(request, unit.elements[:-1])
    except (ValueError, LookupError, InputError) as error:
        raise ProtocolError(Fault.CORRUPT, f"the answer to {HEADERS[type(request)]} cannot be read: {error}") from error


def _reply(request: Request, fields: list[Element]) -> Reply:
    match request:
        case Read():
            return _readings(fields, None)
        case Multiply(codes=codes):
            return _readings(fields, len(codes))
        case Program() | Update() | Wait():
            op_id, time_ns, status, done, saturated = (field.text for field in fields)
            return Receipt(int(op_id), int(time_ns), Status(choice(status, *STATUSES)), int(done), int(saturated))
        case GetState():
            last, now, boot, grounded = (int(field.text) for field in fields)
            return State(last, now, boot, bool(grounded))
        case Describe():
            return payloads.description_of(block(fields[0]))
        case Echo():
            return Echoed(block(fields[0]))
        case Define() | Ground():
            return Done()


def _readings(fields: list[Element], rows: int | None) -> Readings:
    op_id, time_ns, status, saturated, scale, offset, unit, kind, codes = fields
    return Readings(
        int(op_id.text),
        int(time_ns.text),
        payloads.codes_of(block(codes), choice(kind.text, *CODE_NAMES), rows),
        unquoted(unit.text),
        float(scale.text),
        int(offset.text),
        int(saturated.text),
        Status(choice(status.text, *STATUSES)),
    )
