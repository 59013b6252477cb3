"""The twin's binary port: frames in, frames out."""

from hil.mock_hw.instrument import Instrument
from hil.protocols.frames import Frame, FrameReader, decode_request, encode_reply
from hil.protocols.payloads import Buffer
from hil.protocols.requests import ProtocolError, Reply, failure_of


class FramePort:
    """Answers frames. What is no frame is passed over without an answer: the host asks again."""

    def __init__(self, instrument: Instrument) -> None:
        self._instrument = instrument
        self._reader = FrameReader()

    @property
    def waits(self) -> bool:
        """Whether the rest of a frame is awaited."""
        return self._reader.partial

    def abandon(self) -> None:
        """Forget a frame whose rest does not come."""
        self._reader.clear()

    def feed(self, data: Buffer) -> list[Buffer]:
        """Take bytes; what is to be sent in answer, in parts."""
        self._reader.feed(data)
        out: list[Buffer] = []
        for frame in self._reader.frames():
            out += encode_reply(frame.command, frame.sequence, self._answer(frame))
        return out

    def _answer(self, frame: Frame) -> Reply:
        try:
            request = decode_request(frame)
        except ProtocolError as error:
            return failure_of(error)
        return self._instrument.answer(request)
