"""Operation ids: each runs once, whatever the host repeats."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from pytest_mock import MockerFixture

from hil.mock_hw.array import Chip
from hil.mock_hw.firmware import LONGEST_LIFE, Firmware
from hil.protocols.errors import LimitError, OperationIdError
from hil.protocols.messages import (
    Block,
    Cells,
    Direction,
    Operation,
    PulseBatch,
    Readings,
    Receipt,
    Region,
    Vectors,
)
from hil.protocols.requests import CutShortError, NoRegionError

MakeChip = Callable[..., Chip]
CELLS = Cells.of(0, np.arange(40), 3)
BLOCK = Block(0, np.arange(20, dtype=np.uint16), np.array([3], np.uint16), np.array([4], np.uint16), 0, 0)


@pytest.fixture
def make_firmware(make_chip: MakeChip) -> Callable[[], Firmware]:
    def make() -> Firmware:
        firmware = Firmware(make_chip())
        firmware.define(Region(0, (BLOCK,)))
        return firmware

    return make


@pytest.fixture
def firmware(make_firmware: Callable[[], Firmware]) -> Firmware:
    return make_firmware()


def read(firmware: Firmware, op_id: int) -> Readings:
    return firmware.read(op_id, CELLS)


def pulse(firmware: Firmware, op_id: int, kind: Operation = Operation.SET) -> Receipt:
    c = firmware.capabilities
    shape = c.set_pulse if kind == Operation.SET else c.reset_pulse
    return firmware.program(op_id, PulseBatch(CELLS, kind, np.ones(len(CELLS), np.uint16), shape))


def reset(firmware: Firmware, op_id: int) -> Receipt:
    return pulse(firmware, op_id, Operation.RESET)


def multiply(firmware: Firmware, op_id: int, way: Direction = Direction.FORWARD) -> Readings:
    region = firmware.regions[0]
    vectors = Vectors(np.full((5, region.inputs(way)), 100, np.int8), np.ones(5, np.float32))
    return firmware.mvm(op_id, 0, vectors, way, 6)


def multiply_back(firmware: Firmware, op_id: int) -> Readings:
    return multiply(firmware, op_id, Direction.BACKWARD)


def wait(firmware: Firmware, op_id: int) -> Receipt:
    return firmware.wait(op_id, 2.5)


def multiply_with_another_gain(firmware: Firmware, op_id: int) -> Readings:
    vectors = Vectors(np.full((5, 20), 100, np.int8), np.ones(5, np.float32))
    return firmware.mvm(op_id, 0, vectors, Direction.FORWARD, 5)


def read_others(firmware: Firmware, op_id: int) -> Readings:
    return firmware.read(op_id, CELLS[1:])


def wait_longer(firmware: Firmware, op_id: int) -> Receipt:
    return firmware.wait(op_id, 2.6)


OPERATIONS = [read, pulse, reset, multiply, multiply_back, wait]
OTHER_CONTENT = [(read, read_others), (multiply, multiply_with_another_gain), (wait, wait_longer)]


def state(firmware: Firmware) -> tuple[Any, ...]:
    """All that an operation can change."""
    chip = firmware.chip
    counters = (chip.row_reads.tobytes(), chip.column_reads.tobytes())
    return (chip.now_ns, chip.cells.tobytes(), *counters, repr(chip.normals.state()), firmware.last_op_id)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_repeated_id_gets_the_stored_reply_and_does_nothing(
    make_firmware: Callable[[], Firmware], operation: Callable[[Firmware, int], Any]
) -> None:
    firmware, undisturbed = make_firmware(), make_firmware()
    for one in (firmware, undisturbed):
        pulse(one, 1)
    first, same = operation(firmware, 2), operation(undisturbed, 2)
    before = state(firmware)
    assert all(operation(firmware, 2) is first for _ in range(3))
    assert state(firmware) == before == state(undisturbed)
    if isinstance(first, Readings):
        assert np.array_equal(first.codes, same.codes)
    else:
        assert first == same


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("op_id", [-1, 0, 4])
def test_an_id_below_the_last_is_refused(
    firmware: Firmware, operation: Callable[[Firmware, int], Any], op_id: int
) -> None:
    wait(firmware, 5)
    before = state(firmware)
    with pytest.raises(OperationIdError, match=f"{op_id} was used before; the last was 5"):
        operation(firmware, op_id)
    assert state(firmware) == before


@pytest.mark.parametrize(("first", "second"), [*itertools.permutations(OPERATIONS, 2), *OTHER_CONTENT])
def test_an_id_that_comes_back_for_another_operation_is_refused(
    firmware: Firmware, first: Callable[[Firmware, int], Any], second: Callable[[Firmware, int], Any]
) -> None:
    first(firmware, 1)
    before = state(firmware)
    with pytest.raises(OperationIdError):
        second(firmware, 1)
    assert state(firmware) == before


def test_ids_may_leave_gaps(firmware: Firmware) -> None:
    assert [read(firmware, op_id).op_id for op_id in (3, 4, 1000)] == [3, 4, 1000]


def test_limits_are_checked_before_an_id_is_taken(firmware: Firmware) -> None:
    before = state(firmware)
    pulses = PulseBatch(CELLS, Operation.SET, np.zeros(40, np.uint16), firmware.capabilities.set_pulse)
    for refused in (
        lambda: firmware.read(1, Cells.of(0, 64, 0)),
        lambda: firmware.program(1, pulses),
        lambda: firmware.program(1, replace(pulses, cells=CELLS[:0])),
        lambda: firmware.wait(1, -1.0),
        lambda: firmware.mvm(1, 0, Vectors(np.zeros((1, 3), np.int8), np.ones(1, np.float32)), Direction.FORWARD, 0),
    ):
        with pytest.raises(LimitError):
            refused()
        assert state(firmware) == before
    assert read(firmware, 1).op_id == 1


def test_an_operation_that_is_cut_short_is_neither_repeated_nor_answered_with_an_older_reply(
    firmware: Firmware, mocker: MockerFixture
) -> None:
    read(firmware, 1)
    cut = mocker.patch.object(firmware.chip, "read", side_effect=KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        read(firmware, 2)
    mocker.stop(cut)
    with pytest.raises(CutShortError):
        read(firmware, 2)
    assert read(firmware, 3).op_id == 3


def test_nothing_waits_beyond_the_life_of_a_chip(firmware: Firmware) -> None:
    receipt = firmware.wait(1, LONGEST_LIFE)
    assert firmware.wait(1, LONGEST_LIFE) == receipt
    with pytest.raises(LimitError, match="outside 0 to"):
        firmware.wait(2, 1.0)
    pulse(firmware, 2)
    assert read(firmware, 3).time_ns > LONGEST_LIFE * 1e9
    assert multiply(firmware, 4).saturated == 0


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int64])
def test_a_code_beyond_the_converter_is_refused_whatever_its_type(
    firmware: Firmware, dtype: type[np.signedinteger]
) -> None:
    for code in (np.iinfo(dtype).min, -128, *([128, np.iinfo(dtype).max] if dtype != np.int8 else ())):
        codes = np.zeros((2, 20), dtype)
        codes[1, 7] = code
        with pytest.raises(LimitError, match=rf"DAC code {abs(int(code))} is outside \+-127"):
            firmware.mvm(1, 0, Vectors(codes, np.ones(2, np.float32)), Direction.FORWARD, 5)
    assert firmware.last_op_id == 0


def test_a_new_firmware_on_the_same_chip_has_its_own_regions(firmware: Firmware) -> None:
    pulse(firmware, 1)
    assert (multiply(firmware, 2).codes > 20).all()
    rebooted = Firmware(firmware.chip)
    assert rebooted.regions == {}
    rebooted.define(Region(0, (replace(BLOCK, rows=BLOCK.rows + np.uint16(40)),)))
    assert (np.abs(multiply(rebooted, 3).codes) < 20).all()


def test_a_region_that_is_defined_anew_is_multiplied_and_checked_as_it_is_now(firmware: Firmware) -> None:
    pulse(firmware, 1)
    assert (multiply(firmware, 2).codes > 20).all()
    firmware.define(Region(0, (replace(BLOCK, rows=BLOCK.rows + np.uint16(40)),)))
    assert (np.abs(multiply(firmware, 3).codes) < 20).all()
    multiply_with_another_gain(firmware, 4)
    firmware.define(Region(0, (replace(BLOCK, rows=BLOCK.rows[:10]),)))
    with pytest.raises(LimitError, match=r"takes \(batch, 10\) forward"):
        multiply_with_another_gain(firmware, 5)  # it has 20
    assert firmware.last_op_id == 4


def test_after_a_reboot_a_region_that_was_multiplied_before_is_not_known(firmware: Firmware) -> None:
    multiply_with_another_gain(firmware, 1)
    firmware.boot()
    with pytest.raises(NoRegionError, match="region 0 is not defined"):
        multiply_with_another_gain(firmware, 2)


def test_reads_see_the_cells_before_the_time_they_take_and_pulses_count_from_their_end(firmware: Firmware) -> None:
    receipt = pulse(firmware, 1)
    assert (firmware.chip.cells["pulsed_ns"].max(), receipt.time_ns) == (4000, 4000)
    assert read(firmware, 2).time_ns == 44_000
    assert firmware.chip.cells["pulsed_ns"].max() == 4000


def test_more_pulses_than_their_noise_finds_room_for_are_refused(firmware: Firmware) -> None:
    many = np.full(len(CELLS), 65535, np.uint16)
    batch = PulseBatch(Cells.concatenate([CELLS] * 2), Operation.SET, np.tile(many, 2), firmware.capabilities.set_pulse)
    with pytest.raises(LimitError, match=r"5242800 pulses in one operation are beyond the limit of 4194304"):
        firmware.program(1, batch)
    assert firmware.last_op_id == 0


def test_cells_with_index_vectors_of_different_lengths_are_refused(firmware: Firmware) -> None:
    with pytest.raises(LimitError, match=r"shapes \(\(40,\), \(39,\), \(40,\)\); they must be equally long vectors"):
        firmware.read(1, Cells(CELLS.array, CELLS.row[1:], CELLS.column))
    for lines in (CELLS.row.reshape(-1, 1), np.array(1, np.uint16)):
        with pytest.raises(LimitError, match="equally long vectors"):
            firmware.read(1, Cells(lines, lines, lines))
        with pytest.raises(LimitError, match="one uint16 of at least 1 per cell"):
            firmware.program(
                1, PulseBatch(Cells(lines, lines, lines), Operation.SET, lines + 1, firmware.capabilities.set_pulse)
            )
    assert firmware.last_op_id == 0


@pytest.mark.parametrize("dtype", [np.int16, np.int64, np.float32])
def test_cells_and_counts_of_another_type_are_refused(firmware: Firmware, dtype: type[np.generic]) -> None:
    other = CELLS.row.astype(dtype)
    with pytest.raises(LimitError, match=rf"are of types \('uint16', '{dtype.__name__}', 'uint16'\)"):
        firmware.read(1, Cells(CELLS.array, other, CELLS.column))
    with pytest.raises(LimitError, match=f"uint16 of at least 1 per cell; got {dtype.__name__}"):
        firmware.program(1, PulseBatch(CELLS, Operation.SET, np.ones(40, dtype), firmware.capabilities.set_pulse))
    assert firmware.last_op_id == 0


def test_cells_and_counts_in_strides_are_those_that_they_show(firmware: Firmware) -> None:
    wide = np.zeros((4, 80), np.uint16)
    lines = wide[:, ::2]
    lines[:] = CELLS.array, CELLS.row, CELLS.column, np.arange(1, 41)
    wide[:, 1::2] = 9  # what is not looked at
    before = firmware.chip.count("set_count").sum()
    cells = Cells(lines[0], lines[1], lines[2])
    receipt = firmware.program(1, PulseBatch(cells, Operation.SET, lines[3], firmware.capabilities.set_pulse))
    places = firmware.chip.locate(CELLS)
    assert receipt.done == 820
    assert firmware.chip.count("set_count")[places].tolist() == lines[3].tolist()
    assert firmware.chip.count("set_count").sum() == before + 820
    assert len(firmware.read(2, cells).codes) == 40


def test_a_reboot_in_mid_batch_leaves_its_first_cells_pulsed_and_the_operation_in_doubt(firmware: Firmware) -> None:
    before = firmware.read(1, CELLS).values()
    pulses = PulseBatch(CELLS, Operation.SET, np.full(40, 5, np.uint16), firmware.capabilities.set_pulse)
    with pytest.raises(CutShortError):
        firmware.program(2, pulses, power_fails_after=15)
    assert (firmware.boots, firmware.regions, firmware.grounded) == (2, {}, True)
    with pytest.raises(CutShortError):
        firmware.program(2, pulses)
    assert np.array_equal(firmware.read(3, CELLS).values() > before + 1e-6, np.arange(40) < 15)
