"""How a served twin spends the time that its operations take: not at all, faster than a device, or as a device does."""

import math
import time
from collections.abc import Callable

from hil.protocols.errors import InputError

SHORTEST_SLEEP_S = 1e-3
"""A sleep overshoots by some 50 us; shorter times are added up until they amount to this. CHOSEN."""


class Clock:
    """Lets `speed` seconds of device time pass in one second; an infinite speed in none."""

    def __init__(self, speed: float = math.inf) -> None:
        self.speed = speed
        self._owed = 0.0  # seconds not slept yet; negative where a sleep took longer

    def pass_(self, nanoseconds: int, sleep: Callable[[float], None] = time.sleep) -> None:
        """Spend the time that this much device time takes."""
        self._owed += nanoseconds * 1e-9 / self.speed
        if self._owed >= SHORTEST_SLEEP_S:
            start = time.monotonic()
            sleep(self._owed)
            self._owed -= time.monotonic() - start


def parse_clock(text: str) -> Clock:
    """A clock by its name: virtual, scaled:N (N times faster than a device) or wall. Raises `InputError`."""
    name, _, speed = text.partition(":")
    if text in ("virtual", "wall"):
        return Clock(math.inf if text == "virtual" else 1.0)
    try:
        value = float(speed) if name == "scaled" else math.nan
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:  # false for nan
        raise InputError(f"clock {text!r}: expected virtual, wall, or scaled:N with N above 0, as in scaled:1000")
    return Clock(value)
