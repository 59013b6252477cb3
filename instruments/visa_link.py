"""A tester behind a VISA library: GPIB, USB-TMC, VXI-11, HiSLIP; also SOCKET and ASRL where one is asked for."""

import math
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from hil.instruments.link import LARGEST_RECEIVE, Link, LinkClosed, LinkError, LinkTimeout, wait_for_silence
from hil.instruments.socket_link import abort, receive_some, send_all, set_up
from hil.protocols.errors import InputError
from hil.protocols.payloads import Buffer

if TYPE_CHECKING:  # importing PyVISA takes long, and few need it
    from pyvisa.resources import MessageBasedResource, Resource

VISA_BYTES_PER_SECOND = 1e5  # a slow GPIB instrument


class VisaLink(Link):
    """Opens the resource when it is made. `backend`: py, ivi, sim, the path of a library, or "" for PyVISA's choice.

    One `send` is one VISA message; `baudrate` (bit/s) counts for ASRL alone. How each kind of resource is read:

    - GPIB, USB, VXI-11, HiSLIP: up to 256 KiB, ended by END. A read that times out half-way loses what it had, so
      `reset` after every timeout. `reset` is a device clear, or a new session where that fails.
    - ASRL: one byte, then those that the driver holds, so that a timeout loses nothing. PyVISA-py 0.8.1 reads them one
      by one (0.1 to 0.2 MB/s); a `SerialLink` is much faster.
    - SOCKET through PyVISA-py: on the socket that it opened, past its own calls. Those of 0.8.1 take a refused
      connection for an open one, spin at end of file until the timeout, lose what came before it, return no answer
      shorter than asked for in less than that time, and write without any timeout.
    - SOCKET through another library: ended when no more data is there (VI_ATTR_SUPPRESS_END_EN off). Not tried on one.
    """

    def __init__(self, resource_name: str, backend: str, timeout: float, baudrate: int = 115200) -> None:
        self.name = f"{resource_name}?backend={backend}" if backend else resource_name
        self._resource_name, self._baudrate = resource_name, baudrate
        self._library = f"@{backend}" if backend.isalnum() else backend
        self._buffer = memoryview(bytearray(LARGEST_RECEIVE))
        self._resource = self._open(timeout)
        self._socket = self._own_socket(timeout)
        self.bytes_per_second = baudrate / 10 if _is_serial(self._resource) else VISA_BYTES_PER_SECOND

    def send(self, parts: Sequence[Buffer], timeout: float) -> None:
        if self._socket is not None:
            return send_all(self._socket, parts, timeout, self.name)
        with self._told_as_link_errors():
            self._resource.timeout = _milliseconds(timeout)
            self._resource.write_raw(b"".join(parts))

    def receive(self, timeout: float) -> bytes:
        if self._socket is not None:
            return receive_some(self._socket, self._buffer, timeout, self.name)
        with self._told_as_link_errors():
            self._resource.timeout = _milliseconds(timeout)
            data = self._read()
        if not data:
            raise LinkTimeout(f"{self.name}: an answer without a byte")
        return data

    def reset(self, timeout: float) -> None:
        if not self._cleared(timeout):
            if self._socket is not None:
                abort(self._socket)
            self.close()
            self._resource = self._open(timeout)
            self._socket = self._own_socket(timeout)
        if _is_serial(self._resource):
            wait_for_silence(self, timeout)

    def close(self) -> None:
        with suppress(Exception):  # PyVISA-py lets out whatever its drivers raise
            self._resource.close()

    def _open(self, timeout: float) -> "MessageBasedResource":
        import pyvisa
        from pyvisa.resources import MessageBasedResource

        try:
            manager = pyvisa.ResourceManager(self._library)
            resource = manager.open_resource(self._resource_name, open_timeout=_milliseconds(timeout))
        except Exception as error:  # of any kind, see close()
            if _is_misspelt(error):
                raise InputError(f"{self.name}: VISA does not know what is meant: {_one_line(error)}") from error
            raise LinkError(f"{self.name}: cannot be opened: {_one_line(error)}") from error
        if not isinstance(resource, MessageBasedResource):
            resource.close()
            raise LinkError(f"{self.name}: not an instrument that takes messages")
        try:
            self._prepare(resource)
        except Exception as error:
            resource.close()
            raise LinkError(f"{self.name}: cannot be set up: {_one_line(error)}") from error
        return resource

    def _prepare(self, resource: "MessageBasedResource") -> None:
        from pyvisa.constants import ResourceAttribute, SerialTermination
        from pyvisa.resources import SerialInstrument, TCPIPSocket

        resource.chunk_size = LARGEST_RECEIVE
        if isinstance(resource, SerialInstrument):
            resource.baud_rate = self._baudrate
            resource.end_input = SerialTermination.none
        elif isinstance(resource, TCPIPSocket):
            resource.set_visa_attribute(ResourceAttribute.suppress_end_enabled, False)

    def _own_socket(self, timeout: float) -> socket.socket | None:
        """The socket of a SOCKET resource that PyVISA-py opened; None for any other."""
        from pyvisa_py.highlevel import PyVisaLibrary
        from pyvisa_py.tcpip import TCPIPSocketSession

        library = self._resource.visalib
        session = library.sessions[self._resource.session] if isinstance(library, PyVisaLibrary) else None
        if not isinstance(session, TCPIPSocketSession):
            return None
        line: socket.socket = session.interface
        try:
            set_up(line, self.name, timeout)
        except LinkError:
            self.close()
            raise
        return line

    def _read(self) -> bytes:
        from pyvisa.constants import StatusCode
        from pyvisa.resources import SerialInstrument

        resource, session = self._resource, self._resource.session
        with resource.ignore_warning(StatusCode.success_max_count_read, StatusCode.success_device_not_present):
            if not isinstance(resource, SerialInstrument):
                return bytes(resource.visalib.read(session, LARGEST_RECEIVE)[0])
            first, _ = resource.visalib.read(session, 1)
            more = min(resource.bytes_in_buffer, LARGEST_RECEIVE - 1)
            return bytes(first + resource.visalib.read(session, more)[0] if more else first)

    def _cleared(self, timeout: float) -> bool:
        """Whether a device clear emptied both directions; sockets and serial lines know none."""
        from pyvisa.resources import SerialInstrument, TCPIPSocket

        if isinstance(self._resource, SerialInstrument | TCPIPSocket):
            return False
        try:
            self._resource.timeout = _milliseconds(timeout)
            self._resource.clear()
        except Exception:  # see close(); a new session is tried next, and tells what is wrong
            return False
        return True

    @contextmanager
    def _told_as_link_errors(self) -> Iterator[None]:
        from pyvisa.constants import StatusCode
        from pyvisa.errors import InvalidSession, VisaIOError

        try:
            yield
        except VisaIOError as error:
            kinds: dict[int, type[LinkError]] = {
                StatusCode.error_timeout: LinkTimeout,
                StatusCode.error_connection_lost: LinkClosed,
            }
            raise kinds.get(error.error_code, LinkError)(f"{self.name}: {_one_line(error)}") from error
        except TimeoutError as error:
            raise LinkTimeout(f"{self.name}: no answer in time") from error
        except (OSError, InvalidSession, RuntimeError) as error:  # the last is PyVISA-py's for HiSLIP
            raise LinkClosed(f"{self.name}: connection lost ({_one_line(error)})") from error
        except Exception as error:  # see close()
            raise LinkError(f"{self.name}: {_one_line(error)}") from error


def _is_serial(resource: "Resource") -> bool:
    from pyvisa.resources import SerialInstrument

    return isinstance(resource, SerialInstrument)


def _milliseconds(timeout: float) -> int:
    return max(math.ceil(timeout * 1000), 1)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _is_misspelt(error: Exception) -> bool:
    """Whether the resource string or the name of the library is at fault."""
    from pyvisa.constants import StatusCode
    from pyvisa.errors import VisaIOError

    named = isinstance(error, VisaIOError) and error.error_code == StatusCode.error_invalid_resource_name
    return named or "Wrapper not found" in str(error)
