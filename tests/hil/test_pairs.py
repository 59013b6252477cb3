"""Weights on differential pairs: pulses go to the right device, differences are written, stuck devices are spared."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from pytest_mock import MockerFixture

from hil.instruments.tester import ArrayTester
from hil.mapping import floorplan
from hil.pairs import UNIT, DifferentialPairs
from hil.programming import Verify
from hil.protocols.errors import InputError
from hil.protocols.messages import Cells, Operation, Status
from hil.stuck import all_cells, find_stuck

STEP = 0.77e-6  # S per SET pulse of the ideal chip
READ = 0.3e-9  # S, half a code of its reads
MakeTester = Callable[..., ArrayTester]


def cells_of(cells: Cells) -> list[tuple[int, int, int]]:
    return list(zip(cells.array.tolist(), cells.row.tolist(), cells.column.tolist(), strict=True))


def among(cells: Cells, others: Cells) -> npt.NDArray[np.bool_]:
    """Which of the cells are among the others."""
    known = set(cells_of(others))
    return np.array([cell in known for cell in cells_of(cells)])


@pytest.fixture(params=["differential", "single", "serial"])
def pairs(request: pytest.FixtureRequest, make_tester: MakeTester) -> DifferentialPairs:
    """6 x 5 weights on an ideal chip, all devices RESET."""
    kind = {"mvm": "none"} if request.param == "serial" else {"readout": request.param}
    return DifferentialPairs(make_tester(**kind), 6, 5, 1.0)


def test_a_pair_has_as_many_weights_as_its_matrix(pairs: DifferentialPairs) -> None:
    assert len(pairs) == 30
    assert pairs.shape == (6, 5)


def test_positive_pulses_raise_g_plus_and_negative_ones_g_minus(pairs: DifferentialPairs) -> None:
    before = pairs.measure(np.arange(30))
    pairs.pulse(np.array([3, 7, 11]), np.array([2, -3, 1]))
    plus, minus = (now - then for now, then in zip(pairs.measure(np.arange(30)), before, strict=True))
    expected = np.zeros((2, 30))
    expected[0, 3], expected[1, 7], expected[0, 11] = 2 * STEP, 3 * STEP, STEP
    np.testing.assert_allclose([plus, minus], expected, atol=2 * READ)
    assert pairs.sent == {Operation.SET: 6, Operation.RESET: 0}


def test_cells_whose_pulses_are_in_doubt_are_read_again(pairs: DifferentialPairs, mocker: MockerFixture) -> None:
    program = pairs.tester.program
    mocker.patch.object(pairs.tester, "program", lambda pulses: replace(program(pulses), status=Status.UNKNOWN, done=0))
    read = mocker.spy(pairs.tester, "read")
    pairs.pulse(np.array([3, 7]), np.array([2, -3]))
    assert cells_of(read.call_args.args[0]) == cells_of(
        Cells.concatenate([pairs.placement.plus[np.array([3])], pairs.placement.minus[np.array([7])]])
    )
    assert pairs.sent[Operation.SET] == 5
    assert pairs.in_doubt == 1
    pairs.in_doubt = 0
    pairs.restore(pairs.state() | {"in_doubt": 3})
    assert pairs.in_doubt == 3


def test_no_pulses_make_no_operation(pairs: DifferentialPairs, mocker: MockerFixture) -> None:
    program = mocker.spy(pairs.tester, "program")
    pairs.pulse(np.arange(4), np.zeros(4, np.int64))
    pairs.pulse(np.arange(0), np.arange(0))
    program.assert_not_called()


def test_a_written_difference_is_met_within_half_a_step_whatever_was_there(pairs: DifferentialPairs) -> None:
    rng = np.random.default_rng(2)
    pairs.pulse(np.arange(30), rng.integers(-5, 6, 30))
    wanted = rng.uniform(-12e-6, 12e-6, 30).astype(np.float32)
    pairs.write(np.arange(30), wanted)
    plus, minus = pairs.measure(np.arange(30))
    np.testing.assert_allclose(plus - minus, wanted, atol=STEP / 2 + 4 * READ)
    assert (np.minimum(plus, minus) < 0.1e-6 + 2 * READ).all()  # one device of each pair stays RESET
    assert pairs.sent[Operation.RESET] == 60


def test_many_weights_are_written_and_named_in_slices(pairs: DifferentialPairs, mocker: MockerFixture) -> None:
    mocker.patch("hil.pairs.SLICE", 7)
    program = mocker.spy(pairs.tester, "program")
    wanted = np.random.default_rng(2).uniform(1e-6, 12e-6, 30).astype(np.float32)
    pairs.write(np.arange(30), wanted)
    assert [len(call.args[0].cells) for call in program.call_args_list] == [14, 7] * 4 + [4, 2]
    slices = list(pairs.slices())
    assert [len(index) for index in slices] == [7, 7, 7, 7, 2]
    assert np.concatenate(slices).tolist() == list(range(30))
    plus, minus = pairs.measure(np.arange(30))
    np.testing.assert_allclose(plus - minus, wanted, atol=STEP / 2 + 4 * READ)


def test_a_difference_out_of_reach_is_refused_before_anything_is_sent(
    pairs: DifferentialPairs, mocker: MockerFixture
) -> None:
    mocker.patch("hil.pairs.SLICE", 7)
    program = mocker.spy(pairs.tester, "program")
    for bad in (1e-3, -1e-3, float("nan")):
        wanted = np.zeros(30, np.float32)
        wanted[29] = bad
        with pytest.raises(InputError, match="beyond"):
            pairs.write(np.arange(30), wanted)
    program.assert_not_called()


def test_writing_some_weights_leaves_the_others(pairs: DifferentialPairs) -> None:
    pairs.pulse(np.arange(30), np.full(30, 2))
    pairs.write(np.array([4, 5]), np.array([3e-6, -3e-6], np.float32))
    plus, minus = pairs.measure(np.delete(np.arange(30), [4, 5]))
    np.testing.assert_allclose(plus - minus, 2 * STEP, atol=4 * READ)


def test_pulses_at_the_end_of_the_conductance_range_are_counted(pairs: DifferentialPairs) -> None:
    pairs.pulse(np.array([0, 1]), np.array([40, 3]))  # 40 steps would reach 31 uS of 25 uS
    assert pairs.at_limit >= 7
    assert pairs.sent[Operation.SET] == 43


def test_noise_on_a_real_device_spreads_what_is_written_about_what_was_asked(make_tester: MakeTester) -> None:
    pairs = DifferentialPairs(make_tester("pcm-analog", columns=256, drift="off"), 60, 60, 1.0)
    wanted = np.full(len(pairs), 4e-6, np.float32)
    pairs.write(np.arange(len(pairs)), wanted)
    plus, minus = pairs.measure(np.arange(len(pairs)))
    spread = float(np.std(plus - minus))
    assert 0.5e-6 < spread < 3e-6
    assert abs(float(np.mean(plus - minus)) - 4e-6) < 0.5e-6  # a step of the staircase, and clipping at both ends


@pytest.mark.parametrize("readout", ["differential", "single"])
def test_stuck_devices_get_no_pulse_and_the_partner_carries_the_weight(
    readout: str, make_tester: MakeTester, mocker: MockerFixture
) -> None:
    tester = make_tester(rows=40, columns=40, stuck_fraction=0.05, readout=readout)
    stuck = find_stuck(tester, all_cells(tester))
    floorplan(tester).avoid(stuck)
    program = mocker.spy(tester, "program")
    pairs = DifferentialPairs(tester, 30, 15, 1.0)
    wanted = np.where(np.arange(450) % 2, 7e-6, -7e-6).astype(np.float32)
    pairs.pulse(np.arange(450), np.where(wanted > 0, 1, -1))
    pairs.write(np.arange(450), wanted)
    pulsed = {cell for call in program.call_args_list for cell in cells_of(call.args[0].cells)}
    assert not pulsed & set(cells_of(stuck))
    plus_stuck, minus_stuck = (among(cells, stuck) for cells in (pairs.placement.plus, pairs.placement.minus))
    plus, minus = pairs.measure(np.arange(450))
    low, high = np.minimum(plus, minus) < 1e-6, np.maximum(plus, minus) > 19e-6
    only_minus, only_plus = minus_stuck & ~plus_stuck, plus_stuck & ~minus_stuck
    possible = (only_plus & np.where(plus > 19e-6, wanted > 0, wanted < 0)) | (
        only_minus & np.where(minus > 19e-6, wanted < 0, wanted > 0)
    )  # a device stuck at 20 uS leaves 5 to 20 uS of its sign
    assert (possible & low).sum() > 5
    assert (possible & high).sum() > 5
    np.testing.assert_allclose((plus - minus)[possible], wanted[possible], atol=STEP / 2 + 0.1e-6 + 4 * READ)


@pytest.mark.parametrize("verified", [False, True])
def test_the_partner_of_a_stuck_device_counts_from_its_own_reset_state(verified: bool, make_tester: MakeTester) -> None:
    tester = make_tester(rows=40, columns=40, stuck_fraction=0.05, reset_mean=0.5e-6)
    stuck = find_stuck(tester, all_cells(tester))
    low = stuck[tester.read(stuck).values() < 1e-6]
    level = float(tester.read(low).values().mean())
    assert level == pytest.approx(0.1e-6, abs=READ)
    floorplan(tester).avoid(stuck)
    pairs = DifferentialPairs(tester, 30, 15, 1.0)
    sides = pairs.placement.plus, pairs.placement.minus
    (plus_low, plus_stuck), (minus_low, minus_stuck) = ((among(side, low), among(side, stuck)) for side in sides)
    size = 2 * STEP + 0.5e-6 - level  # a step of the partner's staircase, above a device below its RESET state
    wanted = np.where(minus_low, size, -size).astype(np.float32)
    if verified:
        pairs.write_verified(np.arange(450), wanted, Verify(margin=0.4e-6, settle=0))
    else:
        pairs.write(np.arange(450), wanted)
    plus, minus = pairs.measure(np.arange(450))
    one = (plus_low & ~minus_stuck) | (minus_low & ~plus_stuck)
    assert one.sum() > 10
    np.testing.assert_allclose((plus - minus)[one], wanted[one], atol=4 * READ)


def test_weights_cannot_be_written_where_the_staircase_is_unknown(
    make_tester: MakeTester, mocker: MockerFixture
) -> None:
    tester = make_tester()
    mocker.patch.object(tester, "capabilities", return_value=replace(tester.capabilities(), staircase=()))
    pairs = DifferentialPairs(tester, 2, 2, 1.0)
    with pytest.raises(InputError, match="staircase"):
        pairs.write(np.arange(4), np.zeros(4, np.float32))


def test_a_device_unit_is_eight_microsiemens() -> None:
    assert UNIT == 8e-6
