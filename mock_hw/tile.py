"""One block of a region in the twin: weights and noise ready for products, drift evaluated when it has moved."""

import math

import numpy as np

from hil.mock_hw import physics, products
from hil.mock_hw.parameters import PcmParameters
from hil.protocols.messages import Block, Cells, Codes, Direction

DRIFT_BOUND = 0.015
"""Largest relative error of a conductance in a product that comes from evaluating drift late."""
OLDEST = 4e9
"""Age (s) beyond which drift is no longer followed: beyond the hundred years that a chip lives."""


def age_classes(nu: float, p: PcmParameters) -> physics.Records:
    """Classes in which G differs by no more than `DRIFT_BOUND` from its value at the middle age, for drift exponents up
    to `nu`.
    """
    if not p.drift or nu == 0:
        return np.array([(physics.NEVER, p.t0, 1.0, physics.NONE, physics.NONE)], physics.AGE_CLASS)
    ratio = (1 + DRIFT_BOUND) ** (2 / nu)
    count = max(1, math.ceil(math.log(OLDEST / p.t_min) / math.log(ratio)))
    classes = np.zeros(count, physics.AGE_CLASS)
    starts = p.t_min * ratio ** np.arange(count)
    classes["middle"] = starts * math.sqrt(ratio)
    classes["factor"] = physics.drift_factor(classes["middle"], p.nu, physics.constants(p)[0])
    classes["end_ns"] = np.append(np.rint(starts[1:] * 1e9), physics.NEVER)
    return classes


class Tile:
    """A block of a region on a chip with `rows` word lines and `columns` bit lines per array.

    `cells` are the chip's, `nu` their drift exponents; both are shared, not copied.
    """

    def __init__(
        self,
        block: Block,
        rows: int,
        columns: int,
        cells: physics.Records,
        nu: physics.F32,
        now_ns: int,
        p: PcmParameters,
    ) -> None:
        self.block = block
        self._drift = p.drift
        lines = block.columns if block.partners is None else np.stack([block.columns, block.partners], 1).ravel()
        flat = (int(block.array) * rows + block.rows.astype(np.int64)[:, None]) * columns + lines
        members = np.zeros(flat.size, physics.MEMBER)
        members["flat"] = flat.ravel()
        shape = (len(block.rows), len(block.columns))
        self.weight = np.zeros(shape, np.float32)
        self.variance = np.zeros(shape, np.float32)
        self._lists = (self.weight, self.variance, members, age_classes(float(nu.max()), p), cells, nu)
        self._row_of = _inverse(block.rows, rows)
        self._line_of = _inverse(lines, columns)
        self._constants = physics.constants(p)
        order = np.argsort(cells["pulsed_ns"][members["flat"]], kind="stable")
        physics.fill(*self._lists, order, now_ns, self._constants)
        self._due_ns = now_ns

    def touch(self, cells: Cells) -> None:
        """Take up cells that were just pulsed; those that are not on this tile are passed over."""
        where = (self._row_of, self._line_of, self.block.array)
        physics.touch(*self._lists, *where, cells.array, cells.row, cells.column, self._constants)
        self._due_ns = 0

    def follow_drift(self, now_ns: int) -> None:
        """Bring weights and variances to device time `now_ns`, within `DRIFT_BOUND`."""
        if self._drift and now_ns >= self._due_ns:
            self._due_ns = physics.age(*self._lists, now_ns, self._constants)

    def multiply(
        self,
        direction: Direction,
        codes: Codes,
        volt: float,
        normals: physics.F32,
        step: float,
        top: int,
        out: Codes,
        at: int,
    ) -> int:
        """Product of a batch into `out` from column `at` on (see `products`); returns the number of saturated codes."""
        if direction == Direction.FORWARD:
            first, kernel = self.block.row_offset, products.forward
        else:
            first, kernel = self.block.column_offset, products.backward
        return kernel(self.weight, self.variance, codes, first, volt, normals, step, top, out, at)


def _inverse(lines: physics.U16, count: int) -> physics.I32:
    inverse = np.full(count, physics.NONE, np.int32)
    inverse[lines] = np.arange(len(lines), dtype=np.int32)
    return inverse
