"""Cells of a chip: chosen by a text such as `0:0-99:0-99`, and as a run file keeps them."""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from hil.protocols.errors import InputError
from hil.protocols.messages import Capabilities, Cells

if TYPE_CHECKING:  # they bring what `hil characterize --help` does without
    from hil.data.columns import Values
    from hil.data.run import Run
    from hil.loop import Log

FORM = "write ARRAY:ROWS:COLUMNS, such as 0:0-99:0-99 or 1:7:12, several separated by commas, or all"

Index = npt.NDArray[np.int64]


def parse_cells(text: str, capabilities: Capabilities) -> Cells:
    """The cells, part after part, each row after row.

    Raises `InputError` for what is malformed, outside the chip, empty or named twice.
    """
    c = capabilities
    shape = c.arrays, c.rows, c.columns
    parts = [_part(part.strip(), shape) for part in _parts(text, shape)]
    flat = np.concatenate([np.ravel_multi_index(np.meshgrid(*part, indexing="ij"), shape).ravel() for part in parts])
    cells = Cells.of(*np.unravel_index(flat, shape))
    _check_once(text, flat, cells)
    return cells


def flat_of(cells: Cells, capabilities: Capabilities) -> Index:
    """The number of each cell on the chip (n,): (array * rows + row) * columns + column."""
    shape = capabilities.arrays, capabilities.rows, capabilities.columns
    return np.asarray(np.ravel_multi_index((cells.array, cells.row, cells.column), shape), np.int64)


def keep_cells(log: "Log", name: str, cells: Cells) -> None:
    """Write down cells as a snapshot."""
    arrays: dict[str, Values] = {"array": cells.array, "row": cells.row, "column": cells.column}
    log.snapshot(name, arrays, dict.fromkeys(arrays, ""))


def kept_cells(run: "Run", name: str) -> Cells:
    """The cells that `keep_cells` wrote down. Raises `InputError` where the run has none of this name."""
    arrays = run.snapshot(name).arrays
    return Cells(arrays["array"], arrays["row"], arrays["column"])


def _parts(text: str, shape: tuple[int, int, int]) -> list[str]:
    if text.strip() == "all":
        return [":".join(f"0-{size - 1}" for size in shape)]
    return text.split(",")


def _part(text: str, shape: tuple[int, int, int]) -> tuple[Index, Index, Index]:
    ranges = text.split(":")
    if len(ranges) != 3:
        raise InputError(f"cells {text!r}: {FORM}")
    array, rows, columns = _lines(text, ranges, shape)
    return array, rows, columns


def _lines(text: str, ranges: list[str], shape: tuple[int, int, int]) -> Iterator[Index]:
    for name, lines, size in zip(("array", "row", "column"), ranges, shape, strict=True):
        match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", lines, re.ASCII)
        if match is None:
            raise InputError(f"cells {text!r}: {lines!r} is no {name} and no range of them; {FORM}")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise InputError(f"cells {text!r}: {lines} is empty; write the smaller {name} first")
        if last >= size:
            raise InputError(f"cells {text!r}: {name} {last} is outside 0 to {size - 1}")
        yield np.arange(first, last + 1)


def _check_once(text: str, flat: Index, cells: Cells) -> None:
    unique, first = np.unique(flat, return_index=True)
    if len(unique) < len(flat):
        again = int(np.setdiff1d(np.arange(len(flat)), first)[0])
        where = f"{cells.array[again]}:{cells.row[again]}:{cells.column[again]}"
        raise InputError(f"cells {text!r}: cell {where} is named twice; name each once")
