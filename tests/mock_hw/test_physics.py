"""The cell model: statistics against Nandakumar 2018, with fixed seeds and five standard errors."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from hil.mock_hw import readout, records
from hil.mock_hw.array import Chip
from hil.mock_hw.chips import mean_staircase
from hil.mock_hw.parameters import PcmParameters
from hil.mock_hw.pulses import STUCK_HIGH, apply_set, reset_level, set_step
from hil.protocols.messages import Cells, Operation, PulseBatch

MakeChip = Callable[..., Chip]
Values = npt.NDArray[np.float64]
PCM = PcmParameters()
SIGMAS = 5
RARE = 1e-4  # p-value below which a fixed seed is no excuse

# Pulses, mean and standard deviation (uS) of 200,000 devices that are only kept above 0.1 uS.
STAIRCASE = {
    1: (2.06, 1.52),
    2: (3.44, 1.97),
    3: (4.47, 2.19),
    4: (5.28, 2.32),
    6: (6.44, 2.41),
    8: (7.24, 2.44),
    10: (7.83, 2.47),
    15: (8.81, 2.57),
    20: (9.41, 2.70),
}
ROUNDING = 0.005  # of the table


def pulse(chip: Chip, kind: Operation, counts: npt.ArrayLike = 1, flat: npt.ArrayLike | None = None) -> int:
    """Pulses on some cells, or on all; returns how many met an end of the range."""
    where = np.asarray(np.arange(len(chip.cells)) if flat is None else flat, np.int64)
    array, row, column = np.unravel_index(
        where, (chip.parameters.arrays, chip.parameters.rows, chip.parameters.columns)
    )
    each = np.broadcast_to(np.asarray(counts, np.uint16), len(where)).copy()
    pulses = PulseBatch(Cells.of(array, row, column), kind, each, chip.parameters.set_pulse)
    return chip.program(pulses, where, int(each.sum()))


def read(chip: Chip, repetitions: int = 1) -> Values:
    """Values (S) of all cells, shape (repetitions, cells)."""
    everything = np.arange(len(chip.cells))
    codes = np.stack([chip.read(everything)[0] for _ in range(repetitions)])
    return (codes.astype(np.float64) - chip.read_offset) * chip.read_step


def conductance(chip: Chip) -> Values:
    return chip.cells["conductance"].astype(np.float64)


def error_of_deviation(values: Values) -> float:
    """Standard error of a standard deviation, without assuming a normal distribution."""
    centred = values - values.mean()
    variance = np.mean(centred**2)
    return float(np.sqrt((np.mean(centred**4) - variance**2) / (4 * variance * len(values))))


@pytest.fixture(scope="module")
def staircase() -> dict[int, Values]:
    """Conductances (uS) of 200,000 devices after each number of pulses of the table."""
    count = 200_000
    cells, carries = np.zeros(count, records.CELL), np.zeros(count, records.CARRY)
    cells["conductance"] = PCM.reset_mean
    rng, flat, one = np.random.default_rng(1), np.arange(count), np.ones(count, np.uint16)
    levels = {}
    for n in range(1, max(STAIRCASE) + 1):
        normals = rng.standard_normal(count, np.float32)
        apply_set(cells, carries, np.ones(1, np.float32), flat, one, 0, normals, records.constants(PCM))
        levels[n] = cells["conductance"] * 1e6
    return levels


@pytest.mark.parametrize("pulses", STAIRCASE)
def test_set_pulses_climb_the_published_staircase(staircase: dict[int, Values], pulses: int) -> None:
    mean, deviation = STAIRCASE[pulses]
    levels = staircase[pulses].astype(np.float64)
    assert abs(levels.mean() - mean) <= SIGMAS * levels.std() / np.sqrt(len(levels)) + ROUNDING
    assert abs(levels.std() - deviation) <= SIGMAS * error_of_deviation(levels) + ROUNDING


def test_several_pulses_at_once_are_as_good_as_one_after_the_other(make_chip: MakeChip) -> None:
    chip = make_chip(reset_noise=False, rows=500)
    pulse(chip, Operation.SET, 10)
    mean, deviation = STAIRCASE[10]
    levels = conductance(chip) * 1e6
    assert abs(levels.mean() - mean) <= SIGMAS * levels.std() / np.sqrt(len(levels)) + ROUNDING
    assert abs(levels.std() - deviation) <= SIGMAS * error_of_deviation(levels) + ROUNDING


def test_without_noise_the_staircase_is_the_nominal_one(make_chip: MakeChip) -> None:
    chip = make_chip(programming_noise=False, reset_noise=False)
    for level in mean_staircase(PCM, 20)[1:]:
        pulse(chip, Operation.SET)
        np.testing.assert_allclose(conductance(chip), level, rtol=1e-5)


def test_a_reset_starts_the_staircase_again(make_chip: MakeChip) -> None:
    chip = make_chip(programming_noise=False, reset_noise=False)
    pulse(chip, Operation.SET, 7)
    pulse(chip, Operation.RESET, 3)
    pulse(chip, Operation.SET, 2)
    np.testing.assert_allclose(conductance(chip), mean_staircase(PCM, 2)[2], rtol=1e-5)


def test_set_acts_on_the_undrifted_conductance(make_chip: MakeChip) -> None:
    chips = [make_chip(), make_chip()]
    for chip, pause in zip(chips, (0, 10**15), strict=True):
        pulse(chip, Operation.SET, 3)
        chip.advance(pause)
        pulse(chip, Operation.SET, 2)
    assert np.array_equal(conductance(chips[0]), conductance(chips[1]))


@pytest.mark.parametrize("age", [0, 100, 1_000, 10**6, 10**9, 38_600_000_000, 10**13, 10**17])
def test_conductance_drifts_with_the_time_since_the_last_pulse(make_chip: MakeChip, age: int) -> None:
    chip = make_chip("ideal", drift=True, read_span=50e-6)
    chip.advance(10**12)
    pulse(chip, Operation.SET, 12)
    chip.advance(age)
    expected = conductance(chip) * (max(age * 1e-9, 1e-6) / 38.6) ** -0.04
    np.testing.assert_allclose(read(chip)[0], expected, rtol=1e-6, atol=chip.read_step * 0.501)


@pytest.mark.parametrize("level", [0.0, 0.1e-6, 2e-6, 10e-6, 25e-6])
def test_reads_scatter_about_the_conductance_as_published(make_chip: MakeChip, level: float) -> None:
    chip = make_chip(drift=False, adc_bits=16, read_floor=-5e-6, read_span=50e-6)
    chip.cells["conductance"] = level
    values, spread = read(chip, 10).ravel(), 0.03 * level + 0.13e-6
    count = len(values)
    assert abs(values.mean() - level) <= SIGMAS * spread / np.sqrt(count)
    assert abs(values.std() - spread) <= SIGMAS * spread / np.sqrt(2 * count)
    assert stats.kstest((values - level) / spread, "norm").pvalue > RARE


def test_each_read_is_a_new_draw(make_chip: MakeChip) -> None:
    first, second = read(make_chip(adc_bits=16), 2)
    assert abs(np.corrcoef(first, second)[0, 1]) < SIGMAS / np.sqrt(len(first))


def test_a_read_rounds_to_the_nearest_code_and_counts_what_it_cannot_hold(make_chip: MakeChip) -> None:
    chip = make_chip(arrays=1, rows=1, columns=6, drift=False, read_noise=False)
    chip.cells["conductance"] = np.array([0, 0.149, 0.151, 24.5, 24.56, 60]) * 1e-6
    codes, saturated = chip.read(np.arange(6))
    assert codes.tolist() == [10, 11, 12, 255, 255, 255]
    assert saturated == 2


def test_noise_may_reach_below_the_converter_and_is_counted(make_chip: MakeChip) -> None:
    chip = make_chip(drift=False, read_floor=0.0)
    chip.cells["conductance"] = 0
    codes, saturated = chip.read(np.arange(len(chip.cells)))
    assert codes.min() == 0
    below = stats.norm.cdf(-0.5 * chip.read_step / 0.13e-6)
    count = len(chip.cells)
    assert abs(saturated - below * count) <= SIGMAS * np.sqrt(count * below * (1 - below))


def test_a_new_chip_and_a_reset_have_the_published_scatter(make_chip: MakeChip) -> None:
    chip = make_chip(rows=500)
    for _ in range(2):
        levels = (conductance(chip) - 0.1e-6) / 0.01e-6
        assert abs(levels.mean()) <= SIGMAS / np.sqrt(len(levels))
        assert stats.kstest(levels, "norm").pvalue > RARE
        before = levels
        pulse(chip, Operation.SET, 4)
        pulse(chip, Operation.RESET)
    assert not np.array_equal(conductance(chip), before)


def test_a_conductance_is_never_negative_after_a_reset(make_chip: MakeChip) -> None:
    levels = conductance(make_chip(reset_spread=1e-6))
    assert levels.min() == 0
    assert (levels > 0).any()


def sources(chip: Chip) -> dict[str, float]:
    """How large each source of noise is, and by how much conductances drift, each isolated from the others."""
    found = {"reset_noise": float(conductance(chip).std())}
    before = conductance(chip)
    pulse(chip, Operation.SET)
    expected = set_step(before, 1.0, 1.0, 0.0, records.constants(PCM)[0])
    free = conductance(chip) > chip.parameters.cell.g_min
    found["programming_noise"] = float((conductance(chip) - expected)[free].std())
    chip.cells["conductance"] = 5e-6
    chip.advance(38_600_000_000)
    young = read(chip, 20)
    found["read_noise"] = float((young - young.mean(0)).std())
    chip.advance(10**14)
    found["drift"] = float(young.mean() - read(chip, 20).mean())
    return found


@pytest.mark.parametrize("flag", ["programming_noise", "reset_noise", "read_noise", "drift"])
def test_each_flag_switches_off_one_source_and_no_other(make_chip: MakeChip, flag: str) -> None:
    fine = {"adc_bits": 16, "rows": 200}
    everything, without = sources(make_chip(**fine)), sources(make_chip(**fine, **{flag: False}))
    assert everything[flag] > 0
    assert abs(without[flag]) < 0.01 * everything[flag]
    for other in everything.keys() - {flag}:
        assert without[other] == pytest.approx(everything[other], rel=0.05)


@pytest.mark.parametrize("flag", ["programming_noise", "reset_noise", "read_noise"])
def test_a_flag_leaves_the_fabrication_of_the_chip_alone(make_chip: MakeChip, flag: str) -> None:
    spread = {"step_spread": 0.2, "nu_spread": 0.2, "stuck_fraction": 0.1}
    with_noise, without = make_chip(**spread), make_chip(**spread, **{flag: False})
    assert np.array_equal(with_noise.cells["stuck"], without.cells["stuck"])
    assert np.array_equal(with_noise.step_scale, without.step_scale)
    assert np.array_equal(with_noise.nu, without.nu)


def test_step_spread_gives_each_cell_its_own_step_for_ever(make_chip: MakeChip) -> None:
    chip = make_chip(programming_noise=False, reset_noise=False, step_spread=0.15, rows=500)
    rounds = []
    for _ in range(2):
        pulse(chip, Operation.RESET)
        pulse(chip, Operation.SET)
        rounds.append(conductance(chip) - 0.1e-6)
    assert np.array_equal(rounds[0], rounds[1])
    relative = rounds[0] / (mean_staircase(PCM, 1)[1] - 0.1e-6) - 1
    assert abs(relative.mean()) <= SIGMAS * 0.15 / np.sqrt(len(relative))
    assert abs(relative.std() - 0.15) <= SIGMAS * 0.15 / np.sqrt(2 * len(relative))


def test_nu_spread_gives_each_cell_its_own_drift_for_ever(make_chip: MakeChip) -> None:
    chip = make_chip(read_noise=False, nu_spread=0.3, adc_bits=16, rows=500)
    exponents = []
    for _ in range(2):
        pulse(chip, Operation.SET)
        chip.cells["conductance"] = 9e-6
        chip.advance(10**9)
        young = read(chip)[0]
        chip.advance(10**17 - 10**9)
        exponents.append(np.log(young / read(chip)[0]) / np.log(1e8))
    np.testing.assert_allclose(exponents[0], exponents[1], atol=1e-4)
    assert abs(exponents[0].mean() - 0.04) <= SIGMAS * 0.012 / np.sqrt(len(young))
    assert abs(exponents[0].std() - 0.012) <= SIGMAS * 0.012 / np.sqrt(2 * len(young))
    assert exponents[0].min() >= -1e-4


def test_stuck_cells_never_move_and_do_not_disturb_the_others(make_chip: MakeChip) -> None:
    healthy, chip = make_chip(rows=300), make_chip(rows=300, stuck_fraction=0.2)
    stuck = chip.cells["stuck"]
    count = len(stuck)
    assert abs(stuck.mean() - 0.2) <= SIGMAS * np.sqrt(0.2 * 0.8 / count)
    high = conductance(chip)[stuck] == np.float32(STUCK_HIGH * PCM.g_max)
    assert abs(high.mean() - 0.5) <= SIGMAS * 0.5 / np.sqrt(stuck.sum())
    assert (conductance(chip)[stuck][~high] == np.float32(PCM.g_min)).all()
    before = conductance(chip)
    counts = 1 + np.arange(count) % 3
    for one in (chip, healthy):
        one.advance(1000)
        pulse(one, Operation.SET, counts)
        pulse(one, Operation.RESET)
        pulse(one, Operation.SET, counts)
    assert np.array_equal(conductance(chip)[stuck], before[stuck])
    assert (chip.cells["pulsed_ns"][stuck] == 0).all()
    assert (chip.count("set_count") == 2 * counts).all()
    assert np.array_equal(conductance(chip)[~stuck], conductance(healthy)[~stuck])


def test_pulses_against_the_ends_of_the_range_are_counted(make_chip: MakeChip) -> None:
    chip = make_chip("ideal")  # 0.1 uS and 0.77 uS per pulse: the 33rd would pass 25 uS
    count = len(chip.cells)
    assert pulse(chip, Operation.SET, 32) == 0
    assert pulse(chip, Operation.SET, 8) == 8 * count
    assert (conductance(chip) == np.float32(25e-6)).all()
    falling = make_chip("ideal", mean_offset=-1e-6)
    assert pulse(falling, Operation.SET, 3) == 3 * count
    assert (conductance(falling) == np.float32(0.1e-6)).all()


def test_noisy_steps_stay_within_the_range(make_chip: MakeChip) -> None:
    chip = make_chip(g_max=8e-6)
    saturated = sum(pulse(chip, Operation.SET) for _ in range(10))
    levels = conductance(chip)
    assert saturated > 0
    assert levels.min() >= np.float32(0.1e-6)
    assert levels.max() == np.float32(8e-6)


@pytest.mark.parametrize(
    ("formula", "arguments"),
    [
        (
            set_step,
            (np.linspace(0, 25e-6, 50), np.arange(1.0, 51), np.linspace(0.5, 2, 50), np.linspace(-3, 3, 50)),
        ),
        (reset_level, (np.linspace(-12, 3, 50),)),
        (readout.drift_factor, (np.logspace(-9, 9, 50), np.linspace(0, 0.1, 50))),
        (readout.read_spread, (np.linspace(0, 25e-6, 50), np.linspace(0, 25e-6, 50), np.logspace(-9, 9, 50))),
    ],
)
def test_a_formula_gives_the_same_for_arrays_as_for_scalars(
    formula: Callable[..., Any], arguments: tuple[Values, ...]
) -> None:
    p, uncompiled = records.constants(PCM)[0], formula.py_func  # type: ignore[attr-defined]
    scalars = [formula(*map(float, one), p) for one in zip(*arguments, strict=True)]
    np.testing.assert_allclose(formula(*arguments, p), scalars, rtol=1e-12)
    np.testing.assert_allclose(uncompiled(*arguments, PCM), scalars, rtol=1e-12)


def test_pulses_and_reads_are_counted_per_cell(make_chip: MakeChip) -> None:
    chip = make_chip()
    order = np.array([3, 5, 3])
    pulse(chip, Operation.SET, np.array([2, 7, 1]), order)
    pulse(chip, Operation.RESET, np.array([4, 1, 1]), np.array([5, 6, 6]))
    chip.read(order)
    some = chip.cells[[3, 5, 6, 7]]
    assert some["set_count"].tolist() == [3, 7, 0, 0]
    assert some["reset_count"].tolist() == [0, 4, 2, 0]
    assert some["since_reset"].tolist() == [3, 0, 0, 0]
    assert some["read_count"].tolist() == [2, 1, 0, 0]


def test_the_count_since_reset_stops_at_its_largest_value(make_chip: MakeChip) -> None:
    chip = make_chip("ideal")
    for _ in range(2):
        pulse(chip, Operation.SET, 65000, np.array([0]))
    assert chip.cells["since_reset"][0] == 65535
    assert chip.count("set_count")[0] == 130000
