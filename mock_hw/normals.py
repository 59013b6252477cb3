"""Standard normals, drawn in blocks from a seeded generator, for kernels that cannot draw their own.

Method: the ziggurat of G. Marsaglia and W. W. Tsang, J. Stat. Softw. 5(8) (2000), with separate bits for the layer, the
sign and the place within the layer (J. A. Doornik, 2005). It takes a third of the time of numpy's, and the words come
from the generator SFC64, whose stream numpy promises to keep.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
U64 = npt.NDArray[np.uint64]

BLOCK = 1 << 13
"""Normals that are drawn at a time: few enough to stay in a fast cache."""
LAYERS = 256
TAIL = 3.6541528853610088
"""Where the tail begins with so many layers (Marsaglia and Tsang 2000)."""
SPARE = 64
"""Words that a block has to spare, with one in 32 for those normals that take more than one word."""


def _edges() -> F64:
    """The right ends of the layers, from the lowest one to 0 (LAYERS + 1,): all have the area of the lowest."""
    area = TAIL * math.exp(-(TAIL**2) / 2) + math.sqrt(math.pi / 2) * math.erfc(TAIL / math.sqrt(2))
    edges = [area / math.exp(-(TAIL**2) / 2), TAIL]
    while len(edges) < LAYERS:
        edges.append(math.sqrt(-2 * math.log(area / edges[-1] + math.exp(-(edges[-1] ** 2) / 2))))
    return np.array([*edges, 0.0])


EDGES = _edges()
HEIGHTS = np.exp(-(EDGES**2) / 2)


@njit(inline="always")
def next_word(state: U64) -> np.uint64:
    """The next raw word of the generator SFC64 (C. Doty-Humphrey, PractRand 0.94, 2018), as numpy's makes it."""
    a, b, c, number = state
    word = a + b + number
    state[0] = b ^ (b >> np.uint64(11))
    state[1] = c + (c << np.uint64(3))
    state[2] = ((c << np.uint64(24)) | (c >> np.uint64(40))) + word
    state[3] = number + np.uint64(1)
    return word  # type: ignore[no-any-return]


@njit(inline="always")
def uniform(word: np.uint64) -> float:
    """Of the upper 53 bits, from 0 to below 1."""
    return np.float64(np.int64(word >> np.uint64(11))) * 2.0**-53


@njit(cache=True)
def ziggurat(state: U64, edges: F64, heights: F64, out: F32) -> None:
    """Fill `out` with normals, drawing words from the state (4,) of an SFC64."""
    for n in range(out.size):
        while True:
            word = next_word(state)
            layer = np.int64(word & np.uint64(255))
            x = uniform(word) * edges[layer]
            if x < edges[layer + 1]:  # under the layer above, where all belongs to the density
                break
            if layer == 0:
                beyond, limit = 1.0, 0.0
                while limit <= beyond * beyond:
                    beyond = -np.log1p(-uniform(next_word(state))) / TAIL
                    limit = -2 * np.log1p(-uniform(next_word(state)))
                x = TAIL + beyond
                break
            height = heights[layer] + uniform(next_word(state)) * (heights[layer + 1] - heights[layer])
            if height < np.exp(-x * x / 2):
                break
        out[n] = -x if word & np.uint64(256) else x


@njit(cache=True)
def skip_to(number: np.uint64, state: U64) -> None:
    """Draw until so many words have been drawn."""
    while state[3] < number:
        next_word(state)


class NormalSource:
    """Hands out float32 standard normals; the same requests after the same seed give the same values."""

    def __init__(self, seed: np.random.SeedSequence) -> None:
        self._bits = np.random.SFC64(seed)
        self._before: dict[str, Any] = dict(self._bits.state)
        self._memory = np.empty(0, np.float32)
        self._block = self._memory
        self._position = 0

    def take(self, count: int) -> F32:
        """The next `count` normals, shape (count,), to be used before the next call. What is left of a block too short
        is discarded.
        """
        end = self._position + count
        if end > len(self._block):
            self._before = dict(self._bits.state)
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
        self._bits.state = state["generator"]
        self._block = self._memory[:0]
        if state["drawn"]:
            self._draw(state["drawn"])
        self._position = state["position"]

    def _draw(self, count: int) -> None:
        """The next block, in memory that is used again: fresh memory costs more than the normals.

        It takes a number of words that only depends on its length; those that it does not need are skipped.
        """
        if len(self._memory) < count:
            self._memory = np.empty(count, np.float32)
        self._block = self._memory[:count]
        generator = self._bits.state
        words = generator["state"]["state"]
        stop = words[3] + np.uint64(count + SPARE + count // 32)
        ziggurat(words, EDGES, HEIGHTS, self._block)
        skip_to(stop, words)
        self._bits.state = generator
