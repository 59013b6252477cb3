"""Where weights lie on a chip: which cells make a pair, which lines a block."""

from collections.abc import Iterator
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from hil.instruments.tester import ArrayTester
from hil.protocols.errors import InputError
from hil.protocols.messages import Block, Capabilities, Cells, MvmMode, Readout

BAD_LINE = 0.1
"""Fraction of stuck cells from which on an analog product avoids a line. CHOSEN."""

U16 = npt.NDArray[np.uint16]


@dataclass(frozen=True)
class Placement:
    """The devices of a (rows, columns) matrix, flat over (row, column), and their blocks (none on a serial chip)."""

    places: U16  # (3, 2 * rows * columns): array, row and column of each G+, then of each G-
    blocks: tuple[Block, ...]

    @property
    def plus(self) -> Cells:
        """The device that raises each weight (rows * columns,)."""
        return Cells(*self.places[:, : self.places.shape[1] // 2])

    @property
    def minus(self) -> Cells:
        """The device that lowers each weight (rows * columns,)."""
        return Cells(*self.places[:, self.places.shape[1] // 2 :])


class Floorplan:
    """Hands out a chip's cells: columns of its arrays from left to right, each to one matrix."""

    def __init__(self, capabilities: Capabilities) -> None:
        self._chip = capabilities
        self._next = [0] * capabilities.arrays
        self.stuck = np.zeros((capabilities.arrays, capabilities.rows, capabilities.columns), np.bool_)

    def avoid(self, stuck: Cells) -> None:
        """Take note of cells that no pulse changes; call it before anything is placed."""
        self.stuck[stuck.array, stuck.row, stuck.column] = True

    def place(self, rows: int, columns: int) -> Placement:
        """Devices for `rows` x `columns` weights; raises `InputError` if the chip has too few left."""
        before = list(self._next)
        try:
            if self._chip.mvm == MvmMode.NONE:
                return self._serial(rows, columns)
            blocks = tuple(self._blocks(rows, columns))
            return _placement(rows, columns, blocks, self._chip.readout)
        except InputError:
            self._next = before  # a smaller matrix may still fit
            raise

    def _serial(self, rows: int, columns: int) -> Placement:
        """Any cells do, in pairs; stuck ones are skipped."""
        needed, found = 2 * rows * columns, 0
        left = sum(int((~self.stuck[array, :, start:]).sum()) for array, start in enumerate(self._next))
        if left < needed:
            raise self._too_small(rows, columns, f"{needed} cells", f"{left} good ones left")
        places = np.empty((3, 2, rows * columns), np.uint16)
        for array in range(self._chip.arrays):
            missing = needed - found
            good = ~self.stuck[array, :, self._next[array] :].T  # (columns left, rows): column by column
            reach = np.cumsum(good.sum(1))
            width = min(int(np.searchsorted(reach, missing)) + 1, len(reach)) if missing else 0
            good, lines = good[:width], np.arange(self._next[array], self._next[array] + width, dtype=np.uint16)
            row = np.broadcast_to(np.arange(good.shape[1], dtype=np.uint16), good.shape)[good][:missing]
            column = np.broadcast_to(lines[:, None], good.shape)[good][:missing]
            for line, values in zip(places, (array, row, column), strict=True):
                line.T.flat[found : found + len(row)] = values  # G+ and G- of a weight are neighbours
            found += len(row)
            self._next[array] += width
        return Placement(places.reshape(3, -1), ())

    def _blocks(self, rows: int, columns: int) -> Iterator[Block]:
        """Chunks of rows that fit the word lines, each in as many column chunks as the arrays' free lines demand."""
        usable = min(len(self._good_rows(array)) for array in range(self._chip.arrays))
        for row_offset in range(0, rows, max(usable, 1)):
            height = min(usable, rows - row_offset)
            column_offset = 0
            while column_offset < columns:
                array = self._first_with_room()
                lines = self._free_columns(array)
                width = min(len(lines) // 2, columns - column_offset)
                if width == 0 or height == 0:
                    raise self._too_small(
                        rows, columns, f"{2 * columns} columns for each {usable} of its rows", "too few are left"
                    )
                used = lines[: 2 * width]
                self._next[array] = int(used[-1]) + 1
                yield self._block(array, self._good_rows(array)[:height], used, row_offset, column_offset)
                column_offset += width

    def _block(self, array: int, rows: U16, lines: U16, row_offset: int, column_offset: int) -> Block:
        if self._chip.readout == Readout.SINGLE:
            return Block(array, rows, lines, None, row_offset, 2 * column_offset)
        return Block(array, rows, lines[0::2].copy(), lines[1::2].copy(), row_offset, column_offset)

    def _first_with_room(self) -> int:
        room = [len(self._free_columns(array)) >= 2 for array in range(self._chip.arrays)]
        return room.index(True) if True in room else 0

    def _free_columns(self, array: int) -> U16:
        good = self.stuck[array].mean(0) < BAD_LINE
        good[: self._next[array]] = False
        return np.flatnonzero(good).astype(np.uint16)

    def _good_rows(self, array: int) -> U16:
        return np.flatnonzero(self.stuck[array].mean(1) < BAD_LINE).astype(np.uint16)

    def _too_small(self, rows: int, columns: int, needs: str, has: str) -> InputError:
        c = self._chip
        return InputError(
            f"the chip is too small: a {rows} x {columns} layer needs {needs}, {has} on {c.arrays} arrays "
            f"of {c.rows} x {c.columns}; use a chip with more or larger arrays, or a smaller network"
        )


def _placement(rows: int, columns: int, blocks: tuple[Block, ...], readout: Readout) -> Placement:
    """The pairs that blocks amount to."""
    places = np.zeros((3, 2, rows, columns), np.uint16)
    for block in blocks:
        single = readout == Readout.SINGLE
        up = block.columns[0::2] if single else block.columns
        down = block.columns[1::2] if block.partners is None else block.partners
        first = block.column_offset // 2 if single else block.column_offset
        part = np.s_[:, block.row_offset : block.row_offset + len(block.rows), first : first + len(up)]
        places[0][part] = block.array
        places[1][part] = block.rows[:, None]
        places[2][part] = np.stack([up, down])[:, None]
    return Placement(places.reshape(3, -1), blocks)


_FLOORPLANS: WeakKeyDictionary[ArrayTester, Floorplan] = WeakKeyDictionary()


def floorplan(tester: ArrayTester) -> Floorplan:
    """The floorplan of a tester: one for as long as it is open, so that all layers on it share it."""
    if tester not in _FLOORPLANS:
        _FLOORPLANS[tester] = Floorplan(tester.capabilities())
    return _FLOORPLANS[tester]
