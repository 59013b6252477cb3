"""Batches larger than a tester takes at once, sent in parts."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from hil.instruments.tester import ArrayTester
from hil.protocols.errors import InputError, LimitError, TesterError
from hil.protocols.messages import (
    Block,
    Capabilities,
    Cells,
    Direction,
    Identity,
    PulseBatch,
    PulseTrains,
    Readings,
    Receipt,
    Region,
    Status,
    Vectors,
)

Answer = TypeVar("Answer", Readings, Receipt)


class BatchingTester(ArrayTester):
    """Wraps a tester and takes reads, MVMs and pulses in batches of any size: those beyond its largest are sent in
    parts.

    Each part is an operation with an id of its own. The joined answer carries the id and device time of the last part
    sent, and the status of the worst. After a part that stopped early no other is sent; pulses in doubt concern their
    part alone. Ctrl-C acts between parts. A recording belongs inside, so that it logs what was sent.
    """

    def __init__(self, tester: ArrayTester) -> None:
        self._tester = tester
        self._capabilities = tester.capabilities()
        self._largest = self._capabilities.largest_batch

    def identify(self) -> Identity:
        return self._tester.identify()

    def capabilities(self) -> Capabilities:
        """The tester's own; `largest_batch` is still what one operation holds, though this wrapper takes more."""
        return self._capabilities

    def register(self, blocks: Sequence[Block]) -> Region:
        return self._tester.register(blocks)

    def regions(self) -> tuple[Region, ...]:
        return self._tester.regions()

    def read(self, cells: Cells) -> Readings:
        if len(cells) <= self._largest:
            return self._tester.read(cells)
        self._check_cells(cells)
        return _joined_readings(self._in_parts(len(cells), lambda part: self._tester.read(cells[part])))

    def mvm(self, region: Region, vectors: Vectors, direction: Direction, gain: int) -> Readings:
        count = len(vectors.codes)
        if count <= self._largest:
            return self._tester.mvm(region, vectors, direction, gain)
        top = self._capabilities.dac_top
        if vectors.codes.min() < -top or vectors.codes.max() > top:
            raise LimitError(f"DAC codes from {vectors.codes.min()} to {vectors.codes.max()} are outside +-{top}")
        return _joined_readings(
            self._in_parts(count, lambda part: self._tester.mvm(region, vectors[part], direction, gain))
        )

    def program(self, pulses: PulseBatch) -> Receipt:
        if len(pulses.cells) <= self._largest:
            return self._tester.program(pulses)
        self._check_cells(pulses.cells)
        if pulses.counts.shape != (len(pulses.cells),) or not pulses.counts.all():
            raise LimitError(f"pulse counts must be at least 1 for each of {len(pulses.cells)} cells")
        parts = self._in_parts(len(pulses.cells), lambda part: self._tester.program(pulses[part]))
        done, saturated = sum(part.done for part in parts), sum(part.saturated for part in parts)
        return replace(parts[-1], status=max(part.status for part in parts), done=done, saturated=saturated)

    def update(self, region: Region, trains: PulseTrains) -> Receipt:
        return self._tester.update(region, trains)

    def wait(self, seconds: float) -> Receipt:
        return self._tester.wait(seconds)

    def time_ns(self) -> int:
        return self._tester.time_ns()

    def safe_state(self) -> None:
        self._tester.safe_state()

    def close(self) -> None:
        self._tester.close()

    def _check_cells(self, cells: Cells) -> None:
        """What the tester would find out only when it comes to a later part."""
        c = self._capabilities
        for name, lines, count in (
            ("array", cells.array, c.arrays),
            ("row", cells.row, c.rows),
            ("column", cells.column, c.columns),
        ):
            if lines.max() >= count:
                raise LimitError(f"{name} {lines.max()} is outside 0 to {count - 1}")

    def _in_parts(self, count: int, send: Callable[[slice], Answer]) -> list[Answer]:
        """The answers to the parts of a batch, up to the first that stopped early."""
        answers: list[Answer] = []
        for start in range(0, count, self._largest):
            try:
                answers.append(send(slice(start, start + self._largest)))
            except InputError as error:
                if not answers:
                    raise
                # No longer a refusal that leaves no trace.
                raise TesterError(
                    f"the first {start} of a batch of {count} were sent, the next refused: {error}"
                ) from error
            in_doubt = isinstance(answers[-1], Receipt) and answers[-1].status == Status.UNKNOWN
            if answers[-1].status != Status.COMPLETE and not in_doubt:
                break
        return answers


def _joined_readings(parts: list[Readings]) -> Readings:
    if len({(part.unit, part.scale, part.offset) for part in parts}) > 1:
        raise TesterError("the parts of a batch were answered with different scales; read in smaller batches")
    codes = np.concatenate([part.codes for part in parts])
    return replace(parts[-1], codes=codes, saturated=sum(part.saturated for part in parts))
