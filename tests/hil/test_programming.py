"""Program-and-verify: cells end near their targets, nothing impossible is sent, the report tells what happened."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from pytest_mock import MockerFixture

from hil.bench import open_tester
from hil.instruments.tester import ArrayTester
from hil.mapping import floorplan
from hil.pairs import DifferentialPairs
from hil.programming import Convergence, Verify, program_and_verify
from hil.protocols.errors import InputError, LimitError
from hil.protocols.messages import Cells, Operation, Status
from hil.stuck import all_cells, find_stuck

MakeTester = Callable[..., ArrayTester]
LE_GALLO = Verify(margin=1.74e-6, iterations=20)


def some_cells(count: int, columns: int = 2000) -> Cells:
    return Cells.of(0, np.arange(count) // columns, np.arange(count) % columns)


@pytest.mark.parametrize("uri", ["twin:pcm-90nm", "twin:pcm-analog"])
def test_99_of_100_cells_of_the_default_twin_converge_within_20_iterations(uri: str) -> None:
    targets = np.random.default_rng(1).uniform(0.2e-6, 8e-6, 10_000).astype(np.float32)
    with open_tester(uri) as tester:
        report = program_and_verify(tester, some_cells(10_000), targets, LE_GALLO)
    assert report.converged.mean() >= 0.99
    assert report.iterations.max() <= 20
    assert abs(report.error).mean() < 1.74e-6
    assert np.corrcoef(targets, targets + report.error)[0, 1] > 0.9


def test_a_smaller_margin_ends_nearer_to_the_targets_and_costs_more() -> None:
    targets = np.random.default_rng(1).uniform(0.2e-6, 8e-6, 3000).astype(np.float32)
    with open_tester("twin:pcm-90nm") as tester:
        wide, narrow = (
            program_and_verify(tester, some_cells(3000), targets, Verify(margin=margin)) for margin in (1.74e-6, 0.6e-6)
        )
    assert narrow.error.std() < 0.8 * wide.error.std()
    assert narrow.iterations.mean() > wide.iterations.mean()
    assert narrow.reset_pulses.sum() > wide.reset_pulses.sum()


def test_the_report_tells_where_the_cells_are_and_what_they_were_sent(make_tester: MakeTester) -> None:
    with make_tester(mvm="none") as tester:
        targets = np.array([0.1, 0.87, 1.64, 8.0], np.float32) * 1e-6  # steps of 0.77 uS: 0, 1, 2 and 10 or 11 pulses
        report = program_and_verify(tester, some_cells(4, 64), targets, Verify(margin=0.4e-6, settle=0))
        readings = tester.read(some_cells(4, 64)).values()
    assert report.converged.all()
    assert report.set_pulses.tolist() == [0, 1, 2, 10]
    assert report.reset_pulses.tolist() == [1, 1, 1, 1]
    assert report.iterations.tolist() == [1, 2, 3, 3]  # nine pulses at once, then one
    np.testing.assert_allclose(report.error, readings - targets, atol=1e-9)
    summary = report.summary()
    assert (summary["cells"], summary["converged"], summary["set_pulses"]) == (4, 1.0, 13)
    assert summary["error_quantiles"] == sorted(summary["error_quantiles"])


def test_a_cell_that_overshot_is_reset_and_starts_again(make_tester: MakeTester) -> None:
    with make_tester(mvm="none") as tester:
        report = program_and_verify(
            tester, some_cells(1, 64), np.array([0.5e-6], np.float32), Verify(0.1e-6, 6, settle=0)
        )
    assert not report.converged[0]  # 0.1 or 0.87 uS
    assert report.reset_pulses[0] == 3
    assert report.set_pulses[0] == 3
    assert report.iterations[0] == 6


def test_no_pulse_follows_the_last_reading(make_tester: MakeTester) -> None:
    with make_tester(mvm="none") as tester:
        report = program_and_verify(
            tester, some_cells(1, 64), np.array([8e-6], np.float32), Verify(0.4e-6, 12, settle=0)
        )
        assert report.set_pulses[0] == 10
        assert report.converged[0]


def test_a_stuck_cell_does_not_converge_and_does_not_stop_the_others() -> None:
    with open_tester("twin:pcm-90nm?stuck_fraction=0.05&rows=32&columns=64") as tester:
        targets = np.full(1000, 4e-6, np.float32)
        report = program_and_verify(tester, some_cells(1000, 64), targets, LE_GALLO)
    assert 0.93 < report.converged.mean() < 0.97
    assert abs(report.error[~report.converged]).min() > 1e-6


def test_what_is_in_doubt_is_read_not_pulsed_again(make_tester: MakeTester, mocker: MockerFixture) -> None:
    with make_tester(mvm="none") as tester:
        program = tester.program
        mocker.patch.object(tester, "program", lambda pulses: replace(program(pulses), status=Status.UNKNOWN, done=0))
        report = program_and_verify(
            tester, some_cells(2, 64), np.array([0.87e-6, 1.64e-6], np.float32), Verify(0.4e-6, settle=0)
        )
    assert report.set_pulses.tolist() == [1, 2]
    assert report.in_doubt == 3


CELLS = some_cells(3, 64)


@pytest.mark.parametrize(
    ("cells", "targets", "how", "error"),
    [
        (CELLS, [1e-6, 2e-6], Verify(), r"3 cells and targets of shape \(2,\)"),
        (CELLS, [1e-6, np.nan, 2e-6], Verify(), "target nan S"),
        (CELLS, [1e-6, -1e-6, 2e-6], Verify(), "target -1.*at least 0"),
        (CELLS, [1e-6, np.inf, 2e-6], Verify(), "target inf S"),
        (CELLS, [1e-6, 2e-5, 2e-6], Verify(), r"target 2e-05 S is above the 1.55e-05 S that SET pulses reach"),
        (Cells.of(0, [1, 1, 2], 5), [1e-6, 2e-6, 2e-6], Verify(), "1 cells occur more than once"),
        (Cells.of([], [], []), [], Verify(), "no cells"),
        (Cells.of(0, [1, 2, 64], 5), [1e-6, 2e-6, 2e-6], Verify(), "outside"),
        (CELLS, [1e-6] * 3, Verify(margin=0), "margin=0 S"),
        (CELLS, [1e-6] * 3, Verify(margin=np.nan), "margin=nan S"),
        (CELLS, [1e-6] * 3, Verify(iterations=0), "iterations=0"),
        (CELLS, [1e-6] * 3, Verify(settle=-1), "settle=-1 s"),
        (CELLS, [1e-6] * 3, Verify(reads=0), "reads=0"),
    ],
)
def test_what_cannot_be_programmed_is_refused_before_anything_is_sent(
    make_tester: MakeTester, cells: Cells, targets: Any, how: Verify, error: str
) -> None:
    with make_tester(mvm="none") as tester:
        with pytest.raises((InputError, LimitError), match=error):
            program_and_verify(tester, cells, np.array(targets, np.float32), how)
        assert tester.time_ns() == 0


def test_progress_counts_down(make_tester: MakeTester) -> None:
    told: list[tuple[int, int]] = []
    targets = np.array([0.1, 0.87, 1.64], np.float32) * 1e-6
    with make_tester(mvm="none") as tester:
        program_and_verify(tester, CELLS, targets, Verify(0.4e-6), lambda *step: told.append(step))
    assert told == [(0, 3), (1, 2), (2, 1)]


def test_pairs_are_written_to_their_differences_and_counted(make_tester: MakeTester) -> None:
    with make_tester(mvm="none") as tester:
        pairs = DifferentialPairs(tester, 2, 2, 1.0)
        wanted = np.array([1.54, -2.31, 0.0, 0.77], np.float32) * 1e-6
        report = pairs.write_verified(np.arange(4, dtype=np.int32), wanted, Verify(0.4e-6))
        plus, minus = pairs.measure(np.arange(4, dtype=np.int32))
    np.testing.assert_allclose(plus - minus, wanted, atol=2e-9)
    assert len(report.converged) == 8
    assert pairs.sent == {Operation.SET: 6, Operation.RESET: 8}


def test_the_partner_of_a_stuck_device_carries_the_weight() -> None:
    with open_tester("twin:ideal?rows=32&columns=32&arrays=1&stuck_fraction=0.05", 3) as tester:
        stuck = find_stuck(tester, all_cells(tester))
        floorplan(tester).avoid(stuck)
        pairs = DifferentialPairs(tester, 10, 6, 1.0)
        wanted = np.random.default_rng(1).uniform(-3e-6, 3e-6, 60).astype(np.float32)
        index = np.arange(60, dtype=np.int32)
        report = pairs.write_verified(index, wanted, Verify(0.4e-6))
        plus, minus = pairs.measure(index)
    assert len(report.converged) < 120
    near = abs(plus - minus - wanted) < 0.9e-6
    assert 0.9 < near.mean() < 1


def test_reports_of_several_layers_make_one() -> None:
    one = Convergence(
        np.array([True]), np.array([3], np.uint16), np.array([1e-7], np.float32), np.array([2]), np.array([1]), 1, 2
    )
    both = Convergence.concatenate([one, one])
    assert both.summary()["cells"] == 2
    assert (both.in_doubt, both.at_limit) == (2, 4)
