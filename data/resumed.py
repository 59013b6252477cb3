"""The writer of a run that goes on: what its file already holds is compared instead of written again."""

from collections.abc import Mapping
from typing import Any

from hil.data.columns import Values
from hil.data.recorded import Recorded
from hil.data.reference import Reference
from hil.data.run import Run
from hil.data.runfile import RunWriter


class ResumedWriter(RunWriter):
    """A `RunWriter` opened with `reopen`; call `retrace` before anything else."""

    _reference: Reference
    _position: Recorded

    def retrace(self, run: Run, position: Recorded) -> Reference:
        """Compare with `run` as long as it has more than was said; `position` is the tester's place in it."""
        self._reference, self._position = Reference(run), position
        return self._reference

    @property
    def operations(self) -> int:
        """Operations done so far, though the file may hold more."""
        position = self._position.next
        return position if position < self._position.length else super().operations

    def rows(self, table: str) -> int:
        """Rows that have been said so far, though the file may hold more."""
        said = self._reference.said(table)
        return super().rows(table) if said is None else said

    def message(self, text: str) -> None:
        if not self._reference.message(text):
            super().message(text)

    def metrics(self, values: Mapping[str, float], units: Mapping[str, str]) -> None:
        if not self._reference.metrics(values):
            super().metrics(values, units)

    def snapshot(
        self, name: str, arrays: Mapping[str, Values], units: Mapping[str, str], attrs: Mapping[str, Any] | None = None
    ) -> None:
        if not self._reference.snapshot(name, arrays, attrs):
            super().snapshot(name, arrays, units, attrs)

    def checkpoint_due(self) -> bool:
        return self._position.next >= self._position.length and super().checkpoint_due()
