"""Ways to write the weights of a layer onto its devices."""

from collections.abc import Callable

import numpy as np

from hil.kernels import F32
from hil.pairs import DifferentialPairs
from hil.programming import Convergence, Progress, Verify

Writer = Callable[[DifferentialPairs, F32], None]
"""Makes the differences G+ - G- (S) of all pairs what is asked for (rows * columns,)."""


def blind(pairs: DifferentialPairs, differences: F32) -> None:
    """Open loop, one RESET and as many SET pulses as the mean device needs."""
    pairs.write(np.arange(len(pairs), dtype=np.int32), differences)


def untouched(pairs: DifferentialPairs, differences: F32) -> None:
    """Leave the devices as they are: they hold weights already."""


class Verified:
    """By program-and-verify. `reports` has what came of each layer that was written."""

    def __init__(self, how: Verify | None = None, progress: Progress | None = None) -> None:
        self.reports: list[Convergence] = []
        self._how, self._progress = how or Verify(), progress

    def __call__(self, pairs: DifferentialPairs, differences: F32) -> None:
        index = np.arange(len(pairs), dtype=np.int32)
        self.reports.append(pairs.write_verified(index, differences, self._how, self._progress))
