"""What a run said of itself besides its operations, to be compared with what is said when it is done again."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from hil.data.columns import Values
from hil.data.remarks import is_remark
from hil.data.run import Run
from hil.protocols.errors import ReplayError

HOST_METRICS = frozenset({"seconds"})
"""Metrics that tell of the host's time, which never repeats."""


class Reference:
    """Messages, metrics and snapshots of a run, in their order."""

    def __init__(self, run: Run) -> None:
        """From the start of the run; `jump` goes elsewhere."""
        self._messages = [text for _, text in run.messages]
        self._metrics = run.metrics
        self._rows = min(map(len, self._metrics.values()), default=0)
        self._run = run
        self._snapshots = set(run.snapshots)
        self._message = self._row = 0
        self._pass_remarks()

    def jump(self, metrics: int, messages: int) -> None:
        """Go on after so many rows of metrics and so many messages."""
        self._row, self._message = metrics, messages
        self._pass_remarks()

    def said(self, table: str) -> int | None:
        """Rows of `metrics` or `messages` that were said again; None when all were."""
        count, most = {"metrics": (self._row, self._rows), "messages": (self._message, len(self._messages))}[table]
        return count if count < most else None

    def message(self, text: str) -> bool:
        """Whether the run said this as well, as its next message; False where it said no more.

        Raises ReplayError where it said something else; as do the others.
        """
        if self._message >= len(self._messages):
            return False
        if self._messages[self._message] != text:
            raise ReplayError(f"message {self._message} was {self._messages[self._message]!r}, is {text!r}")
        self._message += 1
        self._pass_remarks()
        return True

    def _pass_remarks(self) -> None:
        while self._message < len(self._messages) and is_remark(self._messages[self._message]):
            self._message += 1

    def metrics(self, values: Mapping[str, float]) -> bool:
        """Whether the run's next row of metrics is this one; False where it has no more."""
        if self._row >= self._rows:
            return False
        if values.keys() != self._metrics.keys():
            names = sorted(values.keys() ^ self._metrics.keys())
            raise ReplayError(f"metrics are others than in the recording: {', '.join(names)}")
        for name in values.keys() - HOST_METRICS:
            recorded, value = self._metrics[name][self._row].item(), values[name]
            if recorded != value and not (math.isnan(recorded) and math.isnan(value)):
                raise ReplayError(f"metric {name}, row {self._row}: was {recorded}, is {value}")
        self._row += 1
        return True

    def snapshot(self, name: str, arrays: Mapping[str, Values], attrs: Mapping[str, Any] | None) -> bool:
        """Whether the run stored this; False where it has no snapshot of this name."""
        if name not in self._snapshots:
            return False
        recorded = self._run.snapshot(name)
        same_arrays(f"snapshot {name}", recorded.arrays, arrays)
        for key, value in (attrs or {}).items():
            if recorded.attrs.get(key) != value:
                raise ReplayError(f"snapshot {name}: {key} was {recorded.attrs.get(key)}, is {value}")
        return True


def same_arrays(what: str, recorded: Mapping[str, Values], arrays: Mapping[str, Values]) -> None:
    """Raise ReplayError where arrays are not those recorded, bit for bit."""
    for key, values in arrays.items():
        old = recorded.get(key)
        if old is None or old.dtype != values.dtype or old.shape != values.shape:
            was = None if old is None else f"{old.dtype} {old.shape}"
            raise ReplayError(f"{what}: {key} was {was}, is {values.dtype} {values.shape}")
        if old.tobytes() != values.tobytes():
            different = np.flatnonzero(old.ravel() != values.ravel())
            where = int(different[0]) if len(different) else 0
            raise ReplayError(
                f"{what}: {len(different)} of {old.size} values of {key} differ, the first is number {where}: "
                f"was {old.flat[where]}, is {values.flat[where]}"
            )
