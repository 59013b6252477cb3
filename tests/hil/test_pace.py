"""Image after image takes at least its period of device time."""

from collections.abc import Callable

import numpy as np
import pytest
from pytest_mock import MockerFixture

from hil.instruments.tester import ArrayTester
from hil.pace import Pace
from hil.protocols.messages import Cells

MakeTester = Callable[..., ArrayTester]
READ_NS = 1000  # a cell read


def read(tester: ArrayTester, cells: int) -> None:
    tester.read(Cells.of(0, 0, np.zeros(cells, int)))


def test_one_period_passes_before_the_first_image(make_tester: MakeTester) -> None:
    tester = make_tester()
    Pace(tester, 0.4)
    assert tester.time_ns() == 400_000_000


@pytest.mark.parametrize("period", [0.4, 1e-3, 4e-6])
def test_images_take_exactly_their_period_over_a_long_run(period: float, make_tester: MakeTester) -> None:
    tester = make_tester()
    pace = Pace(tester, period)
    start = tester.time_ns()
    for image in range(1, 500):
        read(tester, image % 3) if image % 3 else None
        pace.images_done(1)
        assert tester.time_ns() == start + image * round(period * 1e9)
    assert pace.period == pytest.approx(period)


def test_an_image_that_takes_longer_is_not_hurried_and_the_next_one_has_its_whole_period(
    make_tester: MakeTester, mocker: MockerFixture
) -> None:
    tester = make_tester()
    pace = Pace(tester, 10e-6)
    waits = mocker.spy(tester, "wait")
    start = tester.time_ns()
    read(tester, 25)
    pace.images_done(1)
    assert tester.time_ns() == start + 25 * READ_NS
    waits.assert_not_called()
    read(tester, 2)
    pace.images_done(1)
    assert tester.time_ns() == start + 35 * READ_NS
    assert pace.period == pytest.approx(17.5e-6)


def test_a_batch_takes_a_period_for_each_of_its_images(make_tester: MakeTester) -> None:
    tester = make_tester()
    pace = Pace(tester, 0.1)
    pace.images_done(7)
    assert tester.time_ns() == 800_000_000
    assert pace.period == pytest.approx(0.1)


def test_what_goes_on_between_epochs_is_no_image(make_tester: MakeTester) -> None:
    tester = make_tester()
    pace = Pace(tester, 1e-3)
    pace.images_done(1)
    read(tester, 500)
    pace.begin()
    pace.images_done(1)
    assert tester.time_ns() == 3_500_000
    assert pace.period == pytest.approx(1e-3)


def test_without_a_period_nothing_waits(make_tester: MakeTester, mocker: MockerFixture) -> None:
    tester = make_tester()
    pace = Pace(tester, 0.0)
    waits = mocker.spy(tester, "wait")
    read(tester, 3)
    pace.images_done(1)
    waits.assert_not_called()
    assert pace.period == pytest.approx(3e-6)


def test_before_the_first_image_the_period_is_nought(make_tester: MakeTester) -> None:
    assert Pace(make_tester(), 0.4).period == 0
