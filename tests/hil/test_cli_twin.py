"""`hil twin serve` as a person starts it: one line to be used, clear refusals, and a clean end."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import numpy as np
import pytest
from click.testing import CliRunner

from hil.bench import open_chip, open_tester
from hil.cli import main
from hil.mock_hw.instrument import Instrument
from hil.protocols import frames
from hil.protocols.errors import InputError
from hil.protocols.messages import Cells, Operation, PulseBatch
from hil.protocols.requests import Describe, GetState, Program, Read, Reply, Request
from hil.serving import tcp_address

HIL = Path(sys.executable).with_name("hil")
SMALL = "arrays=1&rows=16&columns=16"
ROW = Cells.of(0, 3, np.arange(16))
Process = subprocess.Popen[str]
Serve = Callable[..., tuple[Process, str]]


def line_of(stream: IO[str] | None) -> str:
    assert stream is not None
    assert select.select([stream], [], [], 30)[0], "nothing was printed"
    return stream.readline().rstrip("\n")


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Starts `hil twin serve` in an empty folder; gives the process and the line that it prints."""
    started: list[Process] = []

    def start(*arguments: str) -> tuple[Process, str]:
        command = [str(HIL), "twin", "serve", *arguments]
        started.append(
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
        )
        return started[-1], line_of(started[-1].stdout)

    yield start
    for process in started:
        process.kill()
        process.communicate()


def ended(process: Process, number: int = signal.SIGINT, times: int = 1) -> tuple[int, str, str]:
    """Exit code and what is left on both outputs, after a signal."""
    for _ in range(times):
        process.send_signal(number)
    out, err = process.communicate(timeout=20)
    return process.returncode, out, err


def connected(uri: str) -> socket.socket:
    host, _, port = uri.partition("?")[0].removeprefix("tcp://").rpartition(":")
    return socket.create_connection((host, int(port)), 10)


def ask(line: socket.socket, request: Request) -> Reply:
    line.sendall(b"".join(frames.encode_request(request, 1)))
    reader = frames.FrameReader()
    while data := line.recv(1 << 16):
        reader.feed(data)
        for frame in reader.frames():
            return frames.decode_reply(request, frame)
    raise ConnectionError


def pulses(uri: str) -> PulseBatch:
    shape = open_chip(uri, 1)[0].capabilities.set_pulse
    return PulseBatch(ROW, Operation.SET, np.full(16, 4, np.uint16), shape)


class TestTcp:
    def test_it_prints_its_uri_and_serves_until_ctrl_c(self, serve: Serve) -> None:
        process, uri = serve("--tcp", "0", "--twin", f"pcm-analog?{SMALL}")
        assert uri.startswith("tcp://127.0.0.1:")
        with connected(uri) as line:
            line.sendall(b"*IDN?\n")
            assert line.recv(100).startswith(b"PCM-HIL,pcm-analog,")
            assert ended(process, times=3) == (0, "", "Serving; Ctrl-C ends it.\nstopped\n")
            assert line.recv(100) == b""

    def test_others_are_let_in_only_with_a_warning(self, serve: Serve) -> None:
        process, printed = serve("--tcp", "0.0.0.0:0", "--twin", f"ideal?{SMALL}", "--codec", "frames", "--json")
        uri = json.loads(printed)["uri"]
        assert uri.startswith(f"tcp://{socket.gethostname()}:")
        assert uri.endswith("?codec=frames")
        assert "Warning: anyone who reaches this port can use the chip." in ended(process)[2]

    def test_it_is_the_twin_that_the_uri_names_in_process(self, serve: Serve) -> None:
        _, uri = serve("--tcp", "0", "--twin", f"pcm-analog?{SMALL}", "--seed", "7")
        same = f"twin:pcm-analog?{SMALL}&seed=7"
        firmware, identity, _ = open_chip(same, 1)
        instrument = Instrument(firmware, identity)
        with connected(uri) as line:
            for request in (Describe(), Program(1, pulses(same)), Read(2, ROW)):
                assert repr(ask(line, request)) == repr(instrument.answer(request))

    def test_it_makes_the_faults_of_a_plan_and_tells(self, serve: Serve, tmp_path: Path) -> None:
        (tmp_path / "plan.toml").write_text('[[fault]]\nkind = "close"\nwhere = "reply"\nat = [2]\n')
        process, uri = serve("--tcp", "0", "--twin", f"ideal?{SMALL}", "--faults", "plan.toml")
        with connected(uri) as line:
            ask(line, GetState())
            with pytest.raises(ConnectionError):
                ask(line, GetState())
        with connected(uri) as line:
            ask(line, GetState())
        assert "Faults: close (reply) 1; of 3 requests, 3 replies\n" in ended(process)[2]

    def test_time_passes_as_the_clock_says(self, serve: Serve) -> None:
        _, uri = serve("--tcp", "0", "--twin", f"pcm-analog?{SMALL}", "--clock", "scaled:1e-4")
        with connected(uri) as line:
            start = time.monotonic()
            ask(line, Read(1, ROW))  # 16 us on a device
            assert time.monotonic() - start > 0.16


class TestPty:
    def test_a_link_leads_to_it_while_it_serves(self, serve: Serve, tmp_path: Path) -> None:
        process, uri = serve("--pty", "tester", "--twin", f"ideal?{SMALL}")
        assert uri == f"serial://{tmp_path}/tester"
        number = os.open(tmp_path / "tester", os.O_RDWR | os.O_NOCTTY)
        os.write(number, b"*TST?\n")
        assert os.read(number, 100) == b"0\n"
        os.close(number)
        assert ended(process)[0] == 0
        assert os.listdir(tmp_path) == []


class TestKeptChips:
    def test_a_killed_server_leaves_the_chip_to_the_next_user(self, serve: Serve, tmp_path: Path) -> None:
        new = f"chip.h5?chip=pcm-analog&{SMALL}&read_noise=off&drift=off"
        process, uri = serve("--tcp", "0", "--twin", new)
        with connected(uri) as line:
            ask(line, Program(1, pulses(f"twin:?{SMALL}")))
            told = ask(line, Read(2, ROW))
        ended(process, signal.SIGKILL)
        assert (tmp_path / "chip.h5.journal").exists()
        with open_tester(f"twin:{tmp_path}/chip.h5") as tester:
            found = tester.read(ROW)
            assert found.op_id == 3
            assert f"{found.codes!r}" in f"{told!r}"
        assert os.listdir(tmp_path) == ["chip.h5"]

    def test_a_chip_is_in_use_until_its_server_ends(self, serve: Serve, tmp_path: Path) -> None:
        process, _ = serve("--tcp", "0", "--twin", f"chip.h5?chip=ideal&{SMALL}")
        with pytest.raises(InputError, match=r"chip\.h5 is in use by another process"):
            open_tester(f"twin:{tmp_path}/chip.h5")
        assert ended(process, signal.SIGTERM)[0] == 0
        assert os.listdir(tmp_path) == ["chip.h5"]
        open_tester(f"twin:{tmp_path}/chip.h5").close()

    def test_a_journal_without_its_chip_is_not_overwritten(self, serve: Serve, tmp_path: Path) -> None:
        process, _ = serve("--tcp", "0", "--twin", f"chip.h5?chip=ideal&{SMALL}")
        ended(process, signal.SIGKILL)
        (tmp_path / "chip.h5").rename(tmp_path / "moved.h5")
        with pytest.raises(InputError, match=r"chip\.h5 is gone, and its journal is there"):
            open_tester(f"twin:{tmp_path}/chip.h5?chip=ideal")
        assert (tmp_path / "chip.h5.journal").stat().st_size > 0


WRONG = {
    "nowhere": ((), "say where to serve: --tcp HOST:PORT or --pty PATH"),
    "two places": (("--tcp", "0", "--pty", "x"), "say where to serve"),
    "port": (("--tcp", "65536"), "--tcp 65536: expected HOST:PORT, [IPv6]:PORT or PORT"),
    "host": (("--tcp", "no.such.host.invalid:0"), "cannot listen at no.such.host.invalid:0"),
    "clock": (("--tcp", "0", "--clock", "fast"), "clock 'fast': expected virtual, wall, or scaled:N"),
    "plan": (("--tcp", "0", "--faults", "none.toml"), "none.toml cannot be read as a plan of faults"),
    "twin": (("--tcp", "0", "--twin", "nonsense"), "unknown chip 'nonsense'; there are"),
    "chip": (("--tcp", "0", "--twin", "none.h5"), "no chip at none.h5"),
    "codec": (("--tcp", "0", "--codec", "morse"), "'morse' is not one of"),
    "seed": (("--tcp", "0", "--seed", "-1"), "-1 is not in the range"),
    "file in the way": (("--pty", "."), "something else is there"),
}


@pytest.mark.parametrize(("arguments", "says"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_argument_is_refused_in_one_line(
    arguments: tuple[str, ...], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["twin", "serve", *arguments], prog_name="hil")
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1), result.stderr
    assert says in result.stderr
    assert os.listdir(tmp_path) == []


def test_a_port_in_use_is_refused_and_the_chip_left(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        arguments = ["--tcp", str(taken.getsockname()[1]), "--twin", f"{tmp_path}/chip.h5?chip=ideal&{SMALL}"]
        result = CliRunner().invoke(main, ["twin", "serve", *arguments])
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "ddress already in use" in result.stderr
    open_tester(f"twin:{tmp_path}/chip.h5").close()


@pytest.mark.parametrize(
    ("text", "address"),
    [("5025", ("127.0.0.1", 5025)), (":5025", ("127.0.0.1", 5025)), ("bench:0", ("bench", 0)), ("[::1]:7", ("::1", 7))],
)
def test_an_address_is_host_and_port(text: str, address: tuple[str, int]) -> None:
    assert tcp_address(text) == address


@pytest.mark.parametrize("text", ["", "host", "host:", "host:x", "1:2:3", "::1:5025", "-1", "²", "0x10"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="expected HOST:PORT"):
        tcp_address(text)
