"""The weights of a region in the twin, ready for products; drift is evaluated when it has moved."""

import math
from collections.abc import Sequence

import numpy as np
from numba import njit

from hil.mock_hw import physics, products, records
from hil.mock_hw.chips import ChipParameters
from hil.mock_hw.parameters import InferenceParameters, PcmParameters
from hil.protocols.messages import Block, Cells, Codes

DRIFT_BOUND = 0.015
"""Largest relative error of a conductance in a product that comes from evaluating drift late."""
YOUNGEST = 1e-6
"""Age (s) below which the growing read noise of an inference cell is not followed: no pulse and product are nearer."""
OLDEST = 4e9
"""Age (s) beyond which drift is no longer followed: beyond the hundred years that a chip lives."""

NONE = -1  # a line that is not in a block
ALL: Codes = np.empty((0, 0), np.int8)
"""Stands for codes that drive all word lines."""


def age_classes(nu: float, p: PcmParameters) -> physics.AgeClasses:
    """Classes in which G differs by no more than `DRIFT_BOUND` from its value at the middle age, for drift exponents up
    to `nu`, or all that `inference` draws.
    """
    youngest = p.t_min
    if p.inference:
        nu, youngest = InferenceParameters().steepest(), min(p.t_min, YOUNGEST)
    elif not p.drift or nu == 0:
        return np.zeros(64, np.int64), np.array([physics.NEVER]), np.array([p.t0]), np.ones(1)
    ratio = (1 + DRIFT_BOUND) ** (2 / nu)
    count = max(1, math.ceil(math.log(OLDEST / youngest) / math.log(ratio)))
    starts = youngest * ratio ** np.arange(count)
    middles = starts * math.sqrt(ratio)
    ends_ns = np.append(np.rint(starts[1:] * 1e9).astype(np.int64), physics.NEVER)
    lookup = np.searchsorted(ends_ns, 0.999 * 2.0 ** np.arange(64), "right")  # a float may have been rounded up
    return lookup, ends_ns, middles, physics.drift_factor(middles, p.nu, records.constants(p)[0])


class Matrix:
    """The crossings of a region's blocks, on a chip whose cells and drift exponents are shared, not copied. The weights
    are as of the last product that drove their word line, or the last `follow_drift`.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        chip: ChipParameters,
        cells: records.Records,
        nu: physics.F32,
        constants: records.Records,
    ) -> None:
        self._blocks = _table(blocks)
        self.rows, self.columns = int(self._blocks["rows"].sum()), int(self._blocks["columns"].sum())
        """Outputs of backward and of forward products."""
        self._row_lines, self._column_lines = np.concatenate([block.rows for block in blocks]), _bit_lines(blocks)
        word_lines = _word_lines(blocks, self._blocks, chip)
        count = int((word_lines["start"] + word_lines["columns"])[-1])
        self.weight, self.variance = np.zeros(count, np.float32), np.zeros(count, np.float32)
        classes = age_classes(float(nu.max()), chip.cell)
        self._crossings = (self.weight, self.variance, classes, word_lines, self._column_lines, cells, nu)
        self._devices = 1 if blocks[0].partners is None else 2
        groups = -(-int(word_lines["columns"].max()) // physics.GROUP)
        self._due = (np.zeros((len(word_lines), groups), np.int64), np.zeros(len(word_lines), np.int64))
        self._due_ns = 0
        self._places = _places(blocks, self._blocks, chip)
        self._constants = constants

    def touch(self, cells: Cells) -> None:
        """Take up cells that were just pulsed; those that are not in the matrix are passed over."""
        if _touch(self._due, self._places, self._devices * physics.GROUP, cells.array, cells.row, cells.column):
            self._due_ns = 0

    def follow_drift(self, now_ns: int, codes: Codes = ALL) -> None:
        """Bring weights and variances to device time `now_ns`, within `DRIFT_BOUND`: all, or those on word lines that
        forward `codes` (batch, inputs) drive.
        """
        if now_ns >= self._due_ns:
            self._due_ns = physics.age(self._crossings, self._due, self._devices, codes, now_ns, self._constants)

    def multiply(
        self,
        forward: bool,
        codes: Codes,
        now_ns: int,
        volt: float,
        normals: physics.F32,
        step: float,
        top: int,
        out: Codes,
        reads: products.U64,
    ) -> int:
        """Product of a batch at device time `now_ns` into `out` (see `products`), counted in `reads` of the lines that
        it drives; returns the number of saturated codes.
        """
        self.follow_drift(now_ns, codes if forward else ALL)
        kernel, lines = (products.forward, self._row_lines) if forward else (products.backward, self._column_lines)
        return kernel(self.weight, self.variance, self._blocks, lines, codes, volt, normals, step, top, out, reads)


@njit(cache=True)
def _touch(
    due: tuple[physics.I64, physics.I64],
    places: tuple[physics.I32, physics.I32, physics.I32],
    devices: int,
    arrays: physics.U16,
    rows: physics.U16,
    columns: physics.U16,
) -> bool:
    """Make those cells of a batch due that are in the matrix, because they were just pulsed; False if there are none.

    `places` are the blocks on each array, (arrays, most) or NONE, and for each block its word line in the matrix on
    each word line of the array, and its device on each bit line, or NONE. So many `devices` are due together.
    """
    group_due, line_due = due
    blocks, row_of, device_of = places
    found = False
    for n in range(rows.size):
        for block in blocks[arrays[n]]:
            if block == NONE or row_of[block, rows[n]] == NONE or device_of[block, columns[n]] == NONE:
                continue
            r = row_of[block, rows[n]]
            group_due[r, device_of[block, columns[n]] // devices] = 0
            line_due[r] = 0
            found = True
    return found


def _table(blocks: Sequence[Block]) -> records.Records:
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
    return np.array(entries, products.BLOCK)


def _bit_lines(blocks: Sequence[Block]) -> physics.U16:
    """The bit lines of all devices, the two of a pair side by side."""
    pairs = [
        block.columns if block.partners is None else np.stack([block.columns, block.partners], 1) for block in blocks
    ]
    return np.concatenate([lines.ravel() for lines in pairs])


def _word_lines(blocks: Sequence[Block], table: records.Records, chip: ChipParameters) -> records.Records:
    """The word lines of all blocks."""
    word_lines = np.zeros(int(table["rows"].sum()), records.WORD_LINE)
    for entry, block in zip(table, blocks, strict=True):
        part = word_lines[entry["first_row"] :][: len(block.rows)]
        part["base"] = (int(block.array) * chip.rows + block.rows.astype(np.int64)) * chip.columns
        part["start"] = entry["start"] + np.arange(len(block.rows)) * len(block.columns)
        part["lines"], part["columns"] = entry["first_line"], len(block.columns)
        part["input"] = block.row_offset + np.arange(len(block.rows))
    return word_lines


def _places(
    blocks: Sequence[Block], table: records.Records, chip: ChipParameters
) -> tuple[physics.I32, physics.I32, physics.I32]:
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
