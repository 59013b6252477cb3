"""What an instrument says of itself: error queue and status registers (IEEE 488.2, 11; SCPI-99, volume 2, 20)."""

from collections import deque

from hil.protocols.requests import Failure, Fault

QUEUE_SIZE = 20
"""Errors that are kept. CHOSEN."""

OPERATION_COMPLETE, QUERY_ERROR, DEVICE_ERROR, EXECUTION_ERROR, COMMAND_ERROR, POWER_ON = 1, 4, 8, 16, 32, 128
"""Bits of the standard event register, which `*ESR?` reads."""

ERROR_QUEUE, QUESTIONABLE, MESSAGE_AVAILABLE, EVENT_SUMMARY, MASTER_SUMMARY, OPERATION = 4, 8, 16, 32, 64, 128
"""Bits of the status byte, which `*STB?` reads."""

_CLASS_BITS = {1: COMMAND_ERROR, 2: EXECUTION_ERROR, 3: DEVICE_ERROR, 4: QUERY_ERROR}


class Register:
    """Events, kept until they are read, and which of them count in the summary; `usable` are the bits it has."""

    def __init__(self, usable: int, events: int = 0) -> None:
        self.condition = 0
        """What is so now. All is done when it is answered, so that nothing of a twin shows here."""
        self.enable = 0
        self._usable = usable
        self._events = events

    @property
    def summary(self) -> bool:
        """Whether an event has happened that counts."""
        return self._events & self.enable != 0

    def latch(self, events: int) -> None:
        """These events happened."""
        self._events |= events & self._usable

    def take(self) -> int:
        """The events since they were last read."""
        events, self._events = self._events, 0
        return events

    def set_enable(self, mask: int) -> None:
        """Choose the events that count; bits that the register does not have are ignored."""
        self.enable = mask & self._usable


class StatusSystem:
    """The error queue and the registers that lead to the status byte, as they are when power comes on."""

    def __init__(self) -> None:
        self.standard = Register(0xFF, POWER_ON)
        self.operation = Register(0x7FFF)  # bit 15 is never used, so that a signed number holds it
        self.questionable = Register(0x7FFF)
        self.service = 0
        """Bits of the status byte that request service."""
        self._errors: deque[Failure] = deque()

    @property
    def error_count(self) -> int:
        """Errors in the queue."""
        return len(self._errors)

    def push(self, failure: Failure) -> None:
        """Report an error. In a full queue an overflow takes the place of the newest; the oldest stay."""
        self.standard.latch(class_bit(failure.code))
        if len(self._errors) == QUEUE_SIZE:
            self._errors.pop()
            failure = Failure(Fault.QUEUE_OVERFLOW, "")
            self.standard.latch(class_bit(failure.code))
        self._errors.append(failure)

    def next_error(self) -> Failure | None:
        """Take the oldest error out of the queue; None if there is none."""
        return self._errors.popleft() if self._errors else None

    def set_service(self, mask: int) -> None:
        """Choose the bits of the status byte that request service; the bit that says so is ignored."""
        self.service = mask & ~MASTER_SUMMARY

    def byte(self, answer_waits: bool) -> int:
        """The status byte; `answer_waits` is whether an answer stands in the output queue."""
        shown = {
            ERROR_QUEUE: bool(self._errors),
            QUESTIONABLE: self.questionable.summary,
            MESSAGE_AVAILABLE: answer_waits,
            EVENT_SUMMARY: self.standard.summary,
            OPERATION: self.operation.summary,
        }
        bits = sum(bit for bit, is_set in shown.items() if is_set)
        return bits | MASTER_SUMMARY if bits & self.service else bits

    def clear(self) -> None:
        """Forget errors and events, and keep what is enabled (`*CLS`)."""
        self._errors.clear()
        for register in (self.standard, self.operation, self.questionable):
            register.take()

    def preset(self) -> None:
        """Enable nothing in the registers of SCPI, and leave those of IEEE 488.2 (`STATus:PRESet`)."""
        self.operation.set_enable(0)
        self.questionable.set_enable(0)


def class_bit(code: int) -> int:
    """The standard event that an error belongs to: -1xx command, -2xx execution, -3xx and positive ones device, -4xx
    query.
    """
    return DEVICE_ERROR if code > 0 else _CLASS_BITS[-code // 100]
