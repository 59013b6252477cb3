"""The seam: what any array tester does, real or twin. The unit of work is a batch."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from hil.protocols.errors import InputError
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
    Vectors,
)


class ArrayTester(ABC):
    """A tester of memory arrays.

    Every operation that touches the array takes the next operation id, strictly increasing over the life of the chip. A
    request outside the limits raises `LimitError` before anything is sent and takes no id; a failing tester raises
    `TesterError`.
    """

    @abstractmethod
    def identify(self) -> Identity:
        """Who answers, and for which chip."""

    @abstractmethod
    def capabilities(self) -> Capabilities:
        """What it can do; constant while it is open."""

    @abstractmethod
    def register(self, blocks: Sequence[Block]) -> Region:
        """Name the cells of an MVM once."""

    @abstractmethod
    def regions(self) -> tuple[Region, ...]:
        """All regions registered since it was opened."""

    @abstractmethod
    def read(self, cells: Cells) -> Readings:
        """Conductances of single cells (S): codes (n,)."""

    @abstractmethod
    def mvm(self, region: Region, vectors: Vectors, direction: Direction, gain: int) -> Readings:
        """Matrix-vector products (A): codes (batch, outputs) in the range `capabilities().mvm_ranges[gain]`."""

    @abstractmethod
    def program(self, pulses: PulseBatch) -> Receipt:
        """Send SET or RESET pulses, once each, in order."""

    @abstractmethod
    def update(self, region: Region, trains: PulseTrains) -> Receipt:
        """Parallel update by coincident pulse trains, where the array can (`capabilities().parallel_update`)."""

    @abstractmethod
    def wait(self, seconds: float) -> Receipt:
        """Let device time pass (drift)."""

    @abstractmethod
    def time_ns(self) -> int:
        """Device time at the end of the last operation; asks nothing of the array."""

    @abstractmethod
    def safe_state(self) -> None:
        """Ground every line. Idempotent, and allowed at any time."""

    @abstractmethod
    def close(self) -> None:
        """Safe state, then let go of the instrument. Idempotent."""

    def memory(self) -> bytes | None:
        """All that tester and chip remember, where they exist in this process only; None where they outlive it."""
        return None

    def continue_after(self, op_id: int) -> None:
        """Of a tester that outlives the process: the next operation takes `op_id` + 1, though the chip may have begun
        one of that id already; then its stored answer is given, nothing is repeated.

        Raises InputError where the chip's last id is neither `op_id` nor `op_id` + 1: it was used since, or has
        forgotten.
        """
        raise InputError("this tester cannot tell what became of its last operation, so the run cannot be resumed")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
