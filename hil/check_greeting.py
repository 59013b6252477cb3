"""The first contact with what may be a tester: checks are worth making only where something speaks this protocol."""

import re
from collections.abc import Sequence
from contextlib import suppress
from time import monotonic

from hil.checking import shown
from hil.instruments.conversation import CONVERSATIONS
from hil.instruments.exchange import Exchange
from hil.instruments.link import Link, LinkError, LinkTimeout
from hil.instruments.resource import WireAddress
from hil.protocols.errors import TesterError
from hil.protocols.payloads import Buffer

SPOKEN = {
    "scpi": re.compile(rb'^(?:[-+]?\d+,"[^\n]*"|[-+#\d][^\n]*,#H[0-9A-F]{8}(?:;[^\n]*)?)\s*$', re.MULTILINE | re.I),
    "frames": re.compile(rb"\xa5\x5a\x01[\x81-\x85\xff]"),
}
"""What a tester says in each codec: an error, or fields and a checksum; a frame that is a reply. It may be wrong."""
EXPECTED = {"scpi": 'a line like 0,"No error"', "frames": "a frame, a5 5a 01 and the reply's command"}
OTHER = {"scpi": "frames", "frames": "scpi"}
KEPT = 4096
"""Bytes that are looked at."""


class Overheard(Link):
    """A link, and the beginning of what came over it."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self.name, self.bytes_per_second = link.name, link.bytes_per_second
        self.heard = b""

    def send(self, parts: Sequence[Buffer], timeout: float) -> None:
        self._link.send(parts, timeout)

    def receive(self, timeout: float) -> bytes:
        data = self._link.receive(timeout)
        self.heard = (self.heard + data[:KEPT])[:KEPT]
        return data

    def reset(self, timeout: float) -> None:
        self._link.reset(timeout)

    def close(self) -> None:
        self._link.close()


def greet(link: Link, address: WireAddress, hello: bytes) -> bool:
    """Come into step as a run does. False where that fails and yet messages of this codec come: checks will tell why.

    Raises `TesterError` where the line is closed, and where nothing that comes is such a message. `hello` is what any
    tester answers to.
    """
    overheard = Overheard(link)
    try:
        Exchange(overheard, CONVERSATIONS[address.codec](), address.timeout, pauses=()).open()
        return True
    except TesterError as error:
        if isinstance(error.__cause__, LinkError) and not isinstance(error.__cause__, LinkTimeout):
            raise
    _ask(overheard, address, hello)
    if SPOKEN[address.codec].search(overheard.heard):
        return False
    raise TesterError(_why_none(overheard, address, hello))


def _ask(link: Overheard, address: WireAddress, hello: bytes) -> None:
    """Say hello and listen, until a message comes or nothing more. Raises `TesterError` where the line is closed."""
    before, deadline = len(link.heard), monotonic() + address.timeout
    try:
        with suppress(LinkTimeout):
            link.send([hello], address.timeout)
            while not SPOKEN[address.codec].search(link.heard[before:]) and (left := deadline - monotonic()) > 0:
                link.receive(left)
    except LinkError as error:
        said = f"; it said {shown(link.heard)}" if link.heard else ""
        raise TesterError(f"{error}{said}") from error


def _why_none(link: Overheard, address: WireAddress, hello: bytes) -> str:
    """What was asked and what came; the other codec is named where nothing came, or its messages."""
    other = OTHER[address.codec]
    hint = f"; does it speak ?codec={other}?" if not link.heard or SPOKEN[other].search(link.heard) else ""
    if not link.heard:
        return f"{link.name}: connected, but {shown(hello)} is not answered in {address.timeout:g} s{hint}"
    return (
        f"{link.name} answers, but not as a tester: asked for its state and then {shown(hello)}, it said "
        f"{shown(link.heard)}; expected {EXPECTED[address.codec]}{hint}"
    )
