"""Find the cells that no pulse changes, so that no weight is put on them."""

import numpy as np

from hil.instruments.tester import ArrayTester
from hil.protocols.errors import InputError, TesterError
from hil.protocols.messages import Cells, Operation, PulseBatch, Status

FAR = 0.8
"""Part of the staircase's top to which the mean cell is pulsed, far from its RESET state. CHOSEN: 10 pulses of the 2018
model.
"""
MOVED = 0.15
"""A cell works if pulses move it by this fraction of their mean effect, and a RESET brings it below that. CHOSEN."""


def all_cells(tester: ArrayTester) -> Cells:
    """Every cell of the chip."""
    c = tester.capabilities()
    array, row, column = np.unravel_index(np.arange(c.arrays * c.rows * c.columns), (c.arrays, c.rows, c.columns))
    return Cells.of(array, row, column)


def find_stuck(tester: ArrayTester, cells: Cells) -> Cells:
    """Those of the cells that stay high after a RESET or low after SET pulses; leaves the others RESET.

    Costs each cell two RESET pulses and the SET pulses to `FAR`. A weak cell may be taken for a stuck one (0.3 %
    with the 2018 model). Raises `TesterError` where pulses were not all done: the cells that they missed look stuck.
    """
    c = tester.capabilities()
    if not c.staircase:
        raise InputError("the tester knows no staircase (capabilities), so stuck cells cannot be told from weak ones")
    pulses = int(np.searchsorted(c.staircase, FAR * c.staircase[-1]))
    limit = MOVED * c.staircase[pulses]
    once = np.ones(len(cells), np.uint16)
    reset = PulseBatch(cells, Operation.RESET, once, c.reset_pulse)
    _pulse(tester, reset)
    low = tester.read(cells).values()
    _pulse(tester, PulseBatch(cells, Operation.SET, once * pulses, c.set_pulse))
    high = tester.read(cells).values()
    _pulse(tester, reset)
    return cells[(low > limit) | (high < limit)]


def _pulse(tester: ArrayTester, pulses: PulseBatch) -> None:
    """Send pulses once; no further ones follow on doubt."""
    receipt = tester.program(pulses)
    if receipt.status != Status.COMPLETE:
        raise TesterError(
            f"the scan for stuck cells ended: its {pulses.kind.name} pulses were answered with {receipt.status.name}, "
            f"{receipt.done:,} of {pulses.counts.sum():,} are known to be done, and cells that missed theirs would be "
            "taken for stuck; scan again in a new run"
        )
