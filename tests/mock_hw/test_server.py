"""A served twin, over real TCP connections and a real pseudo terminal."""

import math
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from hil.mock_hw import server as server_module
from hil.mock_hw.array import Chip
from hil.mock_hw.chips import CHIPS
from hil.mock_hw.clocks import Clock
from hil.mock_hw.firmware import Firmware
from hil.mock_hw.instrument import Instrument
from hil.mock_hw.ports import Codec, make_ports
from hil.mock_hw.pty_server import PtyServer
from hil.mock_hw.server import Server
from hil.mock_hw.tcp_server import TcpServer
from hil.mock_hw.twin import identity_of
from hil.protocols import frames
from hil.protocols.errors import InputError
from hil.protocols.messages import Block, Cells, Direction, Operation, PulseBatch, Region
from hil.protocols.payloads import Buffer
from hil.protocols.requests import (
    Define,
    Describe,
    Echo,
    Echoed,
    GetState,
    Ground,
    Multiply,
    Program,
    Read,
    Reply,
    Request,
    State,
    Wait,
)
from hil.protocols.scpi import decode_reply, encode_request
from hil.protocols.scpi_syntax import MessageReader, split

Start = Callable[..., Server]
Connect = Callable[[Server], "Line"]
SOON = 5.0
IDENTITY = identity_of("pcm-analog", "chip-1")
LINES = np.arange(8, dtype=np.uint16)
REQUESTS: list[Request] = [
    Describe(),
    Ground(),
    Echo(b"data"),
    Define(Region(0, (Block(1, LINES, LINES, None, 0, 0),))),
    Read(1, Cells.of(0, LINES, 0)),
    Multiply(2, 0, Direction.FORWARD, 4, np.ones((2, 8), np.int8)),
    Program(3, PulseBatch(Cells.of(0, LINES, 0), Operation.SET, np.ones(8, np.uint16), CHIPS["pcm-analog"].set_pulse)),
    Wait(4, 1.0),
]


@dataclass
class Line:
    """A client's end of a line, a socket or a serial device."""

    number: int

    def close(self) -> None:
        if self.number >= 0:
            os.close(self.number)
        self.number = -1

    def send(self, data: Buffer) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self.number, view) :]

    def receive(self, timeout: float = SOON) -> bytes:
        """What comes next; nothing at the end of a connection or where nothing comes."""
        return os.read(self.number, 1 << 20) if select.select([self.number], [], [], timeout)[0] else b""

    def frame(self, request: Request) -> Reply:
        self.send(b"".join(frames.encode_request(request, 7)))
        reader = frames.FrameReader()
        while data := self.receive():
            reader.feed(data)
            for frame in reader.frames():
                return frames.decode_reply(request, frame)
        raise TimeoutError

    def message(self, text: bytes) -> bytes:
        self.send(text + b"\n")
        reader = MessageReader()
        while data := self.receive():
            reader.feed(data)
            for message in reader.messages():
                return message.removesuffix(b"\n")
        raise TimeoutError

    def scpi(self, request: Request) -> Reply:
        (unit,) = split(self.message(b"".join(encode_request(request))))
        return decode_reply(request, unit)


def pty_server(chip: Chip, path: Path) -> PtyServer:
    instrument = Instrument(Firmware(chip), IDENTITY)
    return PtyServer(instrument, make_ports(instrument, "auto"), Clock(), path)


def port_of(server: Server) -> int:
    return int(server.uri.rpartition(":")[2])


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Opens lines to a server, and closes them in the end."""
    lines: list[Line] = []

    def open_line(server: Server) -> Line:
        if server.uri.startswith("tcp:"):
            client = socket.create_connection(("127.0.0.1", port_of(server)), SOON)
            client.settimeout(None)
            lines.append(Line(client.detach()))
        else:
            lines.append(Line(os.open(server.uri.removeprefix("serial://"), os.O_RDWR | os.O_NOCTTY)))
        return lines[-1]

    yield open_line
    for line in lines:
        line.close()


@pytest.fixture
def start(make_chip: Callable[..., Chip], tmp_path: Path) -> Iterator[Start]:
    """Starts servers, and ends them after the test."""
    running: list[tuple[Server, threading.Thread]] = []

    def begin(
        kind: str = "tcp", codec: Codec = "auto", speed: float = math.inf, host: str = "127.0.0.1", port: int = 0
    ) -> Server:
        instrument = Instrument(Firmware(make_chip()), IDENTITY)
        rest = (instrument, make_ports(instrument, codec), Clock(speed))
        server = TcpServer(*rest, host, port) if kind == "tcp" else PtyServer(*rest, tmp_path / "tester")
        running.append((server, threading.Thread(target=server.run)))
        running[-1][1].start()
        return server

    yield begin
    for server, thread in running:
        server.stop()
        thread.join(SOON)
        server.close()
        assert not thread.is_alive()


def state_of(line: Line) -> State:
    reply = line.frame(GetState())
    assert isinstance(reply, State)
    return reply


def random_bytes(size: int) -> bytes:
    return np.random.default_rng(1).bytes(size)


both = pytest.mark.parametrize("kind", ["tcp", "pty"])


@both
@pytest.mark.parametrize("size", [0, 1, 1 << 20])
def test_data_come_back_as_they_were_sent(start: Start, connect: Connect, kind: str, size: int) -> None:
    data = random_bytes(size)
    assert connect(start(kind, "frames")).frame(Echo(data)) == Echoed(data)
    assert connect(start(kind, "scpi")).scpi(Echo(data)) == Echoed(data)


@both
def test_a_message_may_come_byte_by_byte(start: Start, connect: Connect, kind: str) -> None:
    for request in (b"".join(frames.encode_request(GetState(), 1)), b"*TST?\n"):
        line = connect(start(kind))
        for at in range(len(request) - 1):
            line.send(request[at : at + 1])
            time.sleep(5e-4)
        assert line.receive(0) == b""
        line.send(request[-1:])
        assert line.receive() != b""


@both
@pytest.mark.parametrize("half", [b"\xa5\x5a\x01\x02", b"DIAG:ECHO? #3100abc"])
def test_half_a_message_is_forgotten_after_a_silence(
    start: Start, connect: Connect, monkeypatch: pytest.MonkeyPatch, kind: str, half: bytes
) -> None:
    monkeypatch.setattr(server_module, "PARTIAL_S", 0.1)
    line = connect(start(kind))
    line.send(half)
    time.sleep(0.4)
    if half.startswith(frames.MAGIC):
        assert state_of(line).last_op_id == 0
    else:
        assert line.message(b"*IDN?").startswith(b"PCM-HIL,")


@both
def test_what_a_person_types_may_take_its_time(
    start: Start, connect: Connect, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(server_module, "PARTIAL_S", 0.05)
    line = connect(start(kind))
    line.send(b"*TS")
    time.sleep(0.2)
    assert line.message(b"T?") == b"0"


@both
def test_a_client_that_does_not_read_is_given_up(
    start: Start, connect: Connect, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(server_module, "PATIENCE_S", 0.2)
    server = start(kind, "frames")
    deaf = connect(server)
    deaf.send(b"".join(frames.encode_request(Echo(bytes(32 << 20 if kind == "tcp" else 1 << 20)), 1)))
    time.sleep(1.0)
    assert state_of(connect(server)).last_op_id == 0


@both
def test_random_bytes_leave_it_alive(start: Start, connect: Connect, kind: str) -> None:
    fuzz(start(kind), connect, 300)


@pytest.mark.torture
@pytest.mark.timeout(3600)
@both
def test_many_random_bytes_leave_it_alive(start: Start, connect: Connect, kind: str) -> None:
    fuzz(start(kind), connect, 100_000)


def fuzz(server: Server, connect: Connect, count: int) -> None:
    """Random bytes, and messages of which some bytes are changed; then a question that has an answer."""
    rng = np.random.default_rng(3)
    whole = [b"".join(frames.encode_request(request, 1)) for request in REQUESTS]
    whole += [b"".join(encode_request(request)) + b"\n" for request in REQUESTS]
    line = connect(server)
    for n in range(count):
        data = bytearray(rng.bytes(int(rng.integers(1, 200))) if n % 2 else whole[rng.integers(len(whole))])
        for at in rng.integers(len(data), size=rng.integers(3)):
            data[at] = rng.integers(256)
        try:
            line.send(data)
            while line.receive(0):
                pass
        except ConnectionError:
            line = connect(server)
    time.sleep(server_module.PARTIAL_S + 0.2)
    line.send(b"\n")
    while line.receive(0.1):
        pass
    line.close()
    assert connect(server).message(b"*TST?") == b"0"


class TestTcp:
    def test_the_first_byte_of_a_connection_decides_what_it_speaks(self, start: Start, connect: Connect) -> None:
        server = start()
        line = connect(server)
        assert state_of(line).last_op_id == 0
        line.send(b"*IDN?\n")
        assert line.receive(0.1) == b""
        assert state_of(line).last_op_id == 0

    @pytest.mark.parametrize(("codec", "other"), [("scpi", b"\xa5\x5a\x01\x02" + bytes(16)), ("frames", b"*TST?\n")])
    def test_one_codec_alone_can_be_spoken(self, start: Start, connect: Connect, codec: Codec, other: bytes) -> None:
        line = connect(start(codec=codec))
        line.send(other)
        assert line.receive(0.1) == b""

    @pytest.mark.parametrize("first_words", [b"", b"*IDN?\n", bytes(1 << 20)])
    def test_a_second_client_is_told_and_the_first_goes_on(
        self, start: Start, connect: Connect, first_words: bytes
    ) -> None:
        server = start()
        line = connect(server)
        assert line.message(b"*TST?") == b"0"
        with socket.create_connection(("127.0.0.1", port_of(server)), SOON) as second:
            second.sendall(first_words)
            assert line.message(b"*TST?") == b"0"
            told = b"".join(iter(lambda: second.recv(1000), b""))
        assert told.startswith(b'-200,"Execution error;in use by 127.0.0.1:')
        assert told.endswith(b'"\n')
        assert line.message(b"*TST?") == b"0"

    def test_many_refused_clients_do_not_disturb_the_first(self, start: Start, connect: Connect) -> None:
        server = start()
        line = connect(server)
        state_of(line)
        for _ in range(40):
            connect(server)
            assert state_of(line).last_op_id == 0

    @pytest.mark.parametrize("resets", [False, True])
    def test_a_client_that_cut_its_connection_comes_back_at_once(self, start: Start, resets: bool) -> None:
        server = start()
        for n in range(1, 200):
            with socket.create_connection(("127.0.0.1", port_of(server)), SOON) as client:
                if resets:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                line = Line(client.fileno())
                assert line.frame(Wait(n, 1e-6)) is not None
                line.send(b"".join(frames.encode_request(GetState(), 1))[: n % 20])

    def test_what_a_client_sent_before_it_went_is_done(self, start: Start, connect: Connect) -> None:
        server = start()
        for n in range(1, 50):
            line = connect(server)
            line.send(b"".join(frames.encode_request(Wait(n, 1.0), 1)))
            line.close()
        assert state_of(connect(server)).time_ns == 49_000_000_000

    def test_the_lines_are_grounded_when_a_client_goes(self, start: Start, connect: Connect) -> None:
        server = start()
        line = connect(server)
        line.frame(Wait(1, 0.0))
        assert not state_of(line).grounded
        line.close()
        assert state_of(connect(server)).grounded

    def test_a_port_in_use_is_refused(self, start: Start) -> None:
        port = port_of(start())
        with pytest.raises(InputError, match=rf"cannot listen at 127\.0\.0\.1:{port}: .*in use; name another"):
            start(port=port)

    def test_only_this_machine_reaches_it_unless_said_otherwise(self, start: Start) -> None:
        assert start().local
        assert not start(host="0.0.0.0").local


class TestPty:
    def test_each_message_is_in_the_codec_of_its_first_byte(self, start: Start, connect: Connect) -> None:
        line = connect(start("pty"))
        for _ in range(3):
            assert line.message(b"*TST?") == b"0"
            assert state_of(line).last_op_id == 0
        line.send(b"a text without an end")
        time.sleep(0.05)
        assert state_of(line).last_op_id == 0

    def test_clients_come_and_go(self, start: Start, connect: Connect) -> None:
        server = start("pty")
        for n in range(1, 20):
            line = connect(server)
            line.frame(Wait(n, 0.0))
            assert state_of(line).last_op_id == n
            line.close()

    def test_the_link_is_there_while_it_serves(self, make_chip: Callable[..., Chip], tmp_path: Path) -> None:
        path = tmp_path / "tester"
        path.symlink_to("/dev/pts/what/was/left")
        with pty_server(make_chip(), path) as server:
            assert server.uri == f"serial://{path}"
            assert path.resolve().is_char_device()
        assert os.listdir(tmp_path) == []

    def test_a_link_of_another_server_is_left(self, make_chip: Callable[..., Chip], tmp_path: Path) -> None:
        path = tmp_path / "tester"
        with pty_server(make_chip(), path):
            later = pty_server(make_chip(), path)
        with later:
            assert path.resolve().is_char_device()
        assert os.listdir(tmp_path) == []

    def test_what_is_no_link_is_left(self, make_chip: Callable[..., Chip], tmp_path: Path) -> None:
        (tmp_path / "file").write_text("mine")
        with pytest.raises(InputError, match="file: something else is there; name another"):
            pty_server(make_chip(), tmp_path / "file")
        with pytest.raises(InputError, match="missing"):
            pty_server(make_chip(), tmp_path / "missing" / "tester")
        assert (tmp_path / "file").read_text() == "mine"


class TestTime:
    def test_an_answer_takes_the_time_of_the_device(self, start: Start, connect: Connect) -> None:
        line = connect(start(speed=100.0))
        start_s = time.monotonic()
        line.frame(Wait(1, 20.0))
        assert 0.2 <= time.monotonic() - start_s < 1.0

    def test_a_server_ends_amid_a_long_operation(self, start: Start, connect: Connect) -> None:
        server = start(speed=1.0)
        line = connect(server)
        line.send(b"".join(frames.encode_request(Wait(1, 1e6), 1)))
        time.sleep(0.1)
        server.stop()
        assert line.receive(0.3) == b""  # the fixture finds it ended
