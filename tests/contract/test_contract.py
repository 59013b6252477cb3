"""What any tester does. Physics is checked only as far as the seam promises it, within five standard errors."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from hil.instruments.batching import BatchingTester
from hil.instruments.tester import ArrayTester
from hil.protocols.errors import LimitError, TesterError
from hil.protocols.messages import (
    Block,
    Capabilities,
    Cells,
    Direction,
    MvmMode,
    Operation,
    PulseBatch,
    PulseTrains,
    Readings,
    Readout,
    Receipt,
    Region,
    Status,
    TesterKind,
    Vectors,
)

Values = npt.NDArray[np.floating[Any]]
FORWARD, BACKWARD = Direction.FORWARD, Direction.BACKWARD
SIGMAS = 5


def cells_of(first: int, count: int, array: int = 0) -> Cells:
    """Cells along the rows of an array, from one of its cells on; 8 cells of each row."""
    numbers = np.arange(first, first + count)
    return Cells.of(array, numbers // 8, numbers % 8)


def pulses_on(tester: ArrayTester, cells: Cells, kind: Operation, counts: npt.ArrayLike = 1) -> PulseBatch:
    capabilities = tester.capabilities()
    shape = capabilities.set_pulse if kind == Operation.SET else capabilities.reset_pulse
    return PulseBatch(cells, kind, np.broadcast_to(np.asarray(counts, np.uint16), len(cells)).copy(), shape)


def vectors_of(codes: npt.ArrayLike, capabilities: Capabilities) -> Vectors:
    array = np.atleast_2d(np.asarray(codes, capabilities.dac_dtype))
    return Vectors(array, np.ones(len(array), np.float32))


def blocks_of(capabilities: Capabilities) -> list[Block]:
    """50 inputs on two blocks (of two arrays, where there are two) that share 8 outputs."""
    lines = np.arange(16, dtype=np.uint16)
    pairs = capabilities.readout == Readout.DIFFERENTIAL
    columns, partners = (lines[::2], lines[1::2]) if pairs else (lines[:8], None)
    first, second = np.arange(30, dtype=np.uint16), np.arange(59, 39, -1).astype(np.uint16)
    return [
        Block(0, first, columns, partners, 0, 0),
        Block(capabilities.arrays - 1, second, columns, partners, len(first), 0),
    ]


@dataclass(frozen=True)
class Estimate:
    """A mean over repetitions, its standard error, and how far it may be off because a converter rounds."""

    mean: Values
    error: Values
    rounding: Values

    @classmethod
    def of(cls, repetitions: npt.NDArray[np.float32], step: float) -> "Estimate":
        values = repetitions.astype(np.float64)
        error = values.std(0, ddof=1) / np.sqrt(len(values))
        quiet = values.std(0) < step / 3  # too quiet for its noise to average the rounding out
        return cls(values.mean(0), error, np.where(quiet, step / 2, 0.0))


def conductances(tester: ArrayTester, cells: Cells, repetitions: int = 100) -> Estimate:
    readings = [tester.read(cells) for _ in range(repetitions)]
    return Estimate.of(np.stack([reading.values() for reading in readings]), readings[0].scale)


def outputs(tester: ArrayTester, region: Region, codes: npt.ArrayLike, way: Direction, gain: int) -> Estimate:
    repeated = np.repeat(np.atleast_2d(codes), 200, axis=0)
    readings = tester.mvm(region, vectors_of(repeated, tester.capabilities()), way, gain)
    assert readings.saturated == 0
    return Estimate.of(readings.values(), readings.scale)


@pytest.fixture
def region(tester: ArrayTester) -> Region:
    if tester.capabilities().mvm == MvmMode.NONE:
        pytest.skip("this array does no products (mvm: none)")
    return tester.register(blocks_of(tester.capabilities()))


def test_it_says_who_it_is_and_for_which_chip(tester: ArrayTester) -> None:
    identity = tester.identify()
    assert all((identity.vendor, identity.model, identity.serial, identity.firmware, identity.chip))
    assert identity.kind in TesterKind
    assert tester.identify() == identity


def test_its_capabilities_are_possible_and_constant(tester: ArrayTester) -> None:
    c = tester.capabilities()
    assert min(c.arrays, c.rows, c.columns, c.largest_batch) >= 1
    assert max(c.arrays, c.rows, c.columns) <= 65536
    assert {c.dac_bits, c.adc_bits} <= set(range(2, 17))
    assert c.read_voltage > 0
    assert list(c.mvm_ranges) == sorted(set(c.mvm_ranges))
    assert c.mvm == MvmMode.NONE or c.mvm_ranges
    limits = c.pulse_limits
    for pulse in (c.set_pulse, c.reset_pulse):
        assert 0 < pulse.amplitude <= limits.amplitude_max
        assert limits.width_min <= pulse.width <= limits.width_max
    assert min(c.durations.read, c.durations.mvm, c.durations.set_pulse, c.durations.reset_pulse) >= 0
    assert list(c.staircase) == sorted(c.staircase)
    assert tester.capabilities() == c


def test_a_read_gives_one_code_per_cell_in_siemens(tester: ArrayTester) -> None:
    readings = tester.read(cells_of(3, 40))
    assert readings.codes.shape == (40,)
    assert np.issubdtype(readings.codes.dtype, np.integer)
    assert readings.unit == "S"
    assert readings.scale > 0
    assert readings.status == Status.COMPLETE
    values = readings.values()
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, (readings.codes.astype(float) - readings.offset) * readings.scale, rtol=1e-6)


def test_reads_of_cells_at_zero_are_not_cut_off(tester: ArrayTester) -> None:
    cells = cells_of(0, 200)
    tester.program(pulses_on(tester, cells, Operation.RESET))
    readings = [tester.read(cells) for _ in range(20)]
    assert sum(reading.saturated for reading in readings) == 0
    assert all(reading.codes.min() > 0 for reading in readings)


def test_cells_may_be_read_twice_in_a_batch_and_in_any_order(tester: ArrayTester) -> None:
    low, high = cells_of(0, 10), cells_of(16, 10)
    tester.program(pulses_on(tester, high, Operation.SET, 10))
    order = np.array([12, 3, 12, 15, 0])
    levels = conductances(tester, Cells.concatenate([low, high])[order])
    assert np.array_equal(levels.mean > 1e-6, order >= 10)
    assert abs(levels.mean[0] - levels.mean[2]) <= SIGMAS * np.hypot(*levels.error[[0, 2]])


Refused = Callable[[ArrayTester], object]


def _wrong_shape(**changes: float) -> Refused:
    def send(tester: ArrayTester) -> Receipt:
        pulses = pulses_on(tester, cells_of(0, 1), Operation.SET)
        return tester.program(replace(pulses, shape=replace(pulses.shape, **changes)))

    return send


def _counts(counts: npt.NDArray[Any]) -> Refused:
    return lambda tester: tester.program(replace(pulses_on(tester, cells_of(0, 2), Operation.SET), counts=counts))


def _one_too_many(tester: ArrayTester) -> Cells:
    if isinstance(tester, BatchingTester):
        pytest.skip("this wrapper takes batches of any size")
    return Cells.of(0, np.zeros(tester.capabilities().largest_batch + 1, np.uint16), 0)


def _update(tester: ArrayTester) -> Receipt:
    if tester.capabilities().parallel_update:
        pytest.skip("this array has a parallel update")
    trains = PulseTrains(np.full((1, 7), 255, np.uint8), np.full((1, 1), 255, np.uint8), 1)
    return tester.update(Region(0, tuple(blocks_of(tester.capabilities()))), trains)


REFUSED: dict[str, Refused] = {
    "read of an array that is not there": lambda t: t.read(Cells.of(t.capabilities().arrays, 0, 0)),
    "read of a row that is not there": lambda t: t.read(Cells.of(0, [0, t.capabilities().rows], 0)),
    "read of a column that is not there": lambda t: t.read(Cells.of(0, 0, [0, t.capabilities().columns])),
    "read of nothing": lambda t: t.read(Cells.of([], [], [])),
    "read of too many cells": lambda t: t.read(_one_too_many(t)),
    "pulse on a cell that is not there": lambda t: t.program(pulses_on(t, Cells.of(0, 65535, 0), Operation.SET)),
    "pulse on nothing": lambda t: t.program(pulses_on(t, Cells.of([], [], []), Operation.RESET)),
    "pulse on too many cells": lambda t: t.program(pulses_on(t, _one_too_many(t), Operation.RESET)),
    "pulse of no kind": lambda t: t.program(replace(pulses_on(t, cells_of(0, 1), Operation.SET), kind=Operation.READ)),
    "no pulse for one of the cells": _counts(np.array([1, 0], np.uint16)),
    "one count for two cells": _counts(np.array([1], np.uint16)),
    "counts of another type": _counts(np.array([1, -1], np.int64)),
    "amplitude of nothing": _wrong_shape(amplitude=0.0),
    "amplitude below zero": _wrong_shape(amplitude=-90e-6),
    "amplitude beyond the source": _wrong_shape(amplitude=1e3),
    "amplitude that is no number": _wrong_shape(amplitude=float("nan")),
    "width too short": _wrong_shape(width=1e-15),
    "width too long": _wrong_shape(width=1e3),
    "wait of less than nothing": lambda t: t.wait(-1.0),
    "wait without end": lambda t: t.wait(float("inf")),
    "wait that is no number": lambda t: t.wait(float("nan")),
    "update where there is none": _update,
}


@pytest.mark.parametrize("request_of", REFUSED.values(), ids=REFUSED.keys())
def test_what_is_out_of_range_is_refused_without_a_trace(
    make_tester: Callable[[], ArrayTester], request_of: Refused
) -> None:
    tester, untouched = make_tester(), make_tester()
    before = tester.wait(0.0)
    with pytest.raises(LimitError):
        request_of(tester)
    after = tester.wait(0.0)
    assert after.op_id == before.op_id + 1
    if tester.identify().kind == TesterKind.TWIN:
        assert after.time_ns == before.time_ns
        cells = cells_of(0, 50)
        untouched.wait(0.0)
        assert np.array_equal(tester.read(cells).codes, untouched.read(cells).codes)


CodesAndGain = Callable[[Capabilities], tuple[npt.NDArray[Any], int]]
BAD_VECTORS: dict[str, CodesAndGain] = {
    "no vectors": lambda c: (np.zeros((0, 50), np.int8), 0),
    "a code too few": lambda c: (np.zeros((1, 49), np.int8), 0),
    "codes for the other direction": lambda c: (np.zeros((1, 8), np.int8), 0),
    "a vector that is no batch": lambda c: (np.zeros(50, np.int8), 0),
    "floating point": lambda c: (np.zeros((1, 50), np.float32), 0),
    "unsigned codes": lambda c: (np.zeros((1, 50), np.uint16), 0),
    "a code above the converter's": lambda c: (np.full((1, 50), c.dac_top + 1, np.int32), 0),
    "a code below the converter's": lambda c: (np.full((1, 50), -c.dac_top - 1, c.dac_dtype), 0),
    "a gain below the first": lambda c: (np.zeros((1, 50), np.int8), -1),
    "a gain beyond the last": lambda c: (np.zeros((1, 50), np.int8), len(c.mvm_ranges)),
}


@pytest.mark.parametrize("bad", BAD_VECTORS.values(), ids=BAD_VECTORS.keys())
def test_a_product_that_is_out_of_range_is_refused_without_a_trace(
    tester: ArrayTester, region: Region, bad: CodesAndGain
) -> None:
    codes, gain = bad(tester.capabilities())
    before = tester.wait(0.0)
    with pytest.raises(LimitError):
        tester.mvm(region, Vectors(codes, np.ones(len(codes), np.float32)), FORWARD, gain)
    after = tester.wait(0.0)
    assert after.op_id == before.op_id + 1
    assert after.time_ns == before.time_ns or tester.identify().kind != TesterKind.TWIN


def test_too_many_vectors_are_refused(tester: ArrayTester, region: Region) -> None:
    count = len(_one_too_many(tester))
    with pytest.raises(LimitError):
        tester.mvm(region, vectors_of(np.zeros((count, 50)), tester.capabilities()), FORWARD, 0)


def test_a_region_of_another_tester_is_refused(
    make_tester: Callable[[], ArrayTester], tester: ArrayTester, region: Region
) -> None:
    foreign = make_tester().register(blocks_of(tester.capabilities()))
    with pytest.raises(LimitError):
        tester.mvm(foreign, vectors_of(np.zeros(50), tester.capabilities()), FORWARD, 0)


BAD_BLOCKS: dict[str, Callable[[Block], list[Block]]] = {
    "no blocks": lambda b: [],
    "an array that is not there": lambda b: [replace(b, array=99)],
    "a row that is not there": lambda b: [replace(b, rows=np.array([65535], np.uint16))],
    "a row twice": lambda b: [replace(b, rows=np.array([3, 3], np.uint16))],
    "no rows": lambda b: [replace(b, rows=b.rows[:0])],
    "a column that is not there": lambda b: [replace(b, columns=b.columns + np.uint16(65000))],
    "a column twice": lambda b: [replace(b, columns=np.full_like(b.columns, 2))],
    "partners against the readout": lambda b: [replace(b, partners=b.columns + 16 if b.partners is None else None)],
    "an offset below zero": lambda b: [replace(b, row_offset=-1)],
}


@pytest.mark.parametrize("bad", BAD_BLOCKS.values(), ids=BAD_BLOCKS.keys())
def test_a_region_that_the_array_cannot_multiply_is_refused(
    tester: ArrayTester, region: Region, bad: Callable[[Block], list[Block]]
) -> None:
    with pytest.raises(LimitError):
        tester.register(bad(region.blocks[0]))
    assert tester.regions() == (region,)


def test_regions_are_listed_in_the_order_of_their_registration(tester: ArrayTester, region: Region) -> None:
    second = tester.register(region.blocks[:1])
    assert tester.regions() == (region, second)
    assert region.handle != second.handle


def test_an_array_without_products_registers_no_region(tester: ArrayTester) -> None:
    if tester.capabilities().mvm != MvmMode.NONE:
        pytest.skip("this array multiplies")
    with pytest.raises(LimitError):
        tester.register(blocks_of(tester.capabilities()))


def test_operation_ids_and_device_time_never_go_back(tester: ArrayTester) -> None:
    cells = cells_of(0, 100)
    answers: list[Readings | Receipt] = []
    for kind in (Operation.SET, Operation.RESET, Operation.SET):
        answers += [tester.read(cells), tester.program(pulses_on(tester, cells, kind)), tester.wait(0.0)]
    ids, times = [answer.op_id for answer in answers], [answer.time_ns for answer in answers]
    assert ids[0] > 0
    assert ids == sorted(set(ids))
    assert times == sorted(times)


def test_a_receipt_says_how_many_pulses_were_applied(tester: ArrayTester) -> None:
    cells = cells_of(0, 150)
    counts = 1 + np.arange(150) % 4
    for kind in (Operation.SET, Operation.RESET):
        receipt = tester.program(pulses_on(tester, cells, kind, counts))
        assert receipt.status == Status.COMPLETE
        assert receipt.done == counts.sum()
        assert 0 <= receipt.saturated <= receipt.done
    assert tester.wait(1e-3).status == Status.COMPLETE


def test_device_time_moves_by_the_durations_and_by_waits(tester: ArrayTester) -> None:
    if tester.identify().kind != TesterKind.TWIN:
        pytest.skip("only a twin keeps its nominal durations")
    c, cells = tester.capabilities(), cells_of(0, 150)
    start = tester.wait(0.0).time_ns
    steps: list[tuple[Readings | Receipt, float]] = [
        (tester.read(cells), 150 * c.durations.read),
        (tester.program(pulses_on(tester, cells, Operation.SET, 3)), 450 * c.durations.set_pulse),
        (tester.program(pulses_on(tester, cells, Operation.RESET, 2)), 300 * c.durations.reset_pulse),
        (tester.wait(0.4), 0.4),
        (tester.wait(86400.0), 86400.0),
    ]
    if c.mvm != MvmMode.NONE:
        region = tester.register(blocks_of(c))
        steps.append((tester.mvm(region, vectors_of(np.zeros((70, 50)), c), FORWARD, 0), 70 * c.durations.mvm))
    elapsed = np.diff([start, *(answer.time_ns for answer, _ in steps)])
    assert elapsed.tolist() == [round(seconds * 1e9) for _, seconds in steps]


def test_set_raises_and_reset_lowers_the_conductance(tester: ArrayTester) -> None:
    pulsed, left = cells_of(0, 200), cells_of(200, 100)
    levels = [conductances(tester, pulsed, 5)]
    for kind in (Operation.SET, Operation.SET, Operation.RESET):
        tester.program(pulses_on(tester, pulsed, kind, 2))
        levels.append(conductances(tester, pulsed, 5))
    start, two, four, reset = (level.mean.mean() for level in levels)
    error = SIGMAS * max(level.mean.std() for level in levels) / np.sqrt(len(pulsed))
    assert two - start > error
    assert four - two > error
    assert two - reset > error
    assert conductances(tester, left, 5).mean.mean() < two - error


def test_a_cell_that_occurs_twice_in_a_batch_is_pulsed_twice(tester: ArrayTester) -> None:
    twice, at_once = cells_of(0, 200), cells_of(200, 200)
    order = Cells.concatenate([twice, at_once, twice])
    receipt = tester.program(pulses_on(tester, order, Operation.SET, np.repeat([1, 2, 1], 200)))
    assert receipt.done == 800
    a, b = conductances(tester, twice, 20).mean, conductances(tester, at_once, 20).mean
    assert abs(a.mean() - b.mean()) <= SIGMAS * np.hypot(a.std(), b.std()) / np.sqrt(200)
    assert b.mean() > 1e-6


def test_pulses_reach_the_addressed_cells_alone(tester: ArrayTester) -> None:
    c = tester.capabilities()
    array, row, column = (axis.ravel() for axis in np.indices((c.arrays, 12, 12)))
    chosen = (7 * row + 5 * column + array) % 4 == 0
    cells = Cells.of(array, row, column)
    tester.program(pulses_on(tester, cells[chosen], Operation.SET, 20))
    levels = conductances(tester, cells, 20).mean
    middle = levels[chosen].mean() / 4
    assert np.mean(levels[chosen] > middle) > 0.95
    assert (levels[~chosen] < middle).all()


def program_at_random(tester: ArrayTester, region: Region) -> None:
    """Each device of the region at another level, and old enough that drift has become slow."""
    counts = np.random.default_rng(2).integers(0, 12, len(devices_of(region)))
    tester.program(pulses_on(tester, devices_of(region)[counts > 0], Operation.SET, counts[counts > 0]))
    tester.wait(1000.0)


def raise_first_columns(tester: ArrayTester, region: Region) -> None:
    """Large positive weights at the first four outputs of the first block."""
    block = region.blocks[0]
    cells = Cells.of(block.array, block.rows.repeat(4), np.tile(block.columns[:4], len(block.rows)))
    tester.program(pulses_on(tester, cells, Operation.SET, 20))


def devices_of(region: Region) -> Cells:
    """All devices: block by block, row by row, first the columns and then their partners."""
    parts = []
    for block in region.blocks:
        lines = block.columns if block.partners is None else np.concatenate([block.columns, block.partners])
        parts.append(Cells.of(block.array, np.repeat(block.rows, len(lines)), np.tile(lines, len(block.rows))))
    return Cells.concatenate(parts)


def product(region: Region, volts: Values, device: Values, way: Direction, sign: int) -> Values:
    """The outputs of all blocks for one vector; with `sign` +1 the devices of a pair add up, as variances do."""
    out, at = [], 0
    for block in region.blocks:
        rows, columns = len(block.rows), len(block.columns)
        matrix = device[at : at + rows * columns * (1 if block.partners is None else 2)].reshape(rows, -1)
        at += matrix.size
        weight = matrix[:, :columns] if block.partners is None else matrix[:, :columns] + sign * matrix[:, columns:]
        if way == FORWARD:
            out.append(volts[block.row_offset : block.row_offset + rows] @ weight)
        else:
            out.append(weight @ volts[block.column_offset : block.column_offset + columns])
    return np.concatenate(out)


@pytest.mark.parametrize("way", [FORWARD, BACKWARD])
def test_products_agree_with_the_cells(tester: ArrayTester, region: Region, way: Direction) -> None:
    program_at_random(tester, region)
    c = tester.capabilities()
    devices = conductances(tester, devices_of(region))
    codes = np.random.default_rng(3).integers(-c.dac_top, c.dac_top + 1, region.inputs(way))
    volts = codes * (c.read_voltage / c.dac_top)
    expected = product(region, volts, devices.mean, way, -1)
    gain = int(np.searchsorted(c.mvm_ranges, 1.5 * np.abs(expected).max()))
    measured = outputs(tester, region, codes, way, gain)
    assert measured.mean.shape == (region.outputs(way),)
    # Drift between the reads and the products is common to all cells: one factor near 1.
    factor = measured.mean @ expected / (expected @ expected)
    assert abs(factor - 1) < 0.02
    error = np.sqrt(measured.error**2 + product(region, volts**2, devices.error**2, way, 1))
    rounding = measured.rounding + product(region, np.abs(volts), devices.rounding, way, 1)
    assert (np.abs(measured.mean - factor * expected) <= SIGMAS * error + rounding).all()


def test_opposite_inputs_give_opposite_outputs_and_none_gives_none(tester: ArrayTester, region: Region) -> None:
    program_at_random(tester, region)
    c = tester.capabilities()
    codes = np.random.default_rng(4).integers(-c.dac_top, c.dac_top + 1, region.rows)
    gain = len(c.mvm_ranges) - 1
    up, down, zero = (outputs(tester, region, k * codes, FORWARD, gain) for k in (1, -1, 0))
    bound = SIGMAS * np.hypot(up.error, down.error) + up.rounding + down.rounding
    assert (np.abs(up.mean + down.mean) <= bound).all()
    assert (np.abs(zero.mean) <= SIGMAS * zero.error + zero.rounding).all()


def test_each_vector_of_a_batch_gets_its_own_answer(tester: ArrayTester, region: Region) -> None:
    raise_first_columns(tester, region)
    c = tester.capabilities()
    codes = np.zeros((150, 50))
    codes[::3] = c.dac_top
    gain = len(c.mvm_ranges) - 1
    readings = tester.mvm(region, vectors_of(codes, c), FORWARD, gain)
    assert readings.codes.shape == (150, 16)
    assert readings.unit == "A"
    assert readings.offset == 0
    assert readings.scale == pytest.approx(c.mvm_ranges[gain] / c.adc_top)
    sizes = np.abs(readings.values()).max(1).reshape(50, 3)
    assert sizes[:, 1:].max() < sizes[:, 0].min()


def test_outputs_beyond_the_range_are_counted_at_its_ends(tester: ArrayTester, region: Region) -> None:
    raise_first_columns(tester, region)
    c = tester.capabilities()
    for sign in (1, -1):
        readings = tester.mvm(region, vectors_of(np.full((10, 50), sign * c.dac_top), c), FORWARD, 0)
        assert (readings.codes[:, :4] == sign * c.adc_top).all()
        assert np.abs(readings.codes.astype(int)).max() == c.adc_top
        assert 40 <= readings.saturated <= (np.abs(readings.codes.astype(int)) == c.adc_top).sum()


def test_safe_state_is_allowed_at_any_time_and_changes_nothing(tester: ArrayTester) -> None:
    before = tester.wait(0.0)
    tester.safe_state()
    tester.safe_state()
    assert tester.wait(0.0).op_id == before.op_id + 1
    tester.close()
    tester.safe_state()


def test_nothing_runs_after_close_and_closing_again_is_harmless(tester: ArrayTester) -> None:
    c = tester.capabilities()
    region = tester.register(blocks_of(c)) if c.mvm != MvmMode.NONE else Region(0, tuple(blocks_of(c)))
    with tester as opened:
        assert opened is tester
    tester.close()
    for request in (
        lambda: tester.read(cells_of(0, 1)),
        lambda: tester.program(pulses_on(tester, cells_of(0, 1), Operation.SET)),
        lambda: tester.wait(0.0),
        lambda: tester.mvm(region, vectors_of(np.zeros(50), c), FORWARD, 0),
        lambda: tester.update(region, PulseTrains(np.zeros((1, 7), np.uint8), np.zeros((1, 1), np.uint8), 1)),
        lambda: tester.register(region.blocks),
    ):
        with pytest.raises(TesterError):
            request()
