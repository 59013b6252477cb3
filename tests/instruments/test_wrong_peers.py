"""What answers at a tester's address and is none: one clear line within the timeout, without a hang or a spin."""

import os
import socket
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

import pytest

from hil.instruments.conversation import CONVERSATIONS
from hil.instruments.exchange import Exchange
from hil.instruments.resource import WireAddress, parse_address
from hil.instruments.wire import WireTester, open_wire
from hil.protocols import payloads
from hil.protocols.errors import TesterError
from hil.protocols.requests import Description

TIMEOUT = 0.3
Peer = Callable[[socket.socket], None]
Listening = Callable[[Peer], AbstractContextManager[int]]


def web_server(client: socket.socket) -> None:
    client.recv(4096)
    client.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")


def echo_server(client: socket.socket) -> None:
    while data := client.recv(4096):
        client.sendall(data)


def random_bytes(client: socket.socket) -> None:
    while True:
        client.sendall(os.urandom(65536))


def silence(client: socket.socket) -> None:
    while client.recv(4096):
        pass


def drip(client: socket.socket) -> None:
    """Answers, but a byte at a time, and never to the end."""
    while True:
        client.sendall(b"1")
        time.sleep(TIMEOUT / 10)


def wrong_length(client: socket.socket) -> None:
    client.recv(4096)
    client.sendall(b"#6100000" + b"x" * 100)
    client.recv(4096)


def huge_length(client: socket.socket) -> None:
    client.recv(4096)
    client.sendall(b"#9999999999" + b"x" * 100)
    client.recv(4096)


def hangs_up(client: socket.socket) -> None:
    client.recv(10)


def other_instrument(client: socket.socket) -> None:
    """Knows SCPI, and none of our commands."""
    while client.recv(4096):
        client.sendall(b'-113,"Undefined header"\n')


PEERS: list[Peer] = [
    web_server, echo_server, random_bytes, silence, drip, wrong_length, huge_length, hangs_up, other_instrument,
]  # fmt: skip


@pytest.mark.parametrize("codec", ["scpi", "frames"])
@pytest.mark.parametrize("peer", PEERS)
def test_what_is_no_tester_is_one_clear_line_in_time(listening: Listening, peer: Peer, codec: str) -> None:
    with listening(peer) as port:
        start, busy = time.monotonic(), time.thread_time()
        with pytest.raises(TesterError) as caught:
            open_wire(WireAddress("tcp", "127.0.0.1", port, codec, timeout=TIMEOUT))
        assert time.monotonic() - start < 3 * TIMEOUT + 0.5
        assert time.thread_time() - busy < 0.2 + (0.8 if peer is random_bytes else 0.0)
    message = str(caught.value)
    assert message.startswith(f"tcp://127.0.0.1:{port}")
    assert message.isprintable()
    assert len(message) < 200
    assert caught.value.exit_code == 3


def test_it_says_what_it_heard(listening: Listening) -> None:
    with listening(web_server) as port, pytest.raises(TesterError, match=r"it said 'HTTP/1.1 400 Bad Request"):
        open_wire(WireAddress("tcp", "127.0.0.1", port, timeout=TIMEOUT))


def test_an_instrument_of_another_kind_is_told_as_such(listening: Listening) -> None:
    with listening(other_instrument) as port, pytest.raises(TesterError, match="Undefined header"):
        open_wire(WireAddress("tcp", "127.0.0.1", port, timeout=TIMEOUT))


@pytest.mark.parametrize("uri", ["serial:///dev/null", "serial:///dev/no-such-port", "tcp://127.0.0.1:1"])
def test_where_nothing_is_there_it_is_said_at_once(uri: str) -> None:
    address = parse_address(uri)
    assert address is not None
    start = time.monotonic()
    with pytest.raises(TesterError) as caught:
        open_wire(address)
    assert time.monotonic() - start < 1.0
    assert str(caught.value).startswith(uri)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("codec", ["scpi", "frames"])
def test_a_tester_that_cannot_describe_itself_is_not_opened(make_bench: Any, codec: str) -> None:
    bench = make_bench(codec)
    good = payloads.describe(Description(bench.tester.identify(), bench.tester.capabilities()))
    bad = good.replace(b'"rows":8', b'"rows":0')
    assert bad != good
    exchange = Exchange(bench.line, CONVERSATIONS[codec](), 1.0)
    with patch.object(payloads, "describe", return_value=bad):
        start = time.monotonic()
        with pytest.raises(TesterError, match=r"does not describe itself.*rows"):
            WireTester(exchange)
        assert time.monotonic() - start < 1.0
