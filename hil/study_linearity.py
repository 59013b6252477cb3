"""The study `linearity`: products with a single driven word line, over all DAC codes, against reads of the cells."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from hil.desk import Desk
from hil.protocols.errors import InputError
from hil.protocols.messages import (
    Block,
    Capabilities,
    Cells,
    Direction,
    MvmMode,
    Operation,
    PulseBatch,
    Readout,
    Vectors,
)

CODES = 17
"""DAC codes of the ramp, evenly spaced, among them 0. CHOSEN."""
MARGIN = 3.0
"""Full scale of the converter over the mean current of a cell at the largest code, at least. CHOSEN: the programming
noise of the 2018 model reaches 2.5 times the mean once in 10,000 cells."""


def linearity(desk: Desk) -> None:
    """The cells of a grid are SET (of a pair of bit lines, the first), read, and then multiplied line by line.

    Where the tester does not multiply, the offset of the reads of RESET cells is all there is, and a finding says so.
    """
    s, c = desk.settings, desk.capabilities
    if c.mvm == MvmMode.NONE:
        desk.bench.find("this tester does not multiply: linearity is the offset of reads of RESET cells, no more")
    blocks = [] if c.mvm == MvmMode.NONE else list(grids(desk.cells, c))
    desk.reset("writing")
    if blocks:
        counts = np.full(sum(block.rows.size * block.columns.size for block in blocks), s.pulses, np.uint16)
        desk.program("writing", PulseBatch(driven_cells(blocks), Operation.SET, counts, c.set_pulse))
    desk.wait("writing", s.interval)
    desk.measure("reading", cycle=0, pulses=s.pulses if blocks else 0, age=s.interval)
    for block in blocks:
        _multiply(desk, block)


def _multiply(desk: Desk, block: Block) -> None:
    """Drive each word line of a grid by itself."""
    s, c = desk.settings, desk.capabilities
    region = desk.tester.register([block])
    codes = np.tile(ramp(c), s.reads)
    scale = np.full(len(codes), c.read_voltage / c.dac_top, np.float32)
    for line in range(len(block.rows)):
        vectors = np.zeros((len(codes), len(block.rows)), c.dac_dtype)
        vectors[:, line] = codes
        what = f"line {line + 1} of {len(block.rows)}, array {block.array}"
        desk.step(what)
        first = desk.log.operations
        desk.tester.mvm(region, Vectors(vectors, scale), Direction.FORWARD, _gain(c, s.pulses))
        desk.measured(line + 1, s.pulses, s.interval, first, len(block.columns))


def ramp(c: Capabilities) -> npt.NDArray[np.int64]:
    """DAC codes from the most negative to the largest; 0 and the largest where inputs are on or off."""
    if c.mvm == MvmMode.BINARY:
        return np.array([0, c.dac_top])
    return np.unique(np.rint(np.linspace(-c.dac_top, c.dac_top, CODES)).astype(np.int64))


def grids(cells: Cells, c: Capabilities) -> Iterator[Block]:
    """The word lines and bit lines of the cells on each array; with differential readout, bit lines make pairs.

    Raises `InputError` where cells of a line are missing: a product reads them all.
    """
    for array in np.unique(cells.array):
        here = cells[cells.array == array]
        rows, columns = np.unique(here.row), np.unique(here.column)
        if len(here) != len(rows) * len(columns):
            raise InputError(
                f"linearity drives whole lines, and the cells on array {array} are no rectangle: "
                "choose some such as 0:0-31:0-31"
            )
        if c.readout == Readout.SINGLE:
            yield Block(int(array), rows, columns, None, 0, 0)
            continue
        pairs = len(columns) // 2
        if not pairs:
            raise InputError(
                f"linearity: bit lines are read in pairs, and the cells on array {array} lie on one: choose two columns"
            )
        yield Block(int(array), rows, columns[0 : 2 * pairs : 2], columns[1 : 2 * pairs : 2], 0, 0)


def driven_cells(blocks: list[Block]) -> Cells:
    """The crossings of the lines of blocks, without partners."""
    return Cells.concatenate([crossings(block, block.columns) for block in blocks])


def crossings(block: Block, columns: npt.NDArray[np.uint16]) -> Cells:
    """The crossings of a block's word lines with bit lines, row after row."""
    row, column = (lines.ravel() for lines in np.meshgrid(block.rows, columns, indexing="ij"))
    return Cells.of(block.array, row, column)


def _gain(c: Capabilities, pulses: int) -> int:
    """The finest range of the converter that holds the current of a cell after so many pulses."""
    level = c.staircase[min(pulses, len(c.staircase) - 1)] if c.staircase else np.inf
    fitting = [gain for gain, top in enumerate(c.mvm_ranges) if top >= MARGIN * level * c.read_voltage]
    return fitting[0] if fitting else len(c.mvm_ranges) - 1
