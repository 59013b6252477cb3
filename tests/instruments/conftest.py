"""A line in memory between a driver and a twin, which can be made to fail."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from hil.instruments.conversation import Conversation, FrameConversation, ScpiConversation
from hil.instruments.exchange import Exchange
from hil.instruments.link import Link, LinkClosed, LinkTimeout
from hil.instruments.wire import WireTester
from hil.mock_hw.array import Chip
from hil.mock_hw.chips import CHIPS
from hil.mock_hw.firmware import Firmware
from hil.mock_hw.frame_port import FramePort
from hil.mock_hw.instrument import Instrument
from hil.mock_hw.scpi_port import ScpiPort
from hil.protocols.messages import Identity, TesterKind

IDENTITY = Identity("PCM-HIL", "pcm-analog", "twin", "1", "chip-1", TesterKind.TWIN)
CODECS: dict[str, tuple[type[ScpiPort | FramePort], type[Conversation]]] = {
    "scpi": (ScpiPort, ScpiConversation),
    "frames": (FramePort, FrameConversation),
}
Damage = Callable[[bytes], "list[bytes | str]"]
"""What becomes of a message on its way: pieces that arrive, "late" before one that arrives with the next message,
"close" where the line is cut.
"""


def untouched(message: bytes) -> list[bytes | str]:
    return [message]


@dataclass
class Line(Link):
    """Nothing takes time on it: where nothing has arrived, a wait is over at once. `serial` keeps late bytes."""

    port: ScpiPort | FramePort
    serial: bool = False
    damage: dict[str, Damage] = field(default_factory=dict)
    """By "request" and "reply"; each strikes once."""
    sent: list[bytes] = field(default_factory=list)
    answered: list[bytes] = field(default_factory=list)
    name = "line"
    bytes_per_second = 1e9

    def __post_init__(self) -> None:
        self._inbox: deque[bytes] = deque()
        self._late: dict[str, list[bytes]] = {"request": [], "reply": []}
        self._closed = False

    def send(self, parts: Sequence[bytes | bytearray | memoryview], timeout: float) -> None:
        if self._closed:
            raise LinkClosed("line: cut")
        self.sent.append(b"".join(parts))
        for piece in self._carry("request", self.sent[-1]):
            reply = b"".join(self.port.feed(piece))
            if reply and not self._closed:
                self.answered.append(reply)
                self._inbox.extend(self._carry("reply", reply))

    def receive(self, timeout: float) -> bytes:
        if self._inbox:
            return self._inbox.popleft()
        if self._closed:
            raise LinkClosed("line: cut")
        raise LinkTimeout("line: silent")

    def reset(self, timeout: float) -> None:
        self._closed = False
        self._inbox.clear()
        self.port.abandon()
        if not self.serial:
            self._late = {"request": [], "reply": []}

    def close(self) -> None:
        self._closed = True

    def _carry(self, where: str, message: bytes) -> Iterator[bytes]:
        yield from self._late[where]
        self._late[where] = []
        late = False
        for piece in self.damage.pop(where, untouched)(message):
            if piece == "close":
                self._closed = True
            elif piece == "late":
                late = True
            elif isinstance(piece, bytes) and late:
                self._late[where].append(piece)
            elif isinstance(piece, bytes):
                yield piece


@dataclass
class Bench:
    """A twin, its driver, and the line between them."""

    firmware: Firmware
    line: Line
    tester: WireTester


MakeBench = Callable[..., Bench]


@pytest.fixture(scope="session")
def make_bench() -> MakeBench:
    def make(codec: str, serial: bool = False, attempts: int = 4, **changes: object) -> Bench:
        chip = replace(CHIPS["pcm-analog"], **{"arrays": 1, "rows": 8, "columns": 8, **changes})  # type: ignore[arg-type]
        firmware = Firmware(Chip(chip, np.random.SeedSequence(1)))
        port, conversation = CODECS[codec]
        line = Line(port(Instrument(firmware, IDENTITY)), serial)
        tester = WireTester(Exchange(line, conversation(), 1.0, pauses=(0.0,) * attempts))
        line.sent.clear()
        line.answered.clear()
        return Bench(firmware, line, tester)

    return make
