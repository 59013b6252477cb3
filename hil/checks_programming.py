"""Promises of pulses, tried out on a few cells that the user gave up for it: they are left RESET."""

from typing import Any

import numpy as np
import numpy.typing as npt

from hil.checking import Group, cells_at, expect, expect_equal, last_cells, named
from hil.checks_seam import Seam
from hil.protocols.messages import Cells, Operation, PulseBatch, Receipt, Status

programming: Group[Seam] = Group("programming")
Counts = npt.NDArray[np.integer[Any]]
READS = 16
PULSES = 10
LEFT = 0.3
"""Share of the rise by SET pulses that RESET may leave. CHOSEN."""


@programming("a receipt counts the pulses", "the host's record of each cell follows it", programs=True)
def _receipts(seam: Seam) -> str:
    places = seam.pulsed or last_cells(seam.capabilities)
    cells = cells_at(places)
    counts = 1 + np.arange(len(cells)) % 3
    for kind in (Operation.RESET, Operation.SET, Operation.RESET):
        receipt = _pulse(seam, cells, kind, counts)
        what = f"{counts.sum()} {kind.name} pulses on {named(places)}"
        expect_equal(f"status of {what}", receipt.status.name, Status.COMPLETE.name)
        expect_equal(f"pulses done, of {what}", receipt.done, int(counts.sum()))
    return f"{named(places)}; left RESET"


@programming("SET raises the conductance and RESET lowers it", "this is how weights are changed", programs=True)
def _levels(seam: Seam) -> str:
    places = seam.pulsed or last_cells(seam.capabilities)
    cells = cells_at(places)
    levels, error = [], 0.0
    for kind, count in ((Operation.RESET, 1), (Operation.SET, PULSES), (Operation.RESET, 1)):
        _pulse(seam, cells, kind, np.full(len(cells), count))
        readings = [seam.tester.read(cells) for _ in range(READS)]
        means = np.array([reading.values().mean() for reading in readings])
        levels.append(float(means.mean()))
        error = max(error, float(means.std()) / np.sqrt(READS), readings[0].scale)
    start, top, end = levels
    seen = f"{named(places)}: {start:.3g} S after RESET, {top:.3g} S after {PULSES} SET pulses, {end:.3g} S after RESET"
    expect(top - start > 3 * error, f"{seen}; expected SET to raise it by more than {3 * error:.2g} S")
    expect(abs(end - start) < LEFT * (top - start) + 3 * error, f"{seen}; expected RESET to bring it back")
    return f"{seen}; left RESET"


def _pulse(seam: Seam, cells: Cells, kind: Operation, counts: Counts) -> Receipt:
    c = seam.capabilities
    shape = c.set_pulse if kind == Operation.SET else c.reset_pulse
    return seam.tester.program(PulseBatch(cells, kind, counts.astype(np.uint16), shape))
