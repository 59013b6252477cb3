"""A TCP link against peers that answer, stall, vanish and come back."""

import errno
import socket
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from threading import Event

import pytest

from hil.instruments.link import LinkClosed, LinkError, LinkTimeout
from hil.instruments.socket_link import SocketLink, set_up

Talk = Callable[[socket.socket], object]
EVERY_BYTE = bytes(range(256)) * 4096  # 1 MiB


@contextmanager
def peer(*talks: Talk, host: str = "127.0.0.1") -> Iterator[int]:
    """A server that takes a connection for each of `talks`, one after the other, and closes it when that returns."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as server, ThreadPoolExecutor(1) as pool:
        server.settimeout(5)

        def serve() -> None:
            for talk in talks:
                connection, _ = server.accept()
                with connection, suppress(ConnectionError):
                    talk(connection)

        served = pool.submit(serve)
        yield server.getsockname()[1]
        served.result(5)


def read_all(connection: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size and (more := connection.recv(size - len(data))):
        data += more
    return bytes(data)


def echo(size: int) -> Talk:
    return lambda connection: connection.sendall(read_all(connection, size))


def receive_all(link: SocketLink, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += link.receive(1)
    return data


def test_a_mebibyte_of_every_value_goes_both_ways() -> None:
    with peer(echo(len(EVERY_BYTE))) as port, closing(SocketLink("127.0.0.1", port, 1)) as link:
        link.send([EVERY_BYTE[:1000], memoryview(EVERY_BYTE)[1000:]], 5)
        assert receive_all(link, len(EVERY_BYTE)) == EVERY_BYTE


def test_small_parts_arrive_in_one_piece() -> None:
    pieces = []
    with peer(lambda c: pieces.append(c.recv(100))) as port, closing(SocketLink("127.0.0.1", port, 1)) as link:
        link.send([b"MVM ", memoryview(b"#13"), b"abc\n"], 1)
        with pytest.raises(LinkClosed):
            link.receive(1)
    assert pieces == [b"MVM #13abc\n"]


def test_an_address_of_version_six_is_named_in_brackets() -> None:
    try:
        with peer(echo(1), host="::1") as port, closing(SocketLink("::1", port, 1)) as link:
            link.send([b"?"], 1)
            assert link.receive(1) == b"?"
            assert link.name == f"tcp://[::1]:{port}"
    except OSError as error:
        if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            raise
        pytest.skip("this machine has no IPv6")


def test_a_closed_port_is_refused_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(
        LinkError, match=rf"^tcp://127.0.0.1:{port}: connection refused: is the tester on.*port right\?$"
    ):
        SocketLink("127.0.0.1", port, 0.2)


@pytest.mark.parametrize("host", ["nohost.invalid", "a" * 70 + ".invalid", "no..host"])
def test_an_unknown_host_is_named(host: str) -> None:
    with pytest.raises(LinkError, match=f"^tcp://{host}:5025: unknown host"):
        SocketLink(host, 5025, 0.2)


def test_a_host_that_does_not_take_the_connection_is_given_up_in_time() -> None:
    server = socket.create_server(("127.0.0.1", 0), backlog=0)
    with server, socket.create_connection(server.getsockname()):  # fills the queue
        start = time.monotonic()
        with pytest.raises(LinkError, match=r"no connection within 0.2 s"):
            SocketLink("127.0.0.1", server.getsockname()[1], 0.2)
    assert time.monotonic() - start < 0.5


def test_a_socket_joined_to_itself_is_a_refused_connection() -> None:
    line = socket.socket()
    line.bind(("127.0.0.1", 0))
    line.connect(line.getsockname())
    with pytest.raises(LinkError, match="refused"):
        set_up(line, "tcp://127.0.0.1:1", 1)
    assert line.fileno() == -1


def test_a_peer_that_closes_in_the_middle_of_an_answer_is_seen_at_once() -> None:
    with peer(lambda c: c.sendall(b"#9000")) as port, closing(SocketLink("127.0.0.1", port, 1)) as link:
        assert link.receive(1) == b"#9000"
        start, cpu = time.monotonic(), time.process_time()
        with pytest.raises(LinkClosed, match="closed the connection"):
            link.receive(5)
        assert time.monotonic() - start < 0.5
        assert time.process_time() - cpu < 0.1


def test_a_reset_connection_is_closed_for_both_directions() -> None:
    def reset(connection: socket.socket) -> None:
        connection.recv(1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with peer(reset) as port, closing(SocketLink("127.0.0.1", port, 1)) as link:
        link.send([b"?"], 1)
        with pytest.raises(LinkClosed, match="connection lost"):
            link.receive(1)
        with pytest.raises(LinkClosed, match="connection lost"):
            link.send([b"?"], 1)


def test_silence_takes_the_timeout_and_no_processor_time() -> None:
    done = Event()
    with peer(lambda c: done.wait(5)) as port, closing(SocketLink("127.0.0.1", port, 1)) as link:
        start, cpu = time.monotonic(), time.process_time()
        with pytest.raises(LinkTimeout, match=r"no answer for 0.2 s"):
            link.receive(0.2)
        assert 0.19 < time.monotonic() - start < 0.5
        assert time.process_time() - cpu < 0.05
        for over in (0.0, -1.0):
            with pytest.raises(LinkTimeout):
                link.receive(over)
        done.set()


def test_a_peer_that_does_not_read_is_given_up_in_time() -> None:
    done = Event()
    with peer(lambda c: done.wait(5)) as port, closing(SocketLink("127.0.0.1", port, 1)) as link:
        start = time.monotonic()
        with pytest.raises(LinkTimeout, match="did not take all bytes"):
            link.send([bytes(64 << 20)], 0.2)
        assert time.monotonic() - start < 0.6
        done.set()


def test_a_late_answer_is_gone_after_reset() -> None:
    late = Event()

    def answer_late(connection: socket.socket) -> None:
        late.wait(5)
        connection.sendall(b"OLD")

    with peer(answer_late, echo(3)) as port, closing(SocketLink("127.0.0.1", port, 1)) as link:
        with pytest.raises(LinkTimeout):
            link.receive(0.05)
        late.set()
        link.reset(1)
        link.send([b"NEW"], 1)
        assert receive_all(link, 3) == b"NEW"


def test_bytes_that_had_not_left_are_gone_after_reset() -> None:
    ends, stalled = [], Event()

    def read_later(connection: socket.socket) -> None:
        stalled.wait(5)
        try:
            while connection.recv(65536):
                pass
            ends.append("all that was sent")
        except ConnectionResetError:
            ends.append("cut off")

    with peer(read_later, echo(1)) as port, closing(SocketLink("127.0.0.1", port, 1)) as link:
        with pytest.raises(LinkTimeout):
            link.send([bytes(64 << 20)], 0.1)
        link.reset(1)
        stalled.set()
    assert ends == ["cut off"]


def test_reset_fails_while_the_tester_is_away_and_works_when_it_is_back() -> None:
    with peer(lambda c: None) as port:
        link = SocketLink("127.0.0.1", port, 1)
    with pytest.raises(LinkClosed):
        link.receive(1)
    with pytest.raises(LinkError, match="refused"):
        link.reset(0.2)
    with pytest.raises(LinkClosed):
        link.send([b"?"], 1)
    with socket.create_server(("127.0.0.1", port)) as server:
        link.reset(1)
        connection, _ = server.accept()
        with connection:
            connection.sendall(b"back")
            assert link.receive(1) == b"back"
    link.close()


def test_an_unused_connection_needs_no_reset() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        link = SocketLink("127.0.0.1", server.getsockname()[1], 1)
        link.reset(1)
        connection, _ = server.accept()
        server.settimeout(0.05)
        with connection, pytest.raises(TimeoutError):
            server.accept()
        link.close()


def test_close_may_come_twice_and_what_follows_finds_it_closed() -> None:
    with peer(lambda c: None) as port:
        link = SocketLink("127.0.0.1", port, 1)
        link.close()
        link.close()
    with pytest.raises(LinkClosed):
        link.receive(1)
    with pytest.raises(LinkClosed):
        link.send([b"?"], 1)
