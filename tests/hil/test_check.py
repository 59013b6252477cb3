"""`run_checks`: a healthy tester passes all, whatever goes wrong is told, and nothing hangs or is left undone."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from hil.bench import open_tester
from hil.check import Report, run_checks
from hil.check_line import Line
from hil.checking import Places, Result
from hil.mock_hw.array import Chip
from hil.mock_hw.instrument import Instrument
from hil.mock_hw.ports import Codec
from hil.mock_hw.scpi_port import ScpiPort
from hil.mock_hw.server import Server
from hil.protocols.errors import InputError, TesterError
from hil.protocols.messages import Cells, PulseBatch
from hil.protocols.requests import Ground, Request
from hil.serving import serving

SMALL = "?arrays=2&rows=64&columns=32"
SLOW = ("half a block is forgotten after 0.5 s", "half a frame is forgotten after 0.5 s")
ANYWHERE = ("127.0.0.1", 0)


@contextmanager
def served(chip: str, codec: Codec = "auto", path: Path | None = None) -> Iterator[Server]:
    """A small twin that a thread serves, at a port of this machine or at a pseudo terminal."""
    with serving(f"twin:{chip}{SMALL}", path or ("127.0.0.1", 0), codec) as server:
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            yield server
        finally:
            server.stop()
            thread.join()


def wrap(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
    """Puts `wrapper(original, *arguments)` in the place of a function."""
    original = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *arguments: wrapper(original, *arguments))


def failures(report: Report) -> dict[str, str]:
    return {outcome.name: outcome.detail for outcome in report.failed}


@pytest.mark.parametrize("programming", [False, True])
@pytest.mark.parametrize("codec", ["scpi", "frames"])
@pytest.mark.parametrize("chip", ["pcm-analog", "pcm-90nm"])
def test_a_healthy_tester_passes_all(chip: str, codec: Codec, programming: bool) -> None:
    with served(chip, codec) as server:
        report = run_checks(server.uri, programming, timeout=2.0, leave_out=() if programming else SLOW)
    assert failures(report) == {}
    reasons = {outcome.detail for outcome in report.outcomes if not outcome.tried}
    assert ("pulses cells: needs --allow-programming" in reasons) == (not programming)
    assert any("mvm: none" in reason for reason in reasons) == (chip == "pcm-90nm")


@pytest.mark.parametrize("codec", ["scpi", "frames"])
def test_a_healthy_tester_on_a_serial_line_passes_all(codec: str, tmp_path: Path) -> None:
    with served("pcm-analog", path=tmp_path / "line") as server:
        report = run_checks(f"{server.uri}?codec={codec}&baudrate=20000000", True, timeout=0.5, leave_out=SLOW)
    assert failures(report) == {}


def test_a_tester_that_knows_no_more_of_scpi_than_the_host_needs_passes_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def only_ours(find: Any, self: Any, header: bytes) -> Any:
        needed = (b"ARR", b"DIAG", b"SYST:ERR", b"SYSTEM:ERR", b"*CLS", b"STAT")
        handler = find(self, header)
        return handler if header.upper().lstrip(b":").startswith(needed) else None

    wrap(monkeypatch, ScpiPort, "_find", only_ours)
    with served("pcm-90nm", "scpi") as server:
        report = run_checks(server.uri, True, timeout=2.0, leave_out=SLOW)
    assert failures(report) == {}
    assert "no common commands" in next(one.detail for one in report.outcomes if one.name.startswith("*IDN?"))


def test_a_twin_in_this_process_passes_what_is_not_of_the_wire() -> None:
    report = run_checks(f"twin:pcm-analog{SMALL}", True)
    assert failures(report) == {}
    assert {one.group for one in report.outcomes if not one.tried} == {"SCPI", "SCPI status", "frames", "wire"}


def test_no_cell_is_pulsed_unless_it_is_allowed_and_then_only_those_that_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pulsed: list[Cells] = []

    def watched(program: Any, self: Chip, pulses: PulseBatch, flat: Any) -> Any:
        pulsed.append(pulses.cells)
        return program(self, pulses, flat)

    wrap(monkeypatch, Chip, "program", watched)
    with served("pcm-analog") as server:
        run_checks(server.uri, leave_out=SLOW)
        assert pulsed == []
        run_checks(server.uri, True, leave_out=SLOW)
        assert places(pulsed) == {(1, 63, 28), (1, 63, 29), (1, 63, 30), (1, 63, 31)}
        pulsed.clear()
        report = run_checks(server.uri, True, ((0, 5, 7), (1, 0, 3)), leave_out=SLOW)
        assert places(pulsed) == {(0, 5, 7), (1, 0, 3)}
    assert any("cells 0:5:7, 1:0:3" in outcome.detail for outcome in report.outcomes)


def places(pulsed: list[Cells]) -> set[tuple[int, ...]]:
    cells = Cells.concatenate(pulsed)
    return {tuple(map(int, place)) for place in zip(cells.array, cells.row, cells.column, strict=True)}


def test_a_check_that_raises_is_a_failure_and_the_next_one_finds_the_line_as_new(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slips = iter([True])

    def slip(state: Any, self: Line) -> Any:
        if not next(slips, False):
            return state(self)
        self.send(b"ARR:STAT?\nARR:STAT?\n*XYZ?\n")  # whose answers nobody takes
        raise ZeroDivisionError("a slip")

    wrap(monkeypatch, Line, "state", slip)
    with served("pcm-90nm") as server:
        report = run_checks(server.uri, leave_out=SLOW)
    assert list(failures(report).values()) == ["a slip"]


def test_a_tester_that_falls_silent_is_told_in_bounded_time() -> None:
    with served("pcm-90nm", "frames") as server:

        def begin(name: str) -> None:
            if name == "it describes itself":
                server.stop()  # it still listens

        start = time.monotonic()
        report = run_checks(server.uri, timeout=0.05, leave_out=SLOW, begin=begin)
    assert time.monotonic() - start < 10
    assert report.identity is None
    assert "no answer in 0.05 s" in failures(report)["it describes itself"]
    assert "no answer" in failures(report)["it opens"]


def test_one_that_never_stops_talking_is_told_in_bounded_time() -> None:
    with socket.create_server(ANYWHERE) as listener:

        def babble() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                with client, suppress(OSError):
                    while True:
                        client.sendall(b"x" * 100)

        thread = threading.Thread(target=babble)
        thread.start()
        start = time.monotonic()
        report = run_checks(f"tcp://127.0.0.1:{listener.getsockname()[1]}", timeout=0.02)
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert time.monotonic() - start < 20
    assert report.count(Result.PASSED) == 0


def test_what_is_no_tester_raises_an_error() -> None:
    with socket.create_server(ANYWHERE) as listener:
        uri = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(TesterError, match=r"SYST:ERR.*codec=frames"):
            run_checks(uri, timeout=0.05)
    with pytest.raises(TesterError, match="connection refused"):
        run_checks(uri)


@pytest.mark.parametrize("uri", ["tcp://nowhere", "tcp://127.0.0.1:5025?codec=morse", "twin:unknown", "nothing"])
def test_a_malformed_uri_raises_an_error(uri: str) -> None:
    with pytest.raises(InputError):
        run_checks(uri)


@pytest.mark.parametrize("pulsed", [((0, 64, 0),), ((9, 0, 0),), ((0, 0, 0), (0, 0, 0))])
def test_cells_that_cannot_be_pulsed_raise_an_error(pulsed: Places) -> None:
    with pytest.raises(InputError):
        run_checks(f"twin:pcm-90nm{SMALL}", True, pulsed)


@pytest.mark.parametrize(
    "at", ["blocks carry any bytes", "a lower id is refused", "repeated reads are near each other"]
)
def test_ctrl_c_ends_in_the_safe_state(at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Request] = []

    def watched(answer: Any, self: Any, request: Request) -> Any:
        asked.append(request)
        return answer(self, request)

    wrap(monkeypatch, Instrument, "answer", watched)

    def begin(name: str) -> None:
        if name == at:
            raise KeyboardInterrupt

    with served("pcm-analog") as server:
        with pytest.raises(KeyboardInterrupt):
            run_checks(server.uri, leave_out=SLOW, begin=begin)
        assert asked[-1] == Ground()
        open_tester(server.uri).close()  # the line was let go
