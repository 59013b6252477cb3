"""Times as people write them: `25s`, `1h`, `30d`, `1y`, `1e4`."""

import math
import re

from hil.protocols.errors import InputError

UNITS = {
    "": 1.0,
    "us": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "min": 60.0,
    "h": 3600.0,
    "d": 86400.0,
    "y": 365.25 * 86400.0,
}
"""s of each unit; a plain number is seconds."""


def parse_time(text: str) -> float:
    """One time (s). Raises `InputError` for what is none."""
    match = re.fullmatch(r"((?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)([a-z]*)", text.strip().lower(), re.ASCII)
    if match is None or match[2] not in UNITS:
        known = ", ".join(filter(None, UNITS))
        raise InputError(f"{text!r} is no time: write a number and a unit ({known}), such as 25s; without one, seconds")
    seconds = float(match[1]) * UNITS[match[2]]
    if not math.isfinite(seconds):
        raise InputError(f"{text!r} is no time that passes: write a finite number")
    return seconds


def parse_times(text: str) -> tuple[float, ...]:
    """Times (s) separated by commas, each later than the one before. Raises `InputError` for others."""
    times = tuple(map(parse_time, text.split(",")))
    check_increasing(times)
    return times


def written(seconds: float) -> str:
    """A time (s) as `parse_time` takes it: in the largest unit of which it is a whole number, else in seconds."""
    units = [unit for unit, size in UNITS.items() if size > 1 and seconds >= size and seconds % size == 0]
    unit = units[-1] if units else "s"
    return f"{seconds / UNITS[unit]:.12g}{unit}"


def duration(seconds: float) -> str:
    """A time (s) for a reader: three digits, in the largest unit of which there is at least one."""
    units = [(size, unit) for unit, size in UNITS.items() if unit and size <= max(seconds, UNITS["us"])]
    size, unit = max(units) if seconds else (1.0, "s")
    return f"{seconds / size:.3g} {'µs' if unit == 'us' else unit}"


def check_increasing(times: tuple[float, ...]) -> None:
    """Raise `InputError` unless there are times (s), after 0, each later than the one before."""
    for earlier, later in zip((0.0, *times), times, strict=False):
        if not later > earlier:
            what = f"comes after {earlier:g} s" if earlier else "is not after 0"
            raise InputError(f"time {later:g} s {what}: give times that increase, such as 1s,10s,100s")
    if not times:
        raise InputError("no times: give some that increase, such as 1s,10s,100s")
