"""Products of a region: lazy drift, noise on the outputs, converters; all against the plain sum over cells."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from hil.mock_hw import readout, records
from hil.mock_hw.array import Chip
from hil.mock_hw.matrix import DRIFT_BOUND, Matrix, age_classes
from hil.mock_hw.parameters import PcmParameters
from hil.protocols.messages import Block, Cells, Codes, Direction, Operation, PulseBatch, Readout, Region

MakeChip = Callable[..., Chip]
Values = npt.NDArray[np.floating[Any]]
FORWARD, BACKWARD = Direction.FORWARD, Direction.BACKWARD
SIGMAS = 5
RARE = 1e-5
EXACT = 1e-4  # what single precision and whole nanoseconds add to a bound

ROWS = np.array([7, 0, 63, 12, 13, 14, 40, 41], np.uint16)
LINES = np.array([30, 2, 9, 31, 0, 17], np.uint16)
SINGLE = Block(1, ROWS, LINES, None, 0, 0)
PAIRS = Block(1, ROWS, LINES[:3], LINES[3:], 0, 0)
OTHER = Block(0, ROWS[3:5], LINES[:3], LINES[3:], 0, 3)
BESIDE = Block(1, ROWS[:4], np.array([5, 2], np.uint16), np.array([20, 31], np.uint16), 2, 3)
"""Of another array, and on word lines that another block has as well, with a pair that it has too."""
DRIFTING: dict[str, dict[str, Any]] = {
    "equal exponents": {},
    "a steep exponent": {"nu": 0.12},
    "spread exponents": {"nu_spread": 0.4},
    "stuck cells": {"stuck_fraction": 0.2},
}


def multiply(matrix: Matrix, now_ns: int, codes: Codes, forward: bool = True) -> None:
    """A product at this device time, whose result is not looked at."""
    kernel, crossings, outputs = matrix.way(forward)
    out = np.empty((len(codes), outputs), np.int8)
    kernel(crossings, codes, now_ns, np.empty(0, np.float32), 1e-3, 1e-8, 127, out)


def follow_drift(matrix: Matrix, now_ns: int, forward: bool = True) -> None:
    """Bring all weights to this device time, by a product that drives all lines."""
    multiply(matrix, now_ns, np.ones((1, matrix.rows if forward else matrix.columns), np.int8), forward)


def matrix_of(chip: Chip, *blocks: Block, forward: bool = True) -> Matrix:
    matrix = Matrix(blocks, chip.parameters, chip.cells, chip.nu, chip.constants, chip.row_reads, chip.column_reads)
    follow_drift(matrix, chip.now_ns, forward)
    return matrix


def weights(matrix: Matrix) -> Values:
    """Of a matrix of one of the blocks."""
    return matrix.weight.reshape(len(ROWS), -1)


def device_cells(chip: Chip, block: Block) -> records.I64:
    """Places on the chip, (rows, columns) of the block's columns and then of its partners."""
    lines = block.columns if block.partners is None else np.concatenate([block.columns, block.partners])
    return (block.array * chip.parameters.rows + block.rows.astype(np.int64)[:, None]) * chip.parameters.columns + lines


def exact(chip: Chip, block: Block) -> Values:
    """Drifted conductances of a block's devices, without any shortcut."""
    where = device_cells(chip, block)
    g = chip.cells["conductance"][where].astype(np.float64)
    if not chip.parameters.cell.drift:
        return g
    age = (chip.now_ns - chip.cells["pulsed_ns"][where]) * 1e-9
    nu = chip.nu[where] if chip.nu.size > 1 else chip.nu[0]
    return np.asarray(g * (np.maximum(age, 1e-6) / 38.6) ** -nu.astype(np.float64))


def pulse_some(chip: Chip, rng: np.random.Generator, matrices: list[Matrix]) -> None:
    """Pulses on random cells of the whole chip and, more often, of the tested lines; some cells twice."""
    p, count = chip.parameters, int(rng.integers(1, 60))
    near = rng.random(count) < 0.7
    row = np.where(near, rng.choice(ROWS, count), rng.integers(p.rows, size=count))
    column = np.where(near, rng.choice(LINES, count), rng.integers(p.columns, size=count))
    cells = Cells.of(rng.integers(p.arrays, size=count), row, column)
    kind = Operation.SET if rng.random() < 0.8 else Operation.RESET
    counts = rng.integers(1, 5, count).astype(np.uint16)
    chip.program(PulseBatch(cells, kind, counts, p.set_pulse), chip.locate(cells), int(counts.sum()))
    for matrix in matrices:
        matrix.touch(cells)


def schedule(chip: Chip, seed: int, matrices: list[Matrix], check: Callable[[], None], steps: int = 120) -> None:
    """Pulses and pauses from nanoseconds to years, in random order; `check` whenever the drift was followed."""
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        for _ in range(rng.integers(0, 3)):
            chip.advance(int(10 ** rng.uniform(0, 4)))
            pulse_some(chip, rng, matrices)
        largest = rng.choice([6, 9, 12, 15.5])
        chip.advance(int(10 ** rng.uniform(0, largest)))
        for matrix in matrices:
            follow_drift(matrix, chip.now_ns)
        check()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("drifting", DRIFTING.values(), ids=DRIFTING.keys())
def test_drift_followed_late_is_never_off_by_more_than_the_bound(
    make_chip: MakeChip, drifting: dict[str, Any], seed: int
) -> None:
    check_the_bound(make_chip(**drifting), seed)


@pytest.mark.torture
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("drifting", DRIFTING.values(), ids=DRIFTING.keys())
def test_drift_is_followed_through_many_long_lives(make_chip: MakeChip, drifting: dict[str, Any]) -> None:
    for seed in range(100, 200):
        check_the_bound(make_chip(**drifting), seed, steps=1200)


def check_the_bound(chip: Chip, seed: int, steps: int = 120) -> None:
    single, pairs = matrix_of(chip, SINGLE), matrix_of(chip, PAIRS)
    worst = [0.0]

    def check() -> None:
        g = exact(chip, SINGLE)
        error = np.abs(weights(single) - g) / np.maximum(g, 1e-12)
        worst.append(float(error.max()))
        plus, minus = exact(chip, PAIRS)[:, :3], exact(chip, PAIRS)[:, 3:]
        assert (np.abs(weights(pairs) - (plus - minus)) <= (DRIFT_BOUND + EXACT) * (plus + minus)).all()

    schedule(chip, seed, [single, pairs], check, steps)
    assert max(worst) <= DRIFT_BOUND + EXACT
    assert max(worst) > DRIFT_BOUND / 2  # it is followed late: otherwise this test sees nothing


def test_the_variance_of_a_crossing_is_that_of_its_devices(make_chip: MakeChip) -> None:
    chip = make_chip(nu_spread=0.3)
    single, pairs = matrix_of(chip, SINGLE), matrix_of(chip, PAIRS)

    def check() -> None:
        np.testing.assert_allclose(single.variance, (0.03 * single.weight + 0.13e-6) ** 2, rtol=1e-4)
        of_devices = (0.03 * exact(chip, PAIRS) + 0.13e-6) ** 2
        expected = (of_devices[:, :3] + of_devices[:, 3:]).ravel()
        np.testing.assert_allclose(pairs.variance, expected, rtol=2.1 * DRIFT_BOUND)

    schedule(chip, 5, [single, pairs], check)


@pytest.mark.parametrize("drifting", DRIFTING.values(), ids=DRIFTING.keys())
def test_a_matrix_built_late_equals_one_that_was_kept_up_to_date(make_chip: MakeChip, drifting: dict[str, Any]) -> None:
    chip = make_chip(**drifting)
    blocks = [(SINGLE,), (PAIRS,), (PAIRS, OTHER, BESIDE)]
    kept = [matrix_of(chip, *some) for some in blocks]

    def check() -> None:
        for some, matrix in zip(blocks, kept, strict=True):
            late = matrix_of(chip, *some, forward=False)
            assert np.array_equal(late.weight, matrix.weight)
            assert np.array_equal(late.variance, matrix.variance)

    schedule(chip, 6, kept, check)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("drifting", DRIFTING.values(), ids=DRIFTING.keys())
def test_groups_and_word_lines_are_due_when_their_first_device_outgrows_its_class(
    make_chip: MakeChip, drifting: dict[str, Any], seed: int
) -> None:
    chip = make_chip(**drifting)
    matrix = matrix_of(chip, PAIRS)
    ends_ns = age_classes(float(chip.nu.max()), chip.parameters.cell)[1]["end"]
    line_due, group_due = matrix.due[:, 0], matrix.due[:, 1:]

    def check() -> None:
        pulsed = chip.cells["pulsed_ns"][device_cells(chip, PAIRS)]
        k = np.searchsorted(ends_ns, chip.now_ns - pulsed, side="right")
        ends = (pulsed + ends_ns[k]).min(1)
        assert np.array_equal(line_due, ends)
        assert np.array_equal(line_due, group_due.min(1))

    schedule(chip, 10 + seed, [matrix], check, steps=60)


def test_what_is_not_due_is_not_looked_at(make_chip: MakeChip) -> None:
    chip = make_chip()
    matrix = matrix_of(chip, PAIRS)
    follow_drift(matrix, 0)
    chip.advance(10**9)
    follow_drift(matrix, chip.now_ns)
    group_due = matrix.due[:, 1:].copy()
    matrix.weight[:] = 99
    pulsed = Cells.of(1, ROWS[2], LINES[4])
    chip.program(
        PulseBatch(pulsed, Operation.SET, np.ones(1, np.uint16), chip.parameters.set_pulse), chip.locate(pulsed), 1
    )
    matrix.touch(pulsed)
    chip.advance(int(group_due[:, 0].min() // 1000))
    follow_drift(matrix, chip.now_ns)
    assert np.flatnonzero(matrix.weight != 99).tolist() == [6, 7, 8]  # the group of the pulsed device


def test_word_lines_that_are_not_driven_wait_until_they_are(make_chip: MakeChip) -> None:
    chip = make_chip()
    kept, lazy = matrix_of(chip, PAIRS), matrix_of(chip, PAIRS)
    rng = np.random.default_rng(14)
    for _ in range(60):
        pulse_some(chip, rng, [kept, lazy])
        chip.advance(int(10 ** rng.uniform(3, 13)))
        codes = rng.choice([0, 0, 0, 5, -5], (2, len(ROWS))).astype(np.int8)
        before = weights(lazy).copy()
        multiply(lazy, chip.now_ns, codes)
        follow_drift(kept, chip.now_ns)
        driven = codes.any(0)
        assert np.array_equal(weights(lazy)[driven], weights(kept)[driven])
        assert np.array_equal(weights(lazy)[~driven], before[~driven])
    assert not np.array_equal(lazy.weight, kept.weight)
    follow_drift(lazy, chip.now_ns)
    assert np.array_equal(lazy.weight, kept.weight)


@pytest.mark.parametrize("nu", [0.001, 0.04, 0.3, 1.0])
def test_an_age_class_ends_before_the_drift_within_it_passes_the_bound(make_chip: MakeChip, nu: float) -> None:
    p = make_chip(nu=nu).parameters.cell
    _, classes = age_classes(nu, p)
    ends_ns, middles, factors = classes["end"], classes["middle"], classes["factor"]
    ends = ends_ns[:-1] * 1e-9
    assert (np.diff(ends_ns.astype(np.float64)) > 0).all()
    for ages in (np.append(p.t_min, ends), np.append(ends, 4e9)):
        error = middles**-nu / ages**-nu - 1
        assert np.abs(error).max() <= DRIFT_BOUND + 1e-3
    np.testing.assert_allclose(factors, (middles / p.t0) ** -nu)


@pytest.mark.parametrize("nu", [0.001, 0.04, 0.3, 1.0])
def test_the_class_of_an_age_is_the_number_of_ends_it_has_reached(make_chip: MakeChip, nu: float) -> None:
    lookup, classes = age_classes(nu, make_chip(nu=nu).parameters.cell)
    ends_ns = classes["end"]
    powers = 2 ** np.arange(62, dtype=np.int64)
    edges = np.concatenate([ends_ns[:-1], powers])
    ages = np.concatenate([[0], edges - 1, edges, edges + 1])
    found = [readout.class_of(age, lookup, classes) for age in ages]
    assert found == np.searchsorted(ends_ns, ages, side="right").tolist()


def test_without_drift_there_is_nothing_to_follow(make_chip: MakeChip) -> None:
    chip = make_chip(drift=False)
    matrix = matrix_of(chip, SINGLE)

    def check() -> None:
        np.testing.assert_allclose(weights(matrix), exact(chip, SINGLE), rtol=1e-6)

    schedule(chip, 7, [matrix], check, steps=20)


def region_of(single: bool) -> Region:
    """5 inputs on one block and 8 on another, sharing outputs; with pairs or with single lines."""
    columns, partners = (LINES, None) if single else (LINES[:3], LINES[3:])
    return Region(0, (Block(0, ROWS[:5], columns, partners, 0, 0), Block(1, ROWS, columns, partners, 5, 0)))


def prepared(make_chip: MakeChip, single: bool, **changes: Any) -> Chip:
    readout = Readout.SINGLE if single else Readout.DIFFERENTIAL
    chip = make_chip(readout=readout, adc_bits=16, **changes)
    rng = np.random.default_rng(8)
    for _ in range(20):
        pulse_some(chip, rng, [])
    return chip


def sums(chip: Chip, region: Region, codes: npt.NDArray[Any], way: Direction) -> tuple[Values, Values]:
    """Mean (A) and variance (A2) of the outputs for one vector: the explicit sum over all cells."""
    volts = codes * (chip.parameters.read_voltage / 127)
    means, variances = [], []
    for block in region.blocks:
        g, columns = exact(chip, block), len(block.columns)
        noise = (0.03 * g + 0.13e-6) ** 2
        if block.partners is not None:
            g, noise = g[:, :columns] - g[:, columns:], noise[:, :columns] + noise[:, columns:]
        first = block.row_offset if way == FORWARD else block.column_offset
        v = volts[first : first + (len(block.rows) if way == FORWARD else columns)]
        means.append(v @ g if way == FORWARD else g @ v)
        variances.append(v**2 @ noise if way == FORWARD else noise @ v**2)
    return np.concatenate(means), np.concatenate(variances)


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("way", [FORWARD, BACKWARD])
def test_outputs_have_the_mean_and_the_variance_of_the_sum_over_cells(
    make_chip: MakeChip, single: bool, way: Direction
) -> None:
    chip, region, repetitions = prepared(make_chip, single, drift=False), region_of(single), 4000
    codes = np.random.default_rng(9).integers(-127, 128, region.inputs(way)).astype(np.int8)
    out, saturated = chip.product(region, way, 20e-6).multiply(np.tile(codes, (repetitions, 1)))
    currents = out * (20e-6 / 32767)
    mean, variance = sums(chip, region, codes, way)
    assert saturated == 0
    assert (np.abs(currents.mean(0) - mean) <= SIGMAS * np.sqrt(variance / repetitions)).all()
    chi_square = (repetitions - 1) * currents.var(0, ddof=1) / variance
    low, high = stats.chi2.ppf([RARE, 1 - RARE], repetitions - 1)
    assert ((chi_square > low) & (chi_square < high)).all()
    for output in ((currents - mean) / np.sqrt(variance)).T:
        assert stats.kstest(output, "norm").pvalue > RARE
    correlation = np.corrcoef(currents.T) - np.eye(len(mean))
    assert np.abs(correlation).max() < 6 / np.sqrt(repetitions)


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("way", [FORWARD, BACKWARD])
def test_without_noise_outputs_are_rounded_sums_and_those_out_of_range_are_counted(
    make_chip: MakeChip, single: bool, way: Direction
) -> None:
    chip, region = prepared(make_chip, single, drift=False, read_noise=False), region_of(single)
    codes = np.random.default_rng(10).integers(-127, 128, (50, region.inputs(way))).astype(np.int8)
    currents = np.stack([sums(chip, region, one, way)[0] for one in codes])
    full_scale = float(np.quantile(np.abs(currents), 0.8))
    out, saturated = chip.product(region, way, full_scale).multiply(codes)
    ideal = currents / (full_scale / 32767)
    assert saturated == (np.abs(ideal) > 32767.5).sum() > 0
    assert np.abs(out - np.clip(ideal, -32767, 32767)).max() <= 0.5 + EXACT * 32767


def test_products_see_pulses_and_drift_as_they_happen(make_chip: MakeChip) -> None:
    chip, region = prepared(make_chip, False, read_noise=False), region_of(False)
    codes = np.random.default_rng(11).integers(-127, 128, (1, region.rows)).astype(np.int8)
    rng, kinds = np.random.default_rng(12), []
    for step in range(40):
        kinds.append(step % 3)
        pulse_some(chip, rng, []) if kinds[-1] else chip.advance(int(10 ** rng.uniform(3, 15)))
        out, _ = chip.product(region, FORWARD, 20e-6).multiply(codes)
        mean, _ = sums(chip, region, codes[0], FORWARD)
        bound = np.concatenate([np.abs(exact(chip, block)).sum() * np.ones(3) for block in region.blocks])
        assert (np.abs(out[0] * (20e-6 / 32767) - mean) <= DRIFT_BOUND * 0.2 * bound + 20e-6 / 32767).all()


def test_lines_are_counted_for_each_vector_that_drives_them(make_chip: MakeChip) -> None:
    chip, region = make_chip(), region_of(False)
    codes = np.zeros((3, region.rows), np.int8)
    codes[0, 0] = codes[1, 0] = codes[2, 6] = -5
    chip.product(region, FORWARD, 1e-6).multiply(codes)
    assert chip.row_reads.sum() == 3
    assert chip.row_reads[0, ROWS[0]] == 2
    assert chip.row_reads[1, ROWS[1]] == 1
    chip.product(region, BACKWARD, 1e-6).multiply(np.array([[0, 0, 1]], np.int8))
    assert chip.column_reads[0, [LINES[2], LINES[5]]].tolist() == [1, 1]
    assert chip.column_reads.sum() == 4  # a pair of lines in each of two blocks
    assert chip.count("read_count").sum() == 0


@pytest.mark.parametrize("way", [FORWARD, BACKWARD])
def test_lines_without_input_add_no_noise(make_chip: MakeChip, way: Direction) -> None:
    chip, region = make_chip(), region_of(False)
    out, _ = chip.product(region, way, 1e-9).multiply(np.zeros((20, region.inputs(way)), np.int8))
    assert not out.any()


@pytest.mark.parametrize("noise", [True, False])
@pytest.mark.parametrize("kernel", [readout.forward, readout.backward])
@pytest.mark.parametrize(("bits", "dtype"), [(8, np.int8), (12, np.int16)])
def test_a_product_equals_the_matrix_product_with_the_same_noise(
    kernel: Callable[..., int], noise: bool, bits: int, dtype: type[np.integer[Any]]
) -> None:
    rng, forward, top = np.random.default_rng(13), kernel is readout.forward, 2 ** (bits - 1) - 1
    shapes, offset = [(37, 21), (5, 30)], 3
    table = np.array([(0, 0, 0, 37, 21, 1, 0, 3, 3), (37 * 21, 37, 21, 5, 30, 1, 1, 3, 3)], records.BLOCK)
    weight = rng.normal(0, 3e-6, 37 * 21 + 5 * 30).astype(np.float32)
    variance = rng.uniform(1e-14, 1e-13, weight.shape).astype(np.float32)
    outputs = [shape[1 if forward else 0] for shape in shapes]
    codes = rng.integers(-top, top + 1, (40, offset + max(shape[0 if forward else 1] for shape in shapes))).astype(
        dtype
    )
    codes[:, offset + 4] = 0
    normals = rng.standard_normal((40, sum(outputs)), np.float32)
    out, reads = np.full(normals.shape, 99, dtype), np.zeros((2, 64), np.uint64)
    step, volt = 4e-6 / top, 0.2 / top
    noises = normals.ravel() if noise else normals.ravel()[:0]
    lines, word_lines = np.arange(64, dtype=np.uint16), np.zeros(42, records.WORD_LINE)
    due, classes = np.full((42, 2), readout.NEVER), np.zeros(1, records.AGE_CLASS)
    not_read = np.zeros(1, records.CELL), np.ones(1, np.float32), records.constants(PcmParameters())
    lookup = np.zeros(64, np.int64)
    crossings = (weight, variance, due, lookup, classes, word_lines, table, lines, reads, *not_read)
    saturated = kernel(crossings, codes, 0, noises, volt, step, top, out)

    ideal, volts, at = np.empty(out.shape), codes * volt, 0
    for entry, (rows, columns) in zip(table, shapes, strict=True):
        part = slice(entry["start"], entry["start"] + rows * columns)
        w, s = (values[part].reshape(rows, columns).astype(np.float64) for values in (weight, variance))
        w, s = (w, s) if forward else (w.T, s.T)
        v = volts[:, offset : offset + len(w)]
        here = slice(at, at + w.shape[1])
        ideal[:, here] = v @ w
        if noise:
            ideal[:, here] += np.sqrt(v**2 @ s) * normals[:, here]
        at += w.shape[1]
    ideal /= step
    clear = np.abs(np.abs(ideal) % 1 - 0.5) > 5e-3  # not at the edge between two codes
    assert np.array_equal(out[clear], np.clip(np.rint(ideal), -top, top)[clear])
    assert clear.mean() > 0.98
    assert 0 < saturated == (np.abs(np.rint(ideal)) > top).sum()


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int64])
def test_the_largest_code_is_found_whatever_its_sign(dtype: type[np.integer[Any]]) -> None:
    lowest = np.iinfo(dtype).min if dtype == np.int8 else -200
    codes = np.zeros((3, 4), dtype)
    assert readout.largest(codes) == 0
    codes[1, 2] = 100
    assert readout.largest(codes) == 100
    codes[2, 3] = lowest
    assert readout.largest(codes) == -lowest
