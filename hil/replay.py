"""Execute the host side of a run again, with the recording as its tester."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hil.config import stored_settings
from hil.data.columns import Values
from hil.data.following import Differences, FollowingTester
from hil.data.recorded import Recorded, RecordingEndsError
from hil.data.reference import Reference, same_arrays
from hil.data.replay import ReplayTester
from hil.data.run import Run
from hil.data.runfile import COMPLETED
from hil.images import kept
from hil.loop import CHIP
from hil.observers import SILENT, LoopObserver
from hil.protocols.errors import ReplayError
from hil.train import Job, Setup, execute, first_weights


@dataclass(frozen=True)
class Verdict:
    """What a replay found: how much of the run was repeated, and how far it was from the recording."""

    run: str
    operations: int
    weights: int  # compared
    complete: bool  # the recorded run was completed
    interrupted: bool  # the replay was
    differences: Differences
    largest_weight: float = 0.0  # largest difference of what the host keeps for a weight

    @property
    def identical(self) -> bool:
        """Whether nothing differed."""
        return self.differences.none and not self.largest_weight

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self) | {"identical": self.identical}

    def __str__(self) -> str:
        ends = "" if self.complete else " (the recorded run ends there)"
        ends = " so far (the replay was interrupted)" if self.interrupted else ends
        weights = f"{self.weights:,} weights" if self.weights else "no weights to compare"
        size = f"{self.operations:,} operations, {weights}{ends}"
        if self.identical:
            return f"identical: {size}"
        d = self.differences
        return (
            f"followed: {size}\n"
            f"first difference: {d.first or 'weights'}\n"
            f"{d.products} products with other DAC codes, by {d.largest_code} at most; "
            f"scales differ by {d.largest_scale:.2g} of their value at most\n"
            f"{d.pulses} pulse operations and {d.reads} reads differ, waits by {d.waits:.2g} s at most; "
            f"{d.skipped} operations were not asked for, {d.missing} not recorded\n"
            f"largest difference of a weight's host value: {self.largest_weight:.3g}"
        )


class ReplayLog:
    """Compares what a run says of itself with what it said when it was recorded."""

    def __init__(self, run: Run, position: Recorded) -> None:
        self.status: dict[str, Any] = {}
        self.weights = 0
        """Weights, or the host's values for them, that were compared in the last state."""
        self._run, self._position = run, position
        self._reference = Reference(run)
        self._checkpoint = run.checkpoint

    @property
    def operations(self) -> int:
        return self._position.next

    def message(self, text: str) -> None:
        self._expect(self._reference.message(text), f"the message {text!r}")

    def metrics(self, values: Mapping[str, float], units: Mapping[str, str]) -> None:
        self._expect(self._reference.metrics(values), f"metrics of epoch {values.get('epoch')}")

    def snapshot(
        self, name: str, arrays: Mapping[str, Values], units: Mapping[str, str], attrs: Mapping[str, Any] | None = None
    ) -> None:
        self._expect(self._reference.snapshot(name, arrays, attrs), f"snapshot {name}")
        if name == "final":
            self.weights = sum(values.size for values in arrays.values())

    def checkpoint_due(self) -> bool:
        """After the operations of the recorded checkpoint, to compare the whole state of the host with it."""
        return self._checkpoint is not None and self._position.next == self._checkpoint.operations

    def checkpoint(self, state: Mapping[str, Any], arrays: Mapping[str, Values]) -> None:
        if self._checkpoint is None or not self.checkpoint_due():
            return
        if _trained(state) != _trained(self._checkpoint.state):
            return  # images without pulses may make no operation: many states have the same number of them
        recorded = {name: values for name, values in self._checkpoint.arrays.items() if name != CHIP}
        same_arrays("the checkpoint", recorded, arrays)
        was, now = (_without_seconds(content["state"]) for content in (self._checkpoint.state, dict(state)))
        if was != now:
            raise ReplayError(f"the checkpoint: the host's state was {was}, is {now}")
        self.weights = sum(values.size for name, values in arrays.items() if name.endswith(".chi"))

    def close(self, exit_status: str, counts: Mapping[str, int]) -> None:
        """Nothing is written."""

    def _expect(self, found: bool, what: str) -> None:
        """The log of a run that was killed ends with its operations; else nothing may be missing in it."""
        if not found and (self._run.state == COMPLETED or self._position.next < self._position.length):
            raise ReplayError(f"after operation {self._position.next}: {what} is not in the recording")


def _trained(state: Mapping[str, Any]) -> tuple[int, int]:
    """Images and epochs of a packed state."""
    training = dict(dict(state["state"]["dict"])["training"]["dict"])
    return training["_images"], training["_epochs"]


def _without_seconds(state: Any) -> str:
    """The packed state as text, without the host's time."""
    return json.dumps(
        {
            "dict": [
                [k, [e for e in v["dict"] if e[0] != "_seconds"] if k == "training" else v] for k, v in state["dict"]
            ]
        }
    )


class FollowLog(ReplayLog):
    """Takes what differs, and keeps how far the final values are apart."""

    largest_weight = 0.0

    def message(self, text: str) -> None:
        """Whatever is said is accepted."""

    def metrics(self, values: Mapping[str, float], units: Mapping[str, str]) -> None:
        """Whatever is measured is accepted."""

    def snapshot(
        self, name: str, arrays: Mapping[str, Values], units: Mapping[str, str], attrs: Mapping[str, Any] | None = None
    ) -> None:
        if name != "final" or name not in self._run.snapshots:
            return
        recorded = self._run.snapshot(name).arrays
        self.weights = sum(values.size for values in arrays.values())
        self.largest_weight = max(float(np.abs(recorded[key] - arrays[key]).max()) for key in arrays)

    def checkpoint_due(self) -> bool:
        return False

    def checkpoint(self, state: Mapping[str, Any], arrays: Mapping[str, Values]) -> None:
        """Nothing is compared in the middle."""


def verify(path: Path, observer: LoopObserver = SILENT, data_dir: Path | None = None) -> Verdict:
    """Do the run again. Raises `ReplayError` at the first request, metric, message or weight that differs."""
    with ReplayTester.open(path) as tester, Run.open(path) as run:
        log = ReplayLog(run, tester.recorded)
        interrupted = _do_again(run, tester, log, observer, data_dir)
        position = tester.recorded
        if run.state == COMPLETED and not interrupted and position.next < position.length:
            raise ReplayError(f"operation {position.next}: the recording goes on, the run is done")
        return Verdict(str(path), position.next, log.weights, run.state == COMPLETED, interrupted, Differences())


def follow(path: Path, observer: LoopObserver = SILENT, data_dir: Path | None = None) -> Verdict:
    """Do the run again, and go on where it differs. Raises `ReplayError` only where nothing fits any more."""
    with FollowingTester.open(path) as tester, Run.open(path) as run:
        log = FollowLog(run, tester.recorded)
        interrupted = _do_again(run, tester, log, observer, data_dir)
        return Verdict(
            str(path),
            tester.recorded.next,
            log.weights,
            run.state == COMPLETED,
            interrupted,
            tester.differences,
            log.largest_weight,
        )


def _do_again(run: Run, tester: ReplayTester, log: ReplayLog, observer: LoopObserver, data_dir: Path | None) -> bool:
    """Whether the user interrupted it. A recording that ends early is no error where the run did so too."""
    settings = stored_settings(run.config, str(run.path))
    data = kept(run, settings, data_dir)
    job = Job(run.config["experiment"], settings, run.start.config_text, run.path, data_dir)
    setup = Setup(job, data, first_weights(settings, data, tester.capabilities()), tester)
    try:
        return execute(setup, log, lambda raw: raw, observer).interrupted
    except RecordingEndsError:
        if run.state == COMPLETED or tester.recorded.next < tester.recorded.length:
            raise
        return False
