"""The writer of a run that goes on: what its file already holds is compared instead of written again."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from hil.data.columns import Values
from hil.data.recorded import Recorded
from hil.data.reference import Reference
from hil.data.run import Run
from hil.data.runfile import RunWriter
from hil.data.schema import NONE, STREAMS
from hil.protocols.messages import MVM_DIRECTION, Operation

PLACE = ("array", "row", "column")
PAYLOAD = {
    "read": (Operation.READ,),
    "mvm": (Operation.MVM_FORWARD, Operation.MVM_BACKWARD),
    "program": (Operation.SET, Operation.RESET),
    "update": (Operation.UPDATE,),
    "wait": (Operation.WAIT,),
}
"""The operations whose payload is in each group of streams."""


class ResumedWriter(RunWriter):
    """A `RunWriter` opened with `reopen`; call `retrace` before anything else."""

    _reference: Reference
    _position: Recorded

    def retrace(self, run: Run, position: Recorded) -> Reference:
        """Compare with `run` as long as it has more than was said; `position` is the tester's place in it."""
        self._reference, self._position = Reference(run), position
        return self._reference

    def forget_failed(self, run: Run) -> bool:
        """Forget a last operation that failed: it died with the chip, or its id tells the tester what became of it.

        With it goes payload that belongs to no operation, so that the streams go on where the operations end.
        """
        rows = run.operations.rows
        failed = rows > 0 and int(run.operations["op_id"][rows - 1]) == NONE
        rows -= failed
        self.waiting.cut(rows)
        for name, end in stream_ends(run, rows).items():
            if len(self.streams[name]) > end:
                self.streams[name].cut(end)
        self.flush()
        return failed

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


def stream_ends(run: Run, rows: int) -> dict[str, int]:
    """Where the payload of the first `rows` operations ends in each stream that the kinds of operations in it fill."""
    kinds = run.operations["kind"][:rows]
    ends: dict[str, int] = {}
    for group, members in PAYLOAD.items():
        found = np.flatnonzero(np.isin(kinds, members))
        row = {name: column[int(found[-1])].item() for name, column in run.operations.items()} if len(found) else None
        ends |= _ends(run, group, row)
    return ends


def _ends(run: Run, group: str, row: dict[str, int] | None) -> dict[str, int]:
    if row is None:
        return {name: 0 for name in STREAMS if name.startswith(f"{group}/")}
    end = row["offset"] + row["count"]
    if group == "read":
        return {f"read/{name}": end for name in PLACE} | {"read/codes": row["output_offset"] + row["done"]}
    if group == "program":
        return {f"program/{name}": end for name in (*PLACE, "counts")}
    if group == "wait":
        return {"wait/seconds": end}
    if run.start.log == "digest":
        return {"mvm/digest": row["offset"] + 1}
    region = run.regions[row["region"]]
    if group == "update":
        return {"update/trains": row["offset"] + row["count"] * (-(-region.rows // 8) - (-region.columns // 8))}
    direction = MVM_DIRECTION[Operation(row["kind"])]
    return {
        "mvm/inputs": row["offset"] + row["count"] * region.inputs(direction),
        "mvm/scales": row["scale_offset"] + row["count"],
        "mvm/outputs": row["output_offset"] + row["done"] * region.outputs(direction),
    }
