"""Program cells to target conductances: pulse, read, and pulse again until each is near its target."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hil.instruments.tester import ArrayTester
from hil.kernels import F32, I64, Bools
from hil.protocols.errors import InputError
from hil.protocols.messages import Capabilities, Cells, Operation, PulseBatch, Status

U16 = npt.NDArray[np.uint16]
Progress = Callable[[int, int], None]
"""Told before each iteration: its number, and how many cells are not there yet."""


@dataclass(frozen=True)
class Verify:
    """How programming is verified."""

    margin: float = 0.8e-6
    """S by which a cell may read off its target. CHOSEN: half of a first SET pulse. Le Gallo et al., Nat. Electron. 1,
    246 (2018) took 1.74 uS for conductances of up to 50 uS (FOUND).
    """
    iterations: int = 20
    """Pulses and readings of a cell at most. FOUND (Le Gallo 2018)."""
    settle: float = 1.0
    """s of device time between a pulse and its verification: drift is steepest at first. CHOSEN."""
    reads: int = 1
    """Readings averaged in each verification."""

    def check(self) -> None:
        """Raise `InputError` for what makes no sense."""
        if not self.margin > 0:
            raise InputError(f"margin={self.margin:g} S: expected more than 0")
        if not 1 <= self.iterations <= 10_000:
            raise InputError(f"iterations={self.iterations}: expected 1 to 10000")
        if not 0 <= self.settle <= 1e6:
            raise InputError(f"settle={self.settle:g} s: expected 0 to 1e6")
        if not 1 <= self.reads <= 10_000:
            raise InputError(f"reads={self.reads}: expected 1 to 10000")


@dataclass(frozen=True)
class Convergence:
    """What became of each cell (n,)."""

    converged: Bools
    """Whether it read within the margin."""
    iterations: U16
    """Verifications it took until then, or until there were no more."""
    error: F32
    """S, its reading when all were done minus its target."""
    set_pulses: I64
    reset_pulses: I64
    in_doubt: int = 0
    """Operations of which nobody knows what they did; their cells were read like all others."""
    at_limit: int = 0
    """Pulses that met an end of the conductance range, as far as the tester can tell."""

    def summary(self) -> dict[str, Any]:
        """The distribution in short, JSON-able; errors in S."""
        error, taken = self.error, self.iterations
        return {
            "cells": len(error),
            "converged": float(self.converged.mean()),
            "mean_iterations": float(taken.mean()),
            "mean_error": float(error.mean()),
            "error_spread": float(error.std()),
            "error_quantiles": [float(value) for value in np.quantile(error, QUANTILES)],
            "set_pulses": int(self.set_pulses.sum()),
            "reset_pulses": int(self.reset_pulses.sum()),
            "in_doubt": self.in_doubt,
        }

    @classmethod
    def concatenate(cls, parts: "list[Convergence]") -> "Convergence":
        """One report from several."""
        return cls(
            np.concatenate([part.converged for part in parts]),
            np.concatenate([part.iterations for part in parts]),
            np.concatenate([part.error for part in parts]),
            np.concatenate([part.set_pulses for part in parts]),
            np.concatenate([part.reset_pulses for part in parts]),
            sum(part.in_doubt for part in parts),
            sum(part.at_limit for part in parts),
        )


QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
"""Of the errors that a summary tells."""


def program_and_verify(
    tester: ArrayTester, cells: Cells, targets: F32, how: Verify | None = None, progress: Progress | None = None
) -> Convergence:
    """RESET the cells, then bring each to its target (S): SET pulses where it reads below the margin, as many as the
    mean cell needs to reach the margin and at least one; a RESET and a new start where above. What is in doubt is read
    again like everything else, so no pulse is repeated on doubt.

    Raises `InputError`, before anything is sent, for targets that are no conductances that pulses reach, another number
    of targets than cells, or a cell that occurs twice.
    """
    how = how or Verify()
    how.check()
    check_targets(tester.capabilities(), cells, targets, how)
    work = _Work(tester, cells, np.asarray(targets, np.float32))
    work.pulse(np.arange(len(cells)), Operation.RESET, np.ones(len(cells), np.uint16))
    active = np.arange(len(cells))
    for iteration in range(how.iterations):
        if progress is not None:
            progress(iteration, len(active))
        active = work.verify(active, how, last=iteration == how.iterations - 1)
        if not len(active):
            break
    return work.report(how)


def check_targets(capabilities: Capabilities, cells: Cells, targets: F32, how: Verify) -> None:
    """Raise `InputError` for what cannot be programmed on such a tester."""
    if len(cells) == 0:
        raise InputError("no cells to program: select some")
    if np.shape(targets) != (len(cells),):
        raise InputError(f"{len(cells)} cells and targets of shape {np.shape(targets)}: each cell takes one target")
    places = np.stack([cells.array, cells.row, cells.column])
    distinct = np.unique(places, axis=1).shape[1]
    if distinct < len(cells):
        raise InputError(f"{len(cells) - distinct} cells occur more than once: a cell takes one target")
    if not np.isfinite(targets).all() or np.min(targets) < 0:
        bad = targets[~(np.isfinite(targets) & (targets >= 0))][0]
        raise InputError(f"target {bad:.3g} S: a conductance is at least 0 and finite")
    if np.max(targets) > reach_of(capabilities):
        reach = f"the {reach_of(capabilities):.3g} S that SET pulses reach"
        raise InputError(f"target {np.max(targets):.3g} S is above {reach}, by the tester's staircase")


def reach_of(capabilities: Capabilities) -> float:
    """Mean conductance (S) at the top of the tester's staircase; without end where it knows none."""
    return capabilities.staircase[-1] if capabilities.staircase else np.inf


class _Work:
    """Cells on their way to their targets."""

    def __init__(self, tester: ArrayTester, cells: Cells, targets: F32) -> None:
        self._tester, self._cells, self._targets = tester, cells, targets
        capabilities = tester.capabilities()
        self._shapes = {Operation.SET: capabilities.set_pulse, Operation.RESET: capabilities.reset_pulse}
        self._sent = {kind: np.zeros(len(cells), np.int64) for kind in self._shapes}
        self._iterations = np.zeros(len(cells), np.uint16)
        self._converged = np.zeros(len(cells), np.bool_)
        self._in_doubt = self._at_limit = 0
        self._staircase = np.array(capabilities.staircase)

    def pulse(self, index: I64, kind: Operation, counts: U16) -> None:
        """So many pulses on each of these cells."""
        if len(index):
            receipt = self._tester.program(PulseBatch(self._cells[index], kind, counts, self._shapes[kind]))
            self._in_doubt += receipt.status != Status.COMPLETE
            self._at_limit += receipt.saturated
            self._sent[kind][index] += counts

    def verify(self, index: I64, how: Verify, last: bool) -> I64:
        """Read these cells and pulse those that are off, but after the `last` reading; returns which are."""
        if how.settle:
            self._tester.wait(how.settle)
        reading = self._read(index, how.reads)
        error = reading - self._targets[index]
        low, high = error < -how.margin, error > how.margin
        self._iterations[index] += 1
        self._converged[index] = ~(low | high)
        if not last:
            counts = self._pulses(reading[low], self._targets[index[low]] - how.margin)
            self.pulse(index[low], Operation.SET, counts)
            self.pulse(index[high], Operation.RESET, np.ones(high.sum(), np.uint16))
        return index[low | high]

    def _pulses(self, now: F32, wanted: F32) -> U16:
        """SET pulses that bring the mean cell from conductance `now` up to what is `wanted`, or just below; at least
        one.
        """
        if not len(self._staircase):
            return np.ones(len(now), np.uint16)
        steps = np.arange(len(self._staircase))
        reached, aimed = (np.interp(values, self._staircase, steps) for values in (now, wanted))
        return np.maximum(np.floor(aimed - reached), 1).astype(np.uint16)

    def report(self, how: Verify) -> Convergence:
        """All cells are read once more: one that converged early has drifted since, and reads with other noise."""
        error = self._read(np.arange(len(self._cells)), how.reads) - self._targets
        sent = self._sent
        return Convergence(
            self._converged,
            self._iterations,
            error,
            sent[Operation.SET],
            sent[Operation.RESET],
            self._in_doubt,
            self._at_limit,
        )

    def _read(self, index: I64, reads: int) -> F32:
        cells = self._cells[index]
        total = np.zeros(len(index), np.float32)
        for _ in range(reads):
            total += self._tester.read(cells).values()
        return total / np.float32(reads)
