"""The weights of a region in the twin, ready for products; drift is evaluated when it has moved."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numba import njit

from hil.mock_hw import readout, records
from hil.mock_hw.chips import ChipParameters
from hil.mock_hw.compiled import LINES, code_for
from hil.mock_hw.parameters import InferenceParameters, PcmParameters
from hil.mock_hw.records import F32, I32, I64, U16, U64, Records
from hil.protocols.messages import Block, Cells

DRIFT_BOUND = 0.015
"""Largest relative error of a conductance in a product that comes from evaluating drift late."""
YOUNGEST = 1e-6
"""Age (s) below which the growing read noise of an inference cell is not followed: no pulse and product are nearer."""
OLDEST = 4e9
"""Age (s) beyond which drift is no longer followed: beyond the hundred years that a chip lives."""

NONE = -1  # a line that is not in a block


def age_classes(nu: float, p: PcmParameters) -> tuple[I64, Records]:
    """Classes in which G differs by no more than `DRIFT_BOUND` from its value at the middle age, for drift exponents up
    to `nu`, or all that `inference` draws; before them, where to look for an age (see `readout.Crossings`).
    """
    youngest = p.t_min
    if p.inference:
        nu, youngest = InferenceParameters().steepest(), min(p.t_min, YOUNGEST)
    elif not p.drift or nu == 0:
        return np.zeros(64, np.int64), np.array([(readout.NEVER, p.t0, 1.0)], records.AGE_CLASS)
    ratio = (1 + DRIFT_BOUND) ** (2 / nu)
    count = max(1, math.ceil(math.log(OLDEST / youngest) / math.log(ratio)))
    starts = youngest * ratio ** np.arange(count)
    classes = np.empty(count, records.AGE_CLASS)
    classes["middle"] = starts * math.sqrt(ratio)
    classes["end"] = np.append(np.rint(starts[1:] * 1e9).astype(np.int64), readout.NEVER)
    classes["factor"] = readout.drift_factor(classes["middle"], p.nu, records.constants(p)[0])
    powers = 0.999 * 2.0 ** np.arange(64)  # a float may have been rounded up
    return np.searchsorted(classes["end"], powers, "right"), classes


class Matrix:
    """The crossings of a region's blocks, on a chip whose cells, drift exponents and counts of driven lines are shared,
    not copied. The weights are as of the last product that drove their word line.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        chip: ChipParameters,
        cells: Records,
        nu: F32,
        constants: Records,
        row_reads: U64,
        column_reads: U64,
    ) -> None:
        table = _table(blocks)
        self.rows, self.columns = int(table["rows"].sum()), int(table["columns"].sum())
        """Outputs of backward and of forward products."""
        word_lines = _word_lines(blocks, table, chip)
        count = int((word_lines["start"] + word_lines["columns"])[-1])
        self.weight, self.variance = np.zeros(count, np.float32), np.zeros(count, np.float32)
        groups = -(-int(word_lines["columns"].max()) // readout.GROUP)
        self.due = np.zeros((len(word_lines), 1 + groups), np.int64)
        """When word lines and groups are due (ns); see `readout.Crossings`."""
        self._together = readout.GROUP * (1 if blocks[0].partners is None else 2)  # devices
        self._places = _places(blocks, table, chip)
        self._touch = code_for(_touch, self.due, self._places, self._together, LINES, LINES, LINES)
        kept = (self.weight, self.variance, self.due, *age_classes(float(nu.max()), chip.cell), word_lines, table)
        lines = _bit_lines(blocks)
        self._forward = (*kept, lines, row_reads, cells, nu, constants)
        self._backward = (*kept, lines, column_reads, cells, nu, constants)

    def touch(self, cells: Cells) -> None:
        """Take up cells that were just pulsed; those that are not in the matrix are passed over."""
        self._touch(self.due, self._places, self._together, cells.array, cells.row, cells.column)

    def way(self, forward: bool) -> tuple[Callable[..., int], readout.Crossings, int]:
        """For products in one direction: the kernel, the first of its arguments, and how many outputs there are."""
        if forward:
            return readout.forward, self._forward, self.columns
        return readout.backward, self._backward, self.rows


@njit(cache=True)
def _touch(due: I64, places: tuple[I32, I32, I32], devices: int, arrays: U16, rows: U16, columns: U16) -> None:
    """Make those cells of a batch due that are in the matrix, because they were just pulsed.

    `places` are the blocks on each array, (arrays, most) or NONE, and for each block its word line in the matrix on
    each word line of the array, and its device on each bit line, or NONE. So many `devices` are due together.
    """
    blocks, row_of, device_of = places
    for n in range(rows.size):
        for block in blocks[arrays[n]]:
            if block == NONE or row_of[block, rows[n]] == NONE or device_of[block, columns[n]] == NONE:
                continue
            r = row_of[block, rows[n]]
            due[r, 0] = due[r, 1 + device_of[block, columns[n]] // devices] = 0


def _table(blocks: Sequence[Block]) -> Records:
    """The blocks one after the other: where their crossings, word lines and bit lines begin."""
    entries = []
    start = rows = lines = 0
    for block in blocks:
        devices = 1 if block.partners is None else 2
        sizes = (len(block.rows), len(block.columns), devices)
        entries.append((start, rows, lines, *sizes, block.array, block.row_offset, block.column_offset))
        start += len(block.rows) * len(block.columns)
        rows += len(block.rows)
        lines += devices * len(block.columns)
    return np.array(entries, records.BLOCK)


def _bit_lines(blocks: Sequence[Block]) -> U16:
    """The bit lines of all devices, the two of a pair side by side."""
    pairs = [
        block.columns if block.partners is None else np.stack([block.columns, block.partners], 1) for block in blocks
    ]
    return np.concatenate([lines.ravel() for lines in pairs])


def _word_lines(blocks: Sequence[Block], table: Records, chip: ChipParameters) -> Records:
    """The word lines of all blocks."""
    word_lines = np.zeros(int(table["rows"].sum()), records.WORD_LINE)
    for entry, block in zip(table, blocks, strict=True):
        part = word_lines[entry["first_row"] :][: len(block.rows)]
        part["base"] = (int(block.array) * chip.rows + block.rows.astype(np.int64)) * chip.columns
        part["start"] = entry["start"] + np.arange(len(block.rows)) * len(block.columns)
        part["lines"], part["columns"] = entry["first_line"], len(block.columns)
        part["devices"], part["number"] = entry["devices"], block.rows
    return word_lines


def _places(blocks: Sequence[Block], table: Records, chip: ChipParameters) -> tuple[I32, I32, I32]:
    """Where a cell of the chip is in the matrix: see `_touch`."""
    on_array = [np.flatnonzero(table["array"] == array) for array in range(chip.arrays)]
    names = np.full((chip.arrays, max(map(len, on_array))), NONE, np.int32)
    row_of = np.full((len(blocks), chip.rows), NONE, np.int32)
    device_of = np.full((len(blocks), chip.columns), NONE, np.int32)
    for array, numbers in enumerate(on_array):
        names[array, : len(numbers)] = numbers
    for number, (entry, block) in enumerate(zip(table, blocks, strict=True)):
        lines = _bit_lines([block])
        row_of[number, block.rows] = entry["first_row"] + np.arange(len(block.rows))
        device_of[number, lines] = np.arange(len(lines))
    return names, row_of, device_of
