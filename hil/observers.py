"""Who is told how a run goes."""

from typing import Any, Protocol

from hil.logsize import LogPlan


class LoopObserver(Protocol):
    """Told how training goes."""

    def begin(self, images: int, epochs: int) -> None:
        """Training begins: images per epoch, and epochs."""

    def progress(self, images: int, running_accuracy: float, pulses: int, refreshes: int) -> None:
        """So far, over all epochs."""

    def epoch(self, number: int, test_accuracy: float) -> None:
        """An epoch, counted from 1, has been evaluated."""

    def finding(self, text: str) -> None:
        """The run goes wrong, and this is why."""


class Observer(LoopObserver, Protocol):
    """Told how a run goes."""

    def logging(self, plan: LogPlan) -> None:
        """The log begins."""


class Silent:
    """An observer that says nothing."""

    def nothing(self, *_: Any) -> None:
        """Nothing."""

    logging = begin = progress = epoch = finding = steps = nothing


SILENT = Silent()
