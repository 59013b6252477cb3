"""The testers that the contract suite runs on: every implementation has one line here."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache
from inspect import signature
from pathlib import Path
from threading import Thread
from types import FunctionType
from typing import Any

import numpy as np
import pytest

from hil.data.recording import RecordingTester
from hil.data.replay import ReplayTester
from hil.data.runfile import RunWriter
from hil.data.schema import Start
from hil.instruments import link
from hil.instruments.batching import BatchingTester
from hil.instruments.resource import parse_address
from hil.instruments.tester import ArrayTester
from hil.instruments.wire import open_wire
from hil.mock_hw import server
from hil.mock_hw.array import Chip
from hil.mock_hw.chips import CHIPS, ChipParameters
from hil.mock_hw.clocks import Clock
from hil.mock_hw.faults import FaultPlan, FaultRule
from hil.mock_hw.faulty_port import faulty_ports
from hil.mock_hw.firmware import Firmware
from hil.mock_hw.instrument import Instrument
from hil.mock_hw.ports import Codec, make_ports
from hil.mock_hw.pty_server import PtyServer
from hil.mock_hw.rehearsal import rehearse
from hil.mock_hw.tcp_server import TcpServer
from hil.mock_hw.twin import TwinTester, identity_of
from hil.protocols.messages import MvmMode, Readout

MakeTester = Callable[[], ArrayTester]


def firmware(name: str, **changes: object) -> Firmware:
    """A chip small enough to be built for every test; always the same one."""
    sizes: dict[str, object] = {"arrays": 2, "rows": 64, "columns": 32, "largest_batch": 2048}
    chip: ChipParameters = replace(CHIPS[name], **sizes | changes)  # type: ignore[arg-type]
    return Firmware(Chip(chip, np.random.SeedSequence(1)))


def twin(name: str, **changes: object) -> ArrayTester:
    """The twin of such a chip."""
    return TwinTester(firmware(name, **changes), name, "chip-1")


@cache
def rehearsed(name: str) -> None:
    """Compile what a chip's operations need: a driver that waits for 0.1 s would take that for a broken line."""
    rehearse(CHIPS[name])


RECOVERABLE = tuple(
    FaultRule(kind, where, every=every, seconds=seconds)
    for kind, where, every, seconds in (
        ("drop", "request", 61, 0.0),
        ("drop", "reply", 67, 0.0),
        ("corrupt", "request", 43, 0.0),
        ("corrupt", "reply", 47, 0.0),
        ("truncate", "request", 71, 0.0),
        ("truncate", "reply", 73, 0.0),
        ("duplicate", "request", 23, 0.0),
        ("duplicate", "reply", 29, 0.0),
        ("split", "reply", 17, 0.0),
        ("close", "reply", 79, 0.0),
        ("late", "reply", 83, 0.15),
        ("delay", "reply", 31, 0.01),
        ("busy", "request", 37, 0.0),
    )
)
"""What no driver may be troubled by, at numbers of messages that seldom meet."""


@contextmanager
def served(where: str, codec: Codec, faults: bool, folder: Path, name: str = "pcm-analog") -> Iterator[ArrayTester]:
    """A twin behind a real line, and the driver at its other end."""
    rehearsed(name)
    instrument = Instrument(firmware(name), identity_of(name, "chip-1"))
    plan = FaultPlan(RECOVERABLE, 1)
    ports = faulty_ports(instrument, codec, plan, lambda: None) if faults else make_ports(instrument, codec)
    line: TcpServer | PtyServer
    if where == "TCP":
        line = TcpServer(instrument, ports, Clock(), "127.0.0.1", 0)
    else:
        line = PtyServer(instrument, ports, Clock(), folder / "tty")
    address = parse_address(f"{line.uri}?codec={codec}&timeout={0.1 if faults else 10}")
    assert address is not None
    thread = Thread(target=line.run)
    with line:
        thread.start()
        try:
            with open_wire(address) as tester:
                yield tester
        finally:
            line.stop()
            thread.join()


WIRES: dict[str, tuple[str, Codec, bool]] = {
    f"{codec} over {where}{', with faults' if faults else ''}": (where, codec, faults)
    for where in ("TCP", "a pty")
    for codec in ("scpi", "frames")
    for faults in (False, True)
}


IMPLEMENTATIONS: dict[str, Callable[[], ArrayTester]] = {
    "twin pcm-analog": lambda: twin("pcm-analog"),
    "twin pcm-analog single": lambda: twin("pcm-analog", readout=Readout.SINGLE),
    "twin pcm-90nm": lambda: twin("pcm-90nm"),
    "twin ideal": lambda: twin("ideal"),
    "batching over twin": lambda: BatchingTester(twin("pcm-analog", largest_batch=60)),
}


RECORDED = ("twin pcm-analog", "twin pcm-90nm")
"""Testers of which each test is first recorded and then replayed."""


@pytest.fixture(params=[*IMPLEMENTATIONS, *(f"replay of {name}" for name in RECORDED), *WIRES])
def make_tester(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[MakeTester]:
    """Opens the tester under test: each call another one, of an equal chip."""
    name = request.param
    if name in IMPLEMENTATIONS:
        yield IMPLEMENTATIONS[name]
    elif name in WIRES:
        monkeypatch.setattr(link, "QUIET_S", 0.03)  # both in their order, but a serial line need not wait as long here
        monkeypatch.setattr(server, "PARTIAL_S", 0.02)
        with ExitStack() as lines:
            numbers = iter(range(100))

            def open_one() -> ArrayTester:
                folder = tmp_path / str(next(numbers))
                folder.mkdir()
                return lines.enter_context(served(*WIRES[name], folder))

            yield open_one
    else:
        yield replaying(request, IMPLEMENTATIONS[name.removeprefix("replay of ")], tmp_path)


@pytest.fixture
def tester(make_tester: MakeTester) -> ArrayTester:
    """A tester of a fresh chip."""
    return make_tester()


def replaying(request: pytest.FixtureRequest, make: MakeTester, folder: Path) -> MakeTester:
    """Run the test on a tester that is recorded; what it gives opens these recordings, in the same order."""
    runs: list[Path] = []
    writers: list[RunWriter] = []

    def record() -> ArrayTester:
        tester = make()
        runs.append(folder / f"{len(runs)}.h5")
        start = Start({}, "", (), 1, {}, {}, None, {}, tester.identify(), tester.capabilities())
        writers.append(RunWriter.create(runs[-1], start))
        return RecordingTester(tester, writers[-1])

    run_test(request, record)
    for writer in writers:
        writer.close("completed", {})
    opened = iter(runs)
    return lambda: ReplayTester.open(next(opened))


def run_test(request: pytest.FixtureRequest, make: MakeTester) -> None:
    """What pytest will do with the test, on another tester."""
    function: FunctionType = request.function
    parameters = request.node.callspec.params
    values: dict[str, Any] = {name: parameters[name] for name in parameters if name != "make_tester"}
    values["make_tester"] = make
    names = request.node.fixturenames
    if "tester" in names:
        values["tester"] = make()
    if "region" in names:
        c = values["tester"].capabilities()
        if c.mvm == MvmMode.NONE:
            pytest.skip("this array does no products (mvm: none)")
        values["region"] = values["tester"].register(function.__globals__["blocks_of"](c))
    function(**{name: values[name] for name in signature(function).parameters})
