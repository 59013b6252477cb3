"""The chip: all cells and their counters, the converters, and device time."""

import numpy as np
from numba import njit

from hil.mock_hw import records
from hil.mock_hw.chips import ChipParameters
from hil.mock_hw.compiled import LINES, code_for
from hil.mock_hw.matrix import Matrix
from hil.mock_hw.normals import NormalSource
from hil.mock_hw.parameters import PcmParameters
from hil.mock_hw.pulses import (
    STUCK_HIGH,
    apply_reset,
    apply_set,
    apply_targets,
    draw_exponents,
    exponent,
    reset_level,
)
from hil.mock_hw.readout import read_cells
from hil.mock_hw.records import F32, I64, U16, Records
from hil.protocols.limits import outside_chip
from hil.protocols.messages import SET, Cells, Codes, Direction, PulseBatch, Region

PART = 1 << 20
"""Cells that are made at a time, so that a large chip needs no more memory than it keeps."""
NO_NORMALS = np.empty(0, np.float32)
PLACES = np.empty(0, np.int64)


class Chip:
    """A PCM chip with a seed: fabrication (spread, stuck cells, first RESET) and all later noise follow from it.

    Reads see the cells as they are when the operation begins; pulses of a batch count as applied when it ends.
    """

    def __init__(self, parameters: ChipParameters, seed: np.random.SeedSequence) -> None:
        fabrication, operation, noise = seed.spawn(3)
        self.parameters = parameters
        rng = np.random.default_rng(fabrication)
        count = parameters.arrays * parameters.rows * parameters.columns
        self.constants = records.constants(parameters.cell, int(noise.generate_state(1, np.uint64)[0]))
        self.cells = fabricate(parameters.cell, count, rng)
        self.step_scale = _spread(1.0, parameters.cell.step_spread, count, rng)
        self.nu = _exponents(parameters.cell, count, rng)
        self.carries = np.zeros(count, records.CARRY)
        self.row_reads = np.zeros((parameters.arrays, parameters.rows), np.uint64)
        self.column_reads = np.zeros((parameters.arrays, parameters.columns), np.uint64)
        self.normals = NormalSource(operation)
        self.now_ns = 0
        self._matrices: dict[int, Matrix] = {}
        state = self.cells, self.carries
        self._locate = code_for(_locate, LINES, LINES, LINES, 0, 0, 0, PLACES)
        self._set = code_for(apply_set, *state, self.step_scale, PLACES, LINES, 0, NO_NORMALS, self.constants)

    def locate(self, cells: Cells) -> I64:
        """Places in the state, (n,), of cells whose vectors were checked; raises `LimitError` for a cell that the chip
        does not have.
        """
        p = self.parameters
        flat = np.empty(len(cells.row), np.int64)
        bad = self._locate(cells.array, cells.row, cells.column, p.arrays, p.rows, p.columns, flat)
        if bad >= 0:
            raise outside_chip(p.capabilities(), cells, bad)
        return flat

    def advance(self, nanoseconds: int) -> None:
        """Let device time pass."""
        self.now_ns += nanoseconds

    def read(self, flat: I64) -> tuple[Codes, int]:
        """Codes (n,) of single cells, and how many met an end of the converter's range."""
        p = self.parameters
        codes: Codes = np.empty(len(flat), np.uint8 if p.adc_bits <= 8 else np.uint16)
        normals = self.normals.take(len(flat)) if p.cell.read_noise else NO_NORMALS
        saturated = read_cells(
            self.cells,
            self.carries,
            self.nu,
            flat,
            self.now_ns,
            normals,
            codes,
            self.read_step,
            self.read_offset,
            2**p.adc_bits - 1,
            self.constants,
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

    def program(self, pulses: PulseBatch, flat: I64, total: int) -> int:
        """Apply `total` pulses to the cells at `flat` (as `locate` gives it); returns how many met an end of the
        conductance range. The counts were checked.
        """
        p, saturated = self.parameters.cell, 0
        if p.inference:
            saturated = self._verify(pulses, flat)
        elif pulses.kind == SET:
            normals = self.normals.take(total) if p.programming_noise else NO_NORMALS
            saturated = self._set(
                self.cells, self.carries, self.step_scale, flat, pulses.counts, self.now_ns, normals, self.constants
            )
        else:
            normals = self.normals.take(len(flat)) if p.reset_noise else NO_NORMALS
            apply_reset(self.cells, self.carries, flat, pulses.counts, self.now_ns, normals, self.constants)
        for matrix in self._matrices.values():
            matrix.touch(pulses.cells)
        return saturated

    def _verify(self, pulses: PulseBatch, flat: I64) -> int:
        """Program and verify cells, and draw their drift exponents anew; as `program`."""
        p, saturated = self.parameters.cell, 0
        levels, exponents = np.split(self.normals.take(2 * len(flat)), 2)
        batch = self.cells, self.carries, flat, pulses.counts, self.now_ns
        if pulses.kind == SET:
            saturated = apply_targets(*batch, levels if p.programming_noise else NO_NORMALS, self.constants)
        else:
            apply_reset(*batch, levels if p.reset_noise else NO_NORMALS, self.constants)
        draw_exponents(self.cells, self.nu, flat, exponents, self.constants)
        return saturated

    def product(self, region: Region, direction: Direction, full_scale: float) -> "Product":
        """Products with a region in a direction, converted in a range of +-`full_scale` (A), until it is forgotten."""
        matrix = self._matrices.get(region.handle)
        if matrix is None:
            counts = self.row_reads, self.column_reads
            matrix = Matrix(region.blocks, self.parameters, self.cells, self.nu, self.constants, *counts)
            self._matrices[region.handle] = matrix
        return Product(self, matrix, direction, full_scale)

    def forget_regions(self) -> None:
        """Drop what is kept ready for products: the next firmware numbers its regions from 0 again."""
        self._matrices.clear()

    def forget_region(self, handle: int) -> None:
        """Drop what is kept ready for products with one region: it is to be another one."""
        self._matrices.pop(handle, None)

    def count(self, what: str, part: slice = slice(None)) -> I64:
        """How often each cell was pulsed or read: `set_count`, `reset_count` or `read_count`."""
        return self.cells[what][part] + np.int64(256) * self.carries[what][part]


class Product:
    """Products of a chip with a matrix, in one direction and converter range."""

    def __init__(self, chip: Chip, matrix: Matrix, direction: Direction, full_scale: float) -> None:
        p, c = chip.parameters, chip.parameters.capabilities()
        self._chip, self._normals = chip, chip.normals if p.cell.read_noise else None
        kernel, self._crossings, self._outputs = matrix.way(direction == Direction.FORWARD)
        self._dtype = np.dtype(np.int8 if p.adc_bits <= 8 else np.int16)
        self._volt = p.read_voltage / c.dac_top  # per DAC code
        self.step, self._top = full_scale / c.adc_top, c.adc_top
        """A per ADC code."""
        codes, out = np.empty((1, 1), c.dac_dtype), np.empty((1, 1), self._dtype)
        self._kernel = code_for(kernel, self._crossings, codes, 0, NO_NORMALS, 1.0, 1.0, 0, out)

    def multiply(self, codes: Codes) -> tuple[Codes, int]:
        """ADC codes (batch, outputs) for DAC codes (batch, inputs), and how many saturated. The DAC codes were checked:
        contiguous, of the type and the number that the region takes.
        """
        out: Codes = np.empty((len(codes), self._outputs), self._dtype)
        normals = self._normals.take(out.size) if self._normals else NO_NORMALS
        step, top = self.step, self._top
        return out, self._kernel(self._crossings, codes, self._chip.now_ns, normals, self._volt, step, top, out)


@njit(cache=True)
def _locate(array: U16, row: U16, column: U16, arrays: int, rows: int, columns: int, flat: I64) -> int:
    """Write each cell's place on the chip into `flat` (n,); returns the index of the first cell the chip does not have,
    or -1.
    """
    for i in range(flat.size):
        if array[i] >= arrays or row[i] >= rows or column[i] >= columns:
            return i
        flat[i] = (np.int64(array[i]) * rows + row[i]) * columns + column[i]
    return -1


def fabricate(p: PcmParameters, count: int, rng: np.random.Generator) -> Records:
    """The cells of a new chip, RESET once at time 0."""
    cells = np.zeros(count, records.CELL)
    parts = [slice(start, start + PART) for start in range(0, count, PART)]
    for part in parts:
        g = cells["conductance"][part]
        normal = rng.standard_normal(len(g), np.float32) * p.reset_noise  # drawn in any case: the rest stays the same
        g[:] = reset_level(normal, records.constants(p)[0])
    for part in parts if p.stuck_fraction else ():
        stuck = cells["stuck"][part]
        stuck[:] = rng.random(len(stuck)) < p.stuck_fraction
    stuck = np.flatnonzero(cells["stuck"])
    cells["conductance"][stuck] = np.where(rng.random(len(stuck)) < 0.5, p.g_min, STUCK_HIGH * p.g_max)
    return cells


def _exponents(p: PcmParameters, count: int, rng: np.random.Generator) -> F32:
    """Drift exponents after the first RESET: one for all cells, or one per cell."""
    if not p.inference:
        return _spread(p.nu, p.nu_spread if p.drift else 0.0, count, rng)
    exponents: F32 = exponent(0.0, rng.standard_normal(count, np.float32), records.constants(p)[0])
    return exponents.astype(np.float32)


def _spread(mean: float, fraction: float, count: int, rng: np.random.Generator) -> F32:
    """One value for all cells, or one per cell: normal about the mean and never negative."""
    if fraction == 0:
        return np.full(1, mean, np.float32)
    values: F32 = np.maximum(mean * (1 + fraction * rng.standard_normal(count, np.float32)), 0)
    return values
