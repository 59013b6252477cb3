"""The twin's text port: SCPI messages in, responses out."""

import re
from collections.abc import Callable, Sequence

from hil.mock_hw.instrument import Instrument
from hil.mock_hw.status import OPERATION_COMPLETE, Register, StatusSystem
from hil.protocols.messages import Identity
from hil.protocols.payloads import Buffer
from hil.protocols.requests import FAULT_TEXT, Failure, Fault, ProtocolError, Request, failure_of
from hil.protocols.scpi import HEADERS, encode_reply, error_reply, parse_request
from hil.protocols.scpi_syntax import Element, MessageReader, Unit, forms, integer, split

SCPI_VERSION = b"1999.0"
LONGEST_ERROR = 255
"""Characters of an error's text, without the quotes (SCPI-99, 21.8)."""

_ROOT = b":"
_HEADER = re.compile(rb"(\*[A-Z]+|:?[A-Z]\w*(:[A-Z]\w*)*)\??")
_NOT_IN_A_HEADER = re.compile(rb"[^!-~]")
_NOT_IN_A_FIELD = re.compile(r"[^\w .:/+()-]", re.ASCII)

Handler = Callable[[Sequence[Element], Unit], list[Buffer]]
"""Does a unit, given its parameters; the parts of its response, none for a command that has none."""


class ScpiPort:
    """Answers SCPI messages. An error goes into the queue, and the unit that caused it has no response."""

    def __init__(self, instrument: Instrument) -> None:
        self._instrument = instrument
        self._status = StatusSystem()
        self._reader = MessageReader()
        self._path = _ROOT
        self._response: list[Buffer] = []
        patterns = self._common() | self._system() | self._subtrees() | self._ours()
        self._handlers = {_key(form): handler for pattern, handler in patterns.items() for form in forms(pattern)}

    @property
    def waits(self) -> bool:
        """Whether the rest of a block is awaited."""
        return self._reader.in_block

    def abandon(self) -> None:
        """Forget a message whose rest does not come."""
        self._reader.clear()

    def feed(self, data: Buffer) -> list[Buffer]:
        """Take bytes; what is to be sent in answer, in parts."""
        self._reader.feed(data)
        out: list[Buffer] = []
        while True:
            try:
                for message in self._reader.messages():
                    out += self._answer(message)
                return out
            except ProtocolError as error:  # a message that is too long or has a damaged block; others may follow
                self._status.push(failure_of(error))

    def _answer(self, message: bytes) -> list[Buffer]:
        self._path, self._response = _ROOT, []
        for unit in split(message):
            answer = self._do(unit)
            if answer:
                self._response += [b";", *answer] if self._response else answer
        return [*self._response, b"\n"] if self._response else []

    def _do(self, unit: Unit) -> list[Buffer]:
        header, parameters = _header_and_parameters(unit)
        if not header and not parameters:
            return []  # an empty message, or nothing between two semicolons
        try:
            handler = self._find(header)
            return self._refuse(why_unknown(header)) if handler is None else handler(parameters, unit)
        except ProtocolError as error:
            return self._refuse(failure_of(error))

    def _refuse(self, failure: Failure) -> list[Buffer]:
        self._status.push(failure)
        return []

    def _find(self, header: bytes) -> Handler | None:
        """What does a header that is written in full, or continues at the current node. Moves that node."""
        if header.startswith(b"*"):
            return self._handlers.get(header.upper())
        key = (header if header.startswith(b":") else self._path + header).upper()
        self._path = key[: key.rfind(b":") + 1]
        return self._handlers.get(key)

    def _common(self) -> dict[str, Handler]:
        status = self._status
        standard = status.standard
        return {
            "*CLS": _action(status.clear),
            "*ESE": _setting(0xFF, standard.set_enable),
            "*ESE?": _number(lambda: standard.enable),
            "*ESR?": _number(standard.take),
            "*IDN?": _query(lambda: identification(self._instrument.identity)),
            "*OPC": _action(lambda: standard.latch(OPERATION_COMPLETE)),
            "*OPC?": _number(lambda: 1),
            "*RST": _action(self._instrument.firmware.ground),
            "*SRE": _setting(0xFF, status.set_service),
            "*SRE?": _number(lambda: status.service),
            # Earlier messages have been sent, so that only an answer of this one can still wait.
            "*STB?": _number(lambda: status.byte(answer_waits=bool(self._response))),
            "*TST?": _number(lambda: 0),
            "*WAI": _action(lambda: None),  # each command is done before the next begins
        }

    def _system(self) -> dict[str, Handler]:
        status = self._status
        return {
            "SYSTem:ERRor[:NEXT]?": _query(lambda: error_text(status.next_error())),
            "SYSTem:ERRor:COUNt?": _number(lambda: status.error_count),
            "SYSTem:VERSion?": _query(lambda: SCPI_VERSION),
            "STATus:PRESet": _action(status.preset),
        }

    def _subtrees(self) -> dict[str, Handler]:
        operation, questionable = self._status.operation, self._status.questionable
        return _subtree("STATus:OPERation", operation) | _subtree("STATus:QUEStionable", questionable)

    def _ours(self) -> dict[str, Handler]:
        return {header: self._operation(kind) for kind, header in HEADERS.items()}

    def _operation(self, kind: type[Request]) -> Handler:
        def handle(parameters: Sequence[Element], unit: Unit) -> list[Buffer]:
            reply = self._instrument.answer(parse_request(kind, parameters, unit))
            return self._refuse(reply) if isinstance(reply, Failure) else encode_reply(reply)

        return handle


def _key(form: str) -> bytes:
    return (form if form.startswith("*") else f":{form}").encode()


def _header_and_parameters(unit: Unit) -> tuple[bytes, list[Element]]:
    first, *others = unit.elements
    header, *rest = first.text.split(None, 1) or [b""]
    if rest or others or first.block is not None:
        others.insert(0, Element(rest[0] if rest else b"", first.block))
    return header, others


def _subtree(node: str, register: Register) -> dict[str, Handler]:
    return {
        f"{node}[:EVENt]?": _number(register.take),
        f"{node}:CONDition?": _number(lambda: register.condition),
        f"{node}:ENABle": _setting(0xFFFF, register.set_enable),
        f"{node}:ENABle?": _number(lambda: register.enable),
    }


def _query(get: Callable[[], bytes]) -> Handler:
    def handle(parameters: Sequence[Element], unit: Unit) -> list[Buffer]:
        _check_count(parameters, 0)
        return [get()]

    return handle


def _number(get: Callable[[], int]) -> Handler:
    return _query(lambda: b"%d" % get())


def _action(do: Callable[[], None]) -> Handler:
    def handle(parameters: Sequence[Element], unit: Unit) -> list[Buffer]:
        _check_count(parameters, 0)
        do()
        return []

    return handle


def _setting(top: int, put: Callable[[int], None]) -> Handler:
    def handle(parameters: Sequence[Element], unit: Unit) -> list[Buffer]:
        _check_count(parameters, 1)
        put(_mask(parameters[0], top))
        return []

    return handle


def _check_count(parameters: Sequence[Element], count: int) -> None:
    if len(parameters) != count:
        fault = Fault.MISSING_PARAMETER if len(parameters) < count else Fault.TOO_MANY
        raise ProtocolError(fault, f"{count} expected, got {len(parameters)}")


def _mask(parameter: Element, top: int) -> int:
    if parameter.block is not None:
        raise ProtocolError(Fault.BLOCK_NOT_ALLOWED, "a block where a number is expected")
    value = integer(parameter.text)
    if not 0 <= value <= top:
        raise ProtocolError(Fault.OUT_OF_RANGE, f"{_shown(parameter.text)} is outside 0 to {top}")
    return value


def why_unknown(header: bytes) -> Failure:
    """What is wrong with a header that no command has. A numeric suffix makes it an undefined one (-113): as no command
    has suffixes, none can be out of range (-114).
    """
    if _NOT_IN_A_HEADER.search(header):
        return Failure(Fault.INVALID_CHARACTER, _shown(header))
    well_formed = _HEADER.fullmatch(header.upper()) is not None
    return Failure(Fault.UNDEFINED_HEADER if well_formed else Fault.SYNTAX, _shown(header))


def _shown(text: bytes) -> str:
    return text[:30].decode("ascii", "replace")


def identification(identity: Identity) -> bytes:
    """The answer to `*IDN?`: four fields, in which a character that could end a field or begin a block is "_"; "0" is
    one that is not known.
    """
    fields = (identity.vendor, identity.model, identity.serial, identity.firmware)
    return ",".join(_NOT_IN_A_FIELD.sub("_", field) or "0" for field in fields).encode()


def error_text(failure: Failure | None) -> bytes:
    """The answer to `SYSTem:ERRor?`, with as much of the text as fits."""
    if failure is None:
        return error_reply(None)
    meaning = FAULT_TEXT[Fault(failure.code)]
    room = LONGEST_ERROR - len(meaning) - 1
    return error_reply(Failure(failure.code, failure.text[:room]), meaning)
