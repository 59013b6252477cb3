"""The testers that the contract suite runs on: every implementation has one line here."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from hil.instruments.batching import BatchingTester
from hil.instruments.tester import ArrayTester
from hil.mock_hw.array import Chip
from hil.mock_hw.chips import CHIPS, ChipParameters
from hil.mock_hw.firmware import Firmware
from hil.mock_hw.twin import TwinTester
from hil.protocols.messages import Readout


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


@pytest.fixture(params=IMPLEMENTATIONS)
def make_tester(request: pytest.FixtureRequest) -> Callable[[], ArrayTester]:
    """Opens the tester under test: each call another one, of an equal chip."""
    return IMPLEMENTATIONS[request.param]


@pytest.fixture
def tester(make_tester: Callable[[], ArrayTester]) -> ArrayTester:
    """A tester of a fresh chip."""
    return make_tester()
