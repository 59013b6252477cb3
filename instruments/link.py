"""What every link does: bytes to and from a tester, each call within a time."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from time import monotonic

from hil.protocols.errors import TesterError
from hil.protocols.payloads import Buffer

QUIET_S = 0.6  # firmware throws half a command away after 0.5 s
LARGEST_RECEIVE = 256 * 1024


class LinkError(TesterError):
    """The tester cannot be reached, or the line to it failed."""


class LinkTimeout(LinkError):
    """Nothing arrived, or not everything could be sent, in the time given."""


class LinkClosed(LinkError):
    """The other end is gone: end of file, reset, unplugged. `Link.reset` may bring it back."""


class Link(ABC):
    """A byte stream to a tester. Not safe for threads: whoever uses it holds one lock per transaction.

    Timeouts are in seconds; with zero or less nothing is waited for.
    """

    name: str
    """As the user would type it, for messages: tcp://127.0.0.1:5025."""

    bytes_per_second: float
    """What the line carries at least; a caller adds size / bytes_per_second to its timeouts."""

    @abstractmethod
    def send(self, parts: Sequence[Buffer], timeout: float) -> None:
        """Send all parts as one stretch of bytes. After a `LinkTimeout` an unknown share of them is under way."""

    @abstractmethod
    def receive(self, timeout: float) -> bytes:
        """At least one byte, and as many as are there, up to 256 KiB; `LinkTimeout` after so long a silence."""

    @abstractmethod
    def reset(self, timeout: float) -> None:
        """Afterwards nothing that was sent or answered before is on the way any more; also opens a closed link.

        Tries once; the caller backs off and repeats. `LinkError` where the tester cannot be reached.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of the line. Idempotent, and never raises."""


def wait_for_silence(link: Link, timeout: float) -> None:
    """Drop what arrives until nothing has for `QUIET_S`; `LinkTimeout` where it goes on for `timeout` (s)."""
    deadline = monotonic() + timeout
    try:
        link.receive(QUIET_S)
        while monotonic() < deadline:
            link.receive(QUIET_S)
    except LinkTimeout:
        return
    raise LinkTimeout(f"{link.name}: still sending after {timeout:g} s, though nothing was asked")
