"""What a procedure costs, before it is done: the very same procedure, done with a tester that only counts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hil.cells import flat_of
from hil.data.columns import Values
from hil.data.run import Run
from hil.data.schema import NONE
from hil.instruments.batching import BatchingTester
from hil.instruments.tester import ArrayTester
from hil.interrupt import Interrupt
from hil.observers import Silent
from hil.procedure import Bench
from hil.protocols import limits
from hil.protocols.errors import InputError
from hil.protocols.messages import (
    MVM_DIRECTION,
    Block,
    Capabilities,
    Cells,
    Direction,
    Identity,
    Operation,
    PulseBatch,
    PulseTrains,
    Readings,
    Receipt,
    Region,
    Status,
    TesterKind,
    Vectors,
)


@dataclass(frozen=True)
class Amounts:
    """What is asked of a tester."""

    operations: int
    cell_reads: int
    products: int  # vectors multiplied
    set_pulses: int
    reset_pulses: int
    set_pulses_per_cell: int  # on the cell that gets most
    reset_pulses_per_cell: int
    device_seconds: float


@dataclass(frozen=True)
class Estimate:
    """What a procedure will ask, and what it will find wrong with the tester or with what it was asked."""

    amounts: Amounts
    findings: tuple[str, ...]


def estimate(run: Callable[[Bench], None], capabilities: Capabilities) -> Estimate:
    """Do `run` without a tester. Raises what it raises, such as `InputError` where a tester like this cannot do it."""
    counting, log = CountingTester(capabilities), _NoLog()
    run(Bench(BatchingTester(counting), log, Silent(), Interrupt(), counting.memory))
    return Estimate(counting.amounts(), tuple(log.findings))


def counted(run: Run) -> Amounts:
    """What was asked of the tester of a run, by its log."""
    table = run.operations
    done, kinds = table["done"][: table.rows].astype(np.int64), table["kind"][: table.rows]
    total = {kind: int(done[kinds == kind].sum()) for kind in Operation}
    sets, resets = run.pulse_counts()
    return Amounts(
        operations=table.rows,
        cell_reads=total[Operation.READ],
        products=sum(total[kind] for kind in MVM_DIRECTION),
        set_pulses=total[Operation.SET],
        reset_pulses=total[Operation.RESET],
        set_pulses_per_cell=int(sets.max(initial=0)),
        reset_pulses_per_cell=int(resets.max(initial=0)),
        device_seconds=_device_seconds(run),
    )


def _device_seconds(run: Run) -> float:
    """From the first operation, which begins as long before its end as it should take, to the end of the last."""
    times = run.operations["device_time_ns"][: run.operations.rows]
    known = np.flatnonzero(times != NONE)
    if not len(known) or run.capabilities is None:
        return 0.0
    first = run.operation(int(known[0]))
    first_ns = round(_seconds(run.capabilities, first.kind, first.request) * 1e9)
    return (int(times[known[-1]] - times[known[0]]) + first_ns) * 1e-9


def _seconds(c: Capabilities, kind: Operation, request: Cells | Vectors | PulseBatch | PulseTrains | float) -> float:
    """How long an operation should take."""
    if isinstance(request, PulseBatch):
        duration = c.durations.set_pulse if kind == Operation.SET else c.durations.reset_pulse
        return int(request.counts.sum()) * duration
    if isinstance(request, Cells):
        return len(request) * c.durations.read
    if isinstance(request, Vectors):
        return len(request.codes) * c.durations.mvm
    return request if isinstance(request, float) else 0.0


class CountingTester(ArrayTester):
    """Answers at once and always the same, and counts."""

    def __init__(self, capabilities: Capabilities) -> None:
        self._capabilities = c = capabilities
        self._regions: list[Region] = []
        self._operations = self._now_ns = self._cell_reads = self._products = 0
        self._pulses = {kind: np.zeros(c.arrays * c.rows * c.columns, np.int64) for kind in _PROGRAM}
        self._repeated: dict[Operation, tuple[PulseBatch, int]] = {}  # what was sent last, and how often in a row

    def amounts(self) -> Amounts:
        """All so far."""
        for kind in list(self._repeated):
            self._count_pulses(kind)
        sets, resets = self._pulses[Operation.SET], self._pulses[Operation.RESET]
        return Amounts(
            operations=self._operations,
            cell_reads=self._cell_reads,
            products=self._products,
            set_pulses=int(sets.sum()),
            reset_pulses=int(resets.sum()),
            set_pulses_per_cell=int(sets.max()),
            reset_pulses_per_cell=int(resets.max()),
            device_seconds=self._now_ns * 1e-9,
        )

    def identify(self) -> Identity:
        return Identity("", "estimate", "", "", "", TesterKind.TWIN)

    def capabilities(self) -> Capabilities:
        return self._capabilities

    def register(self, blocks: Sequence[Block]) -> Region:
        limits.check_blocks(self._capabilities, blocks)
        self._regions.append(Region(len(self._regions), tuple(blocks)))
        return self._regions[-1]

    def regions(self) -> tuple[Region, ...]:
        return tuple(self._regions)

    def read(self, cells: Cells) -> Readings:
        self._cell_reads += len(cells)
        self._spend(Operation.READ, cells)
        return self._readings(np.zeros(len(cells), np.uint8), "S")

    def mvm(self, region: Region, vectors: Vectors, direction: Direction, gain: int) -> Readings:
        limits.check_vectors(self._capabilities, region, vectors, direction, gain)
        self._products += len(vectors.codes)
        self._spend(Operation.MVM_FORWARD, vectors)
        return self._readings(np.zeros((len(vectors.codes), region.outputs(direction)), np.int8), "A")

    def program(self, pulses: PulseBatch) -> Receipt:
        limits.check_pulses(self._capabilities, pulses)
        last, times = self._repeated.get(pulses.kind, (pulses, 0))
        if last is not pulses:
            self._count_pulses(pulses.kind)
            times = 0
        self._repeated[pulses.kind] = pulses, times + 1
        return self._receipt(pulses.kind, pulses, int(pulses.counts.sum()))

    def update(self, region: Region, trains: PulseTrains) -> Receipt:
        raise InputError("parallel updates are not estimated")

    def wait(self, seconds: float) -> Receipt:
        limits.check_wait(seconds)
        return self._receipt(Operation.WAIT, seconds, 0)

    def time_ns(self) -> int:
        return self._now_ns

    def safe_state(self) -> None:
        """There is nothing to ground."""

    def close(self) -> None:
        """There is nothing to let go of."""

    def _count_pulses(self, kind: Operation) -> None:
        pulses, times = self._repeated.pop(kind)
        np.add.at(self._pulses[kind], flat_of(pulses.cells, self._capabilities), pulses.counts * np.int64(times))

    def _spend(self, kind: Operation, request: Cells | Vectors | PulseBatch | float) -> None:
        self._operations += 1
        self._now_ns += round(_seconds(self._capabilities, kind, request) * 1e9)

    def _readings(self, codes: Values, unit: str) -> Readings:
        return Readings(self._operations, self._now_ns, codes, unit, 1.0, 0, 0)

    def _receipt(self, kind: Operation, request: PulseBatch | float, done: int) -> Receipt:
        self._spend(kind, request)
        return Receipt(self._operations, self._now_ns, Status.COMPLETE, done)


_PROGRAM = (Operation.SET, Operation.RESET)


@dataclass
class _NoLog:
    """Keeps findings, and forgets all else."""

    status: dict[str, Any] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)
    operations: int = 0

    def message(self, text: str) -> None:
        self.findings.append(text)

    def metrics(self, values: Mapping[str, float], units: Mapping[str, str]) -> None:
        """Forgotten."""

    def snapshot(
        self, name: str, arrays: Mapping[str, Values], units: Mapping[str, str], attrs: Mapping[str, Any] | None = None
    ) -> None:
        """Forgotten."""

    def checkpoint_due(self) -> bool:
        return False

    def checkpoint(self, state: Mapping[str, Any], arrays: Mapping[str, Values]) -> None:
        """Forgotten."""

    def close(self, exit_status: str, counts: Mapping[str, int]) -> None:
        """There is nothing to close."""
