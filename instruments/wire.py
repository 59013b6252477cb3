"""A tester behind a wire, in any codec over any link."""

from collections.abc import Callable, Sequence

import numpy as np

from hil.instruments.conversation import CONVERSATIONS
from hil.instruments.exchange import Exchange, LostError
from hil.instruments.resource import WireAddress, open_link
from hil.instruments.tester import ArrayTester
from hil.protocols import limits
from hil.protocols.errors import InputError, TesterError
from hil.protocols.messages import (
    Block,
    Capabilities,
    Cells,
    Direction,
    Identity,
    Operation,
    PulseBatch,
    PulseTrains,
    Readings,
    Receipt,
    Region,
    Status,
    Vectors,
)
from hil.protocols.requests import (
    PROGRAMMING,
    CutShortError,
    Define,
    Failure,
    Multiply,
    NoRegionError,
    OperationRequest,
    Program,
    Read,
    Update,
    Wait,
    error_of,
)

CUT_SHORT = 3
"""How often an operation that changes no cell is begun again after it was cut short."""


class WireTester(ArrayTester):
    """Drives a tester that speaks the protocol of `protocols/README.md`. Limits are checked before bytes leave.

    Where a programming operation stays in doubt (a reboot in mid-batch, a tester that keeps no replies), its receipt
    has status UNKNOWN; nothing is pulsed twice. Raises `TesterError` where the tester cannot be reached.
    """

    def __init__(self, exchange: Exchange) -> None:
        """Takes over the exchange; closes it on failure."""
        self._exchange = exchange
        self._regions: list[Region] = []
        self._closed = False
        try:
            self._time_ns = exchange.open().time_ns
            description = exchange.describe()
        except BaseException:
            exchange.close()
            raise
        self._identity, self._capabilities = description.identity, description.capabilities
        exchange.remembers = self._capabilities.exactly_once
        self._lost = False  # whether the last operation's fate is not known

    def identify(self) -> Identity:
        return self._identity

    def capabilities(self) -> Capabilities:
        return self._capabilities

    def register(self, blocks: Sequence[Block]) -> Region:
        self._check_open()
        limits.check_blocks(self._capabilities, blocks)
        region = Region(len(self._regions), tuple(blocks))
        reply = self._exchange.ask(Define(region))
        if isinstance(reply, Failure):
            raise error_of(reply)
        self._regions.append(region)
        self._exchange.regions.append(region)
        return region

    def regions(self) -> tuple[Region, ...]:
        return tuple(self._regions)

    def read(self, cells: Cells) -> Readings:
        self._check_open()
        limits.check_cells(self._capabilities, cells)
        seconds = len(cells) * self._capabilities.durations.read
        reply = self._readings(lambda op_id: Read(op_id, cells), seconds, 4 * len(cells))
        return _whole(reply, (len(cells),))

    def mvm(self, region: Region, vectors: Vectors, direction: Direction, gain: int) -> Readings:
        self._check_open()
        c = self._capabilities
        limits.check_registered(self._regions, region)
        limits.check_vectors(c, region, vectors, direction, gain)
        limits.check_codes(c, max(int(vectors.codes.max()), -int(vectors.codes.min())))
        codes = np.ascontiguousarray(vectors.codes, c.dac_dtype)
        shape = (len(codes), region.outputs(direction))
        reply = self._readings(
            lambda op_id: Multiply(op_id, region.handle, direction, gain, codes),
            len(codes) * c.durations.mvm,
            4 * shape[0] * shape[1],
        )
        return _whole(reply, shape)

    def program(self, pulses: PulseBatch) -> Receipt:
        self._check_open()
        c = self._capabilities
        limits.check_cells(c, pulses.cells)
        limits.check_pulses(c, pulses)
        each = c.durations.set_pulse if pulses.kind == Operation.SET else c.durations.reset_pulse
        return self._receipt(lambda op_id: Program(op_id, pulses), int(pulses.counts.sum()) * each)

    def update(self, region: Region, trains: PulseTrains) -> Receipt:
        self._check_open()
        if not self._capabilities.parallel_update:
            raise limits.no_parallel_update()
        seconds = len(trains.rows) * self._capabilities.durations.set_pulse
        return self._receipt(lambda op_id: Update(op_id, region.handle, trains), seconds)

    def wait(self, seconds: float) -> Receipt:
        self._check_open()
        limits.check_wait(seconds)
        return self._receipt(lambda op_id: Wait(op_id, float(seconds)), seconds)

    def time_ns(self) -> int:
        return self._time_ns

    def safe_state(self) -> None:
        """Raises `TesterError` where the tester does not answer. A closed one is in its safe state already."""
        if not self._closed and not self._exchange.ground():
            raise TesterError(f"{self._exchange.link.name} does not answer: its lines may not be grounded")

    def close(self) -> None:
        """As `safe_state`, but not an error where the tester was lost before: it grounds its lines by itself."""
        if self._closed:
            return
        try:
            if not self._lost:
                self.safe_state()
            else:
                self._exchange.ground()
        finally:
            self._closed = True
            self._exchange.close()

    def continue_after(self, op_id: int) -> None:
        self._check_open()
        last = self._exchange.state().last_op_id
        if last not in (op_id, op_id + 1):
            forgotten = "it has forgotten what came since (a served twin remembers only in a file: --twin chip.h5)"
            how = "it was used since" if last > op_id else forgotten
            raise InputError(f"the chip's last operation is {last}, the run's was {op_id}: {how}")
        self._exchange.last_op_id = op_id

    def _check_open(self) -> None:
        if self._closed:
            raise TesterError(f"tester of chip {self._identity.chip} is closed; open it again")

    def _next_id(self) -> int:
        if self._lost:
            state = self._exchange.recover()
            self._exchange.last_op_id = max(state.last_op_id, self._exchange.last_op_id)
            self._lost = False
        return self._exchange.last_op_id + 1

    def _readings(self, make: Callable[[int], Read | Multiply], seconds: float, size: int) -> Readings:
        """The answer to an operation that changes no cell: begun again where a reboot has cut it short."""
        with self._exchange.lock:
            for _ in range(CUT_SHORT):
                reply = self._operate(make(self._next_id()), seconds, size)
                if isinstance(reply, Readings):
                    return reply
        raise TesterError(f"a read or product was cut short {CUT_SHORT} times: the tester reboots")

    def _receipt(self, make: Callable[[int], Program | Update | Wait], seconds: float) -> Receipt:
        with self._exchange.lock:
            request = make(self._next_id())
            repeat = self._capabilities.exactly_once or not isinstance(request, PROGRAMMING)
            try:
                reply = self._operate(request, seconds, 0, repeat)
            except LostError:
                if repeat:
                    raise
                reply = None
        if isinstance(reply, Receipt):
            return reply
        return Receipt(request.op_id, self._time_ns, Status.UNKNOWN, 0)

    def _operate(
        self, request: OperationRequest, seconds: float, size: int, repeat: bool = True
    ) -> Readings | Receipt | None:
        """The answer to an operation, or None where it was cut short."""
        self._lost = True
        reply = self._exchange.ask(request, seconds, size, repeat)
        if isinstance(reply, Failure) and isinstance(error_of(reply), NoRegionError):
            self._exchange.recover()  # it was switched off and on without a break in the line: tell it the regions
            reply = self._exchange.ask(request, seconds, size, repeat)
        self._lost = False
        if isinstance(reply, Readings | Receipt):
            self._exchange.last_op_id, self._time_ns = reply.op_id, reply.time_ns
            return reply
        if not isinstance(reply, Failure):
            raise TesterError(f"{type(reply).__name__} in answer to {type(request).__name__}")
        error = error_of(reply)
        if isinstance(error, CutShortError):
            self._exchange.last_op_id = request.op_id
            return None
        raise error


def _whole(readings: Readings, shape: tuple[int, ...]) -> Readings:
    """Raises TesterError where a complete answer has another shape than asked for."""
    if readings.status == Status.COMPLETE and readings.codes.shape != shape:
        raise TesterError(f"the tester answered with codes of shape {readings.codes.shape}, asked for {shape}")
    return readings


def open_wire(address: WireAddress) -> WireTester:
    """The tester at an address. Raises `TesterError` where there is none."""
    return WireTester(Exchange(open_link(address), CONVERSATIONS[address.codec](), address.timeout))
