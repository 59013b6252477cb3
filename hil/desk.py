"""What a study works with: its cells, its settings, and the operations that it is made of."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from hil.instruments.tester import ArrayTester
from hil.protocols.messages import Capabilities, Cells, Operation, PulseBatch, Receipt, Status

if TYPE_CHECKING:  # both bring what `hil --help` does without
    from hil.loop import Log
    from hil.procedure import Bench
    from hil.studies import Settings

U16 = npt.NDArray[np.uint16]

UNITS = dict.fromkeys(("study", "step", "cycle", "pulses", "operation", "reads", "cells"), "") | {"age_s": "s"}
"""Columns of the metrics, one row per measurement. `step` counts a study's measurements; `pulses` are the SET pulses
since the RESET, -1 where they differ between cells; `age_s` is the time from the last pulse to the first read that was
asked for, NaN where nobody knows; `operation` is the row of the first read."""


@dataclass
class Desk:
    """One study at work. Before each operation it shows `what` is being done, and gives way to Ctrl-C."""

    bench: "Bench"
    number: int  # of the study in the run
    name: str
    cells: Cells
    settings: "Settings"
    total: int  # operations of the whole run

    def __post_init__(self) -> None:
        self.tester: ArrayTester = self.bench.tester
        self.log: Log = self.bench.log
        self.capabilities: Capabilities = self.tester.capabilities()
        self._step = 0
        self._pulsed_ns = 0
        self._batches: dict[tuple[Operation, int], PulseBatch] = {}

    def step(self, what: str) -> None:
        """The next operation is about to begin."""
        self.bench.step(self.log.operations, self.total, f"{self.name}: {what}")

    def reset(self, what: str) -> None:
        """One RESET pulse on every cell."""
        self.program(what, self._equal(Operation.RESET, 1))

    def set(self, what: str, counts: int | U16) -> None:
        """SET pulses: as many on every cell, or so many on each."""
        if isinstance(counts, int):
            self.program(what, self._equal(Operation.SET, counts))
        else:
            self.program(what, PulseBatch(self.cells, Operation.SET, counts, self.capabilities.set_pulse))

    def program(self, what: str, pulses: PulseBatch) -> None:
        """Any pulses."""
        self.step(what)
        self._check(what, self.tester.program(pulses))
        self._pulsed_ns = self.tester.time_ns()

    def wait(self, what: str, seconds: float) -> None:
        """Let device time pass."""
        self.step(what)
        self._check(what, self.tester.wait(seconds))

    def wait_for_age(self, what: str, age: float) -> None:
        """Until `age` seconds after the last pulse. Where that is over, it is a finding: the log has the true times."""
        late = (self.tester.time_ns() - self._pulsed_ns) * 1e-9 - age
        if late > 0:
            self.bench.find(
                f"{self.name}, {what}: {late:.3g} s too late; choose later times, fewer reads or fewer cells"
            )
        self.wait(what, max(-late, 0.0))

    def measure(self, what: str, cycle: int, pulses: int, age: float) -> None:
        """Read all cells, `settings.reads` times over, and log a row of metrics."""
        first = self.log.operations
        for _ in range(self.settings.reads):
            self.step(what)
            self.tester.read(self.cells)
        self.measured(cycle, pulses, age, first, len(self.cells))

    def measured(self, cycle: int, pulses: int, age: float, operation: int, cells: int) -> None:
        """Log a row of metrics: `settings.reads` reads of so many cells from `operation` on."""
        row = {"study": self.number, "step": self._step, "cycle": cycle, "pulses": pulses, "age_s": age}
        row |= {"operation": operation, "reads": self.settings.reads, "cells": cells}
        self.log.metrics(row, UNITS)
        self._step += 1

    def _equal(self, kind: Operation, count: int) -> PulseBatch:
        """As many pulses on every cell."""
        if (kind, count) not in self._batches:
            shape = self.capabilities.set_pulse if kind == Operation.SET else self.capabilities.reset_pulse
            counts = np.full(len(self.cells), count, np.uint16)
            self._batches[kind, count] = PulseBatch(self.cells, kind, counts, shape)
        return self._batches[kind, count]

    def _check(self, what: str, receipt: Receipt) -> None:
        if receipt.status != Status.COMPLETE:
            self.bench.find(f"{self.name}, {what}: nobody knows whether an operation was done in full; measure again")
