"""A serial link on pseudo terminals that answer, stall and vanish."""

import os
import select
import termios
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from hil.instruments.link import QUIET_S, Link, LinkClosed, LinkError, LinkTimeout
from hil.instruments.serial_link import SerialLink

EVERY_BYTE = bytes(range(256)) * 4096  # 1 MiB


class Device:
    """The other end of a pseudo terminal, and the link to it."""

    def __init__(self) -> None:
        self.end, port = os.openpty()
        os.set_blocking(self.end, False)
        self.port = os.ttyname(port)
        self.link = SerialLink(self.port, 921600)
        os.close(port)

    def read(self, size: int, timeout: float = 2.0) -> bytes:
        """Up to `size` bytes; fewer where the line stays silent for `timeout` (s)."""
        data = bytearray()
        while len(data) < size and select.select([self.end], [], [], timeout)[0]:
            data += os.read(self.end, 65536)
        return bytes(data)

    def write(self, data: bytes) -> None:
        left = memoryview(data)
        while left and select.select([], [self.end], [], 2)[1]:
            left = left[os.write(self.end, left) :]

    def vanish(self) -> None:
        with suppress(OSError):
            os.close(self.end)


@pytest.fixture
def device() -> Iterator[Device]:
    device = Device()
    yield device
    device.link.close()
    device.vanish()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


def receive_all(link: Link, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += link.receive(2)
    return data


def test_a_mebibyte_of_every_value_goes_out(device: Device, pool: ThreadPoolExecutor) -> None:
    arrived = pool.submit(device.read, len(EVERY_BYTE))
    device.link.send([EVERY_BYTE[:1000], memoryview(EVERY_BYTE)[1000:]], 5)
    assert arrived.result() == EVERY_BYTE


def test_a_mebibyte_of_every_value_comes_in(device: Device, pool: ThreadPoolExecutor) -> None:
    sent = pool.submit(device.write, EVERY_BYTE)
    assert receive_all(device.link, len(EVERY_BYTE)) == EVERY_BYTE
    sent.result()


def test_a_query_is_named_and_timed_by_its_line(device: Device) -> None:
    device.link.send([b"*IDN", memoryview(b"?\n")], 1)
    assert device.read(6) == b"*IDN?\n"
    device.write(b"tester\r\n")
    assert receive_all(device.link, 8) == b"tester\r\n"
    assert device.link.name == f"serial://{device.port}"
    assert device.link.bytes_per_second == 92160
    assert termios.tcgetattr(device.end)[5] == termios.B921600


def test_silence_takes_the_timeout_and_no_processor_time(device: Device) -> None:
    start, cpu = time.monotonic(), time.process_time()
    with pytest.raises(LinkTimeout, match=r"no answer for 0.2 s"):
        device.link.receive(0.2)
    assert 0.19 < time.monotonic() - start < 0.5
    assert time.process_time() - cpu < 0.05
    with pytest.raises(LinkTimeout):
        device.link.receive(-1)


def test_a_device_that_does_not_read_is_given_up_in_time(device: Device) -> None:
    start, cpu = time.monotonic(), time.process_time()
    with pytest.raises(LinkTimeout, match="did not take all bytes"):
        device.link.send([EVERY_BYTE], 0.2)
    assert time.monotonic() - start < 0.5
    assert time.process_time() - cpu < 0.1
    cpu = time.process_time()
    with pytest.raises(LinkTimeout):
        device.link.send([b"?"], 0.1)  # into a buffer that is full from the start
    assert time.process_time() - cpu < 0.05


def test_a_device_that_vanishes_in_the_middle_of_an_answer_is_seen_at_once(
    device: Device, pool: ThreadPoolExecutor
) -> None:
    device.write(b"#9000")
    assert receive_all(device.link, 5) == b"#9000"
    waiting = pool.submit(device.link.receive, 5)
    time.sleep(0.05)
    start = time.monotonic()
    device.vanish()
    with pytest.raises(LinkClosed, match="the port is gone"):
        waiting.result()
    assert time.monotonic() - start < 0.5


def test_after_a_device_vanished_every_call_says_so_until_it_is_back(device: Device) -> None:
    device.vanish()
    with pytest.raises(LinkClosed):
        device.link.send([b"?"], 1)
    with pytest.raises(LinkClosed):
        device.link.receive(1)
    with pytest.raises(LinkError, match=r"does not exist: is the tester plugged in and on\?$"):
        device.link.reset(1)
    with pytest.raises(LinkClosed):
        device.link.send([b"?"], 1)


def test_reset_opens_a_port_that_was_closed(device: Device) -> None:
    keep = os.open(device.port, os.O_RDWR | os.O_NOCTTY)
    device.link.close()
    device.link.close()
    device.link.reset(1)
    device.write(b"back")
    assert receive_all(device.link, 4) == b"back"
    os.close(keep)


def test_late_bytes_are_gone_after_reset(device: Device, pool: ThreadPoolExecutor) -> None:
    device.write(b"OLD")
    start = time.monotonic()
    reset = pool.submit(device.link.reset, 1)
    time.sleep(0.15)
    device.write(b"LATE")
    reset.result()
    assert 0.15 + QUIET_S <= time.monotonic() - start < 1.5
    device.write(b"NEW")
    assert receive_all(device.link, 3) == b"NEW"


def test_a_device_that_never_falls_silent_is_an_error(device: Device, pool: ThreadPoolExecutor) -> None:
    reset = pool.submit(device.link.reset, 0.2)
    while not reset.done():
        device.write(b"x")
        time.sleep(0.01)
    with pytest.raises(LinkTimeout, match=r"still sending after 0.2 s"):
        reset.result()


def test_bytes_that_had_not_left_are_gone_after_reset(device: Device) -> None:
    with pytest.raises(LinkTimeout):
        device.link.send([EVERY_BYTE], 0.05)
    device.link.reset(1)
    device.link.send([b"NEW"], 1)
    arrived = device.read(len(EVERY_BYTE), 0.1)
    assert arrived.endswith(b"NEW")
    assert len(arrived) < 8192  # what the device's own buffer had taken


def test_a_device_plugged_in_again_is_opened_by_reset(device: Device, tmp_path: Path) -> None:
    name = tmp_path / "tester"  # as the links of udev
    name.symlink_to(device.port)
    device.link.close()
    link = SerialLink(str(name), 921600)
    device.vanish()
    with pytest.raises(LinkClosed):
        link.receive(1)
    again = Device()
    again.link.close()
    name.unlink()
    name.symlink_to(again.port)
    link.reset(1)
    again.write(b"back")
    assert receive_all(link, 4) == b"back"
    link.close()
    again.vanish()


def test_a_port_serves_one_link_only(device: Device) -> None:
    with pytest.raises(LinkError, match="in use by another program"):
        SerialLink(device.port, 921600)


def test_what_is_no_serial_port_is_refused_in_one_line(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("kept")
    for path in ("/dev/null", str(plain), str(tmp_path)):
        with pytest.raises(LinkError, match=rf"^serial://{path} is no serial port(, or none that works: [^\n]+)?$"):
            SerialLink(path, 115200)
    assert plain.read_text() == "kept"
    with pytest.raises(LinkError, match="does not exist"):
        SerialLink(str(tmp_path / "missing"), 115200)


def test_urls_of_pyserial_work() -> None:
    link = SerialLink("loop://", 115200)
    link.send([b"#13", b"\0\xff\n"], 1)
    assert receive_all(link, 6) == b"#13\0\xff\n"
    link.reset(1)
    with pytest.raises(LinkTimeout):
        link.receive(0.05)
    link.close()
    with pytest.raises(LinkError, match="nosuch"):
        SerialLink("nosuch://", 115200)
