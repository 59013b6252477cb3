"""Promises on the wire that both codecs keep: operation ids, refusals without a trace, what outlives a connection."""

from collections.abc import Iterator

import numpy as np

from hil.check_line import Line, TextLine, name_of
from hil.checking import (
    Failed,
    Group,
    NotApplicable,
    cells_at,
    expect,
    expect_equal,
    first_difference,
    last_cells,
    named,
    shown,
)
from hil.instruments.link import LinkError, LinkTimeout
from hil.instruments.resource import open_link
from hil.protocols.messages import (
    Block,
    Capabilities,
    Cells,
    Direction,
    MvmMode,
    Operation,
    PulseBatch,
    Readings,
    Readout,
    Receipt,
    Region,
)
from hil.protocols.requests import (
    Define,
    Describe,
    Description,
    Done,
    Echo,
    Failure,
    Fault,
    Ground,
    Multiply,
    Program,
    Read,
    Request,
    State,
    Wait,
)

wire: Group[Line] = Group("wire")
CELL = Cells.of(0, 0, 0)
ROUNDS = 6
"""How often a rise by one pulse is compared with that by eleven: single steps scatter as much as they rise."""
UNDEFINED, HANDLE = 0xFFFF, 0
"""Handles of regions: one that nobody defines, and the one that is defined here."""


@wire("it describes itself", "the host learns sizes, converters and limits from it")
def _describes(line: Line) -> str:
    reply = line.decode(Describe(), line.transact(Describe()))
    if not isinstance(reply, Description):
        raise Failed(f"describe: expected a description, got {shown(reply)}")
    c = reply.capabilities
    return f"{c.arrays} x {c.rows} x {c.columns} cells"


@wire("checksums of its replies are right", "the host throws away what has a wrong one")
def _replies_are_whole(line: Line) -> str:
    for request in (Echo(b"checked"), Ground()):
        line.reply(request)
    line.state()
    line.read_next(CELL)
    line.capabilities()
    return "description, echo, ground, state and read"


@wire("the id after the last one is accepted", "so a host goes on where another stopped")
def _next_id(line: Line) -> str:
    first, _ = line.read_next(CELL)
    expect_equal("last id in the state after a read with the id after the last", line.state().last_op_id, first.op_id)
    second, _ = line.read_next(CELL)
    return f"{first.op_id} and {second.op_id}"


@wire("a repeated id gets the same reply, byte by byte", "a host whose reply was lost asks again")
def _repeated(line: Line) -> str:
    request, reply = line.read_next(_often(line))
    before = line.state()
    for _ in range(3):
        _expect_same(f"read {request.op_id} sent again", line.transact(request), reply)
    _expect_untouched(line, before, f"read {request.op_id} sent again")
    return f"{len(reply)} bytes, no device time passed"


@wire("a stored reply outlives the connection", "a host comes back after its line broke")
def _stored(line: Line) -> str:
    request, reply = line.read_next(_often(line))
    before = line.state()
    line.echo(b"something else")
    line.in_step = False
    line.ready()
    _expect_same(f"read {request.op_id} sent again on a line opened anew", line.transact(request), reply)
    _expect_untouched(line, before, f"read {request.op_id} sent again on a line opened anew")
    return f"{len(reply)} bytes"


@wire("a repeated id with other content is refused", "two hosts, or a confused one, must not pass for each other")
def _other_content(line: Line) -> str:
    request, _ = line.read_next(CELL)
    before = line.state()
    last = cells_at(last_cells(line.capabilities())[-1:])
    for other in (Read(request.op_id, last), Wait(request.op_id, 1e-3)):
        what = f"a {name_of(other)} with id {request.op_id}, which was that of a read of cell 0:0:0"
        expect_refused(line, other, Fault.USED_ID, what)
    _expect_untouched(line, before, "a used id with other content")
    return f"refused with {Fault.USED_ID:d}"


@wire("a lower id is refused", "what was done long ago is not done again")
def _lower(line: Line) -> str:
    first, _ = line.read_next(CELL)
    line.read_next(CELL)
    before = line.state()
    expect_refused(line, first, Fault.USED_ID, f"id {first.op_id}, though the last one is {before.last_op_id}")
    _expect_untouched(line, before, "a used id")
    return f"refused with {Fault.USED_ID:d}"


@wire("what is out of range is refused and takes no id", "a host trusts that nothing happened")
def _out_of_range(line: Line) -> str:
    c, before = line.capabilities(), line.state()
    next_id, count = before.last_op_id + 1, 0
    for cells in _outside(c):
        where = named(((int(cells.array[0]), int(cells.row[0]), int(cells.column[0])),))
        what = f"read of {where} on a chip of {c.arrays} x {c.rows} x {c.columns}"
        expect_refused(line, Read(next_id, cells), Fault.OUT_OF_RANGE, what)
        _expect_untouched(line, before, what)
        count += 1
    expect_refused(line, Wait(next_id, -1.0), Fault.OUT_OF_RANGE, "wait of -1 s")
    _expect_untouched(line, before, "wait of -1 s")
    return f"{count + 1} requests refused with {Fault.OUT_OF_RANGE:d}"


@wire("a product that is out of range is refused", "a DAC code beyond the converter would come out as another one")
def _products_out_of_range(line: Line) -> str:
    c = line.capabilities()
    region = _define(line, c)
    before = line.state()
    next_id = before.last_op_id + 1
    zeros = np.zeros((1, region.rows), c.dac_dtype)
    wrong = {
        f"DAC code {-c.dac_top - 1} where +-{c.dac_top} are possible": (np.full_like(zeros, -c.dac_top - 1), 0),
        f"gain {len(c.mvm_ranges)} of {len(c.mvm_ranges)}": (zeros, min(len(c.mvm_ranges), 255)),
        f"{region.rows + 1} codes for a region of {region.rows} rows": (np.pad(zeros, ((0, 0), (0, 1))), 0),
    }
    for what, (codes, gain) in wrong.items():
        request = Multiply(next_id, HANDLE, Direction.FORWARD, gain, codes)
        expect_refused(line, request, Fault.OUT_OF_RANGE, what)
        _expect_untouched(line, before, what)
    return f"{len(wrong)} products refused with {Fault.OUT_OF_RANGE:d}"


@wire("a region may be defined twice, and is remembered", "a host tells its regions again after a break of the line")
def _regions(line: Line) -> str:
    region = _define(line, line.capabilities())
    line.ask(Define(region), Done)
    line.in_step = False
    line.ready()
    codes = np.zeros((1, region.rows), line.capabilities().dac_dtype)
    reply = line.reply(Multiply(line.state().last_op_id + 1, HANDLE, Direction.FORWARD, 0, codes))
    expect(
        isinstance(reply, Readings),
        f"product with region {HANDLE}, defined before the line was opened anew: expected readings, got {reply}",
    )
    return f"region {HANDLE}: {region.rows} rows, {region.columns} columns"


@wire("a product with an undefined region is refused", "after it was switched off, the host must define it again")
def _no_region(line: Line) -> str:
    c = line.capabilities()
    _needs_products(c)
    before = line.state()
    request = Multiply(before.last_op_id + 1, UNDEFINED, Direction.FORWARD, 0, np.zeros((1, 4), c.dac_dtype))
    expect_refused(line, request, Fault.NO_REGION, f"product with region {UNDEFINED}, which was never defined")
    _expect_untouched(line, before, "product with an undefined region")
    return f"refused with {Fault.NO_REGION:d}"


@wire("the lines are grounded when asked", "the safe state")
def _grounded(line: Line) -> str:
    line.read_next(CELL)
    for _ in range(2):
        line.ask(Ground(), Done)
        expect(line.state().grounded, "the state after the request to ground the lines: expected grounded, got not")
    return "also twice"


@wire("a flipped bit anywhere in a request is noticed", "noise on the line must not become an operation")
def _flips(line: Line) -> str:
    before = line.state()
    request = Read(before.last_op_id + 1, CELL)
    whole = line.encode(request)
    if isinstance(line, TextLine):
        whole = whole.partition(b";:")[0]
    for at in range(len(whole)):
        damaged = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
        what = f"read with byte {at} of {len(whole)} flipped from 0x{whole[at]:02x} to 0x{damaged[at]:02x}"
        _expect_untouched(line, before, what, _state_after(line, damaged))
    return f"each of {len(whole)} bytes"


@wire("the count of boots stays the same", "a host that sees another one defines its regions again")
def _boots(line: Line) -> str:
    before = line.state().boot
    line.in_step = False
    line.ready()
    expect_equal("count of boots after the line was opened anew", line.state().boot, before)
    return f"{before}"


@wire("a second connection is refused while the first works", "two hosts would mix up their operations")
def _second(line: Line) -> str:
    if line.address.kind != "tcp":
        raise NotApplicable(f"only TCP has connections; this is {line.address.kind}")
    line.echo(b"first")
    told = _answer_to_another(line)
    expect(line.echo(b"still here") == b"still here", "the first connection is not answered after a second was tried")
    return told


@wire(
    "a repeated id pulses once", "a host whose receipt was lost asks again, and the cell must not move", programs=True
)
def _pulses_once(line: Line) -> str:
    c = line.capabilities()
    if not c.exactly_once:
        raise NotApplicable("it does not promise that (exactly_once: false), so the host repeats no pulses")
    places = line.pulsed or last_cells(c)
    cells = cells_at(places)
    once = many = 0.0
    for _ in range(ROUNDS):
        start = _level(line, _pulse(line, cells, Operation.RESET, 1))
        request = _pulse(line, cells, Operation.SET, 1)
        before, reply = line.state(), line.transact(request)
        for _ in range(10):
            _expect_same(f"program {request.op_id} sent again", line.transact(request), reply)
        _expect_untouched(line, before, f"program {request.op_id} sent again")
        once += (_level(line, request) - start) / ROUNDS
        many += (_level(line, _pulse(line, cells, Operation.SET, 10)) - start) / ROUNDS
    _pulse(line, cells, Operation.RESET, 1)
    expect(
        once < many / 2,
        f"{named(places)} rose by {once:.3g} S on average with one SET pulse sent 12 times with one id, and by "
        f"{many:.3g} S with 10 more: expected less than half of that",
    )
    return f"{named(places)}; left RESET"


def expect_refused(line: Line, request: Request, code: Fault, what: str) -> None:
    """Raises `Failed` unless a request is refused for this reason."""
    reply = line.reply(request)
    if not isinstance(reply, Failure):
        raise Failed(f"{what}: expected to be refused with {code:d}, got {type(reply).__name__}")
    expect(reply.code == code, f"{what}: expected to be refused with {code:d}, got {reply.code} ({reply.text})")


def _often(line: Line) -> Cells:
    """One cell many times, so that a new draw of its noise differs from the one before."""
    return Cells.of(0, 0, np.zeros(min(8, line.capabilities().largest_batch), np.uint16))


def _expect_untouched(line: Line, before: State, what: str, after: State | None = None) -> None:
    """Raises `Failed` where an id was taken or device time passed."""
    now = line.state() if after is None else after
    expect(
        now.last_op_id == before.last_op_id,
        f"{what}: the last operation id went from {before.last_op_id} to {now.last_op_id}, expected to stay",
    )
    passed = now.time_ns - before.time_ns
    expect(passed == 0, f"{what}: {passed} ns of device time passed, expected none")


def _expect_same(what: str, got: bytes, expected: bytes) -> None:
    if got == expected:
        return
    at = first_difference(got, expected)
    raise Failed(f"{what}: expected {shown(expected)}, got {shown(got)}; they differ from byte {at} on")


def _outside(c: Capabilities) -> Iterator[Cells]:
    """Single cells just outside the chip."""
    sizes = (c.arrays, c.rows, c.columns)
    for axis, size in enumerate(sizes):
        if size < 1 << 16:
            yield Cells.of(*(size if axis == other else 0 for other in range(3)))


def _needs_products(c: Capabilities) -> None:
    if c.mvm == MvmMode.NONE:
        raise NotApplicable("this array does no products (mvm: none)")
    if c.readout == Readout.DIFFERENTIAL and c.columns < 2:
        raise NotApplicable("one bit line has no partner (readout: differential)")


def _define(line: Line, c: Capabilities) -> Region:
    """Define a small region."""
    _needs_products(c)
    rows = np.arange(min(4, c.rows), dtype=np.uint16)
    pairs = c.readout == Readout.DIFFERENTIAL
    partner = np.array([1], np.uint16) if pairs else None
    region = Region(HANDLE, (Block(0, rows, np.array([0], np.uint16), partner, 0, 0),))
    line.ask(Define(region), Done)
    return region


def _state_after(line: Line, damaged: bytes) -> State:
    """The state after something that need not be answered, or that waits for more."""
    line.send(damaged + b"\n" if isinstance(line, TextLine) else damaged)
    try:
        line.ready()
        return line.state()
    except Failed:  # what was damaged was a length: the question was taken for the rest
        line.in_step = False
        line.ready()
        return line.state()


def _answer_to_another(line: Line) -> str:
    """What a second connection is told; raises `Failed` where it is answered."""
    try:
        other = open_link(line.address)
    except LinkError:
        return "it is not accepted"
    try:
        other.send([line.encode(Echo(b"second"))], line.address.timeout)
        heard = other.receive(line.address.timeout)
    except LinkTimeout:
        return "it is not answered"
    except LinkError:
        return "it is closed"
    finally:
        other.close()
    expect(b"second" not in heard, f"a second connection asked for an echo: expected none, got {shown(heard)}")
    return f"it is told {shown(heard)}"


def _pulse(line: Line, cells: Cells, kind: Operation, count: int) -> Program:
    """Pulse cells with the next id."""
    c = line.capabilities()
    shape = c.set_pulse if kind == Operation.SET else c.reset_pulse
    pulses = PulseBatch(cells, kind, np.full(len(cells), count, np.uint16), shape)
    request = Program(line.state().last_op_id + 1, pulses)
    line.ask(request, Receipt)
    return request


def _level(line: Line, pulsed: Program) -> float:
    """Mean conductance (S) of cells after they were pulsed."""
    cells = pulsed.pulses.cells
    first = line.state().last_op_id + 1
    return float(np.mean([line.ask(Read(first + n, cells), Readings).values() for n in range(8)]))
