"""`run_checks`: a healthy tester passes all, whatever goes wrong is told, and nothing hangs or is left undone."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
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
from hil.mock_hw.status import StatusSystem
from hil.protocols import payloads
from hil.protocols.errors import InputError, TesterError
from hil.protocols.messages import Cells, PulseBatch
from hil.protocols.requests import Echo, Echoed, Failure, Fault, Ground, Request
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
        report = run_checks(server.uri, programming, timeout=5.0, leave_out=() if programming else SLOW)
    assert failures(report) == {}
    reasons = {outcome.detail for outcome in report.outcomes if not outcome.tried}
    assert ("pulses cells: needs --allow-programming" in reasons) == (not programming)
    assert any("mvm: none" in reason for reason in reasons) == (chip == "pcm-90nm")


@pytest.mark.parametrize("codec", ["scpi", "frames"])
def test_a_healthy_tester_on_a_serial_line_passes_all(codec: str, tmp_path: Path) -> None:
    with served("pcm-analog", path=tmp_path / "line") as server:
        report = run_checks(f"{server.uri}?codec={codec}&baudrate=20000000", True, timeout=2.0, leave_out=SLOW)
    assert failures(report) == {}


def test_a_tester_that_knows_no_more_of_scpi_than_the_host_needs_passes_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def only_ours(find: Any, self: Any, header: bytes) -> Any:
        name = header.upper().lstrip(b":")
        needed = name.startswith((b"ARR", b"DIAG", b"SYST:ERR", b"SYSTEM:ERR", b"*CLS")) or name == b"STAT?"
        handler = find(self, header)
        return handler if needed else None

    wrap(monkeypatch, ScpiPort, "_find", only_ours)
    with served("pcm-90nm", "scpi") as server:
        report = run_checks(server.uri, True, timeout=5.0, leave_out=SLOW)
    assert failures(report) == {}
    details = {one.name: one.detail for one in report.outcomes if one.group == "SCPI status" and not one.tried}
    assert len(details) == 9
    optional = "; optional for a host, expected of an SCPI instrument"
    assert details["a full error queue ends with -350"] == f"not implemented: *ESR? is answered with -113{optional}"
    registers = "STAT:OPER?, STAT:OPER:EVEN?, STAT:OPER:COND?, STAT:OPER:ENAB and 7 more are answered with -113"
    assert details["STATus:OPERation and STATus:QUEStionable are there"] == f"not implemented: {registers}{optional}"


def test_a_tester_with_some_of_the_standards_is_asked_for_no_other_group(monkeypatch: pytest.MonkeyPatch) -> None:
    def common(original: Any, self: Any) -> Any:
        return {name: handler for name, handler in original(self).items() if name in ("*CLS", "*IDN?", "*RST")}

    wrap(monkeypatch, ScpiPort, "_common", common)
    with served("pcm-90nm", "scpi") as server:
        report = run_checks(server.uri, timeout=5.0, leave_out=SLOW)
    told = {"*OPC?, *TST?, *WAI and *RST are there": "part of the mandatory set is there and *OPC?, *TST?, *WAI are "}
    assert failures(report).keys() == told.keys()
    assert failures(report)[next(iter(told))].startswith(next(iter(told.values())))
    assert any(one.name.startswith("*IDN?") and one.result == Result.PASSED for one in report.outcomes)


def change(part: str, key: str, value: Any = None) -> Callable[[bytes], bytes]:
    """A description in which a key has another value, or is missing."""

    def changed(told: bytes) -> bytes:
        description = json.loads(told)
        description[part][key] = value
        if value is None:
            del description[part][key]
        return json.dumps(description).encode()

    return changed


MALFORMED = {
    "a key is missing": (change("capabilities", "staircase"), "key 'staircase' is missing in 'capabilities'"),
    "a key of a pulse is missing": (
        change("capabilities", "set_pulse", {"amplitude": 1e-4}),
        "key 'width' is missing in 'set_pulse'",
    ),
    "a key is not known": (change("identity", "colour", "red"), "key 'colour' in 'identity' is not known"),
    "a text for a number": (
        change("capabilities", "read_voltage", "0.2"),
        "key 'read_voltage' is \"0.2\", expected a number",
    ),
    "a number for a list": (
        change("capabilities", "mvm_ranges", 5),
        "key 'mvm_ranges' is 5, expected a list of numbers",
    ),
    "a number for an object": (change("capabilities", "durations", 1), "key 'durations' is 1, expected an object"),
    "an unknown word": (
        change("capabilities", "mvm", "digital"),
        "key 'mvm' is \"digital\", expected one of analog, binary, none",
    ),
    "a list": (lambda told: b"[1]", "key 'description' is [1], expected an object"),
    "no JSON": (lambda told: told[:-1], "Expecting ',' delimiter"),
}


@pytest.mark.parametrize("codec", ["scpi", "frames"])
@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_description_is_told_once_and_what_needs_it_is_not_applicable(
    name: str, codec: Codec, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed, says = MALFORMED[name]
    wrap(monkeypatch, payloads, "describe", lambda describe, description: changed(describe(description)))
    with served("pcm-analog", codec) as server:
        report = run_checks(server.uri, True, timeout=5.0, leave_out=SLOW)
    assert failures(report).keys() == {"it describes itself", "it opens"}
    for detail in failures(report).values():
        assert f"the tester's description cannot be read: {says}" in detail
    reasons = [outcome.detail for outcome in report.outcomes if not outcome.tried]
    assert reasons.count("needs the description, which cannot be read") > 5


@pytest.mark.parametrize("code", [Fault.CORRUPT, Fault.SYNTAX, Fault.INVALID_BLOCK])
def test_a_bad_block_length_may_be_noticed_by_its_checksum(code: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    assert BAD_BLOCK not in failures(checked_with_bad_blocks_refused_as(code, monkeypatch))


def test_a_bad_block_length_must_not_be_refused_for_another_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    found = failures(checked_with_bad_blocks_refused_as(Fault.OUT_OF_RANGE, monkeypatch))
    assert "expected -161 (or another command error, -1xx) or -230, got -222" in found[BAD_BLOCK]


BAD_BLOCK = "a bad block length is refused"


def checked_with_bad_blocks_refused_as(code: Fault, monkeypatch: pytest.MonkeyPatch) -> Report:
    def push(original: Any, self: Any, failure: Failure) -> None:
        original(self, replace(failure, code=code) if failure.code == Fault.INVALID_BLOCK else failure)

    wrap(monkeypatch, StatusSystem, "push", push)
    with served("pcm-90nm", "scpi") as server:
        return run_checks(server.uri, timeout=5.0, leave_out=SLOW)


ECHOES = {
    "scpi": ("blocks carry any bytes", "a large block is echoed"),
    "frames": ("a frame is echoed", "a large frame is echoed"),
}


@pytest.mark.parametrize("codec", ["scpi", "frames"])
def test_an_echo_that_differs_is_told_by_its_size_and_the_first_byte_that_differs(
    codec: Codec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(original: Any, self: Any, request: Request) -> Any:
        if not isinstance(request, Echo):
            return original(self, request)
        data = bytes(request.data)
        return Echoed(data[:1000].replace(b"\xc8", b"?"))

    wrap(monkeypatch, Instrument, "answer", answer)
    with served("pcm-90nm", codec) as server:
        found = failures(run_checks(server.uri, timeout=5.0, leave_out=SLOW))
    small, large = ECHOES[codec]
    assert (
        "with every byte value: sent 256 bytes, got 256 back, different from byte 200 on: expected c8 " in found[small]
    )
    assert "of 65536 bytes: sent 65536 bytes, got 1000 back, different from byte 200 on" in found[large]


@pytest.mark.parametrize("codec", ["scpi", "frames"])
def test_an_echo_that_ends_early_is_told_so(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(original: Any, self: Any, request: Request) -> Any:
        short = isinstance(request, Echo) and bytes(request.data).startswith(b"slow")
        return Echoed(b"slo") if short else original(self, request)

    wrap(monkeypatch, Instrument, "answer", answer)
    with served("pcm-90nm", codec) as server:
        found = failures(run_checks(server.uri, timeout=5.0, leave_out=SLOW))
    (detail,) = found.values()
    assert "an echo sent byte by byte: sent " in detail
    assert "got 3 back, different from byte 3 on: expected 'w" in detail
    assert detail.endswith("got the end")


def test_a_twin_in_this_process_passes_what_is_not_of_the_wire() -> None:
    report = run_checks(f"twin:pcm-analog{SMALL}", True)
    assert failures(report) == {}
    assert {one.group for one in report.outcomes if not one.tried} == {"SCPI", "SCPI status", "frames", "wire"}


def test_no_cell_is_pulsed_unless_it_is_allowed_and_then_only_those_that_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pulsed: list[Cells] = []

    def watched(program: Any, self: Chip, pulses: PulseBatch, flat: Any, total: int) -> Any:
        pulsed.append(pulses.cells)
        return program(self, pulses, flat, total)

    with served("pcm-analog") as server:
        wrap(monkeypatch, Chip, "program", watched)  # from now on: a server rehearses on a chip of its own
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


@pytest.mark.parametrize("codec", ["scpi", "frames"])
def test_one_that_never_stops_talking_is_told_in_bounded_time(
    codec: str, listening: Callable[..., AbstractContextManager[int]]
) -> None:
    def babble(client: socket.socket) -> None:
        while True:
            client.sendall(b"x" * 100)

    with listening(babble) as port:
        start = time.monotonic()
        with pytest.raises(TesterError, match="not as a tester"):
            run_checks(f"tcp://127.0.0.1:{port}?codec={codec}", timeout=0.02)
    assert time.monotonic() - start < 5


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
