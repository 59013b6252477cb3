"""Measure what the wire costs on the loopback interface, against a raw socket that carries the same bytes.

A twin is served by a process of its own. For each kind of operation the time in process and the raw round trip of as
many bytes are taken off the time over the wire: what is left is codec, checks, driver and server on both sides. A block
of 1 MiB goes there and back.
"""

import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from hil.bench import connect
from hil.instruments.conversation import CONVERSATIONS
from hil.instruments.exchange import Exchange
from hil.instruments.resource import parse_address
from hil.instruments.socket_link import SocketLink
from hil.instruments.tester import ArrayTester
from hil.protocols.messages import Block, Cells, Direction, Operation, PulseBatch, Vectors
from hil.protocols.requests import Echo, Echoed

CHIP = "pcm-analog?seed=1"
ROUNDS, OPERATIONS, BLOCKS = 7, 300, 10
BLOCK = 1 << 20
INPUTS, OUTPUTS, PULSES = 500, 250, 6
RAW = """
import socket, sys
line = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
buffer = bytearray(1 << 21)
while True:
    sizes = b""
    while len(sizes) < 16:
        more = line.recv(16 - len(sizes))
        if not more:
            sys.exit()
        sizes += more
    asked, answered = int(sizes[:8], 16), int(sizes[8:], 16)
    view = memoryview(buffer)[:asked]
    while len(view):
        view = view[line.recv_into(view):]
    line.sendall(memoryview(buffer)[:answered])
"""


class Raw:
    """A socket whose other end takes so many bytes and sends so many back."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            command = [sys.executable, "-c", RAW, str(listener.getsockname()[1])]
            self._process = subprocess.Popen(command)
            self._line, _ = listener.accept()
        self._line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = bytearray(1 << 21)

    def trip(self, asked: int, answered: int) -> None:
        self._line.sendall(b"%08x%08x" % (asked, answered) + bytes(asked))
        left = answered
        while left:
            left -= self._line.recv_into(self._buffer, left)

    def close(self) -> None:
        self._line.close()
        self._process.wait()


@contextmanager
def served() -> Iterator[str]:
    """The URI of a twin in a process of its own."""
    command = [str(Path(sys.executable).with_name("hil")), "twin", "serve", "--tcp", "0", "--twin", CHIP]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        yield process.stdout.readline().strip() if process.stdout else ""
    finally:
        process.terminate()
        process.communicate()


def operations(tester: ArrayTester) -> dict[str, Callable[[], object]]:
    """One operation of each kind, as often as it is called."""
    lines = np.arange(2 * OUTPUTS, dtype=np.uint16)
    region = tester.register([Block(0, np.arange(INPUTS, dtype=np.uint16), lines[::2], lines[1::2], 0, 0)])
    vectors = Vectors(np.full((1, INPUTS), 20, np.int8), np.ones(1, np.float32))
    cells = Cells.of(0, np.arange(PULSES), 700)
    pulses = PulseBatch(cells, Operation.SET, np.ones(PULSES, np.uint16), tester.capabilities().set_pulse)
    return {
        f"product of {INPUTS} x {OUTPUTS}": lambda: tester.mvm(region, vectors, Direction.FORWARD, 3),
        f"{PULSES} SET pulses": lambda: tester.program(pulses),
        f"read of {PULSES} cells": lambda: tester.read(cells),
        "wait": lambda: tester.wait(1e-3),
    }


def microseconds(act: Callable[[], object], count: int = OPERATIONS) -> float:
    began = time.perf_counter()
    for _ in range(count):
        act()
    return (time.perf_counter() - began) / count * 1e6


SIZES = {"product": (560, 350), "SET": (140, 60), "read": (100, 110), "wait": (60, 60)}
"""Bytes asked and answered, about, by the first word or kind of an operation."""


def sizes_of(name: str) -> tuple[int, int]:
    return next(size for word, size in SIZES.items() if word in name)


def report_operations(uri: str, codec: str, raw: Raw) -> None:
    """What each operation costs over the wire, and what of it is neither the operation nor the line."""
    with connect(f"{uri}?codec={codec}", 1) as wire, connect(f"twin:{CHIP}", 1) as local:
        over, within = operations(wire), operations(local)
        for name, act in over.items():
            act()
            rounds = [
                (microseconds(act), microseconds(within[name]), microseconds(lambda n=name: raw.trip(*sizes_of(n))))  # type: ignore[misc]
                for _ in range(ROUNDS)
            ]
            total, alone, trip = (statistics.median(column) for column in zip(*rounds, strict=True))
            added = total - alone - trip
            print(f"{codec:7} {name:22} {total:6.0f} us: {alone:4.0f} in process, {trip:3.0f} raw, {added:4.0f} added")


def report_block(uri: str, codec: str, raw: Raw) -> None:
    """A block there and back, against the raw socket."""
    address = parse_address(uri)
    if address is None:
        return
    link = SocketLink(address.where, address.port, 10.0)
    exchange = Exchange(link, CONVERSATIONS[codec](), 10.0)
    exchange.open()
    data = np.random.default_rng(1).integers(0, 256, BLOCK, dtype=np.uint8).tobytes()

    reply = exchange.ask(Echo(data))
    if not isinstance(reply, Echoed) or bytes(reply.data) != data:
        raise ValueError("the block came back changed")
    rounds = [
        (microseconds(lambda: exchange.ask(Echo(data)), BLOCKS), microseconds(lambda: raw.trip(BLOCK, BLOCK), BLOCKS))
        for _ in range(ROUNDS)
    ]
    exchange.close()
    wire, plain = (2 * BLOCK / statistics.median(column) for column in zip(*rounds, strict=True))
    print(f"{codec:7} block of 1 MiB there and back: {wire:.0f} MB/s, raw {plain:.0f} MB/s, ratio {wire / plain:.2f}")


def report_wire() -> None:
    """Both codecs, operation by operation, and the block."""
    print(f"\nwire on the loopback interface, medians of {ROUNDS} x {OPERATIONS} operations")
    raw = Raw()
    with served() as uri, suppress(KeyboardInterrupt):
        for codec in CONVERSATIONS:
            report_operations(uri, codec, raw)
            report_block(uri, codec, raw)
    raw.close()


if __name__ == "__main__":
    report_wire()
