"""Random numbers that are a function of what they are for, so that they need no memory.

Other files compile these into their own kernels, whose copies the compiler's cache does not renew: never change them.
"""

from typing import Any

import numpy as np
from numba import njit

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@njit(cache=True)
def hashed(state: Any, number: Any) -> Any:
    """64 bits that follow from 64 bits and a number: SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    x = state + GOLDEN * (np.uint64(number) + np.uint64(1))
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@njit(cache=True)
def normal_of(bits: Any) -> Any:
    """A standard normal made of 64 bits, by Box and Muller's method."""
    u, v = np.float64(bits >> np.uint64(32)) + 0.5, np.float64(bits & np.uint64(0xFFFFFFFF))
    return np.sqrt(-2 * np.log(u * 2.0**-32)) * np.cos(2 * np.pi * 2.0**-32 * v)
