"""Ctrl-C that is asked about, instead of striking anywhere."""

import signal
import sys
from types import FrameType, TracebackType
from typing import Any, Self


class Interrupt:
    """While it is entered, the first Ctrl-C only sets `requested`; a second one raises KeyboardInterrupt at once.

    After that, or after `hold`, none is raised any more, so that what is being closed is closed whole. One that strikes
    where Python can raise nothing (in a destructor, say) is forgotten; what was requested stays, the next is raised.
    """

    def __init__(self) -> None:
        self.requested = False
        self._held = False
        self._previous: Any = None
        self._hook: Any = None

    def __enter__(self) -> Self:
        self._previous = signal.signal(signal.SIGINT, self._handle)
        self._hook, sys.unraisablehook = sys.unraisablehook, self._unraisable
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        sys.unraisablehook = self._hook
        signal.signal(signal.SIGINT, self._previous)

    def hold(self) -> None:
        """From now on Ctrl-C only sets `requested`."""
        self._held = True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and not self._held:
            self._held = True
            raise KeyboardInterrupt
        self.requested = True

    def _unraisable(self, lost: "sys.UnraisableHookArgs") -> None:
        if issubclass(lost.exc_type, KeyboardInterrupt):
            self._held = False
        else:
            self._hook(lost)
