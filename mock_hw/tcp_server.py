"""A twin behind a TCP port."""

import ipaddress
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from time import monotonic

from hil.mock_hw.clocks import Clock
from hil.mock_hw.instrument import Instrument
from hil.mock_hw.ports import Port, Ports
from hil.mock_hw.server import Deaf, Gone, Server
from hil.protocols.errors import InputError

FAREWELL_S = 1.0
"""How long a client that was refused may take to close. CHOSEN."""
BACKLOG = 128
"""Connections that wait to be accepted; a client that finds no room tries again after a second. CHOSEN."""
MOST_REFUSED = 16
"""Refused clients that are waited for at one time. CHOSEN."""


class TcpServer(Server):
    """Listens at once; `port` 0 picks a free one. Raises `InputError` where it cannot.

    The first byte of a connection decides which codec it speaks. A second client is told that the twin is in use.
    """

    def __init__(self, instrument: Instrument, ports: Ports, clock: Clock, host: str, port: int) -> None:
        super().__init__(instrument, ports, clock)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
        except (OSError, UnicodeError) as error:
            super().close()
            raise InputError(f"cannot listen at {_shown((host, port))}: {_reason(error)}; name another") from error
        self._listener.setblocking(False)
        self._client: socket.socket | None = None
        self._client_name = ""
        self._refused: dict[int, tuple[socket.socket, float]] = {}
        address = self._listener.getsockname()
        self.local = ipaddress.ip_address(address[0]).is_loopback
        everywhere = ipaddress.ip_address(address[0]).is_unspecified
        self.uri = "tcp://" + _shown((socket.gethostname() if everywhere else address[0], address[1]))

    def close(self) -> None:
        super().close()
        self._listener.close()
        if self._client is not None:
            self._client.close()
        for newcomer, _ in self._refused.values():
            newcomer.close()

    def _line(self) -> int:
        return -1 if self._client is None else self._client.fileno()

    def _choose(self, first: int) -> Port:
        return self._port or self._ports.of(first)

    def _turn(self) -> None:
        client = () if self._client is None else (self._line(),)
        ready = self._ready((*client, self._listener.fileno(), *self._refused), self._patience())
        if client and client[0] in ready:
            self._receive()
        elif super()._patience() == 0:
            self._abandon()
        if self._listener.fileno() in ready:
            self._accept()
        if self._refused:
            self._see_off(ready)

    def _patience(self) -> float | None:
        waits = super()._patience()
        if self._refused:
            left = max(0.0, min(deadline for _, deadline in self._refused.values()) - monotonic())
            return left if waits is None else min(left, waits)
        return waits

    def _receive(self) -> None:
        """Take what the client sent; notice that it is gone."""
        if self._client is None:
            return
        try:
            size = self._client.recv_into(self._buffer)
        except BlockingIOError:
            return
        except OSError:
            size = 0
        try:
            if size == 0:
                raise Gone
            self._hear(self._buffer[:size])
        except (Gone, Deaf):
            self._lose_client()

    def _lose_client(self) -> None:
        if self._client is not None:
            self._client.close()
        self._client = None
        self._abandon()
        self._port = None
        self._firmware.ground()

    def _accept(self) -> None:
        # A client may come back before the end of its last connection was noticed: that is behind what it sent there.
        while self._client is not None and self._ready((self._line(),), 0):
            self._receive()
        try:
            newcomer, address = self._listener.accept()
        except OSError:  # it went again
            return
        newcomer.setblocking(False)
        if self._client is not None:
            self._refuse(newcomer)
            return
        with suppress(OSError):  # on macOS, where it went again
            newcomer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            newcomer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._client, self._client_name = newcomer, _shown(address)

    def _refuse(self, newcomer: socket.socket) -> None:
        """Say why, and close later: to close on what it has sent would reset the connection and lose the answer."""
        try:
            newcomer.send(f'-200,"Execution error;in use by {self._client_name}"\n'.encode())
            newcomer.shutdown(socket.SHUT_WR)
        except OSError:
            newcomer.close()
            return
        if len(self._refused) == MOST_REFUSED:
            self._dismiss(next(iter(self._refused)))
        self._refused[newcomer.fileno()] = (newcomer, monotonic() + FAREWELL_S)

    def _see_off(self, ready: Sequence[int]) -> None:
        """Close refused connections that the other side has closed, or does not close in time."""
        for number, (newcomer, deadline) in list(self._refused.items()):
            if monotonic() > deadline or (number in ready and self._has_closed(newcomer)):
                self._dismiss(number)

    def _has_closed(self, newcomer: socket.socket) -> bool:
        """Pass over what it sent; whether that was the end."""
        try:
            return newcomer.recv_into(self._buffer) == 0
        except BlockingIOError:
            return False
        except OSError:
            return True

    def _dismiss(self, number: int) -> None:
        self._refused.pop(number)[0].close()


def _shown(address: tuple[str, int] | tuple[str, int, int, int]) -> str:
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _reason(error: OSError | UnicodeError) -> str:
    if isinstance(error, socket.gaierror | UnicodeError):
        return "this host is not known"
    return os.strerror(error.errno or 0)
