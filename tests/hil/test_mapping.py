"""Weights find their cells: as many as needed, none twice, none that is stuck, in blocks that an array can multiply."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hil.instruments.tester import ArrayTester
from hil.mapping import Floorplan, Placement, floorplan
from hil.mock_hw.chips import CHIPS
from hil.protocols.errors import InputError
from hil.protocols.messages import Capabilities, Cells, MvmMode, Readout

Cell = tuple[int, int, int]  # array, row, column
DIFFERENTIAL, SINGLE, SERIAL = "differential", "single", "serial"
KINDS = {
    DIFFERENTIAL: {"mvm": MvmMode.ANALOG, "readout": Readout.DIFFERENTIAL},
    SINGLE: {"mvm": MvmMode.ANALOG, "readout": Readout.SINGLE},
    SERIAL: {"mvm": MvmMode.NONE, "readout": Readout.DIFFERENTIAL},
}


def chip(kind: str, arrays: int, rows: int, columns: int) -> Capabilities:
    """The capabilities of a chip of that geometry."""
    nominal = replace(CHIPS["ideal"], arrays=arrays, rows=rows, columns=columns).capabilities()
    return replace(nominal, **KINDS[kind])  # type: ignore[arg-type]


def cells_of(placement: Placement) -> list[Cell]:
    both = Cells.concatenate([placement.plus, placement.minus])
    return list(zip(both.array.tolist(), both.row.tolist(), both.column.tolist(), strict=True))


def crossings(placement: Placement, single: bool) -> dict[tuple[int, int], tuple[Cell, Cell]]:
    """The pair of cells that the blocks make of each weight."""
    pairs: dict[tuple[int, int], tuple[Cell, Cell]] = {}
    for block in placement.blocks:
        lines = block.columns.tolist()
        up, down = (lines[0::2], lines[1::2]) if single else (lines, [] if block.partners is None else block.partners)
        first = block.column_offset // 2 if single else block.column_offset
        for i, row in enumerate(block.rows.tolist()):
            for j, (plus, minus) in enumerate(zip(up, down, strict=True)):
                weight = (block.row_offset + i, first + j)
                assert weight not in pairs, "two blocks hold the same weight"
                pairs[weight] = ((block.array, row, plus), (block.array, row, int(minus)))
    return pairs


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, derandomize=True)
@given(
    geometry=st.tuples(st.integers(1, 4), st.integers(1, 20), st.integers(1, 20)),
    layers=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 12)), min_size=1, max_size=4),
    stuck=st.floats(0, 0.3),
    seed=st.integers(0, 100),
)
def test_no_cell_is_used_twice_and_every_weight_has_its_pair(
    kind: str, geometry: tuple[int, int, int], layers: list[tuple[int, int]], stuck: float, seed: int
) -> None:
    plan = Floorplan(chip(kind, *geometry))
    bad = np.random.default_rng(seed).random(geometry) < stuck
    plan.avoid(Cells.of(*np.nonzero(bad)))
    used: list[Cell] = []
    for rows, columns in layers:
        try:
            placement = plan.place(rows, columns)
        except InputError:
            continue
        cells = cells_of(placement)
        assert len(placement.plus) == len(placement.minus) == rows * columns
        assert all(array < geometry[0] and row < geometry[1] and column < geometry[2] for array, row, column in cells)
        if kind == SERIAL:
            assert not any(bad[cell] for cell in cells)
        else:
            found = crossings(placement, kind == SINGLE)
            expected = [found[divmod(n, columns)] for n in range(rows * columns)]
            assert cells == [plus for plus, _ in expected] + [minus for _, minus in expected]
        used += cells
    assert len(used) == len(set(used))


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_spans_arrays_when_one_is_too_small_for_it(kind: str) -> None:
    placement = Floorplan(chip(kind, 4, 16, 32)).place(30, 20)
    assert len(set(placement.plus.array.tolist())) > 1
    assert len(cells_of(placement)) == 2 * 30 * 20


def test_the_network_of_the_paper_fits_two_arrays_of_its_chip() -> None:
    for kind in KINDS:
        plan = Floorplan(chip(kind, 2, 512, 2048))
        first, second = plan.place(785, 250), plan.place(251, 10)
        assert len(set(cells_of(first) + cells_of(second))) == 397_520


def test_rows_beyond_the_word_lines_go_to_a_second_block() -> None:
    placement = Floorplan(chip(DIFFERENTIAL, 2, 512, 2048)).place(785, 250)
    assert [(block.row_offset, len(block.rows), len(block.columns)) for block in placement.blocks] == [
        (0, 512, 250),
        (512, 273, 250),
    ]


def test_a_serial_chip_needs_no_blocks() -> None:
    assert Floorplan(chip(SERIAL, 1, 8, 8)).place(4, 4).blocks == ()


def test_a_serial_chip_skips_stuck_cells_and_no_others() -> None:
    plan = Floorplan(chip(SERIAL, 1, 4, 3))
    plan.avoid(Cells.of(0, [0, 2], [0, 1]))
    placement = plan.place(5, 1)
    assert sorted(cells_of(placement)) == [
        (0, row, column) for row in range(4) for column in range(3) if (row, column) not in {(0, 0), (2, 1)}
    ]


@pytest.mark.parametrize("kind", [DIFFERENTIAL, SINGLE])
def test_an_analog_layer_avoids_lines_with_many_stuck_cells(kind: str) -> None:
    plan = Floorplan(chip(kind, 1, 20, 20))
    plan.avoid(Cells.of(0, np.repeat([3, 4], 5), np.tile(np.arange(0, 20, 4), 2)))  # two word lines, a quarter stuck
    plan.avoid(Cells.of(0, [5, 6, 7, 8], 7))  # a bit line, a fifth stuck
    placement = plan.place(18, 7)  # the stuck cells of the two word lines make five bit lines bad
    both = Cells.concatenate([placement.plus, placement.minus])
    assert not {3, 4} & set(both.row.tolist())
    assert 7 not in both.column.tolist()


@pytest.mark.parametrize("kind", [DIFFERENTIAL, SINGLE])
def test_an_analog_layer_keeps_lines_with_a_single_stuck_cell(kind: str) -> None:
    plan = Floorplan(chip(kind, 1, 20, 20))
    plan.avoid(Cells.of(0, 3, 3))
    assert (0, 3, 3) in cells_of(plan.place(20, 10))


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_too_large_is_refused_with_what_it_needs_and_what_there_is(kind: str) -> None:
    with pytest.raises(InputError, match=r"too small: a 100 x 100 layer needs .* 2 arrays of 16 x 32"):
        Floorplan(chip(kind, 2, 16, 32)).place(100, 100)


@pytest.mark.parametrize("kind", KINDS)
def test_a_refused_layer_takes_no_cells(kind: str) -> None:
    plan, untouched = (Floorplan(chip(kind, 2, 16, 32)) for _ in range(2))
    with pytest.raises(InputError):
        plan.place(100, 100)
    assert cells_of(plan.place(16, 32)) == cells_of(untouched.place(16, 32))


@pytest.mark.parametrize("kind", [DIFFERENTIAL, SINGLE])
def test_a_chip_without_a_good_word_line_is_too_small(kind: str) -> None:
    plan = Floorplan(chip(kind, 1, 4, 8))
    plan.stuck[:] = True
    with pytest.raises(InputError, match="too small"):
        plan.place(1, 1)


def test_all_layers_on_a_tester_share_its_floorplan(make_tester: Callable[..., ArrayTester]) -> None:
    tester, other = make_tester(), make_tester()
    assert floorplan(tester) is floorplan(tester)
    first, second = floorplan(tester).place(8, 8), floorplan(tester).place(8, 8)
    assert not set(cells_of(first)) & set(cells_of(second))
    assert cells_of(floorplan(other).place(8, 8)) == cells_of(first)
