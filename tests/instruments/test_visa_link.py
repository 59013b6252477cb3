"""A VISA link through PyVISA-py: sockets, serial lines, and HiSLIP for the resources that send messages."""

import os
import select
import socket
import struct
import termios
import time
import tty
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from threading import Event, Timer

import pytest

from hil.instruments.link import LinkClosed, LinkError, LinkTimeout
from hil.instruments.visa_link import VisaLink
from hil.protocols.errors import HilError

Talk = Callable[[socket.socket], object]
EVERY_BYTE = bytes(range(256)) * 4096  # 1 MiB


@contextmanager
def serving(*talks: Talk) -> Iterator[int]:
    """A server that takes one connection for each of `talks`, all at the same time."""
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(len(talks) + 1) as pool:
        server.settimeout(5)

        def run(talk: Talk, connection: socket.socket) -> None:
            with connection, suppress(ConnectionError):
                talk(connection)

        def serve() -> None:
            for served in [pool.submit(run, talk, server.accept()[0]) for talk in talks]:
                served.result(5)

        served = pool.submit(serve)
        yield server.getsockname()[1]
        served.result(5)


def over_socket(port: int, timeout: float = 1) -> "closing[VisaLink]":
    return closing(VisaLink(f"TCPIP0::127.0.0.1::{port}::SOCKET", "py", timeout))


def read_all(connection: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size and (more := connection.recv(size - len(data))):
        data += more
    return bytes(data)


def echo(size: int) -> Talk:
    return lambda connection: connection.sendall(read_all(connection, size))


def receive_all(link: VisaLink, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += link.receive(1)
    return data


def test_a_mebibyte_of_every_value_goes_both_ways_over_a_socket() -> None:
    with serving(echo(len(EVERY_BYTE))) as port, over_socket(port) as link:
        link.send([EVERY_BYTE[:1000], memoryview(EVERY_BYTE)[1000:]], 5)
        assert receive_all(link, len(EVERY_BYTE)) == EVERY_BYTE


def test_a_closed_port_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(LinkError, match=rf"^TCPIP0::127.0.0.1::{port}::SOCKET\?backend=py: connection refused"):
        over_socket(port)


def test_a_peer_that_closes_in_the_middle_of_an_answer_is_seen_at_once() -> None:
    with serving(lambda c: c.sendall(b"#9000")) as port, over_socket(port) as link:
        assert link.receive(1) == b"#9000"
        start, cpu = time.monotonic(), time.process_time()
        with pytest.raises(LinkClosed):
            link.receive(5)
        assert time.monotonic() - start < 0.5
        assert time.process_time() - cpu < 0.1


def test_a_timeout_loses_nothing_that_comes_before_or_after_it() -> None:
    more = Event()

    def answer_in_halves(connection: socket.socket) -> None:
        connection.sendall(b"12345")
        more.wait(5)
        connection.sendall(b"678")

    with serving(answer_in_halves) as port, over_socket(port) as link:
        data = receive_all(link, 5)
        with pytest.raises(LinkTimeout):
            link.receive(0.05)
        more.set()
        assert data + receive_all(link, 3) == b"12345678"


def test_a_peer_that_does_not_read_is_given_up_in_time() -> None:
    done = Event()
    with serving(lambda c: done.wait(5)) as port, over_socket(port) as link:
        start = time.monotonic()
        with pytest.raises(LinkTimeout):
            link.send([bytes(64 << 20)], 0.2)
        assert time.monotonic() - start < 0.6
        done.set()


def test_a_late_answer_is_gone_after_reset() -> None:
    sent = Event()

    def answer(connection: socket.socket) -> None:
        connection.sendall(b"OLD")
        sent.set()

    with serving(answer, echo(3)) as port, over_socket(port) as link:
        sent.wait(5)
        link.reset(1)
        link.send([b"NEW"], 1)
        assert receive_all(link, 3) == b"NEW"


def test_reset_fails_where_the_tester_is_away() -> None:
    with serving(lambda c: None) as port:
        link = VisaLink(f"TCPIP0::127.0.0.1::{port}::SOCKET", "py", 1)
    with pytest.raises(LinkError, match="refused"):
        link.reset(0.2)
    with pytest.raises(LinkClosed):
        link.send([b"?"], 1)
    link.close()
    link.close()


@pytest.mark.parametrize(
    ("resource", "backend", "expected"),
    [
        ("GPIB0::nonsense", "py", "cannot be opened: "),
        ("nonsense", "py", "does not know what is meant: "),
        ("GPIB0::8::INSTR", "nosuch", "does not know what is meant: .*nosuch"),
        ("GPIB0::8::INSTR", "/nowhere/libvisa.so", "cannot be opened: "),
        ("ASRL/dev/null::INSTR", "py", "cannot be opened: "),
        ("ASRL/nowhere::INSTR", "py", "cannot be opened: .*/nowhere"),
    ],
)
def test_what_cannot_be_opened_is_told_in_one_line(resource: str, backend: str, expected: str) -> None:
    with pytest.raises(HilError, match=expected) as caught:
        VisaLink(resource, backend, 0.2)
    assert caught.value.exit_code == (2 if "what is meant" in expected else 3)
    assert str(caught.value).startswith(f"{resource}?backend={backend}: ")
    assert "\n" not in str(caught.value)


def test_a_serial_line_carries_every_value_and_falls_silent_at_reset() -> None:
    end, port = os.openpty()
    tty.setraw(port)
    link = VisaLink(f"ASRL{os.ttyname(port)}::INSTR", "py", 1, baudrate=57600)
    os.close(port)
    assert link.bytes_per_second == 5760
    assert termios.tcgetattr(end)[5] == termios.B57600
    link.send([EVERY_BYTE[:1024]], 1)
    sent = b""
    while len(sent) < 1024 and select.select([end], [], [], 1)[0]:
        sent += os.read(end, 4096)
    os.write(end, sent)
    assert receive_all(link, 1024) == EVERY_BYTE[:1024]
    os.write(end, b"1")
    assert link.receive(0.2) == b"1"
    os.write(end, b"OLD")
    Timer(0.15, os.write, (end, b"LATE")).start()
    link.reset(1)
    start = time.monotonic()
    with pytest.raises(LinkTimeout):
        link.receive(0.1)
    assert time.monotonic() - start < 0.4
    os.close(end)
    with pytest.raises(LinkClosed):
        link.receive(1)
    link.close()


DATA, DATA_END, CLEAR_DONE, MAXIMUM_SIZE = 6, 7, 8, 15
REPLIES = {0: 1, 17: 18, MAXIMUM_SIZE: 16, CLEAR_DONE: 9, 19: 23}


class Hislip:
    """As much of a HiSLIP instrument as PyVISA-py asks for: it echoes, but for the messages `silent` and `bye`."""

    def __init__(self) -> None:
        self.cleared = 0

    def talk(self, line: socket.socket) -> None:
        message = b""
        while header := read_all(line, 16):
            _, kind, _, parameter, size = struct.unpack("!2sBBIQ", header)
            payload = read_all(line, size)
            if kind in REPLIES:
                self.cleared += kind == CLEAR_DONE
                self.send(line, REPLIES[kind], 0, payload if kind == MAXIMUM_SIZE else b"")
                continue
            message += payload
            if message == b"bye":
                return
            if kind == DATA_END and message != b"silent":
                self.send(line, DATA_END, parameter, message)
            message = message if kind == DATA else b""

    @staticmethod
    def send(line: socket.socket, kind: int, parameter: int, payload: bytes) -> None:
        line.sendall(struct.pack("!2sBBIQ", b"HS", kind, 0, parameter, len(payload)) + payload)


@contextmanager
def over_hislip(hislip: Hislip, sessions: int = 1) -> Iterator[VisaLink]:
    with serving(*[hislip.talk] * (2 * sessions)) as port:
        link = VisaLink(f"TCPIP0::127.0.0.1::hislip0,{port}::INSTR", "py", 1)
        yield link
        link.close()


def test_a_message_based_resource_is_read_to_its_end_and_cleared_by_reset() -> None:
    hislip = Hislip()
    with over_hislip(hislip) as link:
        link.send([EVERY_BYTE[:1000], memoryview(EVERY_BYTE)[1000:]], 5)
        assert receive_all(link, len(EVERY_BYTE)) == EVERY_BYTE
        link.send([b"silent"], 1)
        with pytest.raises(LinkTimeout):
            link.receive(0.1)
        link.reset(1)
        link.send([b"NEW"], 1)
        assert link.receive(1) == b"NEW"
    assert hislip.cleared == 1
    with pytest.raises(LinkClosed):
        link.receive(1)


def test_a_message_based_resource_whose_connection_is_lost_is_opened_again_by_reset() -> None:
    hislip = Hislip()
    with over_hislip(hislip, sessions=2) as link:
        link.send([b"bye"], 1)
        with pytest.raises(LinkClosed):
            link.receive(1)
        link.reset(1)
        link.send([b"NEW"], 1)
        assert link.receive(1) == b"NEW"
    assert hislip.cleared == 0
