"""The testers that the contract suite runs on: every implementation has one line here."""

from collections.abc import Callable
from dataclasses import replace
from inspect import signature
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import pytest

from hil.data.recording import RecordingTester
from hil.data.replay import ReplayTester
from hil.data.runfile import RunWriter
from hil.data.schema import Start
from hil.instruments.batching import BatchingTester
from hil.instruments.tester import ArrayTester
from hil.mock_hw.array import Chip
from hil.mock_hw.chips import CHIPS, ChipParameters
from hil.mock_hw.firmware import Firmware
from hil.mock_hw.twin import TwinTester
from hil.protocols.messages import MvmMode, Readout

MakeTester = Callable[[], ArrayTester]


def twin(name: str, **changes: object) -> ArrayTester:
    """A twin small enough to be built for every test; always the same one."""
    sizes: dict[str, object] = {"arrays": 2, "rows": 64, "columns": 32, "largest_batch": 2048}
    chip: ChipParameters = replace(CHIPS[name], **sizes | changes)  # type: ignore[arg-type]
    return TwinTester(Firmware(Chip(chip, np.random.SeedSequence(1))), name, "chip-1")


IMPLEMENTATIONS: dict[str, Callable[[], ArrayTester]] = {
    "twin pcm-analog": lambda: twin("pcm-analog"),
    "twin pcm-analog single": lambda: twin("pcm-analog", readout=Readout.SINGLE),
    "twin pcm-90nm": lambda: twin("pcm-90nm"),
    "twin ideal": lambda: twin("ideal"),
    "batching over twin": lambda: BatchingTester(twin("pcm-analog", largest_batch=60)),
}


RECORDED = ("twin pcm-analog", "twin pcm-90nm")
"""Testers of which each test is first recorded and then replayed."""


@pytest.fixture(params=[*IMPLEMENTATIONS, *(f"replay of {name}" for name in RECORDED)])
def make_tester(request: pytest.FixtureRequest, tmp_path: Path) -> MakeTester:
    """Opens the tester under test: each call another one, of an equal chip."""
    name = request.param
    if name in IMPLEMENTATIONS:
        return IMPLEMENTATIONS[name]
    return replaying(request, IMPLEMENTATIONS[name.removeprefix("replay of ")], tmp_path)


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
