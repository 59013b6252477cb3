"""What a server sees of a twin's ports: bytes in, and what to do in answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from hil.mock_hw.frame_port import FramePort
from hil.mock_hw.instrument import Instrument
from hil.mock_hw.scpi_port import ScpiPort
from hil.protocols.frames import MAGIC
from hil.protocols.payloads import Buffer

Codec = Literal["auto", "scpi", "frames"]


@dataclass(frozen=True, slots=True)
class Pause:
    """Nothing is sent for so long (s)."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Hangup:
    """The connection is cut."""


Action = Buffer | Pause | Hangup


class Port(Protocol):
    """A codec in front of a twin."""

    @property
    def waits(self) -> bool:
        """Whether the rest of a frame or block is awaited."""

    def abandon(self) -> None:
        """Forget a message whose rest does not come."""

    def feed(self, data: Buffer) -> Sequence[Action]:
        """Take bytes; what to do in answer, one after the other."""


@dataclass(frozen=True)
class Ports:
    """The ports that may be spoken to on one line; the same one twice where only one codec is spoken."""

    scpi: Port
    frames: Port

    def of(self, first: int) -> Port:
        """The port for a message that begins with this byte."""
        return self.frames if first == MAGIC[0] else self.scpi


def make_ports(instrument: Instrument, codec: Codec) -> Ports:
    """The ports of a twin that speaks one codec, or both."""
    return chosen(codec, ScpiPort(instrument), FramePort(instrument))


def chosen(codec: Codec, scpi: Port, frames: Port) -> Ports:
    """Of these ports, those that are to be spoken to."""
    return Ports(frames if codec == "frames" else scpi, scpi if codec == "scpi" else frames)
