"""Compile what a chip's operations need before a host waits for them: the first time takes seconds."""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from hil.mock_hw.array import Chip
from hil.mock_hw.chips import ChipParameters
from hil.mock_hw.firmware import Firmware
from hil.protocols.messages import Block, Cells, Direction, MvmMode, Operation, PulseBatch, Readout, Region, Vectors


def rehearse(parameters: ChipParameters) -> None:
    """Do every operation once, on a small chip of this kind that is thrown away.

    With arrays that cannot be written to, as they come from a wire: for others, numba makes other code of some kernels.
    """
    firmware = Firmware(Chip(replace(parameters, arrays=1, rows=2, columns=4), np.random.SeedSequence(0)))
    c, counts = firmware.capabilities, _fixed(np.ones(2, np.uint16))
    cells = Cells(_fixed(np.zeros(2, np.uint16)), counts, counts)
    if c.mvm == MvmMode.ANALOG:
        lines = np.arange(2, dtype=np.uint16)
        partners = None if c.readout == Readout.SINGLE else lines + np.uint16(2)
        firmware.define(Region(0, (Block(0, lines, lines, partners, 0, 0),)))
        vectors = Vectors(_fixed(np.ones((1, 2), c.dac_dtype)), np.ones(1, np.float32))
        for direction in Direction:
            firmware.mvm(firmware.last_op_id + 1, 0, vectors, direction, 0)
    for kind, shape in ((Operation.SET, c.set_pulse), (Operation.RESET, c.reset_pulse)):
        firmware.program(firmware.last_op_id + 1, PulseBatch(cells, kind, counts, shape))
    firmware.read(firmware.last_op_id + 1, cells)


def _fixed(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    values.setflags(write=False)
    return values
