"""A twin on a line: what a TCP port and a pseudo terminal have in common. One thread, one client at a time."""

import os
import select
import socket
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import suppress
from time import monotonic
from typing import Self

from hil.mock_hw.clocks import Clock
from hil.mock_hw.instrument import Instrument
from hil.mock_hw.ports import Action, Hangup, Pause, Port, Ports
from hil.protocols.payloads import Buffer

PARTIAL_S = 0.5
"""Silence after which a message that is not complete is forgotten. CHOSEN."""
PATIENCE_S = 10.0
"""How long a client may leave an answer unread. CHOSEN."""
LARGEST_RECEIVE = 256 * 1024
MOST_PARTS = 512
"""Buffers in one system call; POSIX promises 16, Linux and macOS take 1024."""


class _Stopped(Exception):
    """The server is to end."""


class Gone(Exception):
    """The connection is lost, or to be cut."""


class Deaf(Exception):
    """The client does not read."""


class Server(ABC):
    """Answers until `stop` is called; a context manager that grounds the lines and frees the port at its end.

    `uri` is what a client opens.
    """

    def __init__(self, instrument: Instrument, ports: Ports, clock: Clock) -> None:
        self.uri = ""
        self.local = True
        """Whether only this machine can reach it."""
        self._firmware = instrument.firmware
        self._ports = ports
        self._clock = clock
        self._port: Port | None = None
        self._heard = 0.0
        self._buffer = memoryview(bytearray(LARGEST_RECEIVE))
        self._wake, self._waker = socket.socketpair()
        self._waker.setblocking(False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def run(self) -> None:
        """Serve until `stop` is called."""
        with suppress(_Stopped):
            while True:
                self._turn()

    def stop(self) -> None:
        """End `run`, between two requests; may be called by a signal handler and by another thread, and repeatedly."""
        with suppress(OSError):
            self._waker.send(b"!")

    def close(self) -> None:
        """Ground the lines and free the port."""
        self._firmware.ground()
        self._wake.close()
        self._waker.close()

    @abstractmethod
    def _turn(self) -> None:
        """Wait for something, and do it."""

    @abstractmethod
    def _line(self) -> int:
        """The descriptor of the client's line."""

    @abstractmethod
    def _choose(self, first: int) -> Port:
        """The port for input that begins with this byte."""

    def _ready(self, readers: Iterable[int], timeout: float | None, writers: Sequence[int] = ()) -> list[int]:
        """Which of these descriptors can be used, after waiting for the first of them."""
        readable, writable, _ = select.select([self._wake.fileno(), *readers], writers, [], timeout)
        if self._wake.fileno() in readable:
            raise _Stopped
        return readable or writable

    def _pause(self, seconds: float) -> None:
        self._ready((), seconds)

    def _patience(self) -> float | None:
        """Seconds for which the rest of a message is still awaited; None where none is."""
        if self._port is None or not self._port.waits:
            return None
        return max(0.0, self._heard + PARTIAL_S - monotonic())

    def _abandon(self) -> None:
        """Forget a message whose rest does not come."""
        if self._port is not None:
            self._port.abandon()

    def _hear(self, data: Buffer) -> None:
        """Do what the client asks."""
        self._port = self._choose(data[0])
        before = self._firmware.chip.now_ns
        actions = self._port.feed(data)
        self._clock.pass_(self._firmware.chip.now_ns - before, self._pause)
        self._act(actions)
        self._heard = monotonic()

    def _act(self, actions: Sequence[Action]) -> None:
        parts: list[Buffer] = []
        for action in actions:
            if isinstance(action, Pause):
                self._send(parts)
                parts = []
                self._pause(action.seconds)
            elif isinstance(action, Hangup):
                self._send(parts)
                raise Gone
            else:
                parts.append(action)
        self._send(parts)

    def _send(self, parts: Sequence[Buffer]) -> None:
        left = [memoryview(part) for part in parts if len(part)]
        while left:
            try:
                sent = os.writev(self._line(), left[:MOST_PARTS])
            except BlockingIOError:
                if not self._ready((), PATIENCE_S, (self._line(),)):
                    raise Deaf from None
            except OSError as error:
                raise Gone from error
            else:
                left = _behind(left, sent)


def _behind(parts: list[memoryview], sent: int) -> list[memoryview]:
    """What is left of the parts after so many bytes."""
    for index, part in enumerate(parts):
        if sent < len(part):
            return [part[sent:], *parts[index + 1 :]]
        sent -= len(part)
    return []
