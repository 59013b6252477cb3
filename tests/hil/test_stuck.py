"""Cells that no pulse changes are found, and others are not taken for them."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from pytest_mock import MockerFixture

from hil.instruments.tester import ArrayTester
from hil.protocols.errors import InputError, TesterError
from hil.protocols.messages import Operation, PulseBatch, Receipt, Status
from hil.stuck import all_cells, find_stuck

MakeTester = Callable[..., ArrayTester]


def test_all_cells_are_all_there_are_once(make_tester: MakeTester) -> None:
    cells = all_cells(make_tester(arrays=2, rows=3, columns=5))
    assert len(set(zip(cells.array, cells.row, cells.column, strict=True))) == 30


@pytest.mark.parametrize("mvm", ["analog", "none"])
def test_stuck_cells_are_found_and_the_others_are_left_reset(mvm: str, make_tester: MakeTester) -> None:
    tester = make_tester(arrays=2, rows=100, columns=100, stuck_fraction=0.03, mvm=mvm)
    every = all_cells(tester)
    stuck = find_stuck(tester, every)
    assert abs(len(stuck) - 600) < 4 * np.sqrt(20_000 * 0.03 * 0.97)
    before = tester.read(stuck).values()
    assert set(np.round(before * 1e6, 1)) == {np.float32(0.1), np.float32(20.0)}
    shape = tester.capabilities().set_pulse
    tester.program(PulseBatch(stuck, Operation.SET, np.full(len(stuck), 5, np.uint16), shape))
    np.testing.assert_array_equal(tester.read(stuck).values(), before)
    high = tester.read(every).values() > 1e-6
    assert high.sum() == (before > 1e-6).sum()


def test_noise_makes_few_good_cells_look_stuck_and_hides_none(make_tester: MakeTester) -> None:
    tester = make_tester("pcm-90nm", rows=200, columns=200, stuck_fraction=0.01)
    found = len(find_stuck(tester, all_cells(tester)))
    expected = 80_000 * (0.01 + 0.99 * 0.003)
    assert 760 < found < 1.5 * expected


@pytest.mark.parametrize("status", [Status.PARTIAL, Status.UNKNOWN])
@pytest.mark.parametrize("sent", [1, 2, 3])
def test_pulses_that_were_not_all_done_end_the_scan_and_none_follow(
    sent: int, status: Status, make_tester: MakeTester, mocker: MockerFixture
) -> None:
    tester = make_tester(arrays=1, rows=8, columns=8)
    program = tester.program

    def half_of_the_last(pulses: PulseBatch) -> Receipt:
        if patched.call_count < sent:
            return program(pulses)
        return replace(program(pulses[: len(pulses.cells) // 2]), status=status, done=32)

    patched = mocker.patch.object(tester, "program", side_effect=half_of_the_last)
    kind = "SET" if sent == 2 else "RESET"
    with pytest.raises(TesterError, match=f"its {kind} pulses were answered with {status.name}, 32 of .*; scan again"):
        find_stuck(tester, all_cells(tester))
    assert patched.call_count == sent


def test_a_tester_without_a_staircase_cannot_be_searched(make_tester: MakeTester, mocker: MockerFixture) -> None:
    tester = make_tester()
    mocker.patch.object(tester, "capabilities", return_value=replace(tester.capabilities(), staircase=()))
    with pytest.raises(InputError, match="staircase"):
        find_stuck(tester, all_cells(tester))
