"""Times are read as people write them, and what is no time is refused in one line."""

import pytest

from hil.durations import duration, parse_time, parse_times, written
from hil.protocols.errors import InputError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("25s", 25.0),
        ("1h", 3600.0),
        ("1d", 86400.0),
        ("30d", 2_592_000.0),
        ("1y", 31_557_600.0),
        ("1e4", 1e4),
        (" 2.5min ", 150.0),
        (".5ms", 5e-4),
        ("3us", 3e-6),
        ("1e-3s", 1e-3),
        ("38.6", 38.6),
        ("0", 0.0),
    ],
)
def test_a_time_is_a_number_and_a_unit(text: str, seconds: float) -> None:
    assert parse_time(text) == pytest.approx(seconds, rel=1e-12)


@pytest.mark.parametrize("text", ["25s", "38.6s", "1h", "36h", "30d", "1y", "90s", "100s", "10000s", "0.001s", "0s"])
def test_a_time_is_written_as_people_write_it(text: str) -> None:
    assert written(parse_time(text)) == text


def test_times_are_separated_by_commas() -> None:
    assert parse_times("1s,10s, 1min,1e4") == (1.0, 10.0, 60.0, 1e4)


@pytest.mark.parametrize("text", ["", "s", "-1s", "1 week", "1,5", "nan", "inf", "1e999", "1s2", "5ns", "٣s"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="is no time"):
        parse_time(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [("10s,1s", "time 1 s comes after 10 s"), ("1s,1s", "comes after 1 s"), ("0,1", "time 0 s is not after 0")],
)
def test_times_that_do_not_increase_are_refused(text: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        parse_times(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 s"),
        (2.5e-7, "0.25 µs"),
        (0.0123, "12.3 ms"),
        (38.6, "38.6 s"),
        (90.0, "1.5 min"),
        (10_836.0, "3.01 h"),
        (86_400.0 * 30, "30 d"),
        (3.15576e7, "1 y"),
    ],
)
def test_a_time_is_shown_in_the_unit_that_suits_it(seconds: float, text: str) -> None:
    assert duration(seconds) == text
