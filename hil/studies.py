"""Studies of devices: each is a short procedure on some cells of a tester.

All cells get the same pulses in one batch, and are then read one after the other, as often as asked, before the next
pulse. The log holds every code; a row of metrics says which reads belong together (`hil.study_data` loads them).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from hil.cells import keep_cells
from hil.desk import Desk
from hil.durations import check_increasing
from hil.protocols.errors import InputError
from hil.stuck import find_stuck
from hil.study_linearity import linearity

NAME = "characterize"
"""What the procedure is called in a run file."""
DRIFT_PULSES = (2, 4, 8, 16)
"""SET pulses that cells get in turn before they drift. CHOSEN: about equal steps of conductance."""
PER_DECADE = 4
"""Cycles at which an endurance study reads, per decade. CHOSEN."""


def read_noise(desk: Desk) -> None:
    """The cells as they are: nothing is pulsed."""
    desk.measure("reading", cycle=0, pulses=0, age=math.nan)


def reset(desk: Desk) -> None:
    """What a RESET leaves, again and again, after a few SET pulses."""
    s = desk.settings
    for cycle in range(1, s.cycles + 1):
        what = f"cycle {cycle} of {s.cycles}"
        desk.set(what, s.pulses)
        desk.reset(what)
        desk.wait(what, s.interval)
        desk.measure(what, cycle, pulses=0, age=s.interval)


def staircase(desk: Desk) -> None:
    """RESET, then one SET pulse after the other, as Nandakumar et al., J. Appl. Phys. 124, 152135 (2018) did."""
    s = desk.settings
    for pulse in range(s.pulses + 1):
        what = f"pulse {pulse} of {s.pulses}"
        if pulse:
            desk.set(what, 1)
        else:
            desk.reset(what)
        desk.wait(what, s.interval)
        desk.measure(what, cycle=1, pulses=pulse, age=s.interval)


def drift(desk: Desk) -> None:
    """Cells of several levels, read again and again as they age."""
    s = desk.settings
    counts = np.resize(np.array(DRIFT_PULSES, np.uint16), len(desk.cells))
    desk.log.snapshot("drift", {"pulses": counts}, {"pulses": ""})
    desk.reset("writing")
    desk.set("writing", counts)
    for age in s.times:
        desk.wait_for_age(f"until {age:g} s", age)
        desk.measure(f"at {age:g} s", cycle=1, pulses=-1, age=age)


def endurance(desk: Desk) -> None:
    """Cycles of RESET and SET; both states are read at cycles that are evenly spaced on a log scale."""
    s = desk.settings
    looked_at = set(log_spaced(s.cycles))
    for cycle in range(1, s.cycles + 1):
        what = f"cycle {cycle} of {s.cycles}"
        for pulses in (0, s.pulses):
            if pulses:
                desk.set(what, pulses)
            else:
                desk.reset(what)
            if cycle in looked_at:
                desk.wait(what, s.interval)
                desk.measure(what, cycle, pulses, s.interval)


def log_spaced(last: int) -> list[int]:
    """Whole numbers from 1 to `last`, about evenly spaced on a log scale."""
    points = np.geomspace(1, last, 1 + math.ceil(PER_DECADE * math.log10(last))) if last > 1 else np.ones(1)
    return [int(point) for point in np.unique(np.rint(points))]


def spread_map(desk: Desk) -> None:
    """The same cells written the same way again and again: what persists is a property of the device."""
    s = desk.settings
    for cycle in range(1, s.cycles + 1):
        what = f"cycle {cycle} of {s.cycles}"
        desk.reset(what)
        desk.set(what, s.pulses)
        desk.wait(what, s.interval)
        desk.measure(what, cycle, s.pulses, s.interval)


def stuck(desk: Desk) -> None:
    """Which cells no pulse changes."""
    desk.step("scanning")
    keep_cells(desk.log, "stuck", find_stuck(desk.tester, desk.cells))


LARGEST = {"reads": 100_000, "pulses": 10_000, "cycles": 1_000_000}
"""What nobody asks for but by mistake. CHOSEN."""


@dataclass(frozen=True)
class Settings:
    """What can be asked of a study; each has a use for some. Raises `InputError` for values that make no sense."""

    reads: int = 1
    pulses: int = 1
    cycles: int = 1
    interval: float = 0.0  # s
    times: tuple[float, ...] = (1.0,)  # s

    def __post_init__(self) -> None:
        for name, value in {"reads": self.reads, "pulses": self.pulses, "cycles": self.cycles}.items():
            if not 1 <= value <= LARGEST[name]:
                raise InputError(f"{name} {value} is outside 1 to {LARGEST[name]}")
        if not 0 <= self.interval < math.inf:
            raise InputError(f"interval {self.interval} s: give a finite time of at least 0")
        check_increasing(self.times)


class Study(NamedTuple):
    """A study: what it tells, how it is done, and what can be set, with the defaults."""

    about: str
    run: Callable[[Desk], None]
    defaults: Mapping[str, Any]

    def settings(self, **given: Any) -> Settings:
        """The defaults with some replaced. Raises `InputError`."""
        return Settings(**{**self.defaults, **given})


T0 = 38.6
"""s between pulse and read: the reference time of the 2018 model. FOUND (Nandakumar 2018)."""

STUDIES = {
    "read-noise": Study("reads of each cell as it is: noise", read_noise, {"reads": 100}),
    "reset": Study(
        "SET, RESET and read, in cycles: what a RESET leaves",
        reset,
        {"reads": 10, "pulses": 5, "cycles": 10, "interval": T0},
    ),
    "staircase": Study(
        "RESET, then SET pulses one by one: conductance after each",
        staircase,
        {"reads": 50, "pulses": 20, "interval": T0},
    ),
    "drift": Study(
        "2, 4, 8 or 16 SET pulses, then reads as time passes",
        drift,
        {"reads": 10, "times": (1.0, 10.0, 100.0, 1e3, 1e4)},
    ),
    "linearity": Study(
        "products with one driven line: offset, gain and deviation from a line",
        linearity,
        {"reads": 10, "pulses": 10, "interval": T0},
    ),
    "endurance": Study(
        "many cycles of RESET and SET, read now and then: what wears out",
        endurance,
        {"reads": 10, "pulses": 10, "cycles": 1000, "interval": 1.0},
    ),
    "map": Study(
        "RESET, SET and read, in cycles: what differs from device to device",
        spread_map,
        {"reads": 10, "pulses": 10, "cycles": 10, "interval": T0},
    ),
    "stuck": Study("cells that no pulse changes", stuck, {}),
}
