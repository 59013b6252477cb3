"""What the tests of the twin share: chips and twins with single parameters changed."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from hil.mock_hw.array import Chip
from hil.mock_hw.chips import CHIPS
from hil.mock_hw.firmware import Firmware
from hil.mock_hw.parameters import PcmParameters
from hil.mock_hw.twin import TwinTester


def build(name: str = "pcm-analog", seed: int = 1, **changes: Any) -> Chip:
    """A small chip; `changes` are fields of its parameters or of its cells' parameters."""
    cell = {key: changes.pop(key) for key in set(changes) & set(PcmParameters._fields)}
    sizes = {"arrays": 2, "rows": 64, "columns": 32} | changes
    parameters = replace(CHIPS[name], cell=CHIPS[name].cell._replace(**cell), **sizes)
    return Chip(parameters, np.random.SeedSequence(seed))


@pytest.fixture
def make_chip() -> Callable[..., Chip]:
    """Builds a chip: `make_chip(name="pcm-analog", seed=1, drift=False, rows=10)`."""
    return build


@pytest.fixture
def make_twin() -> Callable[..., TwinTester]:
    """Builds a twin of such a chip."""

    def make(*args: Any, **changes: Any) -> TwinTester:
        return TwinTester(Firmware(build(*args, **changes)), "pcm-analog", "chip-1")

    return make
