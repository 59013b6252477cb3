"""One block of a region as the twin keeps it: weights and noise ready for products, drift evaluated when it has moved."""

import math

import numpy as np

from hil.mock_hw import physics, products
from hil.mock_hw.parameters import PcmParameters
from hil.protocols.messages import Block, Codes, Direction

DRIFT_BOUND = 0.015
"""Largest relative error of a conductance in a product that comes from evaluating drift late."""
OLDEST = 1e10
"""Age (s) beyond which drift is no longer followed: 300 years."""


def age_classes(nu: float, p: PcmParameters) -> tuple[physics.I64, physics.F64]:
    """Bounds (ns) and middles (s) of age classes in which G changes by no more than `DRIFT_BOUND` from the middle, for exponents up to `nu`."""
    if not p.drift or nu == 0:
        return np.array([0, np.iinfo(np.int64).max // 2]), np.array([p.t0])
    ratio = (1 + DRIFT_BOUND) ** (2 / nu)
    count = max(1, math.ceil(math.log(OLDEST / p.t_min) / math.log(ratio)))
    starts = p.t_min * ratio ** np.arange(count)
    bounds = np.append(np.rint(starts * 1e9).astype(np.int64), np.iinfo(np.int64).max // 2)
    bounds[0] = 0
    return bounds, starts * math.sqrt(ratio)


class Tile:
    """A block of a region on a chip whose cells are in `cells`, with `columns` bit lines per array of `rows` word lines."""

    def __init__(self, block: Block, rows: int, columns: int, cells: physics.CellState, now_ns: int, p: PcmParameters) -> None:
        self.block = block
        self._cells = cells
        self._p = p
        lines = block.columns if block.partners is None else np.stack([block.columns, block.partners], 1).ravel()
        flat = (int(block.array) * rows + block.rows.astype(np.int64)[:, None]) * columns + lines
        bounds, middle = age_classes(float(cells.nu.max()), p)
        self._state = physics.TileState(
            weight=np.zeros((len(block.rows), len(block.columns)), np.float32),
            variance=np.zeros((len(block.rows), len(block.columns)), np.float32),
            flat=flat.ravel(),
            row_of=_inverse(block.rows, rows),
            line_of=_inverse(lines, columns),
            age_class=np.zeros(flat.size, np.int16),
            following=np.zeros(flat.size, np.int32),
            preceding=np.zeros(flat.size, np.int32),
            head=np.zeros(len(middle), np.int32),
            tail=np.zeros(len(middle), np.int32),
            bounds=bounds,
            middle=middle,
        )
        order = np.argsort(cells.pulsed_ns[flat.ravel()], kind="stable")
        physics.fill(self._state, cells, order, now_ns, p)
        self._due_ns = now_ns

    def touch(self, cells: physics.CellIndex) -> None:
        """Take up cells that were just pulsed; those that are not on this tile are passed over."""
        physics.touch(self._state, self._cells, cells, self.block.array, self._p)
        self._due_ns = 0

    def multiply(
        self, direction: Direction, now_ns: int, codes: Codes, volt: float, normals: physics.F32, step: float, top: int, out: Codes, at: int
    ) -> int:
        """Product of a batch into `out` from column `at` on (see `products`); returns the number of saturated codes."""
        if self._p.drift and now_ns >= self._due_ns:
            self._due_ns = physics.age(self._state, self._cells, now_ns, self._p)
        weight, variance = self._state.weight, self._state.variance
        if direction == Direction.FORWARD:
            return products.forward(weight, variance, codes, self.block.row_offset, volt, normals, step, top, out, at)
        return products.backward(weight, variance, codes, self.block.column_offset, volt, normals, step, top, out, at)


def _inverse(lines: physics.U16, count: int) -> physics.I32:
    inverse = np.full(count, physics.NONE, np.int32)
    inverse[lines] = np.arange(len(lines), dtype=np.int32)
    return inverse
