"""A TCP connection to a tester."""

import os
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress
from time import monotonic

from hil.instruments.link import LARGEST_RECEIVE, Link, LinkClosed, LinkError, LinkTimeout
from hil.protocols.payloads import Buffer

LARGE = 1 << 16
"""Bytes of a part that is worth a system call of its own."""
TCP_BYTES_PER_SECOND = 1e6  # 10 Mbit/s Ethernet


class SocketLink(Link):
    """Connects when it is made; `timeout` (s) bounds each address that the host's name stands for."""

    bytes_per_second = TCP_BYTES_PER_SECOND

    def __init__(self, host: str, port: int, timeout: float) -> None:
        self.name = f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"
        self._address = (host, port)
        self._buffer = memoryview(bytearray(LARGEST_RECEIVE))
        self._socket = self._connect(timeout)
        self._fresh = True  # nothing was sent or received: some testers are slow to accept another connection

    def send(self, parts: Sequence[Buffer], timeout: float) -> None:
        self._fresh = False
        send_all(self._socket, parts, timeout, self.name)

    def receive(self, timeout: float) -> bytes:
        self._fresh = False
        return receive_some(self._socket, self._buffer, timeout, self.name)

    def reset(self, timeout: float) -> None:
        if not self._fresh:
            abort(self._socket)
            self._socket = self._connect(timeout)
            self._fresh = True

    def close(self) -> None:
        self._fresh = False
        self._socket.close()

    def _connect(self, timeout: float) -> socket.socket:
        try:
            line = socket.create_connection(self._address, max(timeout, 0.0))
        except (OSError, UnicodeError) as error:
            raise LinkError(f"{self.name}: {_reason(error, timeout)}") from error
        set_up(line, self.name, timeout)
        return line


def set_up(line: socket.socket, name: str, timeout: float) -> None:
    """Check that a socket is connected, to another one, and set its options; `LinkError`, and closed, where it is not.

    TCP joins a port of this machine to itself where nobody listens there and it is drawn as the local port too.
    """
    try:
        if number := line.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(number, os.strerror(number))
        if line.getsockname() == line.getpeername():
            raise ConnectionRefusedError
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    except OSError as error:
        line.close()
        raise LinkError(f"{name}: {_reason(error, timeout)}") from error


def send_all(line: socket.socket, parts: Sequence[Buffer], timeout: float, name: str) -> None:
    """Small parts are joined, so that one command is one packet; large ones are not copied."""
    deadline = monotonic() + timeout
    try:
        for buffer in _buffers(parts):
            line.settimeout(max(deadline - monotonic(), 0.0))
            line.sendall(buffer)
    except (TimeoutError, BlockingIOError) as error:
        raise LinkTimeout(f"{name}: the tester did not take all bytes in {timeout:g} s") from error
    except OSError as error:
        raise _closed(name, error) from error


def _buffers(parts: Sequence[Buffer]) -> list[Buffer]:
    if all(len(part) < LARGE for part in parts):
        return [b"".join(parts)]
    first = next(index for index, part in enumerate(parts) if len(part) >= LARGE)
    before, large, after = parts[:first], parts[first], parts[first + 1 :]
    return [buffer for buffer in (b"".join(before), large, *_buffers(after)) if len(buffer)]


def receive_some(line: socket.socket, buffer: memoryview, timeout: float, name: str) -> bytes:
    """What is there, through a buffer that is used again: a new one of 256 KiB for each small answer is slower."""
    try:
        line.settimeout(max(timeout, 0.0))
        size = line.recv_into(buffer)
    except (TimeoutError, BlockingIOError) as error:
        raise LinkTimeout(f"{name}: no answer for {timeout:g} s") from error
    except OSError as error:
        raise _closed(name, error) from error
    if size == 0:
        raise LinkClosed(f"{name}: the tester closed the connection")
    return bytes(buffer[:size])


def abort(line: socket.socket) -> None:
    """Close at once and drop what is not sent yet; an ordinary close would go on sending it."""
    with suppress(OSError):  # closed before, or a system that has this option in another form
        line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # on, for 0 s
    line.close()


def _reason(error: OSError | UnicodeError, timeout: float) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "connection refused: is the tester on, and the port right?"
    if isinstance(error, TimeoutError | BlockingIOError):
        return f"no connection within {timeout:g} s: is the tester on, and the address right?"
    if isinstance(error, socket.gaierror | UnicodeError):
        return "unknown host: is its name right, and the network up?"
    return f"{error.strerror or error}: is the tester on, and the address right?"


def _closed(name: str, error: OSError) -> LinkClosed:
    return LinkClosed(f"{name}: connection lost ({error.strerror or error})")
