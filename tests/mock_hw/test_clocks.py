"""The time that a served twin takes: none, the device's, or the device's divided by a number."""

import math
import time

import pytest

from hil.mock_hw.clocks import SHORTEST_SLEEP_S, Clock, parse_clock
from hil.protocols.errors import InputError

SECOND = 1_000_000_000


def slept(clock: Clock, *nanoseconds: int) -> list[float]:
    """What a clock asks to sleep, of a sleeper that does."""
    asked: list[float] = []

    def sleep(seconds: float) -> None:
        asked.append(seconds)
        time.sleep(seconds)

    for passing in nanoseconds:
        clock.pass_(passing, sleep)
    return asked


def test_a_virtual_clock_never_sleeps() -> None:
    assert slept(parse_clock("virtual"), 10**6 * SECOND, 1) == []


@pytest.mark.parametrize(("name", "seconds"), [("wall", 0.02), ("scaled:10", 0.002), ("scaled:0.5", 0.04)])
def test_it_sleeps_as_long_as_the_device_takes(name: str, seconds: float) -> None:
    assert slept(parse_clock(name), SECOND // 50) == pytest.approx([seconds])


def test_it_sleeps_by_itself() -> None:
    start = time.monotonic()
    parse_clock("wall").pass_(SECOND // 50)
    assert time.monotonic() - start >= 0.02


def test_short_times_add_up() -> None:
    clock, start = Clock(1.0), time.monotonic()
    asked = slept(clock, *[127] * 100_000)
    assert 1 <= len(asked) <= 12
    assert time.monotonic() - start >= 0.0127 - SHORTEST_SLEEP_S


@pytest.mark.parametrize("name", ["", "Wall", "wall:2", "virtual:1", "scaled", "scaled:", "scaled:x", "scaled:0",
                                  "scaled:-1", "scaled:inf", "scaled:nan", "1000"])  # fmt: skip
def test_a_clock_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"expected virtual, wall, or scaled:N with N above 0"):
        parse_clock(name)


def test_the_speed_is_known() -> None:
    assert [parse_clock(name).speed for name in ("virtual", "wall", "scaled:1e3")] == [math.inf, 1.0, 1000.0]
