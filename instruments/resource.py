"""The address of a tester on a wire: from what the user types to a link and the name of a codec."""

import math
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import parse_qsl

from hil.instruments.link import Link
from hil.protocols.errors import InputError

LONGEST_TIMEOUT_S = 3600.0
SLOWEST_BAUDRATE, FASTEST_BAUDRATE = 1200, 20_000_000

_VISA = re.compile(r"(TCPIP|GPIB|USB|VXI|PXI)\d*::.+|ASRL.+", re.IGNORECASE)
_VISA_SOCKET = re.compile(r"TCPIP\d*::(.+)::([^:]*)::SOCKET", re.IGNORECASE)
_VISA_SERIAL = re.compile(r"ASRL(.+?)(::INSTR)?", re.IGNORECASE)
_HOST_PORT = re.compile(r"(\[(?P<six>[^\[\]\s]+)\]|(?P<host>[^\[\]:/@\s]+)):(?P<port>[0-9]{1,5})/?")


@dataclass(frozen=True)
class WireAddress:
    """Where a tester is, and what it speaks. `where`: a host, a device or a VISA resource string."""

    kind: Literal["tcp", "serial", "visa"]
    where: str
    port: int = 0
    """Of TCP."""
    codec: str = "scpi"
    timeout: float = 2.0
    """For connecting, and for silence while an answer is awaited (s)."""
    baudrate: int = 115200
    """Of a serial line (bit/s)."""
    backend: str = ""
    """Of VISA: py, ivi, sim or the path of a library; empty for PyVISA's choice."""


def parse_address(uri: str) -> WireAddress | None:
    """None where `uri` has another scheme; `InputError` where it is one of these, but malformed:

    tcp://host:port, tcp://[IPv6]:port, serial:///dev/ttyUSB0, serial:COM3, or a VISA resource string, each with options
    behind it: ?codec=frames&timeout=5. VISA's SOCKET and ASRL strings mean the same as tcp: and serial:, unless the
    option backend names a VISA library.
    """
    where, _, query = uri.partition("?")
    scheme, colon, rest = where.partition(":")
    if colon and scheme.lower() == "tcp":
        return _tcp(uri, rest.removeprefix("//"), _options(uri, query, "codec", "timeout"))
    if colon and scheme.lower() == "serial":
        return _serial(uri, rest.removeprefix("//"), _options(uri, query, "codec", "timeout", "baudrate"))
    if _VISA.fullmatch(where):
        return _visa(uri, where, query)
    return None


def open_link(address: WireAddress) -> Link:
    """Connect or open; `LinkError` where that fails."""
    if address.kind == "tcp":
        from hil.instruments.socket_link import SocketLink

        return SocketLink(address.where, address.port, address.timeout)
    if address.kind == "serial":
        from hil.instruments.serial_link import SerialLink

        return SerialLink(address.where, address.baudrate)
    from hil.instruments.visa_link import VisaLink

    return VisaLink(address.where, address.backend, address.timeout, address.baudrate)


def _tcp(uri: str, where: str, options: dict[str, Any]) -> WireAddress:
    match = _HOST_PORT.fullmatch(where)
    port = int(match["port"]) if match else 0
    if not match or not 1 <= port <= 65535:
        raise InputError(f"{uri!r}: expected tcp://host:port or tcp://[IPv6]:port, with a port from 1 to 65535")
    return WireAddress("tcp", match["six"] or match["host"], port, **options)


def _serial(uri: str, where: str, options: dict[str, Any]) -> WireAddress:
    if not where.strip("/"):
        raise InputError(f"{uri!r}: expected serial: and a device, as in serial:///dev/ttyUSB0 or serial:COM3")
    return WireAddress("serial", where, **options)


def _visa(uri: str, where: str, query: str) -> WireAddress:
    serial, tcp = _VISA_SERIAL.fullmatch(where), _VISA_SOCKET.fullmatch(where)
    known = ["codec", "timeout", "backend"] + ["baudrate"] * bool(serial)
    options = _options(uri, query, *known)
    if "backend" in options:
        return WireAddress("visa", where, **options)
    if tcp:
        host = tcp[1].strip("[]")
        host = f"[{host}]" if ":" in host else host
        return _tcp(uri, f"{host}:{tcp[2]}", options)
    if serial:
        return _serial(uri, _device(uri, serial[1]), options)
    return WireAddress("visa", where, **options)


def _device(uri: str, name: str) -> str:
    """VISA numbers the ports of Windows; elsewhere a number names nothing that is known without a VISA library."""
    if not name.isdecimal():
        return name
    if sys.platform != "win32":
        raise InputError(f"{uri!r}: expected the device itself, as in ASRL/dev/ttyUSB0::INSTR")
    return f"COM{name}"


def _options(uri: str, query: str, *known: str) -> dict[str, Any]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError as error:
        raise InputError(f"{uri!r}: expected options as in ?codec=frames&timeout=5, not {query!r}") from error
    options: dict[str, Any] = {}
    for key, text in pairs:
        if key not in known:
            raise InputError(f"{uri!r}: no option {key!r} here; known: {', '.join(known)}")
        if key in options:
            raise InputError(f"{uri!r}: {key} is given twice")
        try:
            options[key] = _READERS[key](text)
        except ValueError as error:
            raise InputError(f"{uri!r}: {key}={text}: expected {error}") from error
    return options


def _codec(text: str) -> str:
    if text not in {"scpi", "frames"}:
        raise ValueError("scpi or frames")
    return text


def _timeout(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= LONGEST_TIMEOUT_S:  # false for nan
        raise ValueError(f"seconds above 0, up to {LONGEST_TIMEOUT_S:g}")
    return seconds


def _baudrate(text: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", text) or not SLOWEST_BAUDRATE <= int(text) <= FASTEST_BAUDRATE:
        raise ValueError(f"bit/s from {SLOWEST_BAUDRATE} to {FASTEST_BAUDRATE}")
    return int(text)


def _backend(text: str) -> str:
    if not text:
        raise ValueError("py, ivi, sim or the path of a VISA library")
    return text


_READERS: dict[str, Callable[[str], Any]] = {
    "codec": _codec,
    "timeout": _timeout,
    "baudrate": _baudrate,
    "backend": _backend,
}
