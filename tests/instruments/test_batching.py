"""Large batches in parts, over a twin that takes ten at a time."""

import signal
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from hil.instruments.batching import BatchingTester
from hil.mock_hw.array import Chip
from hil.mock_hw.chips import CHIPS
from hil.mock_hw.firmware import Firmware
from hil.mock_hw.twin import TwinTester
from hil.protocols.errors import LimitError, TesterError
from hil.protocols.messages import (
    Block,
    Cells,
    Direction,
    Operation,
    PulseBatch,
    Readings,
    Receipt,
    Region,
    Status,
    Vectors,
)

LARGEST = 10
CELLS = Cells.of(0, np.arange(34), 3)
COUNTS = np.arange(1, 35).astype(np.uint16)

After = Callable[[int, Any], Any]


class Parts(TwinTester):
    """A twin that notes the size of each batch it is sent; `after(n, answer)` may change the n-th answer."""

    def __init__(self, after: After = lambda n, answer: answer, **changes: Any) -> None:
        chip = replace(CHIPS["ideal"], **{"arrays": 1, "rows": 64, "columns": 8, "largest_batch": LARGEST} | changes)
        super().__init__(Firmware(Chip(chip, np.random.SeedSequence(1))), "ideal", "chip-1")
        self.after = after
        self.sizes: list[int] = []

    def note(self, size: int, answer: Any) -> Any:
        self.sizes.append(size)
        return self.after(len(self.sizes), answer)

    def read(self, cells: Cells) -> Readings:
        readings: Readings = self.note(len(cells), super().read(cells))
        return readings

    def mvm(self, region: Region, vectors: Vectors, direction: Direction, gain: int) -> Readings:
        readings: Readings = self.note(len(vectors.codes), super().mvm(region, vectors, direction, gain))
        return readings

    def program(self, pulses: PulseBatch) -> Receipt:
        receipt: Receipt = self.note(len(pulses.cells), super().program(pulses))
        return receipt


def pulses(tester: TwinTester | BatchingTester, cells: Cells = CELLS) -> PulseBatch:
    return PulseBatch(cells, Operation.SET, COUNTS[: len(cells)], tester.capabilities().set_pulse)


def levels(tester: TwinTester | BatchingTester) -> npt.NDArray[np.integer[Any]]:
    return np.concatenate([tester.read(CELLS[n : n + 1]).codes for n in range(len(CELLS))])


def region_of(tester: TwinTester | BatchingTester) -> Region:
    return tester.register(
        [Block(0, np.arange(34, dtype=np.uint16), np.array([3], np.uint16), np.array([4], np.uint16), 0, 0)]
    )


def test_parts_are_full_but_for_the_last_and_keep_the_order() -> None:
    parts = Parts()
    receipt = BatchingTester(parts).program(pulses(parts))
    assert parts.sizes == [10, 10, 10, 4]
    assert receipt == Receipt(4, parts.wait(0.0).time_ns, Status.COMPLETE, int(COUNTS.sum()), receipt.saturated)
    whole = Parts(largest_batch=100)
    assert whole.program(pulses(whole)).saturated == receipt.saturated > 0
    assert np.array_equal(levels(parts), levels(whole))


def test_readings_are_joined_without_loss() -> None:
    parts, whole = Parts(read_span=12e-6), Parts(read_span=12e-6, largest_batch=100)
    tester = BatchingTester(parts)
    tester.program(pulses(tester))
    whole.program(pulses(whole))
    joined, single = tester.read(CELLS), whole.read(CELLS)
    assert np.array_equal(joined.codes, single.codes)
    assert joined.codes.dtype == single.codes.dtype
    assert joined.saturated == single.saturated > 0
    assert joined == replace(single, op_id=8, codes=joined.codes)


@pytest.mark.parametrize("direction", Direction)
def test_products_are_joined_without_loss(direction: Direction) -> None:
    parts, whole = Parts(), Parts(largest_batch=100)
    tester = BatchingTester(parts)
    answers = []
    for one in (tester, whole):
        region = region_of(one)
        one.program(pulses(one))
        codes = np.random.default_rng(1).integers(-32767, 32768, (25, region.inputs(direction))).astype(np.int16)
        answers.append(one.mvm(region, Vectors(codes, np.ones(25, np.float32)), direction, 0))
    joined, single = answers
    assert parts.sizes[4:] == [10, 10, 5]
    assert np.array_equal(joined.codes, single.codes)
    assert joined == replace(single, op_id=7, codes=joined.codes)
    assert tester.regions() == parts.regions()


@pytest.mark.parametrize("size", [1, LARGEST])
def test_a_batch_within_the_limit_is_passed_on_as_it_is(size: int) -> None:
    answers: dict[int, Any] = {}
    parts = Parts(answers.setdefault)
    assert BatchingTester(parts).read(CELLS[:size]) is answers[1]
    assert parts.sizes == [size]


def test_no_part_is_sent_after_one_that_stopped_early() -> None:
    parts = Parts(lambda n, receipt: replace(receipt, status=Status.PARTIAL, done=7) if n == 2 else receipt)
    receipt = BatchingTester(parts).program(pulses(parts))
    assert parts.sizes == [10, 10]
    assert (receipt.status, receipt.op_id) == (Status.PARTIAL, 2)
    assert receipt.done == COUNTS[:10].sum() + 7


def test_doubt_about_one_part_does_not_lose_the_pulses_of_the_others() -> None:
    parts = Parts(lambda n, receipt: replace(receipt, status=Status.UNKNOWN, done=0) if n == 2 else receipt)
    receipt = BatchingTester(parts).program(pulses(parts))
    assert parts.sizes == [10, 10, 10, 4]
    assert (receipt.status, receipt.op_id) == (Status.UNKNOWN, 4)
    assert receipt.done == COUNTS.sum() - COUNTS[10:20].sum()


def test_reading_stops_at_a_part_that_is_not_complete() -> None:
    parts = Parts(lambda n, r: replace(r, status=Status.PARTIAL, codes=r.codes[:3]) if n == 3 else r)
    readings = BatchingTester(parts).read(CELLS)
    assert parts.sizes == [10, 10, 10]
    assert (readings.status, len(readings.codes)) == (Status.PARTIAL, 23)


@pytest.mark.parametrize("row", [33, 2])
def test_a_cell_that_is_not_there_is_refused_before_the_first_part(row: int) -> None:
    parts = Parts()
    tester = BatchingTester(parts)
    rows = CELLS.row.copy()
    rows[row] = 64
    with pytest.raises(LimitError, match="row 64 is outside 0 to 63"):
        tester.read(replace(CELLS, row=rows))
    with pytest.raises(LimitError, match="column 8 is outside 0 to 7"):
        tester.program(pulses(tester, Cells.of(0, CELLS.row, rows // 8)))
    with pytest.raises(LimitError, match="array 1 is outside 0 to 0"):
        tester.read(Cells.of(rows // 64, CELLS.row, 0))
    assert parts.sizes == []


@pytest.mark.parametrize("counts", [COUNTS - 1, COUNTS[::-1] - 1, COUNTS[:33]])
def test_counts_that_are_wrong_are_refused_before_the_first_part(counts: npt.NDArray[np.uint16]) -> None:
    parts = Parts()
    with pytest.raises(LimitError, match="at least 1 for each of 34 cells"):
        BatchingTester(parts).program(replace(pulses(parts), counts=counts))
    assert parts.sizes == []


@pytest.mark.parametrize("code", [-32768, 32768])
def test_codes_that_are_wrong_are_refused_before_the_first_part(code: int) -> None:
    parts = Parts()
    tester = BatchingTester(parts)
    region = region_of(tester)
    codes = np.zeros((25, 34), np.int32)
    codes[24, 33] = code
    with pytest.raises(LimitError, match=r"outside \+-32767"):
        tester.mvm(region, Vectors(codes, np.ones(25, np.float32)), Direction.FORWARD, 0)
    assert parts.sizes == []


def test_what_every_part_would_be_refused_for_stays_a_refusal() -> None:
    parts = Parts()
    shape = replace(parts.capabilities().set_pulse, amplitude=1e3)
    with pytest.raises(LimitError):
        BatchingTester(parts).program(replace(pulses(parts), shape=shape))
    assert parts.wait(0.0).op_id == 1


def test_a_refusal_after_pulses_were_sent_does_not_look_like_one_without_a_trace() -> None:
    def refuse(n: int, receipt: Receipt) -> Receipt:
        if n == 3:
            raise LimitError("daily budget of pulses is spent")
        return receipt

    parts = Parts(refuse)
    with pytest.raises(TesterError, match=r"first 20 of a batch of 34 were sent, .* daily budget"):
        BatchingTester(parts).program(pulses(parts))


def test_an_error_of_the_tester_goes_through() -> None:
    def fail(n: int, receipt: Receipt) -> Receipt:
        raise TesterError("link lost")

    parts = Parts(fail)
    with pytest.raises(TesterError, match=r"^link lost$"):
        BatchingTester(parts).program(pulses(parts))


def test_ctrl_c_acts_between_parts() -> None:
    parts = Parts(lambda n, receipt: signal.raise_signal(signal.SIGINT) if n == 2 else receipt)
    with pytest.raises(KeyboardInterrupt):
        BatchingTester(parts).program(pulses(parts))
    assert parts.sizes == [10, 10]
    codes = levels(parts)
    assert (codes[:20] > codes[30]).all()
    assert len(set(codes[20:])) == 1


def test_parts_of_different_scale_are_not_joined() -> None:
    parts = Parts(lambda n, readings: replace(readings, scale=readings.scale * n))
    with pytest.raises(TesterError, match="different scales"):
        BatchingTester(parts).read(CELLS)


def test_its_capabilities_are_those_of_one_operation() -> None:
    parts = Parts()
    assert BatchingTester(parts).capabilities() == parts.capabilities()
    assert BatchingTester(parts).identify() == parts.identify()
