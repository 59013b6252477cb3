"""What studies measure on a twin is what the twin was made with."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pytest_mock import MockerFixture

from hil.bench import connect
from hil.characterize import chosen
from hil.data.run import Run
from hil.procedure import Place, perform
from hil.protocols.errors import InputError, TesterError
from hil.protocols.messages import Operation, PulseBatch, Receipt, Status
from hil.session import twin_seed
from hil.studies import log_spaced
from hil.study_data import drift_of, is_stuck, linearity_of, reads_of, rows_of, staircase_of
from hil.study_figures import MODEL, READ_OFFSET, READ_SLOPE
from hil.study_found import drift_exponents, spreads

CHIP = "twin:pcm-analog?arrays=1&rows=64&columns=64"
QUANTUM = 0.1  # uS per code


def test_a_staircase_is_that_of_the_2018_model(studied: Callable[..., Path]) -> None:
    with Run.open(studied("staircase", reads=10)) as run:
        staircase = staircase_of(run)
    level = staircase.reads.mean * 1e6
    assert staircase.pulses.tolist() == list(range(21))
    np.testing.assert_allclose(staircase.reads.age, 38.6, atol=0.03)
    for pulses, model in MODEL.items():
        assert abs(level[pulses].mean() - model.mean) < 4 * model.deviation / 64 + 0.015
        if pulses:
            assert level[pulses].std() == pytest.approx(model.deviation, rel=0.06)


def test_the_noise_of_reads_grows_with_the_conductance(studied: Callable[..., Path]) -> None:
    with Run.open(studied("staircase", reads=30, pulses=12)) as run:
        reads = staircase_of(run).reads
    mean, variance = reads.mean.ravel() * 1e6, reads.variance.ravel() * 1e12
    for low, high in ((2, 3), (5, 6), (9, 10)):
        chosen = (mean > low) & (mean < high)
        expected = np.square(READ_OFFSET + READ_SLOPE * mean[chosen]).mean() + QUANTUM**2 / 12
        assert variance[chosen].mean() == pytest.approx(expected, rel=0.05)
    white = -1 / reads.count * reads.variance.mean()
    assert abs(reads.covariance.mean() - white) < 0.01 * reads.variance.mean()


def test_drift_follows_its_exponent_and_its_spread(studied: Callable[..., Path]) -> None:
    with Run.open(studied("drift", "nu=0.05&nu_spread=0.3", times=(1.0, 10.0, 100.0, 1e3, 1e4, 1e5))) as run:
        drift = drift_of(run)
    assert drift.pulses.tolist() == [2, 4, 8, 16] * 1024
    np.testing.assert_allclose(drift.reads.age, [1, 10, 100, 1e3, 1e4, 1e5], rtol=0.03)
    nu = drift_exponents(drift.reads)
    assert 3500 < len(nu) < 4096
    assert nu.mean() == pytest.approx(0.05, abs=0.001)
    assert nu.std() == pytest.approx(0.015, rel=0.15)


def test_cells_with_more_pulses_drift_from_a_higher_level(studied: Callable[..., Path]) -> None:
    with Run.open(studied("drift", "drift=off", times=(1.0, 2.0))) as run:
        drift = drift_of(run)
    for pulses in (2, 4, 8):
        assert (drift.reads.mean[:, drift.pulses == pulses] * 1e6).mean() == pytest.approx(MODEL[pulses].mean, abs=0.3)


def test_read_noise_pulses_nothing(studied: Callable[..., Path]) -> None:
    with Run.open(studied("read-noise", reads=7)) as run:
        assert {kind for kind, count in run.counts.items() if count} == {"read"}
        reads = reads_of(run, rows_of(run, "read-noise"))
    assert reads.mean.shape == (1, 4096)
    assert np.isnan(reads.age).all()


def test_resets_are_read_again_and_again(studied: Callable[..., Path]) -> None:
    with Run.open(studied("reset", cycles=3)) as run:
        rows = rows_of(run, "reset")
        level = reads_of(run, rows).mean * 1e6
    assert rows.cycle.tolist() == [1, 2, 3]
    np.testing.assert_allclose(level.mean(1), 0.1, atol=0.01)


@pytest.mark.parametrize(("spread", "low", "high"), [("0", 0.0, 0.35), ("0.2", 0.9, 1.6)])
def test_a_map_tells_persistent_spread_from_that_of_cycles(
    studied: Callable[..., Path], spread: str, low: float, high: float
) -> None:
    with Run.open(studied("map", f"step_spread={spread}", cycles=8)) as run:
        cycle, persistent = spreads(reads_of(run, rows_of(run, "map")).mean * 1e6)
    assert cycle == pytest.approx(MODEL[10].deviation, rel=0.1)
    assert low <= persistent < high


@pytest.mark.parametrize("readout", ["differential", "single"])
def test_products_are_lines_through_what_reads_tell(studied: Callable[..., Path], readout: str) -> None:
    with Run.open(studied("linearity", f"readout={readout}", cells="0:2-9:10-30")) as run:
        (grid,) = linearity_of(run)
    columns = 10 if readout == "differential" else 21
    assert grid.current.shape == (8, 17, columns)
    assert grid.gain.shape == grid.conductance.shape == (8, columns)
    inside = ~np.isnan(grid.gain)
    assert inside.mean() > 0.97
    assert np.nansum(grid.gain) / grid.conductance[inside].sum() == pytest.approx(1, abs=0.02)
    assert np.corrcoef(grid.gain[inside], grid.conductance[inside])[0, 1] > 0.99
    assert abs(np.nanmean(grid.current[:, grid.voltage == 0])) < 2e-9
    assert np.nanstd(grid.deviation) < 0.02 * np.nanmax(grid.current)


def test_what_does_not_multiply_has_its_reads_looked_at_and_says_so(studied: Callable[..., Path]) -> None:
    with Run.open(studied("linearity", "mvm=none")) as run:
        assert linearity_of(run) == []
        level = reads_of(run, rows_of(run, "linearity")).mean * 1e6
        assert [text for _, text in run.messages] == [
            "this tester does not multiply: linearity is the offset of reads of RESET cells, no more"
        ]
        assert run.counts["set"] == 0
    assert level.mean() == pytest.approx(0.1, abs=0.01)


def test_endurance_reads_both_states_at_some_cycles(studied: Callable[..., Path]) -> None:
    with Run.open(studied("endurance", cells="0:0-9:0-63", cycles=60, reads=5)) as run:
        rows = rows_of(run, "endurance")
        level = reads_of(run, rows).mean * 1e6
        sets, resets = run.pulse_counts()
    assert rows.cycle[::2].tolist() == log_spaced(60) == [1, 2, 3, 5, 8, 13, 22, 36, 60]
    assert rows.pulses.tolist() == [0, 10] * 9
    assert (resets.max(), sets.max()) == (60, 600)
    np.testing.assert_allclose(level[0::2].mean(1), 0.1, atol=0.03)
    np.testing.assert_allclose(level[1::2].mean(1), 7.83 * (1 / 38.6) ** -0.04, rtol=0.05)


def test_stuck_cells_are_found_where_they_are(studied: Callable[..., Path]) -> None:
    path = studied("stuck", "stuck_fraction=0.03&read_noise=off&programming_noise=off")
    with Run.open(path) as run:
        found = is_stuck(run)
    assert abs(found.sum() - 4096 * 0.03) < 4 * np.sqrt(4096 * 0.03)


def test_cells_that_a_batch_in_doubt_missed_are_not_told_to_be_stuck(tmp_path: Path, mocker: MockerFixture) -> None:
    raw, out = connect(CHIP, twin_seed(1)), tmp_path / "run.h5"
    program = raw.program

    def half_of_sets(pulses: PulseBatch) -> Receipt:
        if pulses.kind != Operation.SET:
            return program(pulses)
        return replace(program(pulses[: len(pulses.cells) // 2]), status=Status.UNKNOWN, done=0)

    mocker.patch.object(raw, "program", half_of_sets)
    with pytest.raises(TesterError, match="scan again"):
        perform(chosen(["stuck"], "all", {}), Place(CHIP, out), raw)
    with Run.open(out) as run:
        assert run.state.startswith("failed: TesterError: the scan for stuck cells ended")
        with pytest.raises(InputError, match="no finished stuck study"):
            is_stuck(run)


def test_reads_that_come_too_late_are_told_and_their_true_age_is_known(studied: Callable[..., Path]) -> None:
    with Run.open(studied("drift", reads=100, times=(0.1, 0.2, 10.0))) as run:
        drift = drift_of(run)
        (finding,) = [text for _, text in run.messages]
    assert finding.startswith("drift, until 0.2 s: 0.31 s too late")
    np.testing.assert_allclose(drift.reads.age, [0.3, 0.71, 10.2], rtol=0.03)
