"""What the tests of the wire share: every message, a form of it that compares, and a reader of commands."""

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import strategies as st

from hil.protocols import messages as m
from hil.protocols import requests as r
from hil.protocols.payloads import CODE_TYPES
from hil.protocols.scpi import HEADERS, parse_request
from hil.protocols.scpi_syntax import Element, MessageReader, Unit, forms, split

Exchange = tuple[r.Request, r.Reply]

COMMANDS = {form.encode(): kind for kind, pattern in HEADERS.items() for form in forms(pattern)}
AWKWARD = [b"", b"\n", b"#", b'#19"', b"\n,;#0;", b"',\"\n", b"\xa5\x5a\x01\x12", b"ARR:GRO?\n", bytes(range(256))]
"""Blocks that hold what separates messages."""

IDS = st.integers(0, 2**63 - 1) | st.sampled_from([0, 1, 2**53 + 1, 2**63 - 1])
TIMES = st.integers(0, 2**63 - 1)
WORDS = st.integers(0, 2**32 - 1)
REALS = st.floats(allow_nan=False, allow_infinity=False)
DATA = st.sampled_from(AWKWARD) | st.binary(max_size=300)


def vector(dtype: Any, size: int) -> st.SearchStrategy[npt.NDArray[Any]]:
    """Any values of a type."""
    count = size * np.dtype(dtype).itemsize
    return st.binary(min_size=count, max_size=count).map(lambda data: np.frombuffer(data, dtype))


@st.composite
def cells(draw: st.DrawFn, size: int) -> m.Cells:
    return m.Cells(*(draw(vector(np.uint16, size)) for _ in range(3)))


@st.composite
def pulses(draw: st.DrawFn) -> m.PulseBatch:
    size = draw(st.integers(0, 20))
    kind = draw(st.sampled_from([m.Operation.SET, m.Operation.RESET]))
    shape = m.PulseShape(*(draw(REALS) for _ in range(4)))
    return m.PulseBatch(draw(cells(size)), kind, draw(vector(np.uint16, size)), shape)


@st.composite
def blocks(draw: st.DrawFn) -> m.Block:
    rows, columns = draw(st.integers(0, 9)), draw(st.integers(1, 9))
    partners = draw(vector(np.uint16, columns)) if draw(st.booleans()) else None
    lines = draw(vector(np.uint16, rows)), draw(vector(np.uint16, columns)), partners
    return m.Block(draw(st.integers(0, 0xFFFF)), *lines, draw(WORDS), draw(WORDS))


@st.composite
def codes(draw: st.DrawFn, batch: int | None = None) -> m.Codes:
    """A vector, or a matrix of so many rows."""
    width = draw(st.integers(0 if batch is None else 1, 9))
    flat = draw(vector(draw(st.sampled_from(CODE_TYPES)), width * (1 if batch is None else batch)))
    return flat if batch is None else flat.reshape(batch, width)


@st.composite
def trains(draw: st.DrawFn) -> m.PulseTrains:
    slots = draw(st.integers(1, 5))
    rows, columns = (draw(vector(np.uint8, slots * draw(st.integers(0, 4)))).reshape(slots, -1) for _ in range(2))
    return m.PulseTrains(rows, columns, draw(st.sampled_from([1, -1])))


REGIONS = st.builds(m.Region, WORDS, st.lists(blocks(), max_size=3).map(tuple))
OPERATIONS: list[st.SearchStrategy[r.OperationRequest]] = [
    st.builds(r.Read, IDS, st.integers(0, 20).flatmap(cells)),
    st.builds(
        r.Multiply, IDS, WORDS, st.sampled_from(m.Direction), st.integers(0, 255), st.integers(1, 5).flatmap(codes)
    ),
    st.builds(r.Program, IDS, pulses()),
    st.builds(r.Update, IDS, WORDS, trains()),
    st.builds(r.Wait, IDS, REALS),
]
REQUESTS = st.one_of(
    st.just(r.Describe()),
    st.just(r.GetState()),
    st.just(r.Ground()),
    st.builds(r.Echo, DATA),
    st.builds(r.Define, REGIONS),
    *OPERATIONS,
)

SHAPES = st.builds(m.PulseShape, REALS, REALS, REALS, REALS)
IDENTITIES = st.builds(m.Identity, *[st.text(max_size=20)] * 5, st.sampled_from(m.TesterKind))
CAPABILITIES = st.builds(
    m.Capabilities,
    **{name: st.integers(1, 600) for name in ("arrays", "rows", "columns")},
    **{name: st.integers(1, 2**31) for name in ("dac_bits", "adc_bits", "largest_batch")},
    **{name: st.booleans() for name in ("parallel_update", "exactly_once", "verify")},
    **{name: st.lists(REALS, max_size=4).map(tuple) for name in ("mvm_ranges", "staircase")},
    mvm=st.sampled_from(m.MvmMode),
    readout=st.sampled_from(m.Readout),
    read_voltage=REALS,
    set_pulse=SHAPES,
    reset_pulse=SHAPES,
    pulse_limits=st.builds(m.PulseLimits, st.text(max_size=9), REALS, REALS, REALS, st.booleans()),
    durations=st.builds(m.Durations, REALS, REALS, REALS, REALS),
)
DESCRIPTIONS = st.builds(r.Description, IDENTITIES, CAPABILITIES)
RECEIPTS = st.builds(m.Receipt, IDS, TIMES, st.sampled_from(m.Status), WORDS, WORDS)
UNITS = st.sampled_from(["", "S", "A", "V", "Ohm"])


@st.composite
def readings(draw: st.DrawFn, batch: int | None) -> m.Readings:
    offset = draw(st.integers(-(2**31), 2**31 - 1))
    ends = draw(REALS), offset, draw(WORDS), draw(st.sampled_from(m.Status))
    return m.Readings(draw(IDS), draw(TIMES), draw(codes(batch)), draw(UNITS), *ends)


def replies(request: r.Request) -> st.SearchStrategy[Any]:
    """What a tester may answer, but for failures."""
    match request:
        case r.Read():
            return readings(None)
        case r.Multiply(codes=vectors):
            return readings(len(vectors))
        case r.Program() | r.Update() | r.Wait():
            return RECEIPTS
        case r.GetState():
            return st.builds(r.State, IDS, TIMES, WORDS, st.booleans())
        case r.Describe():
            return DESCRIPTIONS
        case r.Echo():
            return st.builds(r.Echoed, DATA)
        case _:
            return st.just(r.Done())


@pytest.fixture(scope="session")
def any_request() -> st.SearchStrategy[r.Request]:
    """Every request."""
    return REQUESTS


@pytest.fixture(scope="session")
def any_exchange() -> st.SearchStrategy[Exchange]:
    """Every request with a reply to it that is no failure."""
    return REQUESTS.flatmap(lambda request: st.tuples(st.just(request), replies(request)))


@pytest.fixture(scope="session")
def any_region() -> st.SearchStrategy[m.Region]:
    """Every region."""
    return REGIONS


@pytest.fixture(scope="session")
def any_description() -> st.SearchStrategy[r.Description]:
    """Every identity and all capabilities."""
    return DESCRIPTIONS


@pytest.fixture(scope="session")
def program() -> r.Program:
    """Pulses on two cells."""
    shape = m.PulseShape(90e-6, 50e-9)
    return r.Program(7, m.PulseBatch(m.Cells.of(0, [1, 2], 3), m.Operation.SET, np.array([1, 4], np.uint16), shape))


@pytest.fixture(scope="session")
def reading() -> Exchange:
    """A read of three cells, and what it gave."""
    codes = np.array([11, 250, 35], np.uint8)
    return r.Read(8, m.Cells.of(0, [1, 2, 10], 3)), m.Readings(8, 5_000, codes, "S", 1e-7, 10, 1, m.Status.PARTIAL)


@pytest.fixture(scope="session")
def plain() -> Callable[[Any], Any]:
    """A message as nested tuples that compare value for value, type for type."""
    return plain_of


def plain_of(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if is_dataclass(value):
        return type(value).__name__, *(plain_of(getattr(value, field.name)) for field in fields(value))
    if isinstance(value, tuple):
        return tuple(map(plain_of, value))
    return repr(value) if isinstance(value, float) else value


@pytest.fixture(scope="session")
def requests_in() -> Callable[[bytes], Iterator[r.Request]]:
    """The requests in SCPI messages; raises `ProtocolError` at the first unit that is none."""

    def read(data: bytes) -> Iterator[r.Request]:
        reader = MessageReader()
        reader.feed(data)
        for message in reader.messages():
            yield from map(request_of, split(message))

    return read


def request_of(unit: Unit) -> r.Request:
    """The request in a unit with its whole header."""
    first: Element = unit.elements[0]
    header, _, rest = first.text.partition(b" ")
    kind = COMMANDS.get(header.upper().lstrip(b":"))
    if kind is None:
        raise r.ProtocolError(r.Fault.UNDEFINED_HEADER, f"{header!r} is not known")
    alone = len(unit.elements) == 1 and first.block is None and not rest
    parameters = [] if alone else [replace(first, text=rest.strip()), *unit.elements[1:]]
    return parse_request(kind, parameters, unit)
