"""A twin behind a pseudo terminal, which a client opens like a serial port."""

import os
import termios
import tty
from contextlib import suppress
from pathlib import Path

from hil.mock_hw.clocks import Clock
from hil.mock_hw.instrument import Instrument
from hil.mock_hw.ports import Port, Ports
from hil.mock_hw.server import Deaf, Gone, Server
from hil.protocols.errors import InputError


class PtyServer(Server):
    """Opens a pseudo terminal, with a link to it at `path`, in the place of an older link. Raises `InputError` where
    it cannot.

    The server keeps the client's side open too, so that clients may come and go without an end-of-file; that one has
    gone is not seen. So the first byte of each message decides which codec it is of.
    """

    def __init__(self, instrument: Instrument, ports: Ports, clock: Clock, path: Path) -> None:
        super().__init__(instrument, ports, clock)
        self._path = path.absolute()
        self._master, self._slave = os.openpty()
        self._device = os.ttyname(self._slave)
        tty.setraw(self._slave)
        os.set_blocking(self._master, False)
        try:
            _link(self._device, self._path)
        except OSError as error:
            self.close()
            raise InputError(f"cannot make a link at {self._path}: {error.strerror}; name another path") from error
        self.uri = f"serial://{self._path}"

    def close(self) -> None:
        super().close()
        os.close(self._master)
        os.close(self._slave)
        with suppress(OSError):
            if os.readlink(self._path) == self._device:
                self._path.unlink()

    def _line(self) -> int:
        return self._master

    def _choose(self, first: int) -> Port:
        if self._port is not None and self._port.waits:
            return self._port
        port = self._ports.of(first)
        if port is not self._port:
            self._abandon()  # a text that was never ended
        return port

    def _turn(self) -> None:
        if not self._ready((self._master,), self._patience()):
            self._abandon()
            return
        try:
            self._hear(self._buffer[: os.readv(self._master, [self._buffer])])
        except Deaf:
            termios.tcflush(self._slave, termios.TCIFLUSH)  # it is for the next client, which asks something else
            self._abandon()
            self._firmware.ground()
        except Gone:  # a line cannot be cut: the rest of the answer is missing, no more
            self._abandon()


def _link(device: str, path: Path) -> None:
    if os.path.lexists(path) and not path.is_symlink():
        raise FileExistsError(0, "something else is there")
    new = path.with_name(f"{path.name}.{os.getpid()}")
    os.symlink(device, new)
    os.replace(new, path)
