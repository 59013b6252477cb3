"""Cells are chosen by a text; what names none, or others than the chip has, is refused in one line."""

from collections.abc import Callable

import numpy as np
import pytest

from hil.cells import flat_of, parse_cells
from hil.instruments.tester import ArrayTester
from hil.protocols.errors import InputError
from hil.protocols.messages import Capabilities
from hil.stuck import all_cells


@pytest.fixture
def chip(make_tester: Callable[..., ArrayTester]) -> Capabilities:
    return make_tester(arrays=2, rows=20, columns=30).capabilities()


def places(text: str, chip: Capabilities) -> list[tuple[int, int, int]]:
    cells = parse_cells(text, chip)
    return list(zip(cells.array.tolist(), cells.row.tolist(), cells.column.tolist(), strict=True))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0:3:8", [(0, 3, 8)]),
        ("1:3-4:8-9", [(1, 3, 8), (1, 3, 9), (1, 4, 8), (1, 4, 9)]),
        ("0-1:0:29", [(0, 0, 29), (1, 0, 29)]),
        ("1:5:5, 0:19:7", [(1, 5, 5), (0, 19, 7)]),
    ],
)
def test_parts_come_in_their_order_row_after_row(
    text: str, expected: list[tuple[int, int, int]], chip: Capabilities
) -> None:
    assert places(text, chip) == expected


def test_all_is_every_cell(make_tester: Callable[..., ArrayTester], chip: Capabilities) -> None:
    every = all_cells(make_tester(arrays=2, rows=20, columns=30))
    np.testing.assert_array_equal(flat_of(parse_cells("all", chip), chip), flat_of(every, chip))
    np.testing.assert_array_equal(flat_of(every, chip), np.arange(1200))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "write ARRAY:ROWS:COLUMNS"),
        ("0:1", "write ARRAY:ROWS:COLUMNS"),
        ("0:1:2:3", "write ARRAY:ROWS:COLUMNS"),
        ("0:a:2", "'a' is no row"),
        ("0:1--3:2", "'1--3' is no row"),
        ("0:-1:2", "'-1' is no row"),
        ("0::2", "'' is no row"),
        ("0:1:5-3", "5-3 is empty"),
        ("2:0:0", "array 2 is outside 0 to 1"),
        ("0:0-20:0", "row 20 is outside 0 to 19"),
        ("0:0:30", "column 30 is outside 0 to 29"),
        ("0:0:9999999999", "is no column"),
        ("0:0-5:0,0:5:0", "cell 0:5:0 is named twice"),
        ("all,0:0:0", "write ARRAY:ROWS:COLUMNS"),
    ],
)
def test_what_cannot_be_chosen_is_refused(text: str, says: str, chip: Capabilities) -> None:
    with pytest.raises(InputError, match=says) as refused:
        parse_cells(text, chip)
    assert "\n" not in str(refused.value)
