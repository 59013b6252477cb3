"""A serial line to a tester: a UART, a USB port that looks like one, or a pseudo terminal."""

import errno
import os
import select
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from time import monotonic

import serial

from hil.instruments.link import LARGEST_RECEIVE, Link, LinkClosed, LinkError, LinkTimeout, wait_for_silence
from hil.protocols.payloads import Buffer

try:
    from termios import error as TermiosError
except ImportError:  # Windows
    TermiosError = OSError  # type: ignore[misc,assignment]

_FAILURES = (OSError, ValueError, TermiosError)


class SerialLink(Link):
    """Opens the port when it is made, for itself alone: 8 data bits, no parity, one stop bit, no flow control.

    `port`: a device, or a URL of pyserial (loop://, socket://host:port); `baudrate` in bit/s. Opening pulls DTR, which
    restarts many boards: so `reset` opens again only what has vanished.
    """

    def __init__(self, port: str, baudrate: int) -> None:
        self.name = f"serial://{port}" if port.startswith("/") else f"serial:{port}"
        self.bytes_per_second = baudrate / 10  # start bit, 8 data bits, stop bit
        self._where, self._baudrate = port, baudrate
        # Otherwise pyserial waits; for each new timeout it configures the port again, which some drivers answer with a
        # restart of their clock.
        self._selects = os.name == "posix" and "://" not in port
        self._port = self._open()

    def send(self, parts: Sequence[Buffer], timeout: float) -> None:
        data = memoryview(b"".join(parts))
        with self._lost_where_it_fails():
            if self._selects:
                _write(self._port.fileno(), data, timeout)
            elif data:
                self._port.write_timeout = max(timeout, 0.001)  # at 0 it would not say how much it wrote
                self._port.write(data)

    def receive(self, timeout: float) -> bytes:
        with self._lost_where_it_fails():
            data = self._read(max(timeout, 0.0))
        if not data:
            raise LinkTimeout(f"{self.name}: no answer for {timeout:g} s")
        return data

    def reset(self, timeout: float) -> None:
        try:
            with self._lost_where_it_fails():
                self._port.reset_output_buffer()
            wait_for_silence(self, timeout)
        except LinkClosed:
            self._port = self._open()
            wait_for_silence(self, timeout)

    def close(self) -> None:
        with suppress(*_FAILURES):
            self._port.close()

    def _read(self, timeout: float) -> bytes:
        if self._selects:
            ready, _, _ = select.select([self._port.fileno()], [], [], timeout)
            return self._port.read(LARGEST_RECEIVE) if ready else b""
        self._port.timeout = timeout
        first = self._port.read(1)
        return first + self._port.read(min(self._port.in_waiting, LARGEST_RECEIVE - 1)) if first else b""

    def _open(self) -> serial.Serial:
        try:
            return serial.serial_for_url(self._where, self._baudrate, timeout=0, exclusive=True)
        except _FAILURES as error:
            raise LinkError(f"{self.name} {_reason(error)}") from error

    @contextmanager
    def _lost_where_it_fails(self) -> Iterator[None]:
        try:
            yield
        except serial.SerialTimeoutException as error:
            raise LinkTimeout(f"{self.name}: the tester did not take all bytes in time") from error
        except _FAILURES as error:
            self.close()
            raise LinkClosed(f"{self.name}: the port is gone; was it unplugged?") from error


def _write(file: int, data: memoryview, timeout: float) -> None:
    """Like pyserial's, which copies the rest after each piece, and spins where the buffer is full from the start."""
    deadline = monotonic() + timeout
    while data:
        if not select.select([], [file], [], max(deadline - monotonic(), 0.0))[1]:
            raise serial.SerialTimeoutException
        with suppress(BlockingIOError):  # less room than select promised
            data = data[os.write(file, data) :]


def _reason(error: Exception) -> str:
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.ENOENT:
        return "does not exist: is the tester plugged in and on?"
    if number == errno.EACCES:
        return "is not open to this user: is the user in the group that owns it (often dialout)?"
    if number in (errno.EBUSY, errno.EAGAIN):
        return "is in use by another program"
    if number in (errno.ENOTTY, errno.EINVAL) or "Inappropriate ioctl" in str(error):
        return "is no serial port"
    return f"is no serial port, or none that works: {error}"
