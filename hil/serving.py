"""A twin as a server: the parts put together."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hil.bench import open_chip
from hil.mock_hw.clocks import Clock
from hil.mock_hw.faults import FaultPlan
from hil.mock_hw.faulty_port import faulty_ports
from hil.mock_hw.instrument import Instrument
from hil.mock_hw.keeper import ChipFile, Keeper
from hil.mock_hw.ports import Codec, make_ports
from hil.mock_hw.pty_server import PtyServer
from hil.mock_hw.rehearsal import rehearse
from hil.mock_hw.server import Server
from hil.mock_hw.tcp_server import TcpServer
from hil.protocols.errors import InputError

LOOPBACK = "127.0.0.1"


@contextmanager
def serving(
    uri: str,
    where: tuple[str, int] | Path,
    codec: Codec = "auto",
    clock: Clock | None = None,
    plan: FaultPlan | None = None,
) -> Iterator[Server]:
    """A server, not yet running, of the twin that a `twin:` URI names: at a host and port, or at a pseudo terminal with
    a link to it. In the end it is closed and a kept chip saved. `clock` is virtual unless given.
    """
    firmware, identity, file = open_chip(uri, 1)
    rehearse(firmware.chip.parameters)
    with _released(file):
        keeper = None if file is None else Keeper(file, firmware, identity)
        instrument = Instrument(firmware, identity, keeper.record) if keeper else Instrument(firmware, identity)
        if plan is None:
            ports = make_ports(instrument, codec)
        else:
            ports = faulty_ports(instrument, codec, plan, keeper.save if keeper else lambda: None)
        clock = clock or Clock()
        if isinstance(where, Path):
            server: Server = PtyServer(instrument, ports, clock, where)
        else:
            server = TcpServer(instrument, ports, clock, *where)
        if codec == "frames":
            server.uri += "?codec=frames"
        with server:
            yield server
        if keeper is not None:  # not after an error, which may have struck amid a request: the journal knows better
            keeper.save_last()


@contextmanager
def _released(file: ChipFile | None) -> Iterator[None]:
    try:
        yield
    finally:
        if file is not None:
            file.release()


def tcp_address(text: str) -> tuple[str, int]:
    """Host and port; a port alone is one of this machine only. Raises `InputError`."""
    host, _, port = text.rpartition(":")
    good = port.isascii() and port.isdecimal() and int(port) <= 65535
    if not good or (":" in host and not (host.startswith("[") and host.endswith("]"))):
        raise InputError(f"--tcp {text}: expected HOST:PORT, [IPv6]:PORT or PORT, with a port from 0 to 65535")
    return host.strip("[]") or LOOPBACK, int(port)
