"""The chip: all cells and their counters, the converters, and device time."""

import numpy as np

from hil.mock_hw import physics, products
from hil.mock_hw.chips import ChipParameters
from hil.mock_hw.normals import NormalSource
from hil.mock_hw.parameters import PcmParameters
from hil.mock_hw.tile import Tile
from hil.protocols.limits import outside_chip
from hil.protocols.messages import Cells, Codes, Direction, Operation, PulseBatch, Region

STUCK_HIGH = 0.8
"""Conductance of a cell stuck in the SET state over `g_max`. CHOSEN."""
NO_NORMALS = np.empty(0, np.float32)


class Chip:
    """A PCM chip with a seed: fabrication (spread, stuck cells, first RESET) and all later noise follow from it.

    Reads see the cells as they are when the operation begins; pulses of a batch count as applied when it ends.
    """

    def __init__(self, parameters: ChipParameters, seed: np.random.SeedSequence) -> None:
        fabrication, operation = seed.spawn(2)
        self.parameters = parameters
        rng = np.random.default_rng(fabrication)
        count = parameters.arrays * parameters.rows * parameters.columns
        self.cells = fabricate(parameters.cell, count, rng)
        self.step_scale = _spread(1.0, parameters.cell.step_spread, count, rng)
        self.nu = _spread(parameters.cell.nu, parameters.cell.nu_spread if parameters.cell.drift else 0.0, count, rng)
        self._constants = physics.constants(parameters.cell)
        self.row_reads = np.zeros((parameters.arrays, parameters.rows), np.uint64)
        self.column_reads = np.zeros((parameters.arrays, parameters.columns), np.uint64)
        self.normals = NormalSource(operation)
        self.now_ns = 0
        self._tiles: dict[int, list[Tile]] = {}

    def locate(self, cells: Cells) -> physics.I64:
        """Places of cells in the state, (n,); raises `LimitError` for a cell that the chip does not have."""
        p = self.parameters
        flat = np.empty(len(cells), np.int64)
        bad = physics.locate(cells.array, cells.row, cells.column, p.arrays, p.rows, p.columns, flat)
        if bad >= 0:
            raise outside_chip(p.capabilities(), cells, bad)
        return flat

    def advance(self, nanoseconds: int) -> None:
        """Let device time pass."""
        self.now_ns += nanoseconds

    def read(self, flat: physics.I64) -> tuple[Codes, int]:
        """Codes (n,) of single cells, and how many met an end of the converter's range."""
        p = self.parameters
        codes: Codes = np.empty(len(flat), np.uint8 if p.adc_bits <= 8 else np.uint16)
        normals = self.normals.take(len(flat)) if p.cell.read_noise else NO_NORMALS
        saturated = physics.read_cells(
            self.cells,
            self.nu,
            flat,
            self.now_ns,
            normals,
            codes,
            self.read_step,
            self.read_offset,
            2**p.adc_bits - 1,
            self._constants,
        )
        return codes, saturated

    @property
    def read_step(self) -> float:
        """S per code of a cell read."""
        return float(self.parameters.read_span / 2**self.parameters.adc_bits)

    @property
    def read_offset(self) -> int:
        """Code of a cell read at 0 S."""
        return round(-self.parameters.read_floor / self.read_step)

    def program(self, pulses: PulseBatch, flat: physics.I64) -> int:
        """Apply pulses; returns how many met an end of the conductance range."""
        p, saturated = self.parameters.cell, 0
        if pulses.kind == Operation.SET:
            normals = self.normals.take(int(pulses.counts.sum())) if p.programming_noise else NO_NORMALS
            saturated = physics.apply_set(
                self.cells, self.step_scale, flat, pulses.counts, self.now_ns, normals, self._constants
            )
        else:
            normals = self.normals.take(len(flat)) if p.reset_noise else NO_NORMALS
            physics.apply_reset(self.cells, flat, pulses.counts, self.now_ns, normals, self._constants)
        for tiles in self._tiles.values():
            for tile in tiles:
                tile.touch(pulses.cells)
        return saturated

    def multiply(self, region: Region, codes: Codes, direction: Direction, full_scale: float) -> tuple[Codes, int]:
        """Product of DAC codes (batch, inputs) to ADC codes (batch, outputs) of +-`full_scale` (A), and how many
        saturated.
        """
        capabilities = self.parameters
        top = 2 ** (capabilities.adc_bits - 1) - 1
        volt = capabilities.read_voltage / (2 ** (capabilities.dac_bits - 1) - 1)
        shape = (len(codes), region.outputs(direction))
        out = np.empty(shape, np.int8 if capabilities.adc_bits <= 8 else np.int16)
        normals = self.normals.take(shape[0] * shape[1]) if capabilities.cell.read_noise else NO_NORMALS
        normals = normals.reshape(-1, shape[1])
        saturated = at = 0
        for tile in self._tiles_of(region):
            tile.follow_drift(self.now_ns)
            saturated += tile.multiply(direction, codes, volt, normals, full_scale / top, top, out, at)
            block = tile.block
            if direction == Direction.FORWARD:
                products.count_reads(codes, block.row_offset, block.rows, self.row_reads[block.array])
                at += len(block.columns)
            else:
                for lines in (block.columns, block.partners):
                    if lines is not None:
                        products.count_reads(codes, block.column_offset, lines, self.column_reads[block.array])
                at += len(block.rows)
        return out, saturated

    def forget_regions(self) -> None:
        """Drop what is kept ready for products: the next firmware numbers its regions from 0 again."""
        self._tiles.clear()

    def forget_region(self, handle: int) -> None:
        """Drop what is kept ready for products with one region: it is to be another one."""
        self._tiles.pop(handle, None)

    def _tiles_of(self, region: Region) -> list[Tile]:
        if region.handle not in self._tiles:
            p = self.parameters
            self._tiles[region.handle] = [
                Tile(block, p.rows, p.columns, self.cells, self.nu, self.now_ns, p.cell) for block in region.blocks
            ]
        return self._tiles[region.handle]


def fabricate(p: PcmParameters, count: int, rng: np.random.Generator) -> physics.Records:
    """The cells of a new chip, RESET once at time 0."""
    cells = np.zeros(count, physics.CELL)
    normal = rng.standard_normal(count, np.float32) * p.reset_noise  # drawn in any case: what follows stays the same
    cells["conductance"] = physics.reset_level(normal, physics.constants(p)[0])
    if p.stuck_fraction:
        cells["stuck"] = rng.random(count) < p.stuck_fraction
        stuck = np.flatnonzero(cells["stuck"])
        cells["conductance"][stuck] = np.where(rng.random(len(stuck)) < 0.5, p.g_min, STUCK_HIGH * p.g_max)
    return cells


def _spread(mean: float, fraction: float, count: int, rng: np.random.Generator) -> physics.F32:
    """One value for all cells, or one per cell: normal about the mean and never negative."""
    if fraction == 0:
        return np.full(1, mean, np.float32)
    values: physics.F32 = np.maximum(mean * (1 + fraction * rng.standard_normal(count, np.float32)), 0)
    return values
