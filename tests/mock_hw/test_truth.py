"""What cells do beyond the 2018 model: other staircases, program-and-verify, flicker and wear; with fixed seeds."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy import signal, stats

from hil.bench import open_tester
from hil.mock_hw import chipfile, hashes, readout, records
from hil.mock_hw.array import Chip
from hil.mock_hw.chips import CHIPS, mean_staircase, named_chip
from hil.mock_hw.firmware import Firmware
from hil.mock_hw.matrix import DRIFT_BOUND, Matrix
from hil.mock_hw.pulses import STUCK_HIGH, exponent, set_step, verified_level
from hil.mock_hw.twin import identity_of
from hil.pairs import DifferentialPairs
from hil.protocols.errors import InputError
from hil.protocols.messages import Block, Cells, Direction, Operation, PulseBatch, Region

MakeChip = Callable[..., Chip]
Values = npt.NDArray[np.float64]
SIGMAS = 5
RARE = 1e-4
SECOND = 10**9
AIHWKIT, INFERENCE = CHIPS["pcm-aihwkit"].cell, CHIPS["pcm-inference"].cell
FINE = {"adc_bits": 16, "read_floor": -50e-6, "read_span": 100e-6}

# aihwkit's PCMPresetDevice from w = 0: mean weight after so many pulses.
EXPONENTIAL = {1: 0.282, 2: 0.427, 3: 0.531, 4: 0.613, 5: 0.682, 10: 0.924, 20: 1.217, 50: 1.73}
# aihwkit's PCMLikeNoiseModel: x, and there the scatter of programming (uS), the mean drift exponent and its scatter,
# and the read noise after 25 s over G.
VERIFIED = [
    (0.02, 0.302, 0.085, 0.043, 0.47),
    (0.1, 0.448, 0.060, 0.0229, 0.17),
    (0.2, 0.610, 0.049, 0.0142, 0.105),
    (0.4, 0.862, 0.049, 0.008, 0.067),
    (0.6, 1.020, 0.049, 0.008, 0.052),
    (0.8, 1.085, 0.049, 0.008, 0.043),
    (1.0, 1.055, 0.049, 0.008, 0.037),
]


def pulse(chip: Chip, kind: Operation, count: int = 1, flat: npt.NDArray[np.int64] | None = None) -> int:
    """Pulses on some cells, or on all; returns how many met an end of the range."""
    p, where = chip.parameters, np.arange(len(chip.cells)) if flat is None else flat
    array, row, column = np.unravel_index(where, (p.arrays, p.rows, p.columns))
    counts = np.full(len(where), count, np.uint16)
    return chip.program(PulseBatch(Cells.of(array, row, column), kind, counts, p.set_pulse), where, int(counts.sum()))


def read(chip: Chip, flat: npt.NDArray[np.int64] | None = None) -> Values:
    """Values (S) of some cells, or of all."""
    codes, saturated = chip.read(np.arange(len(chip.cells)) if flat is None else flat)
    assert saturated == 0
    return (codes.astype(np.float64) - chip.read_offset) * chip.read_step


def conductance(chip: Chip) -> Values:
    return chip.cells["conductance"].astype(np.float64)


class TestExponentialStaircase:
    def test_the_mean_curve_is_that_of_aihwkit(self) -> None:
        curve = mean_staircase(AIHWKIT._replace(reset_mean=0.0), max(EXPONENTIAL))
        for pulses, weight in EXPONENTIAL.items():
            assert curve[pulses] / 10e-6 == pytest.approx(weight, abs=0.006 if pulses == 50 else 0.001)

    @pytest.mark.parametrize("level", [0.0, 2e-6, 12e-6])
    def test_steps_scatter_with_the_step_and_the_conductance(self, level: float) -> None:
        w, p = level / 10e-6, records.constants(AIHWKIT)[0]
        step = 0.01 * (1 + 27.235 * np.exp(-2.5 * w))
        for scale in (1.0, 1.3):
            mean = set_step(level, 3.0, scale, 0.0, p) - level
            spread = set_step(level, 3.0, scale, 1.0, p) - level - mean
            assert mean / 10e-6 == pytest.approx(scale * step, rel=1e-4)
            assert spread / 10e-6 == pytest.approx(0.6 * (scale * step + 0.042 + 0.108 * w), rel=1e-4)

    def test_devices_differ_and_stay_in_their_range(self, make_chip: MakeChip) -> None:
        chip = make_chip("pcm-aihwkit", rows=500)
        assert chip.step_scale.std() == pytest.approx(0.2, rel=0.05)
        pulse(chip, Operation.SET, 30)
        assert conductance(chip).min() >= 0
        assert conductance(chip).max() == np.float32(20e-6)


class TestInference:
    @pytest.fixture
    def make(self, make_chip: MakeChip) -> MakeChip:
        return lambda **changes: make_chip("pcm-inference", **{"rows": 400} | FINE | changes)

    @pytest.mark.parametrize(("x", "scatter", "nu", "nu_scatter", "noise"), VERIFIED)
    def test_programming_drift_and_reads_scatter_as_published(
        self, make: MakeChip, x: float, scatter: float, nu: float, nu_scatter: float, noise: float
    ) -> None:
        chip, aim = make(), 25e-6 * x
        count, formulas = len(chip.cells), records.constants(INFERENCE)[0]
        assert pulse(chip, Operation.SET, round(250 * x)) == 0
        g = conductance(chip)
        if x >= 0.1:  # below, levels are cut off at 0
            assert abs(g.mean() - aim) <= SIGMAS * g.std() / np.sqrt(count)
            assert abs(g.std() - scatter * 1e-6) <= SIGMAS * g.std() / np.sqrt(2 * count) + 0.0005e-6
        assert verified_level(aim, 1.0, formulas) - aim == pytest.approx(scatter * 1e-6, abs=0.0006e-6)
        assert exponent(aim, 0.0, formulas) == pytest.approx(nu, abs=0.0005)
        if x >= 0.2:  # below, negative exponents are folded
            assert abs(chip.nu.mean() - nu) <= SIGMAS * nu_scatter / np.sqrt(count)
        assert np.std(exponent(aim, np.array([-1.0, 1.0]), formulas)) == pytest.approx(nu_scatter, rel=0.01)
        chip.cells["conductance"], chip.nu[:] = aim, 0
        chip.advance(25 * SECOND)
        values = read(chip)
        assert abs(values.std() / aim - noise) <= SIGMAS * noise / np.sqrt(2 * count) + 0.005
        assert abs(values.mean() - aim) <= SIGMAS * aim * noise / np.sqrt(count)

    def test_pulses_add_up_to_one_target(self, make: MakeChip) -> None:
        chip = make(programming_noise=False)
        for pulses in (3, 40, 7):
            pulse(chip, Operation.SET, pulses)
        np.testing.assert_allclose(conductance(chip), 5e-6, rtol=1e-6)
        assert pulse(chip, Operation.SET, 203) == 3 * len(chip.cells)
        np.testing.assert_allclose(conductance(chip), 25e-6, rtol=1e-6)
        assert pulse(chip, Operation.SET, 2) == 2 * len(chip.cells)
        assert (chip.count("set_count") == 255).all()

    def test_a_reset_is_the_programming_of_the_target_0(self, make: MakeChip) -> None:
        chip = make()
        new = conductance(chip), chip.nu.copy()
        pulse(chip, Operation.SET, 100)
        pulse(chip, Operation.RESET)
        for g, nu in (new, (conductance(chip), chip.nu)):
            assert (g == 0).mean() == pytest.approx(0.5, abs=0.02)
            assert g.std() == pytest.approx(0.26348e-6 * np.sqrt((1 - 1 / np.pi) / 2), rel=0.03)
            assert nu.mean() == pytest.approx(stats.foldnorm(0.1 / 0.045, scale=0.045).mean(), rel=0.02)
        assert not np.array_equal(new[1], chip.nu)

    def test_drift_begins_20_s_after_programming(self, make: MakeChip) -> None:
        chip = make(read_noise=False)
        pulse(chip, Operation.SET, 100)
        resolution = chip.read_step * 0.501
        chip.advance(20 * SECOND)
        np.testing.assert_allclose(read(chip), conductance(chip), atol=resolution)
        chip.advance(10**6 * SECOND)
        expected = conductance(chip) * ((10**6 + 20) / 20) ** -chip.nu.astype(np.float64)
        np.testing.assert_allclose(read(chip), expected, atol=resolution, rtol=1e-5)

    def test_stuck_cells_keep_level_and_exponent(self, make: MakeChip) -> None:
        chip = make(stuck_fraction=0.1)
        stuck, before = chip.cells["stuck"], (conductance(chip), chip.nu.copy())
        pulse(chip, Operation.SET, 100)
        pulse(chip, Operation.RESET)
        for old, new in zip(before, (conductance(chip), chip.nu), strict=True):
            assert np.array_equal(old == new, stuck | ((old == 0) & (new == 0)))

    def test_without_drift_and_noise_it_is_exact(self, make: MakeChip) -> None:
        quiet = {"read_noise": False, "programming_noise": False, "reset_noise": False, "drift": False}
        chip = make(**quiet)
        pulse(chip, Operation.SET, 30)
        chip.advance(10**6 * SECOND)
        assert (chip.nu == 0).all()
        np.testing.assert_allclose(read(chip), 3e-6, atol=chip.read_step)

    def test_products_follow_each_cells_drift_and_noise_within_a_bound(self, make: MakeChip) -> None:
        """Weights within `DRIFT_BOUND`; variances within 8 % from 1 us on, and within 4 % from 1 ms on."""
        chip = make(rows=64)
        pulse(chip, Operation.SET, 120)
        lines = np.arange(32, dtype=np.uint16)
        where = (np.arange(32)[:, None] * 32 + lines).ravel()
        g, nu = conductance(chip)[where], chip.nu[where].astype(np.float64)
        for age in (1e-6, 3.3e-5, 1e-3, 0.7, 19.0, 25.0, 900.0, 3e6, 3e8):
            chip.now_ns = round(age * 1e9)
            matrix = matrix_now(chip, Block(0, lines, lines, None, 0, 0))
            drifted = g * (max(age, 20) / 20) ** -nu
            np.testing.assert_allclose(matrix.weight, drifted, rtol=DRIFT_BOUND + 1e-4, atol=1e-12)
            exact = readout.read_spread(drifted, g, age, records.constants(INFERENCE)[0]) ** 2
            np.testing.assert_allclose(matrix.variance, exact, rtol=0.08 if age < 1e-3 else 0.04)

    def test_weights_written_open_loop_scatter_by_the_programming_noise(self) -> None:
        with open_tester("twin:pcm-inference?arrays=1&rows=100&columns=64&drift=off&read_noise=off") as tester:
            assert len(tester.capabilities().staircase) == 251
            pairs = DifferentialPairs(tester, 100, 30, 1.0)
            aims = np.where(np.arange(3000) % 2, 10e-6, -10e-6).astype(np.float32)
            everything = np.arange(3000, dtype=np.int32)
            pairs.write(everything, aims)
            plus, minus = pairs.measure(everything)
        errors = np.where(aims > 0, plus, minus) - 10e-6
        assert abs(errors.mean()) <= SIGMAS * 0.862e-6 / np.sqrt(3000)
        assert abs(errors.std() - 0.862e-6) <= SIGMAS * 0.862e-6 / np.sqrt(6000)
        assert np.where(aims > 0, minus, plus).max() < 1.5e-6

    def test_the_staircase_ends_at_the_largest_target(self) -> None:
        stairs = CHIPS["pcm-inference"].capabilities().staircase
        np.testing.assert_allclose(stairs, np.arange(251) * 0.1e-6, atol=1e-18)
        with pytest.raises(InputError, match="mean_offset=0: with inference=on, 4096 pulses must reach g_max"):
            named_chip("pcm-inference", {"mean_offset": "0"})


def matrix_now(chip: Chip, block: Block, handle: int = 0) -> Matrix:
    """What the chip multiplies with for this region, after a product that drives all its word lines."""
    region = Region(handle, (block,))
    chip.product(region, Direction.FORWARD, 60e-6).multiply(np.ones((1, len(block.rows)), np.int8))
    matrix: Matrix = vars(chip)["_matrices"][handle]
    return matrix


def normal(state: int, number: int) -> float:
    return float(hashes.normal_of(np.uint64(hashes.hashed(np.uint64(state), number))))


class TestFlicker:
    def test_its_normals_are_normal_and_independent(self) -> None:
        z = np.array([normal(7, n) for n in range(200_000)])
        for moment, expected in ((1, 0), (2, 1), (3, 0), (4, 3)):
            error = np.std(z**moment) / np.sqrt(len(z))
            assert abs(np.mean(z**moment) - expected) <= SIGMAS * error
        assert stats.kstest(z, "norm").pvalue > RARE
        assert abs(np.corrcoef(z[1:], z[:-1])[0, 1]) <= SIGMAS / np.sqrt(len(z))
        neighbours = np.array([normal(n, 1) for n in range(50_000)])
        assert stats.kstest(neighbours, "norm").pvalue > RARE

    def test_the_spectrum_is_1_over_f(self, make_chip: MakeChip) -> None:
        chip = make_chip(flicker=True, drift=False, rows=8, columns=8, **FINE)
        chip.cells["conductance"] = 5e-6
        chip.advance(40 * SECOND)
        values = np.empty((2**14, len(chip.cells)))
        for row in values:
            row[:] = read(chip)
            chip.advance(10_000)
        frequency, power = signal.periodogram(values, 1e5, axis=0)
        edges = np.geomspace(frequency[4], 4000 * frequency[1], 13)
        which, mean = np.digitize(frequency, edges), power.mean(1)
        inside = [which == n for n in range(1, 13)]
        line = [(np.log(frequency[band]).mean(), np.log(mean[band].mean())) for band in inside]
        slope = stats.linregress(*np.transpose(line)).slope
        assert edges[-1] / edges[0] >= 1000
        assert slope == pytest.approx(-1, abs=0.15)

    def test_reads_near_in_time_do_not_average_out(self, make_chip: MakeChip) -> None:
        chip = make_chip(flicker=True, drift=False, rows=16, columns=32, **FINE)
        chip.cells["conductance"] = 5e-6
        chip.advance(round(38.6 * SECOND))
        total = np.zeros(len(chip.cells))
        for _ in range(1000):
            total += read(chip)
            chip.advance(50_000)
        assert 0.4 < (total / 1000).std() / 0.28e-6 < 0.85

    @pytest.mark.parametrize("age_s", [1e-3, 38.6, 1e6])
    def test_the_variance_grows_with_the_logarithm_of_the_age(self, make_chip: MakeChip, age_s: float) -> None:
        chip = make_chip(flicker=True, drift=False, rows=500, **FINE)
        chip.cells["conductance"] = 5e-6
        chip.advance(round(age_s * 1e9))
        components = 2 + np.floor(np.log(age_s / 1e-6) / np.log(4))
        expected = 0.28e-6 * np.sqrt(components / 14)
        values = read(chip)
        assert abs(values.std() - expected) <= SIGMAS * expected / np.sqrt(2 * len(values))
        assert abs(values.mean() - 5e-6) <= SIGMAS * expected / np.sqrt(len(values))

    def test_of_an_inference_chip_it_keeps_the_variance(self, make_chip: MakeChip) -> None:
        chip = make_chip("pcm-inference", flicker=True, drift=False, rows=500, **FINE)
        chip.cells["conductance"] = 10e-6
        chip.advance(25 * SECOND)
        assert read(chip).std() / 10e-6 == pytest.approx(0.067, rel=0.03)

    def test_a_pulse_draws_it_anew(self, make_chip: MakeChip) -> None:
        chip = make_chip(flicker=True, drift=False, **FINE)
        noise = []
        for seconds in (85, 1, 100):
            chip.cells["conductance"] = 5e-6
            chip.advance(seconds * SECOND)
            noise.append(read(chip))
            if len(noise) == 2:
                pulse(chip, Operation.SET)
        kept, drawn = (np.corrcoef(noise[0], other)[0, 1] for other in noise[1:])
        assert kept > 0.15  # 3 of 14 components stay
        assert abs(drawn) < SIGMAS / np.sqrt(len(chip.cells))

    def test_products_repeated_do_not_average_to_the_truth(self, make_chip: MakeChip) -> None:
        errors = {}
        for flicker in (False, True):
            chip = make_chip(flicker=flicker, drift=False, adc_bits=16)
            chip.cells["conductance"] = 5e-6
            chip.advance(10**5 * SECOND)
            lines = np.arange(32, dtype=np.uint16)
            region = Region(0, (Block(0, lines, lines, None, 0, 0),))
            codes = np.full((4000, 32), 127, np.int8)
            out, _ = chip.product(region, Direction.FORWARD, 60e-6).multiply(codes)
            one = out * (60e-6 / 32767) - 32 * 0.2 * 5e-6
            single = 0.28e-6 * 0.2 * np.sqrt(32 * (20 / 14 if flicker else 1))
            mean = one.mean(0)
            errors[flicker] = mean.std() / single
            assert np.sqrt((one.std(0) ** 2).mean() + mean.var()) == pytest.approx(single, rel=0.2)
        assert errors[False] < 0.03
        assert 0.35 < errors[True] < 0.9  # 7 of 20 components are slow

    @pytest.mark.parametrize("changes", [{}, {"drift": False}, {"inference": True}])
    def test_a_matrix_built_late_equals_one_kept_up_to_date(self, make_chip: MakeChip, changes: dict[str, Any]) -> None:
        chip, rng = make_chip(flicker=True, **changes), np.random.default_rng(1)
        lines = np.arange(16, dtype=np.uint16)
        block = Block(0, lines, lines, lines + np.uint16(16), 0, 0)
        for step in range(60):
            cells = Cells.of(0, rng.integers(16, size=20), rng.integers(32, size=20))
            counts = np.ones(20, np.uint16)
            chip.program(PulseBatch(cells, Operation.SET, counts, chip.parameters.set_pulse), chip.locate(cells), 20)
            chip.advance(int(10 ** rng.uniform(2, 13)))
            kept, late = matrix_now(chip, block, 0), matrix_now(chip, block, 1 + step)
            assert np.array_equal(late.weight, kept.weight)
            assert np.array_equal(late.variance, kept.variance)

    def test_weights_and_reads_share_the_slow_components(self, make_chip: MakeChip) -> None:
        chip = make_chip(flicker=True, drift=False, rows=64, **FINE)
        chip.cells["conductance"] = 5e-6
        chip.advance(10**8 * SECOND)
        lines = np.arange(32, dtype=np.uint16)
        matrix = matrix_now(chip, Block(0, lines, lines, None, 0, 0))
        reads = read(chip)[: 32 * 32]
        assert np.corrcoef(matrix.weight, reads)[0, 1] == pytest.approx(np.sqrt(12 / 25), abs=0.1)
        np.testing.assert_allclose(matrix.variance, 0.28e-6**2 * 13 / 14, rtol=1e-4)

    @pytest.mark.parametrize("inference", [False, True])
    def test_without_read_noise_there_is_none(self, make_chip: MakeChip, inference: bool) -> None:
        chips = [
            make_chip(flicker=flicker, inference=inference, read_noise=False, drift=False) for flicker in (False, True)
        ]
        lines = np.arange(32, dtype=np.uint16)
        region = Region(0, (Block(0, lines, lines, None, 0, 0),))
        answers = []
        for chip in chips:
            pulse(chip, Operation.SET, 5)
            chip.advance(10**5 * SECOND)
            product, _ = chip.product(region, Direction.FORWARD, 60e-6).multiply(np.full((1, 32), 9, np.int8))
            answers.append((read(chip), product))
        np.testing.assert_array_equal(answers[0][0], answers[1][0])
        np.testing.assert_array_equal(answers[0][1], answers[1][1])


def history(chip: Chip, rounds: int) -> bytes:
    """Answers to pulses and reads of all cells over some rounds."""
    answers = b""
    for _ in range(rounds):
        pulse(chip, Operation.RESET, 40)
        pulse(chip, Operation.SET, 3)
        chip.advance(37 * SECOND)
        answers += chip.read(np.arange(len(chip.cells)))[0].tobytes()
    return answers


FULL = {"inference": True, "flicker": True, "endurance": 100.0}


@pytest.mark.parametrize("changes", [FULL, {"flicker": True}, {"endurance": 100.0}, {"inference": True}])
def test_the_same_seed_gives_the_same_bytes_and_a_saved_chip_goes_on(
    make_chip: MakeChip, changes: dict[str, Any]
) -> None:
    one, two, other = (make_chip(seed=seed, **changes) for seed in (1, 1, 2))
    assert history(one, 3) == history(two, 3) != history(other, 3)
    loaded = chipfile.parse(chipfile.dump(Firmware(two), identity_of("pcm-analog", "chip-1")))[0].chip
    assert history(one, 3) == history(loaded, 3)
    assert one.cells.tobytes() == loaded.cells.tobytes()


class TestWear:
    def test_cells_fail_by_the_lognormal_distribution(self, make_chip: MakeChip) -> None:
        chip = make_chip(endurance=1000.0, endurance_spread=0.5, rows=500)
        count = len(chip.cells)
        for _ in range(30):
            pulse(chip, Operation.RESET, 100)
            done = chip.count("reset_count")[0]
            expected = stats.norm.cdf(np.log(done / 1000) / 0.5)
            failed = chip.cells["stuck"].mean()
            assert abs(failed - expected) <= SIGMAS * np.sqrt(expected * (1 - expected) / count) + 1e-9
        assert chip.cells["stuck"].mean() > 0.95

    def test_half_of_them_fail_open_and_half_set(self, make_chip: MakeChip) -> None:
        chip = make_chip(endurance=10.0, rows=500)
        pulse(chip, Operation.RESET, 10)
        stuck = chip.cells["stuck"]
        high = conductance(chip)[stuck] == np.float32(STUCK_HIGH * 25e-6)
        assert abs(high.mean() - 0.5) <= SIGMAS * 0.5 / np.sqrt(stuck.sum())
        assert (conductance(chip)[stuck][~high] == np.float32(0.1e-6)).all()
        before = conductance(chip)
        pulse(chip, Operation.SET, 3)
        assert np.array_equal(before == conductance(chip), stuck)

    def test_the_others_are_as_on_a_chip_that_lasts(self, make_chip: MakeChip) -> None:
        lasting, wearing = make_chip(), make_chip(endurance=100.0)
        for chip in (lasting, wearing):
            for _ in range(3):
                pulse(chip, Operation.RESET, 30)
                pulse(chip, Operation.SET, 2)
        alive = ~wearing.cells["stuck"]
        assert 0.2 < alive.mean() < 0.8
        assert wearing.cells[alive].tobytes() == lasting.cells[alive].tobytes()
        answers = [chip.read(np.arange(len(alive)))[0][alive] for chip in (lasting, wearing)]
        assert np.array_equal(*answers)

    def test_only_cells_that_are_reset_wear(self, make_chip: MakeChip) -> None:
        chip = make_chip(endurance=10.0)
        pulse(chip, Operation.SET, 1000)
        pulse(chip, Operation.RESET, 1000, np.arange(7))
        assert np.flatnonzero(chip.cells["stuck"]).tolist() == list(range(7))


@pytest.mark.parametrize(
    "query", ["flicker=on&endurance=100&endurance_spread=0.2", "inference=on&mean_decaying=1e-6&decay=3e-6"]
)
def test_every_new_parameter_is_set_by_the_uri(query: str) -> None:
    with open_tester(f"twin:pcm-analog?arrays=1&rows=8&columns=8&{query}") as tester:
        assert tester.capabilities().rows == 8


@pytest.mark.parametrize("text", ["endurance=-1", "endurance=nan", "decay=0", "endurance_spread=11"])
def test_a_new_parameter_out_of_range_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=text):
        open_tester(f"twin:pcm-analog?{text}")
