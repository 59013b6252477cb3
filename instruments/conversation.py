"""The host's side of each codec: a request out, and of all that comes back, the reply to that request."""

import secrets
from abc import ABC, abstractmethod

from hil.protocols import frames, scpi, scpi_syntax
from hil.protocols.messages import Readings, Receipt
from hil.protocols.payloads import Buffer
from hil.protocols.requests import (
    Echo,
    Echoed,
    Failure,
    Fault,
    OperationRequest,
    ProtocolError,
    Reply,
    Request,
)

SHOWN = 60
"""Characters of an answer that is none which are quoted in an error."""


class AskAgain(Exception):
    """A refusal that may belong to an earlier request: the same request, once more, will tell."""


class Conversation(ABC):
    """Pairs requests with replies. A reply to an earlier request never passes for one to the newest."""

    @abstractmethod
    def request(self, request: Request, repeat: bool = True) -> list[Buffer]:
        """What to send, in parts. Without `repeat`, the request must not be sent a second time."""

    @abstractmethod
    def feed(self, data: bytes) -> None:
        """What came back."""

    @abstractmethod
    def reply(self) -> Reply | None:
        """The reply to the newest request; None where it has not come yet.

        Raises `ProtocolError` on what is none, and `AskAgain`.
        """

    @abstractmethod
    def clear(self) -> bytes:
        """Forget what came; what to send so that the other side forgets half a message, too."""

    @abstractmethod
    def heard(self) -> str:
        """What came and is no reply, for an error message; "" where nothing came."""


class FrameConversation(Conversation):
    """Frames: replies carry the sequence number of their request."""

    def __init__(self) -> None:
        self._reader = frames.FrameReader()
        self._request: Request | None = None
        self._sequence = secrets.randbits(32)  # answers to an earlier process do not fit

    def request(self, request: Request, repeat: bool = True) -> list[Buffer]:
        self._request = request
        self._sequence = (self._sequence + 1) & 0xFFFFFFFF
        return frames.encode_request(request, self._sequence)

    def feed(self, data: bytes) -> None:
        self._reader.feed(data)

    def reply(self) -> Reply | None:
        for frame in self._reader.frames():
            if frame.sequence == self._sequence and self._request is not None:
                return frames.decode_reply(self._request, frame)
        return None

    def clear(self) -> bytes:
        self._reader.clear()
        return b""

    def heard(self) -> str:
        return _shown(bytes(self._reader.skipped))


class ScpiConversation(Conversation):
    """SCPI text, where replies carry no sequence number.

    Replies to operations carry the operation's id. Before any other request, and before one that is repeated because it
    was refused or must not be repeated, the tester is made to echo a number used once. A refusal comes without
    checksum: where the request may be repeated, it is believed when the same one comes twice.
    """

    def __init__(self) -> None:
        self._reader = scpi_syntax.MessageReader()
        self._request: Request | None = None
        self._nonce = b""
        self._told: Failure | None = None
        self._repeat = True
        self._other = b""

    def request(self, request: Request, repeat: bool = True) -> list[Buffer]:
        self._repeat = repeat
        if request is not self._request:
            self._request, self._told = request, None
        self._nonce = self._other = b""
        parts: list[Buffer] = []
        if self._told is not None or not repeat or not isinstance(request, OperationRequest):
            self._nonce = secrets.token_hex(4).encode()
            parts = [*scpi.encode_request(Echo(self._nonce)), b";:"]
        return [*parts, *scpi.encode_request(request), b";:", scpi.ERROR_QUERY, b"\n"]

    def feed(self, data: bytes) -> None:
        self._reader.feed(data)

    def reply(self) -> Reply | None:
        for message in self._reader.messages():
            self._other = self._other or message
            reply = self._reply_in(message)
            if reply is not None:
                return reply
        return None

    def clear(self) -> bytes:
        self._reader.clear()
        self._other = b""
        return b"\n*CLS\n"

    def heard(self) -> str:
        return _shown(self._other or self._reader.text())

    def _reply_in(self, message: bytes) -> Reply | None:
        """The reply in a message; None where it belongs to an earlier request."""
        if self._request is None:
            return None
        if self._nonce:
            units = self._units_after_nonce(message)
            if units is None:
                return None
        else:
            units = scpi_syntax.split(message)
        if len(units) == 2:
            reply = scpi.decode_reply(self._request, units[0])
            return reply if _fits(self._request, reply) else None
        if len(units) != 1:
            raise ProtocolError(Fault.CORRUPT, f"{len(units)} answers where one is expected")
        return self._refusal(scpi.decode_error(units[0]))

    def _units_after_nonce(self, message: bytes) -> list[scpi_syntax.Unit] | None:
        """What follows the echo; None in a message that does not begin with it."""
        try:
            units = scpi_syntax.split(message)
            echo = scpi.decode_reply(Echo(b""), units[0])
        except ProtocolError:
            return None
        return units[1:] if echo == Echoed(self._nonce) else None

    def _refusal(self, failure: Failure | None) -> Failure:
        if failure is None:
            raise ProtocolError(Fault.CORRUPT, "no reply, and no error")
        if self._nonce and (failure == self._told or not self._repeat):
            return failure
        self._told = failure
        raise AskAgain


CONVERSATIONS: dict[str, type[Conversation]] = {"scpi": ScpiConversation, "frames": FrameConversation}


def _fits(request: Request, reply: Reply) -> bool:
    """Whether a reply to an operation carries its id."""
    if not isinstance(request, OperationRequest):
        return True
    return isinstance(reply, Readings | Receipt) and reply.op_id == request.op_id


def _shown(data: bytes) -> str:
    if not data.strip():
        return ""
    text = ascii(data.strip())[1:]
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}...'"
