"""Refuse what a tester cannot do, by its capabilities, before anything is sent: every check raises `LimitError`."""

from collections.abc import Sequence

import numpy as np

from hil.protocols.errors import LimitError
from hil.protocols.messages import (
    RESET,
    SET,
    Block,
    Capabilities,
    Cells,
    Direction,
    MvmMode,
    PulseBatch,
    PulseShape,
    Readout,
    Region,
    Vectors,
)

LINE = np.dtype(np.uint16)
"""Of numbers of arrays, rows and columns, and of pulses."""


def check_batch(capabilities: Capabilities, count: int, what: str) -> None:
    """The size of a batch."""
    if not 0 < count <= capabilities.largest_batch:
        raise LimitError(f"a batch of {count} {what} is outside 1 to {capabilities.largest_batch}")


def check_cell_count(capabilities: Capabilities, cells: Cells) -> None:
    """The size of a batch of cells, and that its index vectors are equally long, of unsigned 16-bit numbers."""
    array, row, column = cells.array, cells.row, cells.column
    if row.ndim != 1 or not array.shape == row.shape == column.shape:
        sizes = (array.shape, row.shape, column.shape)
        raise LimitError(f"arrays, rows and columns of cells have shapes {sizes}; they must be equally long vectors")
    if not array.dtype == row.dtype == column.dtype == LINE:
        types = (array.dtype.name, row.dtype.name, column.dtype.name)
        raise LimitError(f"arrays, rows and columns of cells are of types {types}: Cells.of makes them of integers")
    check_batch(capabilities, len(row), "cells")


def check_cells(capabilities: Capabilities, cells: Cells) -> None:
    """Cells to be read or pulsed."""
    c = capabilities
    check_cell_count(c, cells)
    outside = (cells.array >= c.arrays) | (cells.row >= c.rows) | (cells.column >= c.columns)
    if outside.any():
        raise outside_chip(c, cells, int(outside.argmax()))


def outside_chip(c: Capabilities, cells: Cells, index: int) -> LimitError:
    """The error for a cell that the chip does not have."""
    where = (int(cells.array[index]), int(cells.row[index]), int(cells.column[index]))
    size = f"{c.arrays} x {c.rows} x {c.columns}"
    return LimitError(f"cell {where} (array, row, column) is outside the chip of {size}")


def no_parallel_update() -> LimitError:
    """The error for an update on an array that cannot do any."""
    return LimitError("this array has no parallel update (capabilities: parallel_update is false)")


def check_registered(regions: Sequence[Region], region: Region) -> None:
    """That a region is one of a tester's, which stand at the place of their handle."""
    if region.handle >= len(regions) or regions[region.handle] is not region:
        raise LimitError(f"region {region.handle} is not registered here")


def check_vectors(c: Capabilities, region: Region, vectors: Vectors, direction: Direction, gain: int) -> None:
    """Vectors for a product, but for the range of their codes: see `check_codes`."""
    expected, shape = region.inputs(direction), vectors.codes.shape
    if len(shape) != 2 or shape[1] != expected:
        way = direction.name.lower()
        raise LimitError(f"codes of shape {shape}: region {region.handle} takes (batch, {expected}) {way}")
    check_batch(c, shape[0], "vectors")
    if not 0 <= gain < len(c.mvm_ranges):
        raise LimitError(f"gain {gain} is outside 0 to {len(c.mvm_ranges) - 1}")
    if vectors.codes.dtype.kind != "i":
        raise LimitError(f"DAC codes must be signed integers, not {vectors.codes.dtype}")


def check_codes(capabilities: Capabilities, top: int) -> None:
    """The largest magnitude among DAC codes."""
    if top > capabilities.dac_top:
        raise LimitError(f"DAC code {top} is outside +-{capabilities.dac_top} ({capabilities.dac_bits} bits)")


def check_blocks(c: Capabilities, blocks: Sequence[Block]) -> None:
    """The blocks of a region."""
    if c.mvm == MvmMode.NONE:
        raise LimitError("this array does no matrix-vector products (mvm: none): read its cells instead")
    if not blocks:
        raise LimitError("a region needs at least one block")
    for block in blocks:
        _check_block(c, block)


def _check_block(c: Capabilities, block: Block) -> None:
    partners = np.empty(0, np.uint16) if block.partners is None else block.partners
    if (block.partners is None) != (c.readout == Readout.SINGLE):
        need = "no" if block.partners is not None else "a"
        raise LimitError(f"readout is {c.readout}: a block needs {need} partner line per column")
    if block.partners is not None and len(partners) != len(block.columns):
        raise LimitError(f"{len(block.columns)} columns have {len(partners)} partner lines")
    lines = np.concatenate([block.columns, partners])
    for name, index, count in (("row", block.rows, c.rows), ("column", lines, c.columns)):
        if not len(index) or index.max() >= count or len(np.unique(index)) != len(index):
            raise LimitError(f"a block's {name}s must be different lines from 0 to {count - 1}, at least one")
    if not 0 <= block.array < c.arrays:
        raise LimitError(f"array {block.array} is outside 0 to {c.arrays - 1}")
    if block.row_offset < 0 or block.column_offset < 0:
        raise LimitError(f"a block's offsets {block.row_offset} and {block.column_offset} must not be negative")


def check_pulses(capabilities: Capabilities, pulses: PulseBatch) -> None:
    """Kind, counts and shape of pulses; their cells: see `check_cells`."""
    if pulses.kind not in (SET, RESET):
        raise LimitError(f"pulses are SET or RESET, not {pulses.kind!r}")
    counts = pulses.counts
    if (
        counts.ndim != 1
        or counts.shape != pulses.cells.row.shape
        or counts.dtype != LINE
        or np.count_nonzero(counts) < counts.size
    ):
        got = f"{counts.dtype} {counts.shape}"
        raise LimitError(f"pulse counts must be one uint16 of at least 1 per cell; got {got}")
    _check_shape(capabilities, pulses.shape)


def _check_shape(capabilities: Capabilities, shape: PulseShape) -> None:
    limits = capabilities.pulse_limits
    if not 0 < shape.amplitude <= limits.amplitude_max:
        raise LimitError(f"pulse amplitude {shape.amplitude:g} is outside 0 to {limits.amplitude_max:g} A")
    if not limits.width_min <= shape.width <= limits.width_max:
        raise LimitError(f"pulse width {shape.width:g} s is outside {limits.width_min:g} to {limits.width_max:g} s")


def check_wait(seconds: float, longest: float = float("inf")) -> None:
    """A time to be waited (s)."""
    if not (0 <= seconds <= longest and seconds < float("inf")):
        raise LimitError(f"wait of {seconds} s is outside 0 to {longest:g} s")
