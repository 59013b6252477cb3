"""The bytes between a host and a tester, one message at a time: what the checks of the wire speak through."""

import secrets
import zlib
from abc import abstractmethod
from contextlib import suppress
from time import monotonic
from typing import TypeVar

from hil.check_greeting import greet
from hil.checking import Failed, NotApplicable, Places, Subject, shown
from hil.instruments.link import Link, LinkTimeout
from hil.instruments.resource import WireAddress, open_link
from hil.protocols import frames, scpi, scpi_syntax
from hil.protocols.errors import HilError
from hil.protocols.frames import Frame
from hil.protocols.messages import Capabilities, Cells, Readings, Receipt
from hil.protocols.requests import (
    Describe,
    Description,
    Done,
    Echo,
    Echoed,
    GetState,
    Ground,
    ProtocolError,
    Read,
    Reply,
    Request,
    State,
)

Answer = TypeVar("Answer", Description, State, Done, Echoed, Readings, Receipt)
FORGOTTEN_S = 1.5
"""Silence after which firmware has forgotten half a message: it does after 0.5 s, which a busy machine may see late."""
PULSE_BYTES = 8
"""Of a cell to be pulsed: array, row, column, count."""
MOST_ERRORS = 300
"""Errors that are taken out of a queue before it is taken to be endless."""
NO_ERROR = b'0,"No error"'
TEXT_HELLO = b"\nSYST:ERR?\n"


class Line(Subject):
    """A link that is spoken through without a driver between: what is sent is sent once, and nothing is asked again.

    `pulsed` are the cells that checks may pulse; the last ones of the chip where none are named.
    """

    def __init__(self, address: WireAddress, pulsed: Places = ()) -> None:
        """Raises `LinkError` where the tester cannot be reached."""
        self.address = address
        self.pulsed = pulsed
        self.link: Link = open_link(address)
        self.in_step = False
        self._heard = bytearray()

    @abstractmethod
    def encode(self, request: Request) -> bytes:
        """A request as one whole message."""

    @abstractmethod
    def receive(self, sent: bytes, extra: float = 0.0) -> bytes:
        """The next reply to what was `sent`, without what changes when it is sent again. Waits `extra` s longer."""

    @abstractmethod
    def decode(self, request: Request, reply: bytes) -> Reply:
        """What a reply says. Raises `ProtocolError` on what is none."""

    @abstractmethod
    def forget(self) -> None:
        """Forget what came and was not asked for."""

    @abstractmethod
    def hello(self) -> bytes:
        """What any tester answers to."""

    def ready(self) -> None:
        if not self.in_step:
            self.link.reset(self.address.timeout)
            self.in_step = True
        self.forget()

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self._heard.clear()
        self.link.send([data], self.address.timeout + len(data) / self.link.bytes_per_second)

    def transact(self, request: Request) -> bytes:
        """Send a request; its reply as it came."""
        sent = self.encode(request)
        self.send(sent)
        return self.receive(sent)

    def reply(self, request: Request) -> Reply:
        """Send a request; what the tester says to it."""
        raw = self.transact(request)
        try:
            return self.decode(request, raw)
        except ProtocolError as error:
            raise Failed(f"{name_of(request)} is answered by {shown(raw)}: {error}") from error

    def ask(self, request: Request, kind: type[Answer]) -> Answer:
        """The reply to a request that must be done. Raises `Failed` where it is refused."""
        reply = self.reply(request)
        if not isinstance(reply, kind):
            raise Failed(f"{name_of(request)}: expected {kind.__name__}, got {shown(reply)}")
        return reply

    def state(self) -> State:
        """Where the tester says that it stands."""
        return self.ask(GetState(), State)

    def capabilities(self) -> Capabilities:
        """What the tester says that it can do. Raises `NotApplicable` where it cannot be made out: there is a check for
        that.
        """
        raw = self.transact(Describe())
        try:
            reply = self.decode(Describe(), raw)
        except ProtocolError:
            raise NotApplicable("needs the description, which cannot be read") from None
        if not isinstance(reply, Description):
            raise NotApplicable("needs the description, which is refused")
        return reply.capabilities

    def large_data(self) -> bytes:
        """As many bytes as the pulses of the largest batch, up to 64 KiB; all values occur."""
        return (bytes(range(256)) * 256)[: PULSE_BYTES * self.capabilities().largest_batch]

    def echo(self, data: bytes) -> bytes:
        """What the tester gives back."""
        return bytes(self.ask(Echo(data), Echoed).data)

    def read_next(self, cells: Cells) -> tuple[Read, bytes]:
        """Read cells with the next operation id: the request and its reply as it came."""
        request = Read(self.state().last_op_id + 1, cells)
        raw = self.transact(request)
        reply = self.decode(request, raw)
        if not isinstance(reply, Readings):
            raise Failed(f"a read with the id after the last one, {request.op_id}: expected readings, got {reply}")
        return request, raw

    def needs_stream(self) -> None:
        """Raises `NotApplicable` on a link that sends messages whole."""
        if self.address.kind == "visa":
            raise NotApplicable("a VISA message is sent whole")

    def close(self) -> None:
        """Ground the lines, and let go. Never raises."""
        with suppress(HilError, Failed):
            if not self.in_step:
                self.link.reset(self.address.timeout)
            self.transact(Ground())
        self.link.close()

    def _listen(self, sent: bytes, deadline: float) -> bytes:
        """Some bytes, until the deadline. Raises `Failed` with what was heard when it has passed."""
        left = deadline - monotonic()
        with suppress(LinkTimeout):
            if left > 0:
                data = self.link.receive(left)
                self._heard += data
                return data
        heard = f"only {shown(bytes(self._heard))}" if self._heard else "no answer"
        why = self._explain(bytes(self._heard))
        raise Failed(f"sent {shown(sent)}: {heard} in {self.address.timeout:g} s{f' ({why})' if why else ''}")

    def _deadline(self, sent: bytes, extra: float) -> float:
        return monotonic() + self.address.timeout + extra + 2 * len(sent) / self.link.bytes_per_second

    def _explain(self, heard: bytes) -> str:
        """Why what was heard is no answer; "" where that is plain."""
        return ""


class TextLine(Line):
    """SCPI text. Every request of ours is followed by `SYSTem:ERRor?`, so that a refusal is answered too."""

    def __init__(self, address: WireAddress, pulsed: Places = ()) -> None:
        super().__init__(address, pulsed)
        self._reader = scpi_syntax.MessageReader()

    def encode(self, request: Request) -> bytes:
        return b"".join(scpi.encode_request(request)) + b";:SYST:ERR?\n"

    def receive(self, sent: bytes, extra: float = 0.0) -> bytes:
        deadline = self._deadline(sent, extra)
        while True:
            for message in self._reader.messages():
                return message.removesuffix(b"\n")
            self._reader.feed(self._listen(sent, deadline))

    def decode(self, request: Request, reply: bytes) -> Reply:
        units = scpi_syntax.split(reply)
        if len(units) == 2:
            return scpi.decode_reply(request, units[0])
        failure = scpi.decode_error(units[0]) if len(units) == 1 else None
        if failure is None:
            raise Failed(f"{name_of(request)}: expected a reply and an error, or an error, got {shown(reply)}")
        return failure

    def hello(self) -> bytes:
        return TEXT_HELLO

    def forget(self) -> None:
        self._reader.clear()
        self.tell(b"*CLS;*ESE 0;*SRE 0")
        self.errors()

    def tell(self, *commands: bytes) -> None:
        """Send commands, each a message of its own."""
        for command in commands:
            self.send(command + b"\n")

    def query(self, text: bytes) -> bytes:
        """The answer to a query of one line."""
        sent = text + b"\n"
        self.send(sent)
        try:
            return self.receive(sent)
        except Failed as failure:
            raise Failed(f"{failure}; error queue: {self._errors_told()}") from None

    def errors(self) -> list[int]:
        """The numbers in the error queue, taken out of it; answers that are none are passed over."""
        codes: list[int] = []
        for _ in range(MOST_ERRORS):
            self.send(b"SYST:ERR?\n")
            answer = self.receive(b"SYST:ERR?\n")
            if answer == NO_ERROR:
                return codes
            with suppress(ValueError):
                codes.append(int(answer.partition(b",")[0]))
        raise Failed(f"the error queue has no end: {MOST_ERRORS} errors, the last {shown(answer)}")

    def error_after(self, text: bytes) -> int:
        """The number of the error that a command leaves, which must have no answer; 0 for none."""
        self.tell(text, b"SYST:ERR?")
        answer = self.receive(text + b"\n")
        number, comma, rest = answer.partition(b",")
        if not comma or not rest.startswith(b'"') or not number.lstrip(b"+-").isdigit():
            raise Failed(f"sent {shown(text)}: expected an error and no answer, got {shown(answer)}")
        return int(number)

    def _errors_told(self) -> str:
        self._reader.clear()
        self.send(b"SYST:ERR?\n")
        try:
            return shown(self.receive(b"SYST:ERR?\n"))
        except Failed:
            return "no answer either"


class FrameLine(Line):
    """Binary frames. A reply stands for its command and payload; that its sequence number is right is checked here."""

    def __init__(self, address: WireAddress, pulsed: Places = ()) -> None:
        super().__init__(address, pulsed)
        self._reader = frames.FrameReader()
        self.sequence = secrets.randbits(31)

    def encode(self, request: Request) -> bytes:
        self.sequence += 1
        return b"".join(frames.encode_request(request, self.sequence))

    def receive(self, sent: bytes, extra: float = 0.0) -> bytes:
        frame = self.frame(sent, extra)
        if frame.sequence != self.sequence:
            raise Failed(f"sent a frame with sequence number {self.sequence}: the reply has {frame.sequence}")
        return bytes([frame.command]) + frame.payload

    def decode(self, request: Request, reply: bytes) -> Reply:
        return frames.decode_reply(request, Frame(reply[0], self.sequence, memoryview(reply)[1:]))

    def hello(self) -> bytes:
        return self.encode(Echo(b"hello")) + TEXT_HELLO  # what waits for a line of text says what it is

    def forget(self) -> None:
        self._reader.clear()

    def frame(self, sent: bytes, extra: float = 0.0) -> Frame:
        """The next frame whose checksums are right."""
        deadline = self._deadline(sent, extra)
        while True:
            for frame in self._reader.frames():
                return frame
            self._reader.feed(self._listen(sent, deadline))

    def _explain(self, heard: bytes) -> str:
        if not heard:
            return ""
        if not heard.startswith(frames.MAGIC) or len(heard) < frames.OVERHEAD:
            return "no whole frame: it begins with A5 5A and has at least 20 bytes"
        (told,) = frames.CRC.unpack_from(heard, frames.HEADER.size)
        crc = zlib.crc32(heard[: frames.HEADER.size])
        if told != crc:
            return f"checksum of the header 0x{told:08X} where 0x{crc:08X} is expected"
        size = frames.OVERHEAD + frames.HEADER.unpack_from(heard)[-1]
        if len(heard) < size:
            return f"{len(heard)} of {size} bytes"
        (told,), crc = frames.CRC.unpack_from(heard, size - 4), _frame_crc(heard[: size - 4])
        return "" if told == crc else f"checksum of the frame 0x{told:08X} where 0x{crc:08X} is expected"


def _frame_crc(frame: bytes) -> int:
    """Of the header and the payload; the header's own checksum is left out."""
    return zlib.crc32(frame[frames.START :], zlib.crc32(frame[: frames.HEADER.size]))


def open_line(address: WireAddress, pulsed: Places = ()) -> TextLine | FrameLine:
    """The line to what speaks as a tester. Raises `TesterError` where nothing does."""
    line = TextLine(address, pulsed) if address.codec == "scpi" else FrameLine(address, pulsed)
    try:
        line.in_step = greet(line.link, address, line.hello())
    except BaseException:
        line.link.close()
        raise
    return line


def name_of(request: Request) -> str:
    """A request's name, as in a sentence."""
    return type(request).__name__.lower()
