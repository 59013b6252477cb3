"""Standard normals, drawn in blocks from a seeded generator, for kernels that cannot draw their own."""

from typing import Any

import numpy as np
import numpy.typing as npt

BLOCK = 1 << 13
"""Normals that are drawn at a time: few enough to stay in a fast cache."""


class NormalSource:
    """Hands out float32 standard normals; the same requests after the same seed give the same values."""

    def __init__(self, seed: np.random.SeedSequence) -> None:
        self._generator = np.random.Generator(np.random.SFC64(seed))
        self._before: dict[str, Any] = dict(self._generator.bit_generator.state)
        self._memory = np.empty(0, np.float32)
        self._block = self._memory
        self._position = 0

    def take(self, count: int) -> npt.NDArray[np.float32]:
        """The next `count` normals, shape (count,), to be used before the next call. What is left of a block too short
        is discarded.
        """
        end = self._position + count
        if end > len(self._block):
            self._before = dict(self._generator.bit_generator.state)
            self._draw(max(BLOCK, count))
            self._position, end = 0, count
        taken = self._block[self._position : end]
        self._position = end
        return taken

    def state(self) -> dict[str, Any]:
        """All that is needed to go on drawing from here: JSON-able but for the generator's integer arrays."""
        return {"generator": self._before, "drawn": len(self._block), "position": self._position}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from where `state()` was taken."""
        self._before = dict(state["generator"])
        self._generator.bit_generator.state = self._before
        self._draw(state["drawn"])
        self._position = state["position"]

    def _draw(self, count: int) -> None:
        """The next block, in memory that is used again: fresh memory costs more than the normals."""
        if len(self._memory) < count:
            self._memory = np.empty(count, np.float32)
        self._block = self._memory[:count]
        self._generator.standard_normal(out=self._block, dtype=np.float32)
