"""A twin as its host sees it through any codec: a request in, a reply out."""

from collections.abc import Callable

import numpy as np

from hil.mock_hw.firmware import Firmware
from hil.protocols import limits
from hil.protocols.errors import HilError, LimitError
from hil.protocols.messages import Identity, Vectors
from hil.protocols.requests import (
    Define,
    Describe,
    Description,
    Done,
    Echo,
    Echoed,
    GetState,
    Ground,
    Multiply,
    Program,
    Read,
    Reply,
    Request,
    Update,
    Wait,
    failure_of,
)


class Instrument:
    """The firmware with its identity. `before` is called with each request that may change the chip.

    `mishap`, while it is set, is what becomes of requests.
    """

    def __init__(
        self, firmware: Firmware, identity: Identity, before: Callable[[Request], None] = lambda request: None
    ) -> None:
        self.firmware = firmware
        self.identity = identity
        self.mishap: Callable[[Request], Reply] | None = None
        self._before = before

    def answer(self, request: Request) -> Reply:
        """Do what is asked; a refusal is a `Failure`."""
        try:
            return self._answer(request) if self.mishap is None else self.mishap(request)
        except HilError as error:
            return failure_of(error)

    def _answer(self, request: Request) -> Reply:
        match request:
            case Describe():
                return Description(self.identity, self.firmware.capabilities)
            case GetState():
                return self.firmware.state()
            case Echo(data):
                return Echoed(data)
            case Ground():
                self.firmware.ground()
                return Done()
            case _:
                self._before(request)
                return perform(self.firmware, request)


def perform(firmware: Firmware, request: Request) -> Reply:
    """Do a request that may change the chip or its regions. Raises a `HilError` where it is refused."""
    match request:
        case Define(region):
            firmware.define(region)
            return Done()
        case Read(op_id, cells):
            return firmware.read(op_id, cells)
        case Multiply(op_id, handle, direction, gain, codes):
            return firmware.mvm(op_id, handle, Vectors(codes, np.ones(len(codes), np.float32)), direction, gain)
        case Program(op_id, pulses):
            return firmware.program(op_id, pulses)
        case Wait(op_id, seconds):
            return firmware.wait(op_id, seconds)
        case Update():
            raise limits.no_parallel_update()
        case _:
            raise LimitError(f"{type(request).__name__} changes nothing")
