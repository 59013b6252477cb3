"""Ctrl-C that is asked about, instead of striking anywhere."""

import signal
from types import FrameType, TracebackType
from typing import Any, Self


class Interrupt:
    """While it is entered, the first Ctrl-C only sets `requested`; a second one raises KeyboardInterrupt at once.

    After that, or after `hold`, none is raised any more, so that what is being closed is closed whole.
    """

    def __init__(self) -> None:
        self.requested = False
        self._held = False
        self._previous: Any = None

    def __enter__(self) -> Self:
        self._previous = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def hold(self) -> None:
        """From now on Ctrl-C only sets `requested`."""
        self._held = True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and not self._held:
            self._held = True
            raise KeyboardInterrupt
        self.requested = True
