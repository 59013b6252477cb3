"""Compiled kernels without numba's look at the types of arguments, which takes longer than many a kernel."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import typeof

LINES = np.empty(4, np.uint16)[::2]
"""What a vector of lines or counts looks like; it has strides, so that those that come may have any."""


def code_for(kernel: Any, *arguments: Any) -> Callable[..., Any]:
    """The machine code of a kernel for arguments of the types of these.

    It believes that all arguments have these types: an array of another type, number of dimensions or layout would be
    misread, or worse. So it is called only with arrays that were just made, or looked at. A contiguous example stands
    for contiguous arrays only, one in strides for all; arrays that cannot be written to may come where none is written.
    """
    code: Callable[..., Any] = kernel.compile(tuple(map(typeof, arguments)))
    return code
