"""A port whose messages, and whose tester, suffer the faults of a plan."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Protocol

import numpy as np

from hil.mock_hw.faults import OF_THE_TESTER, FaultPlan, FaultRule
from hil.mock_hw.frame_port import FramePort
from hil.mock_hw.instrument import Instrument
from hil.mock_hw.ports import Action, Codec, Hangup, Pause, Ports, chosen
from hil.mock_hw.scpi_port import ScpiPort
from hil.protocols.errors import HilError, InputError
from hil.protocols.frames import FrameReader, pack
from hil.protocols.payloads import Buffer
from hil.protocols.requests import Failure, Fault, Program, ProtocolError, Reply, Request
from hil.protocols.scpi_syntax import MessageReader

SPLIT_S = 1e-3
"""Between the pieces of a message that is split."""


class Messages(Protocol):
    """Takes bytes as they come, and gives whole messages as they were on the wire."""

    @property
    def waits(self) -> bool:
        """Whether the rest of a message is awaited."""

    def clear(self) -> None:
        """Forget what is not complete."""

    def take(self, data: Buffer) -> Iterator[bytes]:
        """The messages that these bytes complete."""


class FrameMessages:
    """Frames; what is none never comes to the port, which would pass it over."""

    def __init__(self) -> None:
        self._reader = FrameReader()

    @property
    def waits(self) -> bool:
        return self._reader.partial

    def clear(self) -> None:
        self._reader.clear()

    def take(self, data: Buffer) -> Iterator[bytes]:
        self._reader.feed(data)
        for frame in self._reader.frames():
            yield b"".join(pack(frame.command, frame.sequence, frame.payload))


class ScpiMessages:
    """SCPI messages; one that is too long is lost."""

    def __init__(self) -> None:
        self._reader = MessageReader()

    @property
    def waits(self) -> bool:
        return self._reader.in_block

    def clear(self) -> None:
        self._reader.clear()

    def take(self, data: Buffer) -> Iterator[bytes]:
        self._reader.feed(data)
        with suppress(ProtocolError):
            yield from self._reader.messages()


class FaultyPort:
    """Stands before the port that `make_port` makes, now and after each reboot. `changed` is called after a fault that
    changed the chip.
    """

    def __init__(
        self,
        make_port: Callable[[], ScpiPort | FramePort],
        messages: Messages,
        instrument: Instrument,
        plan: FaultPlan,
        changed: Callable[[], None],
    ) -> None:
        self._make_port = make_port
        self._port = make_port()
        self._messages = messages
        self._instrument = instrument
        self._plan = plan
        self._changed = changed

    @property
    def waits(self) -> bool:
        """Whether the rest of a message is awaited."""
        return self._messages.waits or self._port.waits

    def abandon(self) -> None:
        """Forget a message whose rest does not come."""
        self._messages.clear()
        self._port.abandon()

    def feed(self, data: Buffer) -> list[Action]:
        """Take bytes; what to do in answer."""
        out: list[Action] = []
        for message in self._messages.take(data):
            out += self._answer(message)
            if out and isinstance(out[-1], Hangup):
                self.abandon()
                break
        return out

    def _answer(self, message: bytes) -> list[Action]:
        parts: list[Action] = [message]
        reboots = False
        for rule, rng in self._plan.strikes("request"):
            if rule.kind in OF_THE_TESTER:
                self._harm(rule, rng)
                reboots = reboots or rule.kind == "reboot"
            else:
                parts = damaged(parts, rule, rng)
        before = self._instrument.firmware.boots
        out = self._pass_on(parts)
        self._instrument.mishap = None
        if reboots:
            if self._instrument.firmware.boots == before:  # the message asked nothing of the tester
                self._instrument.firmware.boot()
            self._port = self._make_port()
            self._changed()
            return [Hangup()]
        return out

    def _pass_on(self, parts: list[Action]) -> list[Action]:
        out: list[Action] = []
        for part in parts:
            if isinstance(part, Pause | Hangup):
                out.append(part)
                continue
            replies: list[Action] = [b"".join(self._port.feed(part))]
            if replies != [b""]:
                for rule, rng in self._plan.strikes("reply"):
                    replies = damaged(replies, rule, rng)
                out += replies
        return out

    def _harm(self, rule: FaultRule, rng: np.random.Generator) -> None:
        if rule.kind == "busy":
            self._instrument.mishap = lambda request: Failure(Fault.BUSY, "busy: try again")
        elif rule.kind == "reboot":
            self._instrument.mishap = lambda request: self._lose_power(request, rng)
        else:
            stuck = self._instrument.firmware.chip.cells["stuck"]
            stuck[rng.choice(len(stuck), rule.cells, replace=False)] = True
            self._changed()

    def _lose_power(self, request: Request, rng: np.random.Generator) -> Reply:
        """Power fails amid a programming, else before the request. What else its message asks is lost."""
        firmware, boots = self._instrument.firmware, self._instrument.firmware.boots
        if isinstance(request, Program):
            after = int(rng.integers(len(request.pulses.cells) + 1))
            with suppress(HilError):
                firmware.program(request.op_id, request.pulses, after)
        if firmware.boots == boots:
            firmware.boot()
        lost = Failure(Fault.HARDWARE, "power failed")
        self._instrument.mishap = lambda request: lost
        return lost


def damaged(parts: list[Action], rule: FaultRule, rng: np.random.Generator) -> list[Action]:
    """What becomes of the parts of a message on its way."""
    match rule.kind:
        case "drop":
            return []
        case "delay" | "late":
            return [Pause(rule.seconds), *parts]
        case "duplicate":
            return parts * 2
    out: list[Action] = []
    for part in parts:
        out += [part] if isinstance(part, Pause | Hangup) else _hurt(bytes(part), rule, rng)
    return out


def _hurt(message: bytes, rule: FaultRule, rng: np.random.Generator) -> list[Action]:
    if not message:
        return [message]
    match rule.kind:
        case "corrupt":
            bit = int(rng.integers(8 * len(message)))
            return [message[: bit // 8] + bytes([message[bit // 8] ^ 1 << bit % 8]) + message[bit // 8 + 1 :]]
        case "truncate":
            return [message[: rng.integers(len(message))]]
        case "close":
            return [message[: rng.integers(len(message))], Hangup()]
        case _:
            first, second = sorted(rng.integers(len(message) + 1, size=2))
            return [message[:first], Pause(SPLIT_S), message[first:second], Pause(SPLIT_S), message[second:]]


def faulty_ports(instrument: Instrument, codec: Codec, plan: FaultPlan, changed: Callable[[], None]) -> Ports:
    """The ports of a twin that speaks one codec, or both, with the faults of a plan; see `FaultyPort`. Raises
    `InputError` where the plan does not suit the chip.
    """
    count = len(instrument.firmware.chip.cells)
    if plan.most_stuck > count:
        raise InputError(f"the plan lets {plan.most_stuck} cells become stuck; the chip has {count}")
    rest = (instrument, plan, changed)
    scpi = FaultyPort(lambda: ScpiPort(instrument), ScpiMessages(), *rest)
    frames = FaultyPort(lambda: FramePort(instrument), FrameMessages(), *rest)
    return chosen(codec, scpi, frames)
