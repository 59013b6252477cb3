"""Addresses of testers on a wire: what they mean, and what is wrong with those that mean nothing."""

import os
import socket
import sys
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hil.instruments.resource import WireAddress, open_link, parse_address
from hil.protocols.errors import InputError


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("tcp://127.0.0.1:5025", WireAddress("tcp", "127.0.0.1", 5025)),
        ("TCP://Bench-3.lab:1/", WireAddress("tcp", "Bench-3.lab", 1)),
        ("tcp://[fe80::1%eth0]:65535?timeout=0.5", WireAddress("tcp", "fe80::1%eth0", 65535, timeout=0.5)),
        ("tcp://h:5025?codec=frames&timeout=1e1", WireAddress("tcp", "h", 5025, codec="frames", timeout=10.0)),
        ("serial:///dev/ttyUSB0", WireAddress("serial", "/dev/ttyUSB0")),
        (
            "serial:///dev/ttyUSB0?baudrate=921600&codec=frames&timeout=5",
            WireAddress("serial", "/dev/ttyUSB0", codec="frames", timeout=5.0, baudrate=921600),
        ),
        ("serial:COM3", WireAddress("serial", "COM3")),
        ("serial:/dev/ttyACM0?", WireAddress("serial", "/dev/ttyACM0")),
        ("TCPIP0::192.168.0.7::5025::SOCKET", WireAddress("tcp", "192.168.0.7", 5025)),
        ("tcpip::[::1]::5025::socket?codec=frames", WireAddress("tcp", "::1", 5025, codec="frames")),
        ("ASRL/dev/ttyUSB0::INSTR?baudrate=9600", WireAddress("serial", "/dev/ttyUSB0", baudrate=9600)),
        ("asrl/dev/ttyUSB0::instr", WireAddress("serial", "/dev/ttyUSB0")),
        ("ASRLCOM3::INSTR", WireAddress("serial", "COM3")),
        ("TCPIP0::h::5025::SOCKET?backend=py", WireAddress("visa", "TCPIP0::h::5025::SOCKET", backend="py")),
        (
            "ASRL3::INSTR?backend=ivi&baudrate=9600",
            WireAddress("visa", "ASRL3::INSTR", baudrate=9600, backend="ivi"),
        ),
        ("GPIB0::8::INSTR", WireAddress("visa", "GPIB0::8::INSTR")),
        ("gpib0::8::instr?timeout=3600", WireAddress("visa", "gpib0::8::instr", timeout=3600.0)),
        ("USB0::0x1AB1::0x0588::DS1K::INSTR", WireAddress("visa", "USB0::0x1AB1::0x0588::DS1K::INSTR")),
        ("TCPIP0::h::hislip0::INSTR", WireAddress("visa", "TCPIP0::h::hislip0::INSTR")),
        (
            "TCPIP0::h::INSTR?backend=/opt/lib/libvisa.so",
            WireAddress("visa", "TCPIP0::h::INSTR", backend="/opt/lib/libvisa.so"),
        ),
    ],
)
def test_an_address_is_understood(uri: str, address: WireAddress) -> None:
    assert parse_address(uri) == address


@pytest.mark.parametrize(
    "uri", ["", "twin:", "twin:pcm?seed=1", "replay:run.h5", "tcp", "serial", "tcpx://h:1", "http://h:80", "GPIB0"]
)
def test_another_scheme_is_left_to_others(uri: str) -> None:
    assert parse_address(uri) is None


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("tcp:", "expected tcp://host:port"),
        ("tcp://bench", "expected tcp://host:port"),
        ("tcp://:5025", "expected tcp://host:port"),
        ("tcp://bench:0", "port from 1 to 65535"),
        ("tcp://bench:65536", "port from 1 to 65535"),
        ("tcp://bench:99999999999", "port from 1 to 65535"),
        ("tcp://bench:\u0663", "port from 1 to 65535"),
        ("tcp://me@bench:5025", "expected tcp://host:port"),
        ("tcp://::1:5025", r"tcp://\[IPv6\]:port"),
        ("TCPIP0::h::0::SOCKET", "port from 1 to 65535"),
        ("TCPIP0::h::scpi::SOCKET", "port from 1 to 65535"),
        ("serial:", "expected serial: and a device"),
        ("serial:///", "expected serial: and a device"),
        ("tcp://h:1?baudrate=9600", "no option 'baudrate' here; known: codec, timeout$"),
        ("serial:COM3?backend=py", "no option 'backend' here; known: codec, timeout, baudrate$"),
        ("GPIB0::8::INSTR?baudrate=9600", "no option 'baudrate' here; known: codec, timeout, backend$"),
        ("tcp://h:1?Codec=scpi", "no option 'Codec'"),
        ("tcp://h:1?codec=modbus", "codec=modbus: expected scpi or frames"),
        ("tcp://h:1?codec", "expected options as in"),
        ("tcp://h:1?codec=scpi&codec=frames", "codec is given twice"),
        ("tcp://h:1?timeout=0", "timeout=0: expected seconds above 0, up to 3600"),
        ("tcp://h:1?timeout=-1", "expected seconds"),
        ("tcp://h:1?timeout=nan", "expected seconds"),
        ("tcp://h:1?timeout=inf", "expected seconds"),
        ("tcp://h:1?timeout=3601", "expected seconds"),
        ("tcp://h:1?timeout=soon", "timeout=soon: expected seconds"),
        ("serial:COM3?baudrate=1199", "expected bit/s from 1200 to 20000000"),
        ("serial:COM3?baudrate=20000001", "expected bit/s"),
        ("serial:COM3?baudrate=9600.0", "expected bit/s"),
        ("GPIB0::8::INSTR?backend=", "expected py, ivi, sim or the path"),
    ],
)
def test_a_malformed_address_says_what_was_expected(uri: str, expected: str) -> None:
    with pytest.raises(InputError, match=expected) as caught:
        parse_address(uri)
    assert str(caught.value).startswith(repr(uri))
    assert "\n" not in str(caught.value)


def test_a_numbered_serial_port_belongs_to_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    assert parse_address("ASRL3::INSTR") == WireAddress("serial", "COM3")
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(InputError, match=r"as in ASRL/dev/ttyUSB0::INSTR"):
        parse_address("ASRL3::INSTR")


@settings(max_examples=50)
@given(
    st.sampled_from(["tcp:", "tcp://h:1?", "serial:", "ASRL", "TCPIP::h::1::SOCKET?", "GPIB::1?backend=", ""]),
    st.text(max_size=30),
)
def test_whatever_is_typed_gives_an_address_or_an_input_error(start: str, rest: str) -> None:
    address = None
    with suppress(InputError):
        address = parse_address(start + rest)
    assert address is None or address.where


def test_each_kind_of_address_opens_its_link() -> None:
    end, port = os.openpty()
    with socket.create_server(("127.0.0.1", 0)) as server:
        number = server.getsockname()[1]
        for uri in (
            f"tcp://127.0.0.1:{number}",
            f"serial://{os.ttyname(port)}",
            f"TCPIP0::127.0.0.1::{number}::SOCKET?backend=py",
        ):
            address = parse_address(uri)
            assert address is not None
            link = open_link(address)
            assert link.name == uri
            link.close()
    os.close(port)
    os.close(end)
